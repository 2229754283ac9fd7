//! Arithmetic on packed low-bit rows, and on full-precision ones.
//!
//! The two products here are all that a decoder needs of a weight: [`matmul`] for a [`PackedMatrix`],
//! [`matmul_full`] for `f32` rows. Both take activations `[n, in]` and write `[n, out]`.
//!
//! | module | subject |
//! |---|---|
//! | [`scalar`] | portable products of one activation row with packed rows: the reference for every other file |
//! | `batch` | products of many activation rows: blocks of weights become `f32` tiles for the `gemm` crate |
//!
//! A file per instruction set stands beside `scalar.rs`, has the same functions, and is chosen at run time where
//! [`scalar`] is called below. Its results need not be bit-equal to the reference, but within float rounding of it.
//!
//! Work is split over the threads of the current rayon pool, by weight rows: an output element is always summed by one
//! thread in a fixed order, so results do not depend on the number of threads.

mod batch;
pub mod pool;
pub mod scalar;

use bitllama_core::PackedMatrix;
use rayon::prelude::*;

/// Weight rows that one task handles at a time. With 1536 columns a block of `f32` is 384 KiB: it stays in L2.
const BLOCK_ROWS: usize = 64;

/// `out = x * weight^T` for packed `weight` (`[out_features, in_features]`), `x` (`[n, in_features]`) and `out`
/// (`[n, out_features]`), all row-major.
///
/// # Panics
/// If `x` is no whole number of rows, or `out` has not as many.
pub fn matmul(weight: &PackedMatrix, x: &[f32], out: &mut [f32]) {
    let n = check_shapes([weight.rows(), weight.columns()], x, out);
    if n != 1 {
        return batch::packed(weight, n, x, out);
    }
    out.par_chunks_mut(BLOCK_ROWS)
        .enumerate()
        .for_each_init(Vec::new, |codes, (block, out)| scalar::packed_rows(weight, block * BLOCK_ROWS, x, codes, out));
}

/// [`matmul`] for a `weight` in full precision (`[out_features, in_features]`, row-major).
///
/// # Panics
/// If `weight` is no whole number of rows of `in_features`, `x` is not either, or `out` has not as many rows as `x`.
pub fn matmul_full(weight: &[f32], in_features: usize, x: &[f32], out: &mut [f32]) {
    assert!(in_features > 0 && weight.len().is_multiple_of(in_features), "weight is no whole number of rows");
    let n = check_shapes([weight.len() / in_features, in_features], x, out);
    if n != 1 {
        return batch::full(weight, in_features, n, x, out);
    }
    out.par_chunks_mut(BLOCK_ROWS)
        .zip(weight.par_chunks(BLOCK_ROWS * in_features))
        .for_each(|(out, rows)| scalar::full_rows(rows, x, out));
}

/// The number of activation rows, after a check that all three shapes agree.
fn check_shapes([rows, columns]: [usize; 2], x: &[f32], out: &[f32]) -> usize {
    assert!(x.len().is_multiple_of(columns), "{} activations are no rows of {columns}", x.len());
    let n = x.len() / columns;
    assert_eq!(out.len(), n * rows, "out is not {n} rows of {rows}");
    n
}
