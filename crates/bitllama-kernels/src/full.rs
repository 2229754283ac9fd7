//! Products of full-precision rows with a few rows of activations: reading the weights is what takes the time.

use crate::Isa;
use crate::operators::lanes::{LANES, Simd, for_isa};
use crate::out::Out;

/// `out[t, r] = x[t] . tile[r]` for the rows of `tile` (`[r, columns]`) and of `x` (`[t, columns]`).
///
/// # Safety
/// `out` is the place of the first row, has as many from there on, and nobody else writes them.
///
/// # Panics
/// If `isa` is not available.
pub(crate) unsafe fn rows(isa: Isa, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    for_isa!(isa, all_rows(tile: &[f32], x: &[f32], columns: usize, out: Out))
}

#[inline(always)]
fn all_rows<S: Simd>(s: S, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    for (row, weights) in tile.chunks_exact(columns).enumerate() {
        for (token, x) in x.chunks_exact(columns).enumerate() {
            // SAFETY: as promised by the caller of `rows`.
            unsafe { *out.at(token, row).as_ptr() = dot(s, weights, x) };
        }
    }
}

/// Numbers ahead of those at work that are asked for: beyond the page, which the processor does not cross by itself.
const PREFETCH: usize = 2048;

#[inline(always)]
fn dot<S: Simd>(s: S, weights: &[f32], x: &[f32]) -> f32 {
    const UNROLLED: usize = 4;
    let ((weights, weights_rest), (x, x_rest)) = (weights.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    let ((weights, weights_last), (x, x_last)) = (weights.as_chunks::<UNROLLED>(), x.as_chunks::<UNROLLED>());
    let mut sums = [s.splat(0.0); UNROLLED];
    for (weights, x) in weights.iter().zip(x) {
        for i in 0..UNROLLED {
            s.prefetch(weights[i].as_ptr().wrapping_add(PREFETCH));
            sums[i] = s.mul_add(s.load(&weights[i]), s.load(&x[i]), sums[i]);
        }
    }
    for (weights, x) in weights_last.iter().zip(x_last) {
        sums[0] = s.mul_add(s.load(weights), s.load(x), sums[0]);
    }
    if !x_rest.is_empty() {
        sums[1] = s.mul_add(s.load_some(weights_rest), s.load_some(x_rest), sums[1]);
    }
    s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
}
