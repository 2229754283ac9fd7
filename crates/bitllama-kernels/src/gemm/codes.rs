//! Factors that are small whole numbers times a scale for each row or column already, as fake quantization leaves them:
//! 8-bit activations, a token a row, and ternary or binary weights. What [`gemm_codes`](super::gemm_codes) packs.
//!
//! A word has the codes of four neighbours in `k`, the first in its lowest byte: those of the left factor as they are, those of
//! the right one with 1 added, for the instructions multiply bytes with a sign by bytes without one. Behind the words of a
//! panel stand, for each lane, the scale in `f32` and the sum of its codes, by which all products of the lane are then too large.

use std::ops::Range;

use bitllama_core::activation::{Activation, steps as of_codes};
use rayon::prelude::*;

use crate::isa::Isa;
use crate::simd::{Simd, for_isa};

/// Codes of a word.
pub(super) const PER_WORD: usize = 4;

/// What stands behind the words of a panel for each lane.
pub(super) const EXTRA: usize = 2;

/// Columns of the right factor that are looked at together.
const COLUMNS: usize = 128;

/// Rows of panels that `depth` numbers take.
pub(super) fn steps(depth: usize) -> usize {
    depth.div_ceil(PER_WORD) + EXTRA
}

/// A factor whose codes and scales are known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Codes<'a> {
    data: &'a [f32],
    side: Side,
    /// Numbers of a lane.
    depth: usize,
    /// By which a lane's numbers are multiplied to become codes, and by which codes become numbers.
    inverses: &'a [f32],
    scales: &'a [f32],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Lanes are rows.
    Left,
    /// Lanes are columns, side by side.
    Right,
}

/// Of each row of `x` (`[rows, k]`), with 8-bit codes: what its numbers are multiplied by, and its scale.
pub(super) fn of_rows(isa: Isa, x: &[f32], k: usize) -> [Vec<f32>; 2] {
    let largest = x.par_chunks_exact(k).map(|row| largest_of(isa, row));
    let steps = largest.map(|largest| of_codes(largest, Activation::Int8.largest_code()));
    let (inverses, scales) = steps.map(|[inverse, scale]| (inverse, scale)).unzip();
    [inverses, scales]
}

/// Of each column of `weight` (`[k, columns]`) the same, if all of them are ternary or binary: the numbers of each are 0, a
/// scale, and its opposite.
pub(super) fn of_columns(isa: Isa, weight: &[f32], columns: usize) -> Option<[Vec<f32>; 2]> {
    let mut scales = vec![0.0; columns];
    let found = scales.par_chunks_mut(COLUMNS).enumerate().map(|(chunk, scales)| {
        let first = chunk * COLUMNS;
        let mut smallest = [f32::INFINITY; COLUMNS];
        magnitudes(isa, weight, columns, first, scales, &mut smallest);
        // A column of zeros has none; the inverse of the others must be finite.
        scales.iter().zip(smallest).all(|(largest, smallest)| {
            *largest == 0.0 || *largest == smallest && (f32::MIN_POSITIVE..f32::INFINITY).contains(largest)
        })
    });
    let ternary = found.reduce(|| true, |a, b| a && b);
    let inverse = |scale: &f32| if *scale == 0.0 { 0.0 } else { 1.0 / scale };
    ternary.then(|| [scales.iter().map(inverse).collect(), scales])
}

fn largest_of(isa: Isa, row: &[f32]) -> f32 {
    for_isa!(isa, largest_as(row: &[f32]) -> f32)
}

