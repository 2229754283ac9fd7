//! Biases of linear layers, whose outputs may lie side by side with those of others.

use rayon::prelude::*;

use super::rows_of_part;
use super::runs::{for_lanes, load, store};
use crate::isa::Isa;
use crate::operators;
use crate::simd::{Simd, for_isa};

/// Adds `bias` (`[width]`) to each row of `out`, which begins at the first row's first number; `stride` numbers lie from a row to
/// the next, and what follows a row's `width` is not touched. `out` may end with the last row's `width`.
///
/// # Panics
/// If rows overlap, or `out` does not end with a row.
pub fn forward(isa: Isa, bias: &[f32], out: &mut [f32], stride: usize) {
    check(bias.len(), out.len(), stride);
    out.par_chunks_mut(rows_of_part(stride) * stride).for_each(|out| {
        for_isa!(isa, add_to_rows(bias: &[f32], out: &mut [f32], stride: usize));
    });
}

/// The gradient `d_bias` (`[width]`, overwritten) of [`forward`]: the sum of the rows of `d_out`, which lie as those of `out`.
///
/// # Panics
/// As [`forward`].
pub fn backward(isa: Isa, d_out: &[f32], stride: usize, d_bias: &mut [f32]) {
    check(d_bias.len(), d_out.len(), stride);
    let width = d_bias.len();
    let parts = d_out.par_chunks(rows_of_part(stride) * stride).map(|d_out| {
        let mut sums = vec![0.0; width];
        let out = &mut sums[..];
        for_isa!(isa, sum_of_rows(d_out: &[f32], stride: usize, out: &mut [f32]));
        sums
    });
    let parts: Vec<Vec<f32>> = parts.collect();
    d_bias.fill(0.0);
    for part in parts {
        operators::add(isa, d_bias, &part);
    }
}

fn check(width: usize, len: usize, stride: usize) {
    assert!(width > 0 && width <= stride, "rows of {width} numbers, {stride} apart");
    let last = len % stride;
    assert!(last == 0 || last >= width, "{len} numbers are no rows of {width}, {stride} apart");
}

#[inline(always)]
fn add_to_rows<S: Simd>(s: S, bias: &[f32], out: &mut [f32], stride: usize) {
    for row in out.chunks_mut(stride) {
        for_lanes!(bias.len(), place => {
            let sum = s.add(load(s, &row[place.clone()]), load(s, &bias[place.clone()]));
            store(s, sum, &mut row[place]);
        });
    }
}

#[inline(always)]
fn sum_of_rows<S: Simd>(s: S, d_out: &[f32], stride: usize, out: &mut [f32]) {
    for row in d_out.chunks(stride) {
        for_lanes!(out.len(), place => {
            let sum = s.add(load(s, &out[place.clone()]), load(s, &row[place.clone()]));
            store(s, sum, &mut out[place]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn biases_are_added_to_their_columns_and_summed_over_rows() {
        for (rows, width, start, stride) in [(1, 1, 0, 1), (3, 5, 2, 9), (7, 16, 0, 16), (300, 570, 33, 603)] {
            let bias: Vec<f32> = (0..width).map(|i| i as f32 - 3.0).collect();
            let before: Vec<f32> = (0..rows * stride).map(|i| ((i * 7919) % 1009) as f32 / 8.0 - 60.0).collect();
            for isa in Isa::available() {
                let (mut out, mut d_bias) = (before.clone(), vec![f32::NAN; width]);
                forward(isa, &bias, &mut out[start..], stride);
                backward(isa, &before[start..], stride, &mut d_bias);
                for (i, (out, before)) in out.iter().zip(&before).enumerate() {
                    let column = (i % stride).checked_sub(start).filter(|column| *column < width);
                    assert_eq!(*out, before + column.map_or(0.0, |column| bias[column]), "{isa} {i}");
                }
                for (column, d_bias) in d_bias.iter().enumerate() {
                    let sum: f64 = (0..rows).map(|row| f64::from(before[row * stride + start + column])).sum();
                    assert!((f64::from(*d_bias) - sum).abs() < 1e-5 * (1.0 + sum.abs()), "{isa}: {d_bias} {sum}");
                }
            }
        }
    }
}
