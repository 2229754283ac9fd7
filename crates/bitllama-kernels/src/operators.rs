//! What a decoder computes between its matrix products. Rows are tokens; all arithmetic is `f32`.
//!
//! Every function takes the instruction set to use (see [`Isa::current`]) and panics where the processor lacks it.
//! Results differ between instruction sets by rounding only. Nothing is allocated, and nothing is split over threads:
//! the rows of a long input may be given to several tasks.

mod functions;

use bitllama_core::HiddenAct;

use crate::isa::Isa;
use crate::simd::{LANES, Simd, for_isa};
pub(crate) use functions::{exp_lanes, tanh_lanes};
use functions::{gelu_tanh, relu2, silu};

/// RMSNorm (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>) of each row of `x` (`[n, hidden]`) into `out`
/// (`[n, hidden]`): `x / sqrt(mean(x^2) + eps) * weight`, with `weight` `[hidden]`.
///
/// # Panics
/// If `x` is no whole number of rows, or `out` is not as long.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len().is_multiple_of(weight.len()) && out.len() == x.len(), "x and out are not the same rows");
    for_isa!(isa, rms_norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]))
}

/// [`rms_norm`] of each row of `x` (`[n, hidden]`), in place. The norm of each head of queries or keys, `[n, heads,
/// head_dim]`, is that of rows of `head_dim` with a weight of as many numbers.
///
/// # Panics
/// If `x` is no whole number of rows.
pub fn rms_norm_in_place(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32) {
    assert!(x.len().is_multiple_of(weight.len()), "x is no rows of {}", weight.len());
    for_isa!(isa, rms_norm_rows_in_place(x: &mut [f32], weight: &[f32], eps: f32))
}

/// Adds `factor * y` to the residual stream `x` (both `[n, hidden]`), then writes the [`rms_norm`] of the sum to `out`
/// (`[n, hidden]`).
///
/// # Panics
/// If `x` is no whole number of rows, or `y` or `out` are not as long.
pub fn add_rms_norm(isa: Isa, x: &mut [f32], factor: f32, y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len().is_multiple_of(weight.len()) && out.len() == x.len(), "x and out are not the same rows");
    assert_eq!(x.len(), y.len(), "x and y are not the same rows");
    for_isa!(
        isa,
        add_rms_norm_rows(x: &mut [f32], factor: f32, y: &[f32], weight: &[f32], eps: f32, out: &mut [f32])
    )
}

/// Rotary angles of positions, as cosines and sines.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Elements of a head that turn, from its first one on: an even number, at most `head_dim`. The others stay.
    pub rotary_dim: usize,
    /// `[positions, rotary_dim / 2]`.
    pub cos: &'a [f32],
    /// `[positions, rotary_dim / 2]`.
    pub sin: &'a [f32],
}

/// Turns each head of `x` (`[n, heads, head_dim]`) by its position, `first` for the first row: element `i` with element
/// `i + rotary_dim / 2` (Su et al. 2021, <https://arxiv.org/abs/2104.09864>, in the order of Hugging Face).
///
/// # Panics
/// If `rotary_dim` is odd or exceeds `head_dim`, `x` is no whole number of rows, or the tables end before its last
/// position.
pub fn rotate(isa: Isa, x: &mut [f32], heads: usize, head_dim: usize, first: usize, rotary: Rotary) {
    assert!(x.len().is_multiple_of(heads * head_dim), "x is no rows of heads");
    let dim = rotary.rotary_dim;
    assert!(dim.is_multiple_of(2) && dim <= head_dim, "{dim} elements of a head of {head_dim} cannot turn in pairs");
    for_isa!(isa, rotate_rows(x: &mut [f32], heads: usize, head_dim: usize, first: usize, rotary: Rotary))
}

