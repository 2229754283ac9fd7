//! Products with rows in the layouts of the earlier tools.
//!
//! The kernels read panels of sixteen rows. To put a matrix into panels costs several times what one product with it
//! does, and a caller that hands over rows hands them over anew with each call. So rows are unpacked to f32, a tile of
//! them at a time that stays in cache, and multiplied by the kernels for full precision: `O(out * in)` as the product
//! itself. Signs with signs are compared where they lie.

use bitllama_core::DenseMatrix;
use bitllama_kernels::{Input, Isa, Matrix, Pool, Precision, products};

/// Weights of a tile: a megabyte.
const TILE: usize = 1 << 18;
/// Weights that are worth a task of their own when unpacked.
const TASK: usize = 1 << 13;
/// The same, of rows of signs.
const SIGN_TASK: usize = 1 << 17;

/// `out[r] = scales[r] * sum over c of codes(r)[c] * x[c]`, in f32. `codes` writes those of a row into its second
/// argument (`[x.len()]`).
pub fn product(pool: &Pool, x: &[f32], scales: &[f32], codes: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let columns = x.len();
    let tile_rows = (TILE / columns).clamp(1, scales.len());
    let task_rows = (TASK / columns).max(1);
    let mut out = vec![0.0; scales.len()];
    let mut tile = Vec::new();
    let mut input = Input::new(Isa::current(), Precision::F32);
    for (index, out) in out.chunks_mut(tile_rows).enumerate() {
        tile.resize(out.len() * columns, 0.0);
        pool.for_each_chunk(&mut tile, task_rows * columns, |task, rows| {
            for (row, out) in rows.chunks_exact_mut(columns).enumerate() {
                codes(index * tile_rows + task * task_rows + row, out);
            }
        });
        let matrix = Matrix::Full(DenseMatrix { data: std::mem::take(&mut tile), columns });
        if index == 0 {
            input.set(pool, x, columns, &[&matrix]);
        }
        products(pool, &input, &mut [(&matrix, &mut *out)]);
        if let Matrix::Full(full) = matrix {
            tile = full.data;
        }
    }
    out.iter_mut().zip(scales).for_each(|(out, scale)| *out *= scale);
    out
}

/// `out[r] = scales[r] * sum over c of w[r, c] * x[c]` for signs -1 and +1: XNOR and popcount. `packed` is
/// `[scales.len(), ceil(columns / 8)]`, `x` one such row, the first column in the most significant bit of a byte. The
/// bits beyond `columns` may be anything.
pub fn sign_product(pool: &Pool, x: &[u8], columns: usize, scales: &[f32], packed: &[u8]) -> Vec<f32> {
    let stride = columns.div_ceil(8);
    let mut out = vec![0.0; scales.len()];
    let task_rows = (SIGN_TASK / columns).max(1);
    pool.for_each_chunk(&mut out, task_rows, |task, out| {
        let rows = packed[task * task_rows * stride..].chunks_exact(stride);
        for ((out, row), scale) in out.iter_mut().zip(rows).zip(&scales[task * task_rows..]) {
            *out = scale * (2 * equal_bits(row, x, columns) as i64 - columns as i64) as f32;
        }
    });
    out
}

/// Bits in which the first `columns` of `a` and `b` agree.
fn equal_bits(a: &[u8], b: &[u8], columns: usize) -> usize {
    let (a_words, a_rest) = a[..columns / 8].as_chunks();
    let (b_words, b_rest) = b[..columns / 8].as_chunks();
    let words = a_words.iter().zip(b_words).map(|(a, b)| !(u64::from_ne_bytes(*a) ^ u64::from_ne_bytes(*b)));
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| !(a ^ b));
    let equal = words.map(u64::count_ones).chain(rest.map(u8::count_ones)).map(|ones| ones as usize).sum::<usize>();
    let spare = columns % 8;
    match spare {
        0 => equal,
        _ => equal + (!(a[columns / 8] ^ b[columns / 8]) >> (8 - spare)).count_ones() as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bits_ignore_the_spare_ones() {
        let bits = |seed: u8| (0..20u8).map(|i| i.wrapping_mul(37) ^ seed.wrapping_mul(i | 1)).collect::<Vec<u8>>();
        let (a, b) = (bits(3), bits(201));
        let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1;
        for columns in 1..=160 {
            let expected = (0..columns).filter(|at| bit(&a, *at) == bit(&b, *at)).count();
            assert_eq!(equal_bits(&a, &b, columns), expected, "{columns}");
        }
    }

    #[test]
    fn tiles_and_tasks_put_rows_in_their_places() {
        for (rows, columns) in [(1, 1), (3, TILE + 5), (70, 4097), (40_000, 13)] {
            let x: Vec<f32> = (0..columns).map(|c| if c == columns - 1 { 1.0 } else { 0.0 }).collect();
            let scales: Vec<f32> = (0..rows).map(|row| 1.0 + (row % 2) as f32).collect();
            let out = product(&Pool::new(3), &x, &scales, |row, out| out.fill(row as f32));
            let expected = (0..rows).map(|row| row as f32 * (1.0 + (row % 2) as f32));
            assert!(out.into_iter().eq(expected), "{rows} x {columns}");
        }
    }
}
