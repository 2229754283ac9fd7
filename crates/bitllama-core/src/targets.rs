//! Formats of other programs as schemes: `gguf:q4_0` in a bit plan is the grid of that type, so that an export of what was trained
//! on it only repacks codes and scales.
//!
//! A target is a list of quantizers. The first one is the format's own grid; the others are for matrices whose columns are no
//! whole number of its blocks, and have types of their own in the same file. A matrix that none fits stays in full precision.

use crate::quantizer::Method;
use crate::{Granularity, Quantizer, ScaleFormat, Scheme};

/// A format of other programs.
#[derive(Debug, PartialEq)]
pub struct Target {
    /// Name in recipes and on command lines.
    pub name: &'static str,
    /// Its grid, then grids for matrices that it does not fit, each with the default method.
    pub quantizers: &'static [Quantizer],
}

/// The types of GGUF files that have a scale in half precision per block and nothing else.
///
/// Blocks and codes are those of ggml's `ggml-common.h` and `ggml-quants.c`. `gguf:q2_0` has the codes -1 to 2; with scales of the
/// opposite sign these are the codes of `int2`.
pub static ALL: [Target; 20] = [
    Target {
        name: "gguf:q1_0",
        quantizers: &[grid(Scheme::Binary, 128), grid(Scheme::Int2, 64), grid(Scheme::Int4, 32)],
    },
    Target { name: "gguf:tq1_0", quantizers: TERNARY },
    Target { name: "gguf:tq2_0", quantizers: TERNARY },
    Target { name: "gguf:q2_0", quantizers: &[grid(Scheme::Int2, 64), grid(Scheme::Int4, 32)] },
    Target { name: "gguf:q4_0", quantizers: &[grid(Scheme::Int4, 32)] },
    Target { name: "gguf:iq4_nl", quantizers: &[grid(Scheme::Iq4, 32)] },
    Target { name: "gguf:q5_0", quantizers: &[grid(Scheme::Int5, 32)] },
    Target { name: "gguf:q8_0", quantizers: &[grid(Scheme::Int8, 32)] },
    // Directories of packed weights: symmetric codes in the largest groups that readers have.
    Target { name: "compressed-tensors:int4", quantizers: &groups_to_128(Scheme::Int4) },
    Target { name: "compressed-tensors:int8", quantizers: &groups_to_128(Scheme::Int8) },
    Target { name: "gptq:int2", quantizers: &groups_to_128(Scheme::Int2) },
    Target { name: "gptq:int3", quantizers: &groups_to_128(Scheme::Int3) },
    Target { name: "gptq:int4", quantizers: &groups_to_128(Scheme::Int4) },
    Target { name: "gptq:int8", quantizers: &groups_to_128(Scheme::Int8) },
    Target { name: "mlx:int2", quantizers: &groups_to_64(Scheme::Int2) },
    Target { name: "mlx:int3", quantizers: &groups_to_64(Scheme::Int3) },
    Target { name: "mlx:int4", quantizers: &groups_to_64(Scheme::Int4) },
    Target { name: "mlx:int6", quantizers: &groups_to_64(Scheme::Int6) },
    Target { name: "mlx:int8", quantizers: &groups_to_64(Scheme::Int8) },
    Target { name: "bitnet:i2_s", quantizers: &[grid(Scheme::Ternary, 32).with_granularity(Granularity::Tensor)] },
];

/// Groups of 128 columns, else of 64 or 32.
const fn groups_to_128(scheme: Scheme) -> [Quantizer; 3] {
    [grid(scheme, 128), grid(scheme, 64), grid(scheme, 32)]
}

/// Groups of 64 columns, MLX's default, else of 32.
const fn groups_to_64(scheme: Scheme) -> [Quantizer; 2] {
    [grid(scheme, 64), grid(scheme, 32)]
}

/// Ternary blocks of 256 columns, else in `Q2_0` or `Q4_0`, which hold the same codes.
const TERNARY: &[Quantizer] = &[grid(Scheme::Ternary, 256), grid(Scheme::Ternary, 64), grid(Scheme::Ternary, 32)];

/// Codes of a scheme with a scale in half precision for so many columns.
const fn grid(scheme: Scheme, columns: usize) -> Quantizer {
    Quantizer {
        scheme,
        method: scheme.description().methods[0],
        granularity: Granularity::Group(columns),
        zero_point: false,
        scales: ScaleFormat::F16,
    }
}

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Option<&'static Target> {
        ALL.iter().find(|target| target.name == name)
    }

    /// The quantizer of a matrix `[rows, columns]`: the first one whose groups divide its columns, if one does. A quantizer that does
    /// not support `method` takes its own: one that trains scales in place of such a one.
    pub fn quantizer(&self, method: Method, shape: [usize; 2]) -> Option<Quantizer> {
        let quantizer = *self.quantizers.iter().find(|quantizer| quantizer.check_shape(shape).is_ok())?;
        Some(match (method.takes(quantizer.scheme), method.trains_scales()) {
            (true, _) => quantizer.with_method(method),
            (false, true) => quantizer.with_method(quantizer.scheme.description().trained_method),
            (false, false) => quantizer,
        })
    }
}

/// The names of all targets, for help and error messages: `gguf:q1_0, gguf:tq1_0, ...`.
pub fn names() -> String {
    ALL.iter().map(|target| target.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_are_quantizers_and_names_are_their_own() {
        for target in &ALL {
            assert!(std::ptr::eq(Target::named(target.name).unwrap(), target));
            assert!(target.quantizers.iter().all(|quantizer| quantizer.check().is_ok()), "{}", target.name);
        }
        assert_eq!(Target::named("gguf:q9_0"), None);
    }

    #[test]
    fn grids_of_directories_have_the_groups_of_their_readers() {
        let of = |name: &str, columns| {
            let found = Target::named(name).unwrap().quantizer(Method::Minmax, [4, columns])?;
            assert_eq!(found.scales, ScaleFormat::F16);
            Some((found.scheme, found.granularity))
        };
        assert_eq!(of("gptq:int3", 256), Some((Scheme::Int3, Granularity::Group(128))));
        assert_eq!(of("compressed-tensors:int4", 576), Some((Scheme::Int4, Granularity::Group(64))));
        assert_eq!(of("mlx:int6", 256), Some((Scheme::Int6, Granularity::Group(64))));
        assert_eq!(of("mlx:int6", 96), Some((Scheme::Int6, Granularity::Group(32))));
        assert_eq!(of("gptq:int4", 100), None);
        assert_eq!(of("bitnet:i2_s", 100), Some((Scheme::Ternary, Granularity::Tensor)));
    }

    #[test]
    fn matrices_of_other_columns_take_the_next_grid() {
        let target = Target::named("gguf:q1_0").unwrap();
        let of = |method, columns| {
            let found = target.quantizer(method, [4, columns]).unwrap();
            (found.scheme, found.method, found.granularity)
        };
        assert_eq!(of(Method::Elastic, 256), (Scheme::Binary, Method::Elastic, Granularity::Group(128)));
        assert_eq!(of(Method::Elastic, 576), (Scheme::Int2, Method::Lsq, Granularity::Group(64)));
        assert_eq!(of(Method::Absmean, 96), (Scheme::Int4, Method::Minmax, Granularity::Group(32)));
        assert_eq!(target.quantizer(Method::Absmean, [4, 100]), None);
    }
}
