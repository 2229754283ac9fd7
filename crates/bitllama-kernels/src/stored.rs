//! Products with matrices that stay as their file has them: a tile of rows becomes f32, and the products of f32 are those of
//! [`crate::full`] and [`crate::batch`], in the same order and so with the same sums.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::StoredRows;

use half::f16;

use crate::out::Out;
use crate::simd::{LANES, Simd, for_isa};
use crate::{Isa, batch, full};

/// Numbers of a tile that is read once for each of a few rows of activations: it stays in the first cache.
const SMALL: usize = 1 << 12;
/// Bytes ahead of those at work that are asked for: beyond a tile, so that memory is busy during its products.
const AHEAD: usize = 4 * SMALL;
/// Numbers of a tile that is multiplied with many rows of activations.
const LARGE: usize = 1 << 18;

/// Products of `rows` of a matrix with all rows of `x`.
///
/// # Safety
/// `isa` is available, `x` has the columns of `matrix`, `out` is the whole output, and nobody else writes these rows.
pub(crate) unsafe fn rows(isa: Isa, matrix: &dyn StoredRows, rows: Range<usize>, x: &[f32], out: Out) {
    thread_local!(static TILE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    let columns = matrix.columns();
    let many = x.len() / columns >= batch::FROM;
    let count = if many { (LARGE / columns).max(64) } else { (SMALL / columns).max(1) };
    TILE.with_borrow_mut(|tile| {
        for first in rows.clone().step_by(count) {
            let count = count.min(rows.end - first);
            // Never made shorter, so that memory is cleared once.
            tile.resize(tile.len().max(count * columns), 0.0);
            let tile = &mut tile[..count * columns];
            read(isa, matrix, first, tile);
            // SAFETY: as promised by the caller; a tile has its rows only.
            unsafe {
                match many {
                    true => batch::gemm_rows(x, columns, tile, out.at(0, first), count),
                    false => full::rows_in_cache(isa, tile, x, columns, out.at(0, first)),
                }
            }
        }
    });
}

/// Rows from `first` on as f32. Numbers of 16 bits are widened here, where the instruction set is known: that is all the work of a
/// token's product beside reading them.
fn read(isa: Isa, matrix: &dyn StoredRows, first: usize, tile: &mut [f32]) {
    let name = matrix.stored_row(first).map(|(name, _)| name);
    if !matches!(name, Some("F16" | "BF16")) {
        return matrix.rows_into(first, tile);
    }
    for (row, out) in tile.chunks_exact_mut(matrix.columns()).enumerate() {
        match matrix.stored_row(first + row) {
            Some(("F16", bytes)) => for_isa!(isa, widen_f16(bytes: &[u8], out: &mut [f32])),
            Some((_, bytes)) => for_isa!(isa, widen_bf16(bytes: &[u8], out: &mut [f32])),
            None => matrix.rows_into(first + row, out),
        }
    }
}

#[inline(always)]
fn widen_f16<S: Simd>(s: S, bytes: &[u8], out: &mut [f32]) {
    let of = |bytes: &[u8; 2]| f16::from_le_bytes(*bytes);
    let (vectors, rest) = out.as_chunks_mut::<LANES>();
    let (whole, tail) = bytes.as_chunks::<2>().0.split_at(vectors.len() * LANES);
    for (out, halves) in vectors.iter_mut().zip(whole.as_chunks::<LANES>().0) {
        s.prefetch_far(halves.as_ptr().wrapping_byte_add(AHEAD));
        let vector = s.load_f16(&halves.each_ref().map(of));
        s.store(vector, out);
    }
    rest.iter_mut().zip(tail).for_each(|(out, half)| *out = of(half).to_f32());
}

#[inline(always)]
fn widen_bf16<S: Simd>(s: S, bytes: &[u8], out: &mut [f32]) {
    for (out, bytes) in out.chunks_mut(LANES).zip(bytes.chunks(2 * LANES)) {
        s.prefetch_far(bytes.as_ptr().wrapping_add(AHEAD));
        for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}