/// `act(gate) * up` into `gate`, for any number of elements: SwiGLU, GeGLU (both Shazeer 2020,
/// <https://arxiv.org/abs/2002.05202>) or the same with the squared ReLU.
///
/// # Panics
/// If the lengths differ.
pub fn gated(isa: Isa, act: HiddenAct, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up differ in length");
    for_isa!(isa, gated_all(act: HiddenAct, gate: &mut [f32], up: &[f32]))
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

/// Adds `bias` to each row of `rows` (`[n, bias.len()]`).
///
/// # Panics
/// If `rows` is no whole number of rows.
pub fn add_bias(isa: Isa, rows: &mut [f32], bias: &[f32]) {
    assert!(rows.len().is_multiple_of(bias.len()), "not rows of {}", bias.len());
    for_isa!(isa, add_bias_rows(rows: &mut [f32], bias: &[f32]))
}

/// `x *= factor`.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    for_isa!(isa, scale_all(x: &mut [f32], factor: f32))
}

/// `cap * tanh(x / cap)`, in place: Gemma 2's bound on logits (Gemma Team 2024, <https://arxiv.org/abs/2408.00118>,
/// section 2). `cap` is positive.
pub fn soft_cap(isa: Isa, x: &mut [f32], cap: f32) {
    for_isa!(isa, soft_cap_all(x: &mut [f32], cap: f32))
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

#[inline(always)]
fn dot_all<S: Simd>(s: S, a: &[f32], b: &[f32]) -> f32 {
    let [sum] = dots_ahead::<S, 0, 1>(s, a, [b]);
    sum
}

/// The sums of `a[i] * b[j][i]`, with the cache lines of `a` asked for `AHEAD` numbers before they are read, unless that is 0. Each sum
/// is the same to the bit whatever `N` is.
#[inline(always)]
pub(crate) fn dots_ahead<S: Simd, const AHEAD: usize, const N: usize>(s: S, a: &[f32], b: [&[f32]; N]) -> [f32; N] {
    const UNROLLED: usize = 4;
    let len = a.len();
    let b = b.map(|b| &b[..len]);
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (a, a_last) = a.as_chunks::<UNROLLED>();
    let vectors = b.map(|b| b.as_chunks::<LANES>().0);
    let fours = vectors.map(|b| b.as_chunks::<UNROLLED>().0);
    let mut sums = [[s.splat(0.0); UNROLLED]; N];
    for (at, a) in a.iter().enumerate() {
        for i in 0..UNROLLED {
            if AHEAD > 0 {
                s.prefetch(a[i].as_ptr().wrapping_add(AHEAD));
            }
            let a = s.load(&a[i]);
            for (sums, b) in sums.iter_mut().zip(fours) {
                sums[i] = s.mul_add(a, s.load(&b[at][i]), sums[i]);
            }
        }
    }
    for (at, a) in (a.len() * UNROLLED..).zip(a_last) {
        for (sums, b) in sums.iter_mut().zip(vectors) {
            sums[0] = s.mul_add(s.load(a), s.load(&b[at]), sums[0]);
        }
    }
    if !a_rest.is_empty() {
        for (sums, b) in sums.iter_mut().zip(b) {
            sums[1] = s.mul_add(s.load_some(a_rest), s.load_some(&b[len - a_rest.len()..]), sums[1]);
        }
    }
    sums.map(|[a, b, c, d]| s.sum(s.add(s.add(a, b), s.add(c, d))))
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
        normalize(s, x, weight, eps, out);
    }
}

#[inline(always)]
fn rms_norm_rows_in_place<S: Simd>(s: S, x: &mut [f32], weight: &[f32], eps: f32) {
    for x in x.chunks_exact_mut(weight.len()) {
        let inverse = inverse_rms(s, x, eps);
        let (x, x_rest) = x.as_chunks_mut::<LANES>();
        let (weight, weight_rest) = weight.as_chunks::<LANES>();
        for (x, weight) in x.iter_mut().zip(weight) {
            s.store(s.mul(s.mul(s.load(x), inverse), s.load(weight)), x);
        }
        if !x_rest.is_empty() {
            s.store_some(s.mul(s.mul(s.load_some(x_rest), inverse), s.load_some(weight_rest)), x_rest);
        }
    }
}

