//! Activations as the integer kernels read them: 8 bits a number with one scale a token, rounded once and used by every
//! matrix that they are multiplied with.
//!
//! A few activations of a Llama are far larger than all others, and a scale that covers them leaves the others few of
//! their bits. So numbers above [`OUTLIER`] times the token's mean |x| are kept apart, exactly, and multiplied in f32
//! (as LLM.int8() does by column, Dettmers et al. 2022, <https://arxiv.org/abs/2208.07339>); they are about one in a
//! hundred. The scale is the largest magnitude of the rest over 127.
//!
//! A student that was trained with rounded activations has learned to do without: for it, rows are rounded as
//! [`bitllama_core::activation`] says, to the bit, with nothing apart ([`Activations::set_as`]). Four bits and signs are
//! held in eight too, so that the same kernels multiply them.

use bitllama_core::Activation;
use bitllama_core::activation::{NEAR_ZERO, steps};
use bitllama_core::panel::COLUMN_UNIT;

use crate::simd::for_isa;
use crate::{Isa, Pool};

/// Columns whose rounded values are summed up together: a part of every group.
pub(crate) const SUM_COLUMNS: usize = 16;

/// How many times the mean |x| of its token a number must be to count as an outlier.
pub const OUTLIER: f32 = 5.0;

/// Rows of activations (`[n, in_features]`) in 8 bits.
#[derive(Debug, Clone, Default)]
pub struct Activations {
    isa: Option<Isa>,
    n: usize,
    columns: usize,
    tiles: Vec<Tile>,
}

/// Rows that a kernel handles together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tile {
    /// The first row.
    pub first: usize,
    /// Rows.
    pub tokens: usize,
    /// Rows that there is room for: one of the widths that kernels are compiled for.
    pub width: usize,
    /// `[columns / 4][width][4]`, with columns up to a multiple of [`COLUMN_UNIT`]; those that the matrix has not, and rows
    /// beyond `tokens`, are 0.
    pub values: Vec<i8>,
    /// `[width]`, 0 for rows of zeros.
    pub scales: Vec<f32>,
    /// `[columns / SUM_COLUMNS + 1][width]`: sums of the rounded values before each [`SUM_COLUMNS`] columns.
    pub sums: Vec<i32>,
    /// Outliers of all rows, in the order of columns, those of a column in the order of rows.
    pub outliers: Vec<Outlier>,
    /// Columns and values of the outliers of one row.
    row_outliers: Vec<(u32, f32)>,
    row: Vec<i8>,
}

/// A number that is multiplied as it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlier {
    pub column: u32,
    /// The row within the tile.
    pub token: u32,
    pub value: f32,
}

impl Activations {
    /// Rounds the rows of `x` (`[n, columns]`) for the kernels of the current instruction set.
    pub fn new(x: &[f32], columns: usize) -> Self {
        let mut activations = Self::default();
        activations.set(&Pool::new(1), Isa::current(), x, columns);
        activations
    }

    /// Rounds the rows of `x` (`[n, columns]`) for the kernels of `isa`, into the memory that is there.
    ///
    /// # Panics
    /// If `x` is no whole number of rows, or `isa` is not available.
    pub fn set(&mut self, pool: &Pool, isa: Isa, x: &[f32], columns: usize) {
        self.set_rows(pool, isa, None, x, columns);
    }

    /// As [`Activations::set`], with the codes and scales of `activation`.
    ///
    /// # Panics
    /// As [`Activations::set`].
    pub fn set_as(&mut self, pool: &Pool, isa: Isa, activation: Activation, x: &[f32], columns: usize) {
        self.set_rows(pool, isa, Some(activation), x, columns);
    }

    fn set_rows(&mut self, pool: &Pool, isa: Isa, activation: Option<Activation>, x: &[f32], columns: usize) {
        assert!(columns > 0 && x.len().is_multiple_of(columns), "{} activations are no rows of {columns}", x.len());
        assert!(isa.is_available(), "this processor has no {isa}");
        (self.isa, self.n, self.columns) = (Some(isa), x.len() / columns, columns);
        // Sums of a tile, one a token, should fit into the registers.
        let widths: &[usize] = match isa {
            Isa::Avx512 => &[1, 2, 4, 8, 16, 24],
            Isa::Avx2 | Isa::AvxVnni | Isa::Neon => &[1, 2, 4],
            Isa::Scalar => &[1],
        };
        let widest = widths[widths.len() - 1];
        self.tiles.resize_with(self.n.div_ceil(widest), Tile::default);
        pool.for_each_chunk(&mut self.tiles, 1, |index, tile| {
            let first = index * widest;
            let x = &x[first * columns..((first + widest) * columns).min(x.len())];
            let width = widths.iter().copied().find(|width| width * columns >= x.len()).unwrap_or(widest);
            tile[0].set(isa, activation, first, width, x, columns);
        });
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.n
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.n == 0
    }

