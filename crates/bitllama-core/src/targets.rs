//! Formats of other programs as schemes: `gguf:q4_0` in a bit plan is the grid of that type, so that an export of what was trained
//! on it only repacks codes and scales.
//!
//! A target is a list of quantizers. The first one is the format's own grid; the others are for matrices whose columns are no
//! whole number of its blocks, and have types of their own in the same file. A matrix that none fits stays in full precision.
//!
//! Targets such as `gguf:q4_k_m` are [mixes](crate::mixes) of others: which one a matrix gets depends on its place in the model.

use crate::mixes::{self, Mix};
use crate::quantizer::Method;
use crate::scales::Nesting;
use crate::weights::WeightSpec;
use crate::{Granularity, ModelConfig, Offset, Quantizer, ScaleFormat, Scheme};

/// A format of other programs.
#[derive(Debug)]
pub struct Target {
    /// Name in recipes and on command lines.
    pub name: &'static str,
    /// Its grid, then grids for matrices that it does not fit, each with the default method. Those of most matrices, for a mix.
    pub quantizers: &'static [Quantizer],
    /// The choice of another target for some matrices, for a mix.
    pub mix: Option<Mix>,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Types of GGUF files, and mixes of them.
///
/// Blocks and codes are those of ggml's `ggml-common.h` and `ggml-quants.c`. `gguf:q2_0` has the codes -1 to 2; with scales of the
/// opposite sign these are the codes of `int2`. Types for columns that are no whole blocks are those of llama.cpp's
/// `llama-quant.cpp`.
pub static ALL: [Target; 35] = [
    of("gguf:q1_0", &[grid(Scheme::Binary, 128), grid(Scheme::Int2, 64), grid(Scheme::Int4, 32)]),
    of("gguf:tq1_0", TERNARY),
    of("gguf:tq2_0", TERNARY),
    of("gguf:q2_0", &[grid(Scheme::Int2, 64), grid(Scheme::Int4, 32)]),
    of("gguf:q4_0", &[grid(Scheme::Int4, 32)]),
    of("gguf:q4_1", &[Q4_1]),
    of("gguf:iq4_nl", &[grid(Scheme::Iq4, 32)]),
    of("gguf:q5_0", &[grid(Scheme::Int5, 32)]),
    of("gguf:q5_1", &[Q5_1]),
    of("gguf:q8_0", &[grid(Scheme::Int8, 32)]),
    of("gguf:q2_k", Q2_K),
    of("gguf:q3_k", Q3_K),
    of("gguf:q4_k", Q4_K),
    of("gguf:q5_k", Q5_K),
    of("gguf:q6_k", Q6_K),
    mix("gguf:q2_k_s", Q2_K, mixes::q2_k_s),
    mix("gguf:q3_k_s", Q3_K, mixes::q3_k_s),
    mix("gguf:q3_k_m", Q3_K, mixes::q3_k_m),
    mix("gguf:q3_k_l", Q3_K, mixes::q3_k_l),
    mix("gguf:q4_k_s", Q4_K, mixes::q4_k_s),
    mix("gguf:q4_k_m", Q4_K, mixes::q4_k_m),
    mix("gguf:q5_k_s", Q5_K, mixes::q5_k_s),
    mix("gguf:q5_k_m", Q5_K, mixes::q5_k_m),
    // Directories of packed weights: symmetric codes in the largest groups that readers have.
    of("compressed-tensors:int4", &groups_to_128(Scheme::Int4)),
    of("compressed-tensors:int8", &groups_to_128(Scheme::Int8)),
    of("gptq:int2", &groups_to_128(Scheme::Int2)),
    of("gptq:int3", &groups_to_128(Scheme::Int3)),
    of("gptq:int4", &groups_to_128(Scheme::Int4)),
    of("gptq:int8", &groups_to_128(Scheme::Int8)),
    of("mlx:int2", &groups_to_64(Scheme::Int2)),
    of("mlx:int3", &groups_to_64(Scheme::Int3)),
    of("mlx:int4", &groups_to_64(Scheme::Int4)),
    of("mlx:int6", &groups_to_64(Scheme::Int6)),
    of("mlx:int8", &groups_to_64(Scheme::Int8)),
    of("bitnet:i2_s", &[grid(Scheme::Ternary, 32).with_granularity(Granularity::Tensor)]),
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

const Q4_1: Quantizer = Quantizer { offset: Offset::Minimum, ..grid(Scheme::Int4, 32) };
const Q5_1: Quantizer = Quantizer { offset: Offset::Minimum, ..grid(Scheme::Int5, 32) };
const Q2_K: &[Quantizer] = &[nested(Scheme::Int2, 16, 4, Offset::Minimum), grid(Scheme::Iq4, 32)];
const Q3_K: &[Quantizer] = &[nested(Scheme::Int3, 16, 6, Offset::None), grid(Scheme::Iq4, 32)];
const Q4_K: &[Quantizer] = &[nested(Scheme::Int4, 32, 6, Offset::Minimum), grid(Scheme::Int5, 32)];
const Q5_K: &[Quantizer] = &[nested(Scheme::Int5, 32, 6, Offset::Minimum), Q5_1];
const Q6_K: &[Quantizer] = &[nested(Scheme::Int6, 16, 8, Offset::None), grid(Scheme::Int8, 32)];

const fn of(name: &'static str, quantizers: &'static [Quantizer]) -> Target {
    Target { name, quantizers, mix: None }
}

const fn mix(name: &'static str, quantizers: &'static [Quantizer], mix: Mix) -> Target {
    Target { name, quantizers, mix: Some(mix) }
}

/// Codes of a scheme with a scale in half precision for so many columns.
const fn grid(scheme: Scheme, columns: usize) -> Quantizer {
    Quantizer {
        scheme,
        method: scheme.description().methods[0],
        granularity: Granularity::Group(columns),
        offset: Offset::None,
        scales: ScaleFormat::F16,
    }
}

/// Codes of a scheme with scales of so many `bits` for so many columns, which are multiples of a factor per 256 columns. Scales
/// without minimums have a sign.
const fn nested(scheme: Scheme, columns: usize, bits: usize, offset: Offset) -> Quantizer {
    let nesting = Nesting { groups: 256 / columns, bits, signed: matches!(offset, Offset::None) };
    Quantizer { offset, scales: ScaleFormat::Nested(nesting), ..grid(scheme, columns) }
}

impl Target {
    /// The target of a name.
    pub fn named(name: &str) -> Option<&'static Target> {
        ALL.iter().find(|target| target.name == name)
    }

    /// The target of one matrix of a model: another one than this where it is a mix that chooses so.
    pub fn chosen(&'static self, config: &ModelConfig, weight: &WeightSpec) -> &'static Target {
        let name = self.mix.and_then(|mix| mixes::choice(mix, config, weight));
        name.and_then(Target::named).unwrap_or(self)
    }

    /// The quantizer of a matrix `[rows, columns]`: the first one whose groups divide its columns, if one does. A quantizer that does
    /// not support `method` takes its own: one that trains scales in place of such a one.
    pub fn quantizer(&self, method: Method, shape: [usize; 2]) -> Option<Quantizer> {
        let quantizer = *self.quantizers.iter().find(|quantizer| quantizer.check_shape(shape).is_ok())?;
        let wished = quantizer.with_method(method);
        Some(match (wished.check().is_ok(), method.trains_scales()) {
            (true, _) => wished,
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