#[inline(always)]
fn add_rms_norm_rows<S: Simd>(s: S, x: &mut [f32], factor: f32, y: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let hidden = weight.len();
    let rows = x.chunks_exact_mut(hidden).zip(y.chunks_exact(hidden)).zip(out.chunks_exact_mut(hidden));
    for ((x, y), out) in rows {
        add_scaled_all(s, factor, y, x);
        normalize(s, x, weight, eps, out);
    }
}

/// `1 / sqrt(mean(x^2) + eps)` of one row.
#[inline(always)]
fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> S::Floats {
    s.splat(1.0 / (dot_all(s, x, x) / x.len() as f32 + eps).sqrt())
}

/// [`rms_norm`] of one row.
#[inline(always)]
fn normalize<S: Simd>(s: S, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let inverse = inverse_rms(s, x, eps);
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
fn rotate_rows<S: Simd>(s: S, x: &mut [f32], heads: usize, head_dim: usize, first: usize, rotary: Rotary) {
    let Rotary { rotary_dim, cos, sin } = rotary;
    let half = rotary_dim / 2;
    for (position, row) in (first..).zip(x.chunks_exact_mut(heads * head_dim)) {
        let (cos, cos_rest) = cos[position * half..][..half].as_chunks::<LANES>();
        let (sin, sin_rest) = sin[position * half..][..half].as_chunks::<LANES>();
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[..rotary_dim].split_at_mut(half);
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
pub(crate) fn turned<S: Simd>(
    s: S,
    a: S::Floats,
    b: S::Floats,
    cos: S::Floats,
    sin: S::Floats,
) -> (S::Floats, S::Floats) {
    (s.sub(s.mul(a, cos), s.mul(b, sin)), s.mul_add(b, cos, s.mul(a, sin)))
}

#[inline(always)]
fn gated_all<S: Simd>(s: S, act: HiddenAct, gate: &mut [f32], up: &[f32]) {
    macro_rules! gated_by {
        ($act:ident) => {{
            let (gate, gate_rest) = gate.as_chunks_mut::<LANES>();
            let (up, up_rest) = up.as_chunks::<LANES>();
            for (gate, up) in gate.iter_mut().zip(up) {
                s.store(s.mul($act(s, s.load(gate)), s.load(up)), gate);
            }
            if !gate_rest.is_empty() {
                s.store_some(s.mul($act(s, s.load_some(gate_rest)), s.load_some(up_rest)), gate_rest);
            }
        }};
    }
    match act {
        HiddenAct::Silu => gated_by!(silu),
        HiddenAct::GeluTanh => gated_by!(gelu_tanh),
        HiddenAct::Relu2 => gated_by!(relu2),
    }
}

#[inline(always)]
fn add_bias_rows<S: Simd>(s: S, rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        add_scaled_all(s, 1.0, bias, row);
    }
}

/// Replaces each vector `$v` of `$x` by `$result`.
macro_rules! in_place {
    ($s:ident, $x:ident, $v:ident => $result:expr) => {{
        let (x, rest) = $x.as_chunks_mut::<LANES>();
        for x in x {
            let $v = $s.load(x);
            $s.store($result, x);
        }
        if !rest.is_empty() {
            let $v = $s.load_some(rest);
            $s.store_some($result, rest);
        }
    }};
}

#[inline(always)]
fn scale_all<S: Simd>(s: S, x: &mut [f32], factor: f32) {
    let factor = s.splat(factor);
    in_place!(s, x, v => s.mul(v, factor));
}

/// [`soft_cap`] of all of `x`.
#[inline(always)]
pub(crate) fn soft_cap_all<S: Simd>(s: S, x: &mut [f32], cap: f32) {
    let (cap, inverse) = (s.splat(cap), s.splat(1.0 / cap));
    in_place!(s, x, v => s.mul(cap, tanh_lanes(s, s.mul(v, inverse))));
}

#[inline(always)]
fn exp_all<S: Simd>(s: S, x: &mut [f32]) {
    in_place!(s, x, v => exp_lanes(s, v));
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
