//! Products of many activation rows at once. A block of weight rows is unpacked to an `f32` tile, which the `gemm` crate
//! multiplies with all activations: unpacking then costs little beside the product, and `gemm` brings its own choice of
//! instruction set at run time.

use bitllama_core::PackedMatrix;
use gemm::Parallelism;
use rayon::prelude::*;

use crate::BLOCK_ROWS;

/// [`crate::matmul`] for `n` activation rows. Shapes are checked by the caller.
pub(crate) fn packed(weight: &PackedMatrix, n: usize, x: &[f32], out: &mut [f32]) {
    let (rows, columns) = (weight.rows(), weight.columns());
    let out = SharedOut::new(out, rows);
    (0..rows.div_ceil(BLOCK_ROWS)).into_par_iter().for_each_init(Vec::new, |tile, block| {
        let first = block * BLOCK_ROWS;
        tile.resize(BLOCK_ROWS.min(rows - first) * columns, 0.0);
        for (row, weights) in (first..).zip(tile.chunks_exact_mut(columns)) {
            weight.dequantize_row_into(row, weights);
        }
        product(tile, columns, n, x, first, &out);
    });
}

/// [`crate::matmul_full`] for `n` activation rows. Shapes are checked by the caller.
pub(crate) fn full(weight: &[f32], columns: usize, n: usize, x: &[f32], out: &mut [f32]) {
    let out = SharedOut::new(out, weight.len() / columns);
    weight
        .par_chunks(BLOCK_ROWS * columns)
        .enumerate()
        .for_each(|(block, tile)| product(tile, columns, n, x, block * BLOCK_ROWS, &out));
}

/// An output `[n, rows]` that several threads fill, each one some of its columns.
struct SharedOut<'a> {
    data: *mut f32,
    len: usize,
    rows: usize,
    borrowed: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is only written through in `product`, whose callers give each task columns of its own.
unsafe impl Send for SharedOut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedOut<'_> {}

impl<'a> SharedOut<'a> {
    fn new(out: &'a mut [f32], rows: usize) -> Self {
        Self { data: out.as_mut_ptr(), len: out.len(), rows, borrowed: std::marker::PhantomData }
    }
}

/// `out[.., first + r] = x * tile[r]` for the rows `r` of `tile` (`[rows of the tile, columns]`).
fn product(tile: &[f32], columns: usize, n: usize, x: &[f32], first: usize, out: &SharedOut) {
    let tile_rows = tile.len() / columns;
    assert!(x.len() == n * columns && out.len == n * out.rows && first + tile_rows <= out.rows);
    // SAFETY: by the assertion, every element addressed lies in its buffer: `x` is read as [n, columns], `tile` as
    // [columns, tile_rows] (its transpose), and `out` is written at `t * out.rows + first + r` for t < n and
    // r < tile_rows. No other task writes these columns, as blocks do not overlap; `out` is not read.
    unsafe {
        gemm::gemm(
            n,
            tile_rows,
            columns,
            out.data.add(first.min(out.len)),
            1,
            out.rows as isize,
            false,
            x.as_ptr(),
            1,
            columns as isize,
            tile.as_ptr(),
            columns as isize,
            1,
            0.0f32,
            1.0f32,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
