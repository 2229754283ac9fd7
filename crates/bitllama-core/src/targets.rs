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
pub static ALL: [Target; 8] = [
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
];

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
