//! Products of full-precision rows with a few rows of activations: reading the weights is what takes the time.

use crate::Isa;
use crate::operators::dots_ahead;
use crate::out::Out;
use crate::simd::{Simd, for_isa};

/// `out[t, r] = x[t] . tile[r]` for the rows of `tile` (`[r, columns]`) and of `x` (`[t, columns]`), where the tile is in memory.
///
/// # Safety
/// `out` is the place of the first row, has as many from there on, and nobody else writes them.
///
/// # Panics
/// If `isa` is not available.
pub(crate) unsafe fn rows(isa: Isa, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    for_isa!(isa, all_rows(tile: &[f32], x: &[f32], columns: usize, out: Out))
}

/// As [`rows`], where the tile is in cache.
///
/// # Safety
/// As [`rows`].
pub(crate) unsafe fn rows_in_cache(isa: Isa, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    for_isa!(isa, all_rows_in_cache(tile: &[f32], x: &[f32], columns: usize, out: Out))
}

#[inline(always)]
fn all_rows<S: Simd>(s: S, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    each_row::<S, PREFETCH>(s, tile, x, columns, out);
}

#[inline(always)]
fn all_rows_in_cache<S: Simd>(s: S, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    each_row::<S, 0>(s, tile, x, columns, out);
}

#[inline(always)]
fn each_row<S: Simd, const AHEAD: usize>(s: S, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    for (row, weights) in tile.chunks_exact(columns).enumerate() {
        // Two tokens share what is read of a row.
        let pairs = x.chunks_exact(2 * columns);
        let last = pairs.remainder();
        for (pair, x) in pairs.enumerate() {
            let sums = dots_ahead::<S, AHEAD, 2>(s, weights, [&x[..columns], &x[columns..]]);
            for (token, sum) in (2 * pair..).zip(sums) {
                // SAFETY: as promised by the caller of `rows`.
                unsafe { *out.at(token, row).as_ptr() = sum };
            }
        }
        if !last.is_empty() {
            let [sum] = dots_ahead::<S, AHEAD, 1>(s, weights, [last]);
            // SAFETY: as promised by the caller of `rows`.
            unsafe { *out.at(x.len() / columns - 1, row).as_ptr() = sum };
        }
    }
}

/// Numbers ahead of those at work that are asked for: beyond the page, which the processor does not cross by itself.
const PREFETCH: usize = 2048;
