//! The hyperbolic tangent of a vector's lanes: what soft caps are made of.

use crate::operators::exp_lanes;
use crate::operators::lanes::Simd;

/// `tanh` of every lane, within 4 units in the last place: near 0 the polynomial of Cephes' `tanhf`
/// (<https://www.netlib.org/cephes/>), elsewhere `1 - 2 / (1 + exp(2 x))`.
#[inline(always)]
pub(super) fn tanh_lanes<S: Simd>(s: S, x: S::V) -> S::V {
    const COEFFICIENTS: [f32; 5] = [-5.704_988_6e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
    /// Below, the difference from 1 would lose digits.
    const NEAR: f32 = 0.625;

    // Large numbers have no finite powers.
    let small = s.max(s.min(x, s.splat(NEAR)), s.splat(-NEAR));
    let square = s.mul(small, small);
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.mul_add(p, square, s.splat(*c));
    }
    let near = s.mul_add(s.mul(p, square), small, small);
    let magnitude = s.max(x, s.sub(s.splat(0.0), x));
    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(one, exp_lanes(s, s.add(x, x)))));
    // One of both is 0 in each lane.
    let far = s.zero_below(far, magnitude, NEAR);
    s.add(s.sub(near, s.zero_below(near, magnitude, NEAR)), far)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::operators::lanes::{LANES, for_isa};

    #[inline(always)]
    fn all<S: Simd>(s: S, x: &mut [[f32; LANES]]) {
        for x in x {
            s.store(tanh_lanes(s, s.load(x)), x);
        }
    }

    #[test]
    fn tangents_are_those_of_the_definition() {
        let numbers: Vec<f32> =
            (-4000i32..4000).map(|i| (i as f32 / 400.0).powi(3) / 10.0).chain([-200.0, 1e6]).collect();
        let of = |i: usize| numbers.get(i).copied().unwrap_or(0.0);
        let x: Vec<[f32; LANES]> =
            (0..numbers.len().div_ceil(LANES)).map(|v| std::array::from_fn(|lane| of(v * LANES + lane))).collect();
        for isa in Isa::available() {
            let mut got = x.clone();
            let of_isa = &mut got[..];
            for_isa!(isa, all(of_isa: &mut [[f32; LANES]]));
            for (x, got) in x.as_flattened().iter().zip(got.as_flattened()) {
                let expected = f64::from(*x).tanh();
                let bound = 4.0 * f64::from(f32::EPSILON) * expected.abs() + 1e-38;
                assert!((f64::from(*got) - expected).abs() <= bound, "{isa}: tanh({x}) is {expected}, not {got}");
            }
        }
    }
}