#[inline(always)]
fn largest_as<S: Simd>(_: S, row: &[f32]) -> f32 {
    // Of their bits, which compare as magnitudes do: that the compiler makes vectors of.
    let mut largest = 0;
    for x in row {
        largest = largest.max(x.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(largest)
}

/// The largest and the smallest magnitude of columns from `first` on, of those that are not 0.
fn magnitudes(isa: Isa, data: &[f32], columns: usize, first: usize, largest: &mut [f32], smallest: &mut [f32]) {
    for_isa!(
        isa,
        magnitudes_as(data: &[f32], columns: usize, first: usize, largest: &mut [f32], smallest: &mut [f32])
    )
}

#[inline(always)]
fn magnitudes_as<S: Simd>(_: S, data: &[f32], columns: usize, first: usize, most: &mut [f32], least: &mut [f32]) {
    for row in data.chunks_exact(columns) {
        for ((x, most), least) in row[first..].iter().zip(&mut *most).zip(&mut *least) {
            let x = x.abs();
            // What is no number counts as larger than all others.
            *most = if x <= *most { *most } else { x };
            *least = if x < *least && x > 0.0 { x } else { *least };
        }
    }
}

impl<'a> Codes<'a> {
    /// `x`, `[lanes, depth]`, with [`of_rows`].
    pub fn left(x: &'a [f32], depth: usize, [inverses, scales]: &'a [Vec<f32>; 2]) -> Self {
        Self { data: x, side: Side::Left, depth, inverses, scales }
    }

    /// `weight`, `[depth, lanes]`, with [`of_columns`].
    pub fn right(weight: &'a [f32], depth: usize, [inverses, scales]: &'a [Vec<f32>; 2]) -> Self {
        Self { data: weight, side: Side::Right, depth, inverses, scales }
    }

    pub fn lanes(&self) -> usize {
        self.scales.len()
    }

    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Packs some lanes times a range of their `k` into panels of `width` lanes.
    pub fn pack(self, isa: Isa, lanes: Range<usize>, k: Range<usize>, width: usize, out: &mut [u32]) {
        let steps = steps(k.len());
        for (first, panel) in lanes.clone().step_by(width).zip(out.chunks_exact_mut(steps * width)) {
            let lanes = first..lanes.end.min(first + width);
            let (words, extra) = panel.split_at_mut((steps - EXTRA) * width);
            let (scales, sums) = extra.split_at_mut(width);
            scales.fill(0);
            sums.fill(0);
            for (to, scale) in scales.iter_mut().zip(&self.scales[lanes.clone()]) {
                *to = scale.to_bits();
            }
            pack_panel(isa, self, lanes, k.clone(), words, sums);
        }
    }
}

fn pack_panel(isa: Isa, codes: Codes, lanes: Range<usize>, k: Range<usize>, words: &mut [u32], sums: &mut [u32]) {
    for_isa!(
        isa,
        pack_panel_as(codes: Codes, lanes: Range<usize>, k: Range<usize>, words: &mut [u32], sums: &mut [u32])
    )
}

/// The code of a number whose magnitude times `inverse` is at most 127, in the lowest byte.
#[inline(always)]
fn code(x: f32, inverse: f32) -> u32 {
    /// Near this the low bits of a float are a whole number; to add it rounds to the nearest, of two to the even.
    const SHIFT: f32 = 12_582_912.0;
    (x * inverse + SHIFT).to_bits()
}

#[inline(always)]
fn pack_panel_as<S: Simd>(
    _: S,
    codes: Codes,
    lanes: Range<usize>,
    k: Range<usize>,
    words: &mut [u32],
    sums: &mut [u32],
) {
    /// Numbers of a lane that are made codes before they are put in their places.
    const ROW: usize = 256;
    let width = sums.len();
    match codes.side {
        Side::Left => {
            words.fill(0);
            for (lane, row) in lanes.enumerate() {
                let numbers = &codes.data[row * codes.depth..][k.clone()];
                let (inverse, mut sum) = (codes.inverses[row], 0i32);
                let mut places = words[lane..].iter_mut().step_by(width);
                for numbers in numbers.chunks(ROW) {
                    let mut bytes = [0u8; ROW];
                    for (byte, x) in bytes.iter_mut().zip(numbers) {
                        *byte = code(*x, inverse) as u8;
                    }
                    for byte in &bytes {
                        sum += i32::from(*byte as i8);
                    }
                    let (bytes, _) = bytes.as_chunks::<PER_WORD>();
                    for (bytes, word) in bytes.iter().take(numbers.len().div_ceil(PER_WORD)).zip(&mut places) {
                        *word = u32::from_le_bytes(*bytes);
                    }
                }
                sums[lane] = sum as u32;
            }
        }
        Side::Right => {
            let all = codes.lanes();
            let inverses = &codes.inverses[lanes.clone()];
            for (words, k) in words.chunks_exact_mut(width).zip(k.clone().step_by(PER_WORD).map(|at| at..k.end)) {
                words.fill(0);
                for (i, k) in k.take(PER_WORD).enumerate() {
                    let row = &codes.data[k * all..][lanes.clone()];
                    for ((word, x), inverse) in words.iter_mut().zip(row).zip(inverses) {
                        *word |= (code(*x, *inverse).wrapping_add(1) & 0xff) << (8 * i);
                    }
                }
            }
        }
    }
}