    /// `in_features`.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Numbers that are kept apart, over all rows.
    pub fn outliers(&self) -> usize {
        self.tiles.iter().map(|tile| tile.outliers.len()).sum()
    }

    /// The instruction set that the rows are laid out for.
    pub(crate) fn isa(&self) -> Isa {
        self.isa.unwrap_or(Isa::Scalar)
    }

    pub(crate) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }
}

impl Tile {
    fn set(&mut self, isa: Isa, activation: Option<Activation>, first: usize, width: usize, x: &[f32], columns: usize) {
        let padded = columns.next_multiple_of(COLUMN_UNIT);
        (self.first, self.tokens, self.width) = (first, x.len() / columns, width);
        self.scales.clear();
        self.sums.clear();
        self.sums.resize((padded / SUM_COLUMNS + 1) * width, 0);
        self.outliers.clear();
        self.row.clear();
        self.row.resize(padded, 0);
        if width > self.tokens {
            self.values.clear();
        }
        self.values.resize(width * padded, 0);
        for (lane, x) in x.chunks_exact(columns).enumerate() {
            self.scales.push(match activation {
                None => quantize_row(isa, x, &mut self.row, &mut self.row_outliers),
                Some(activation) => round_row(isa, activation, x, &mut self.row),
            });
            let outliers = self.row_outliers.drain(..);
            self.outliers.extend(outliers.map(|(column, value)| Outlier { column, token: lane as u32, value }));
            match width {
                1 => self.values.copy_from_slice(&self.row),
                _ => {
                    let quads = self.values.as_chunks_mut::<4>().0.iter_mut().skip(lane).step_by(width);
                    quads.zip(self.row.as_chunks::<4>().0).for_each(|(out, quad)| *out = *quad);
                }
            }
            let mut sum = 0;
            let sums = self.sums.iter_mut().skip(width + lane).step_by(width);
            for (out, unit) in sums.zip(self.row.as_chunks::<SUM_COLUMNS>().0) {
                sum += unit.iter().map(|q| *q as i32).sum::<i32>();
                *out = sum;
            }
        }
        self.scales.resize(width, 0.0);
        if width > 1 {
            self.outliers.sort_unstable_by_key(|outlier| (outlier.column, outlier.token));
        }
    }
}

