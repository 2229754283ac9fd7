//! Functions of one number, for every lane of a vector.

use crate::simd::Simd;

/// `exp` of every lane, with the range and precision of [`exp`](super::exp). Cody-Waite reduction by
/// multiples of `ln 2`, then the polynomial of Cephes' `expf` (<https://www.netlib.org/cephes/>).
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    const COEFFICIENTS: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    /// In a float near this, the last bit of the mantissa is 1.
    const MAGIC: f32 = 12_582_912.0;
    /// The high bits of `ln 2`: a product with a small whole number is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let x = s.min(s.splat(88.376_26), x);
    let magic = s.splat(MAGIC);
    let n = s.sub(s.mul_add(x, s.splat(std::f32::consts::LOG2_E), magic), magic);
    let r = s.mul_add(n, s.splat(-LN_2_HIGH), x);
    let r = s.mul_add(n, s.splat(-LN_2_LOW), r);
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.mul_add(p, r, s.splat(*c));
    }
    let p = s.add(s.mul_add(p, s.mul(r, r), r), s.splat(1.0));
    s.zero_below(s.scale(p, n), x, -87.336_54)
}

/// `tanh` of every lane, within 4 units in the last place: `1 - 2 / (exp(2 x) + 1)` where that keeps its digits, and
/// nearer to 0 the polynomial of Cephes' `tanhf`.
#[inline(always)]
pub(crate) fn tanh_lanes<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    const COEFFICIENTS: [f32; 5] = [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1];
    /// The least magnitude that is far from 0, and the one before it.
    const FAR: f32 = 0.625;
    const NEAR: f32 = 0.624_999_94;

    let one = s.splat(1.0);
    let far = s.sub(one, s.div(s.splat(2.0), s.add(exp_lanes(s, s.add(x, x)), one)));
    let square = s.mul(x, x);
    let mut p = s.splat(COEFFICIENTS[0]);
    for c in &COEFFICIENTS[1..] {
        p = s.mul_add(p, square, s.splat(*c));
    }
    let near = s.mul_add(s.mul(p, square), x, x);
    let negated = s.sub(s.splat(0.0), x);
    let (magnitude, opposite) = (s.max(x, negated), s.min(x, negated));
    s.add(s.zero_below(far, magnitude, FAR), s.zero_below(near, opposite, -NEAR))
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn silu<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    s.div(x, s.add(s.splat(1.0), exp_lanes(s, s.sub(s.splat(0.0), x))))
}

/// `x / 2 (1 + tanh(u))` with `u = sqrt(2 / pi) (x + 0.044715 x^3)`, which is `x / (1 + exp(-2 u))`.
#[inline(always)]
pub(crate) fn gelu_tanh<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    /// `-2 sqrt(2 / pi)`.
    const FACTOR: f32 = -1.595_769_2;
    let exponent = s.mul(s.mul(x, s.splat(FACTOR)), s.mul_add(s.mul(x, x), s.splat(0.044_715), s.splat(1.0)));
    s.div(x, s.add(s.splat(1.0), exp_lanes(s, exponent)))
}

/// `max(x, 0)^2`.
#[inline(always)]
pub(crate) fn relu2<S: Simd>(s: S, x: S::Floats) -> S::Floats {
    // The order keeps what is no number.
    let positive = s.max(s.splat(0.0), x);
    s.mul(positive, positive)
}
