//! What a decoder computes between its matrix products. Rows are tokens; all arithmetic is `f32`.
//!
//! Every function takes the instruction set to use (see [`Isa::current`]) and panics where the processor lacks it.
//! Results differ between instruction sets by rounding only. Nothing is allocated, and nothing is split over threads:
//! the rows of a long input may be given to several tasks.

pub(crate) mod lanes;

use crate::isa::Isa;
use lanes::{LANES, Simd, for_isa};

/// RMSNorm (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>) of each row of `x` (`[n, hidden]`) into `out`
/// (`[n, hidden]`): `x / sqrt(mean(x^2) + eps) * weight`, with `weight` `[hidden]`.
///
/// # Panics
/// If `x` is no whole number of rows, or `out` is not as long.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len().is_multiple_of(weight.len()) && out.len() == x.len(), "x and out are not the same rows");
    for_isa!(isa, rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]))
}

/// Adds `y` to the residual stream `x` (both `[n, hidden]`), then writes the [`rms_norm`] of the sum to `out`
/// (`[n, hidden]`).
///
/// # Panics
/// If `x` is no whole number of rows, or `y` or `out` are not as long.
pub fn add_rms_norm(isa: Isa, x: &mut [f32], y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len().is_multiple_of(weight.len()) && out.len() == x.len(), "x and out are not the same rows");
    assert_eq!(x.len(), y.len(), "x and y are not the same rows");
    for_isa!(isa, add_rms_norm_rows(x: &mut [f32], y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]))
}

/// Turns each head of `x` (`[n, heads, head_dim]`) by its position, `first` for the first row: element `i` with element
/// `i + head_dim / 2`. `cos` and `sin` are `[positions, head_dim / 2]`, as
/// [`rope::tables`](bitllama_core::rope::tables) makes them.
///
/// # Panics
/// If `head_dim` is odd, `x` is no whole number of rows, or the tables end before its last position.
pub fn rotate(isa: Isa, x: &mut [f32], heads: usize, head_dim: usize, first: usize, cos: &[f32], sin: &[f32]) {
    assert!(x.len().is_multiple_of(heads * head_dim) && head_dim.is_multiple_of(2), "x is no rows of heads");
    for_isa!(
        isa,
        rotate_rows(x: &mut [f32], heads: usize, head_dim: usize, first: usize, cos: &[f32], sin: &[f32])
    )
}

/// `silu(gate) * up` into `gate` (SwiGLU, Shazeer 2020, <https://arxiv.org/abs/2002.05202>); any number of elements.
///
/// # Panics
/// If the lengths differ.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    for_isa!(isa, swiglu_all(gate: &mut [f32], up: &[f32]))
}

/// `x += y`.
///
/// # Panics
/// If the lengths differ.
pub fn add(isa: Isa, x: &mut [f32], y: &[f32]) {
    add_scaled(isa, 1.0, y, x);
}

/// `y += a * x`.
///
/// # Panics
/// If the lengths differ.
pub fn add_scaled(isa: Isa, a: f32, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y differ in length");
    for_isa!(isa, add_scaled_all(a: f32, x: &[f32], y: &mut [f32]))
}

/// The sum of `a[i] * b[i]`.
///
/// # Panics
/// If the lengths differ.
pub fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "a and b differ in length");
    for_isa!(isa, dot_all(a: &[f32], b: &[f32]) -> f32)
}

/// `exp(x) / sum(exp(x))` over all of `x`, in place. Elements may be negative infinity, but not all of them.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    for_isa!(isa, softmax_row(x: &mut [f32]))
}

/// `exp(x)`, in place: within 2 units in the last place up to `x = 88.37`, the value there for larger `x`, and 0 where
/// it would be subnormal.
pub fn exp(isa: Isa, x: &mut [f32]) {
    for_isa!(isa, exp_all(x: &mut [f32]))
}

/// `exp` of every lane, with the range and precision of the function of that name above. Cody-Waite reduction by
/// multiples of `ln 2`, then the polynomial of Cephes' `expf` (<https://www.netlib.org/cephes/>).
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(s: S, x: S::V) -> S::V {
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

/// The sum of the squares of `x`.
#[inline(always)]
fn sum_of_squares<S: Simd>(s: S, x: &[f32]) -> f32 {
    dot_all(s, x, x)
}

#[inline(always)]
fn dot_all<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    dot_ahead::<S, 0>(s, a, b)
}

/// The sum of `a[i] * b[i]`, with the cache lines of `a` asked for `AHEAD` numbers before they are read, unless that is 0.
#[inline(always)]
pub(crate) fn dot_ahead<S: Simd, const AHEAD: usize>(s: S, a: &[f32], b: &[f32]) -> f32 {
    const UNROLLED: usize = 4;
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [s.splat(0.0); UNROLLED];
    let (a, a_last) = a.as_chunks::<UNROLLED>();
    let (b, b_last) = b.as_chunks::<UNROLLED>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..UNROLLED {
            if AHEAD > 0 {
                s.prefetch(a[i].as_ptr().wrapping_add(AHEAD));
            }
            sums[i] = s.mul_add(s.load(&a[i]), s.load(&b[i]), sums[i]);
        }
    }
    for (a, b) in a_last.iter().zip(b_last) {
        sums[0] = s.mul_add(s.load(a), s.load(b), sums[0]);
    }
    if !a_rest.is_empty() {
        sums[1] = s.mul_add(s.load_some(a_rest), s.load_some(b_rest), sums[1]);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}

