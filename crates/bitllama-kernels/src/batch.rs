//! Products of many rows of f32 activations at once. Weights become an `f32` tile, which the `gemm` crate multiplies with
//! all activations: unpacking then costs little beside the product, and `gemm` brings its own choice of instruction set
//! at run time.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::panel::PANEL_ROWS;
use gemm::Parallelism;

use crate::out::Out;
use crate::packed::float::unpack_panel;
use crate::{Isa, Weight};

/// Rows of activations from which on this is faster than products one by one.
pub(crate) const FROM: usize = 5;

/// Rows of activations up to which each row's products in f32 are those of the row alone, to the bit.
pub const SAME_ORDER: usize = FROM - 1;

/// Panels of a tile. With 1536 columns it takes 384 KiB: it stays in L2.
pub(crate) const PANELS: usize = 4;

/// Products of `rows` of `weight`, at most [`PANELS`] panels at a time, with all rows of `x`.
///
/// # Safety
/// `isa` is available, `x` has the columns of `weight`, `out` is the whole output, and nobody else writes these rows.
pub(crate) unsafe fn packed(isa: Isa, weight: &Weight, rows: Range<usize>, x: &[f32], out: Out) {
    const STRIDE: usize = PANELS * PANEL_ROWS;
    thread_local!(static TILE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    let columns = weight.columns();
    TILE.with_borrow_mut(|tile| {
        tile.resize(columns * STRIDE, 0.0);
        for first in rows.clone().step_by(STRIDE) {
            let count = STRIDE.min(rows.end - first);
            for panel in 0..count.div_ceil(PANEL_ROWS) {
                unpack_panel(isa, weight, first / PANEL_ROWS + panel, &mut tile[panel * PANEL_ROWS..], STRIDE);
            }
            // SAFETY: the tile holds `count` weights for each column; the rest is the caller's promise.
            unsafe { gemm(x, columns, tile.as_ptr(), [STRIDE as isize, 1], out.at(0, first), count) };
        }
    });
}

/// Products of the rows of `tile` (`[count, columns]`) with all rows of `x` (`[n, columns]`), from the place `out` on.
///
/// # Safety
/// `out` has `count` rows from its place on, for each row of `x`, and nobody else writes them.
pub(crate) unsafe fn gemm_rows(x: &[f32], columns: usize, tile: &[f32], out: Out, count: usize) {
    assert_eq!(tile.len(), count * columns);
    // SAFETY: as asserted and promised.
    unsafe { gemm(x, columns, tile.as_ptr(), [1, columns as isize], out, count) }
}

/// `out[t, r] = sum of x[t, c] * tile[c * strides[0] + r * strides[1]]`.
///
/// # Safety
/// All elements addressed are within `tile`, and within `out`, where nobody else writes them.
unsafe fn gemm(x: &[f32], columns: usize, tile: *const f32, strides: [isize; 2], out: Out, count: usize) {
    // SAFETY: `x` is `[n, columns]`; the rest as promised by the caller. The output is not read.
    unsafe {
        gemm::gemm(
            x.len() / columns,
            count,
            columns,
            out.as_ptr(),
            1,
            out.stride(),
            false,
            x.as_ptr(),
            1,
            columns as isize,
            tile,
            strides[1],
            strides[0],
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