/// Rounds one row into `out`, which may be longer and is left as it is there; appends outliers. Returns the scale.
///
/// Every step is IEEE arithmetic in a stated order, so all instruction sets give the same bits.
fn quantize_row(isa: Isa, x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32 {
    for_isa!(isa, quantize_row_lanes(x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32)
}

#[inline(always)]
fn quantize_row_lanes<S>(_: S, x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32 {
    const LANES: usize = 16;
    let (chunks, rest) = x.as_chunks::<LANES>();
    let (mut sums, mut maxima) = ([0.0f32; LANES], [0.0f32; LANES]);
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += chunk[lane].abs();
            maxima[lane] = if chunk[lane].abs() > maxima[lane] { chunk[lane].abs() } else { maxima[lane] };
        }
    }
    for (lane, x) in rest.iter().enumerate() {
        sums[lane] += x.abs();
        maxima[lane] = if x.abs() > maxima[lane] { x.abs() } else { maxima[lane] };
    }
    let largest = maxima.iter().copied().fold(0.0, f32::max);
    let limit = sums.iter().sum::<f32>() / x.len() as f32 * OUTLIER;
    if !limit.is_finite() {
        // Something is no number: then no product of this row is one.
        out.fill(0);
        return f32::NAN;
    }
    let apart = largest > limit;
    let mut kept = largest;
    if apart {
        let mut maxima = [0.0f32; LANES];
        for chunk in chunks {
            for lane in 0..LANES {
                let magnitude = chunk[lane].abs();
                maxima[lane] = if magnitude <= limit && magnitude > maxima[lane] { magnitude } else { maxima[lane] };
            }
        }
        kept = maxima.iter().copied().fold(0.0, f32::max);
        for x in rest {
            kept = if x.abs() <= limit && x.abs() > kept { x.abs() } else { kept };
        }
    }
    let inverse = if kept > 0.0 { 127.0 / kept } else { 0.0 };
    // Adding and taking away 1.5 * 2^23 leaves the nearest whole number, ties to even.
    const MAGIC: f32 = 12_582_912.0;
    let bound = if apart { limit } else { f32::INFINITY };
    for (out, x) in out.iter_mut().zip(x) {
        let kept = if x.abs() <= bound { *x * inverse } else { 0.0 };
        *out = ((kept + MAGIC).to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32) as i8;
    }
    if apart {
        for (index, chunk) in x.chunks(LANES).enumerate() {
            if chunk.iter().any(|x| x.abs() > limit) {
                let found = chunk.iter().enumerate().filter(|(_, x)| x.abs() > limit);
                outliers.extend(found.map(|(lane, x)| ((index * LANES + lane) as u32, *x)));
            }
        }
    }
    kept / 127.0
}

/// Rounds one row as `activation` says into `out`, which may be longer and is left as it is there. Returns the scale.
pub(crate) fn round_row(isa: Isa, activation: Activation, x: &[f32], out: &mut [i8]) -> f32 {
    match activation {
        Activation::Sign => {
            let scale = mean_magnitude(x);
            let near = scale * NEAR_ZERO;
            out.iter_mut().zip(x).for_each(|(out, x)| *out = if *x + near >= 0.0 { 1 } else { -1 });
            scale
        }
        Activation::Int8 | Activation::Int4 => {
            let code = activation.largest_code();
            for_isa!(isa, round_row_lanes(code: f32, x: &[f32], out: &mut [i8]) -> f32)
        }
    }
}

/// The mean |x|, summed in f64.
pub(crate) fn mean_magnitude(x: &[f32]) -> f32 {
    (x.iter().map(|x| x.abs() as f64).sum::<f64>() / x.len() as f64) as f32
}

#[inline(always)]
fn round_row_lanes<S>(_: S, largest_code: f32, x: &[f32], out: &mut [i8]) -> f32 {
    let largest = largest_magnitude(x);
    if !largest.is_finite() {
        // Then no product of this row is a number.
        out.fill(0);
        return f32::NAN;
    }
    let [inverse, scale] = steps(largest, largest_code);
    for (out, x) in out.iter_mut().zip(x) {
        *out = nearest(*x * inverse);
    }
    scale
}

/// The largest |x|, infinite where something is no number. In 16 lanes, so that it vectorizes.
#[inline(always)]
pub(crate) fn largest_magnitude(row: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0u32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    // Bits of magnitudes are in the order of the magnitudes, with what is no number above infinity.
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(x.abs().to_bits());
        }
    }
    let largest = lanes.into_iter().chain(rest.iter().map(|x| x.abs().to_bits())).fold(0, u32::max);
    f32::from_bits(largest.min(f32::INFINITY.to_bits()))
}

/// The whole number nearest to `x`, which is between -128 and 127: near 1.5 * 2^23 it is in a float's low bits.
#[inline(always)]
pub(crate) fn nearest(x: f32) -> i8 {
    (x + 12_582_912.0).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use bitllama_core::DenseMatrix;
    use bitllama_core::activation::round_rows;

    use super::*;

    #[test]
    fn rows_are_rounded_as_training_rounds_them() {
        for columns in [1, 15, 16, 47, 300] {
            let x: Vec<f32> = (0..columns).map(|i| ((i * 7919 % 1009) as f32 - 504.0) * 0.0371).collect();
            for activation in Activation::ALL {
                let expected = round_rows(activation, DenseMatrix { data: x.clone(), columns });
                for isa in Isa::available() {
                    let mut out = vec![0; columns];
                    let scale = round_row(isa, activation, &x, &mut out);
                    assert_eq!(out.iter().map(|code| f32::from(*code)).collect::<Vec<_>>(), expected.codes.data);
                    assert_eq!(scale, expected.scales.data[0], "{activation} {columns}");
                }
            }
        }
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(round_row(Isa::best(), Activation::Int4, &[1.0, bad, 3.0], &mut [0; 3]).is_nan());
        }
        let mut out = [3; 3];
        assert_eq!((round_row(Isa::best(), Activation::Int8, &[0.0; 3], &mut out), out), (0.0, [0; 3]));
    }

    #[test]
    fn codes_are_the_nearest() {
        for (x, code) in [(-127.0, -127), (-0.6, -1), (0.4, 0), (0.5, 0), (1.5, 2), (126.6, 127)] {
            assert_eq!(nearest(x), code);
        }
    }
}