#[inline(always)]
fn add_scaled_all<S: Simd>(s: S, a: f32, x: &[f32], y: &mut [f32]) {
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks_mut::<LANES>();
    let a = s.splat(a);
    for (x, y) in x.iter().zip(y) {
        s.store(s.mul_add(a, s.load(x), s.load(y)), y);
    }
    if !x_rest.is_empty() {
        s.store_some(s.mul_add(a, s.load_some(x_rest), s.load_some(y_rest)), y_rest);
    }
}

#[inline(always)]
fn rms_norm_rows<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        normalize(s, x, sum_of_squares(s, x), weight, eps, out);
    }
}

#[inline(always)]
fn add_rms_norm_rows<S: Simd>(s: S, x: &mut [f32], y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let hidden = weight.len();
    let rows = x.chunks_exact_mut(hidden).zip(y.chunks_exact(hidden)).zip(out.chunks_exact_mut(hidden));
    for ((x, y), out) in rows {
        add_scaled_all(s, 1.0, y, x);
        normalize(s, x, sum_of_squares(s, x), weight, eps, out);
    }
}

/// `x / sqrt(sum_of_squares / hidden + eps) * weight` of one row.
#[inline(always)]
fn normalize<S: Simd>(s: S, x: &[f32], sum_of_squares: f32, weight: &[f32], eps: f32, out: &mut [f32]) {
    let inverse = s.splat(1.0 / (sum_of_squares / weight.len() as f32 + eps).sqrt());
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (weight, weight_rest) = weight.as_chunks::<LANES>();
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        s.store(s.mul(s.mul(s.load(x), inverse), s.load(weight)), out);
    }
    if !x_rest.is_empty() {
        s.store_some(s.mul(s.mul(s.load_some(x_rest), inverse), s.load_some(weight_rest)), out_rest);
    }
}

#[inline(always)]
fn rotate_rows<S: Simd>(s: S, x: &mut [f32], heads: usize, head_dim: usize, first: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    for (position, row) in (first..).zip(x.chunks_exact_mut(heads * head_dim)) {
        let (cos, cos_rest) = cos[position * half..][..half].as_chunks::<LANES>();
        let (sin, sin_rest) = sin[position * half..][..half].as_chunks::<LANES>();
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            let (low, low_rest) = low.as_chunks_mut::<LANES>();
            let (high, high_rest) = high.as_chunks_mut::<LANES>();
            for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                let (a, b) = turned(s, s.load(low), s.load(high), s.load(cos), s.load(sin));
                s.store(a, low);
                s.store(b, high);
            }
            if !low_rest.is_empty() {
                let (a, b) = (s.load_some(low_rest), s.load_some(high_rest));
                let (a, b) = turned(s, a, b, s.load_some(cos_rest), s.load_some(sin_rest));
                s.store_some(a, low_rest);
                s.store_some(b, high_rest);
            }
        }
    }
}

/// `(a * cos - b * sin, b * cos + a * sin)`.
#[inline(always)]
pub(crate) fn turned<S: Simd>(s: S, a: S::V, b: S::V, cos: S::V, sin: S::V) -> (S::V, S::V) {
    (s.sub(s.mul(a, cos), s.mul(b, sin)), s.mul_add(b, cos, s.mul(a, sin)))
}

#[inline(always)]
fn swiglu_all<S: Simd>(s: S, gate: &mut [f32], up: &[f32]) {
    let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
    let (up, up_rest) = up.as_chunks::<LANES>();
    for (gate, up) in gate.iter_mut().zip(up) {
        s.store(gated(s, s.load(gate), s.load(up)), gate);
    }
    if !gate_rest.is_empty() {
        s.store_some(gated(s, s.load_some(gate_rest), s.load_some(up_rest)), gate_rest);
    }
}

/// `gate / (1 + exp(-gate)) * up`.
#[inline(always)]
fn gated<S: Simd>(s: S, gate: S::V, up: S::V) -> S::V {
    let denominator = s.add(s.splat(1.0), exp_lanes(s, s.sub(s.splat(0.0), gate)));
    s.mul(s.div(gate, denominator), up)
}

#[inline(always)]
fn exp_all<S: Simd>(s: S, x: &mut [f32]) {
    let (x, rest) = x.as_chunks_mut::<LANES>();
    for x in x {
        s.store(exp_lanes(s, s.load(x)), x);
    }
    if !rest.is_empty() {
        s.store_some(exp_lanes(s, s.load_some(rest)), rest);
    }
}

#[inline(always)]
fn softmax_row<S: Simd>(s: S, x: &mut [f32]) {
    let (x, rest) = x.as_chunks_mut::<LANES>();
    let mut largest = s.splat(f32::NEG_INFINITY);
    for x in x.iter() {
        largest = s.max(s.load(x), largest);
    }
    let largest = rest.iter().fold(s.largest(largest), |a, b| a.max(*b));
    let mut sum = s.splat(0.0);
    for x in x.iter_mut() {
        let p = exp_lanes(s, s.sub(s.load(x), s.splat(largest)));
        sum = s.add(sum, p);
        s.store(p, x);
    }
    if !rest.is_empty() {
        s.store_some(exp_lanes(s, s.sub(s.load_some(rest), s.splat(largest))), rest);
    }
    let inverse = s.splat(1.0 / (s.sum(sum) + rest.iter().sum::<f32>()));
    for x in x {
        s.store(s.mul(s.load(x), inverse), x);
    }
    if !rest.is_empty() {
        s.store_some(s.mul(s.load_some(rest), inverse), rest);
    }
}
