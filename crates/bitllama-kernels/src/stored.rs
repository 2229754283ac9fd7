//! Products with matrices that stay as their file has them: a tile of rows becomes f32, and the products of f32 are those of
//! [`crate::full`] and [`crate::batch`], in the same order and so with the same sums.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::StoredRows;

use crate::out::Out;
use crate::{Isa, batch, full};

/// Numbers of a tile that is read once for each of a few rows of activations: it stays in the first cache.
const SMALL: usize = 1 << 12;
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
            matrix.rows_into(first, tile);
            // SAFETY: as promised by the caller; a tile has its rows only.
            unsafe {
                match many {
                    true => batch::gemm_rows(x, columns, tile, out.at(0, first), count),
                    false => full::rows(isa, tile, x, columns, out.at(0, first)),
                }
            }
        }
    });
}
