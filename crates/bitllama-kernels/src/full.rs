//! Products of full-precision rows with a few rows of activations: reading the weights is what takes the time.

use crate::Isa;
use crate::operators::dot_ahead;
use crate::out::Out;
use crate::simd::{Simd, for_isa};

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
            unsafe { *out.at(token, row).as_ptr() = dot_ahead::<S, PREFETCH>(s, weights, x) };
        }
    }
}

/// Numbers ahead of those at work that are asked for: beyond the page, which the processor does not cross by itself.
const PREFETCH: usize = 2048;
