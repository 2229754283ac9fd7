//! RMSNorm (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>) on all threads, and its gradient.

use rayon::prelude::*;

use super::rows_of_part;
use super::runs::{for_lanes, load, store};
use crate::isa::Isa;
use crate::operators;
use crate::simd::{Simd, for_isa};

/// `x / sqrt(mean(x^2) + eps) * weight` of each row of `x` (`[n, hidden]`) into `out` (`[n, hidden]`).
///
/// # Panics
/// If `x` is no whole number of rows of `weight`'s length, or `out` is not as long.
pub fn forward(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len().is_multiple_of(weight.len()) && out.len() == x.len(), "x and out are not the same rows");
    let part = rows_of_part(weight.len()) * weight.len();
    x.par_chunks(part).zip(out.par_chunks_mut(part)).for_each(|(x, out)| operators::rms_norm(isa, x, weight, eps, out));
}

/// The gradients `d_x` (`[n, hidden]`) and `d_weight` (`[hidden]`) of [`forward`], for `d_out` (`[n, hidden]`). Both are
/// overwritten.
///
/// With `r = 1 / sqrt(mean(x^2) + eps)`, `y = x r` and `g = d_out * weight`: `d_x = r (g - y mean(g y))` and `d_weight` is
/// the sum of `d_out * y` over rows.
///
/// # Panics
/// If the lengths disagree.
pub fn backward(isa: Isa, x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32], d_weight: &mut [f32]) {
    let hidden = weight.len();
    assert!(x.len().is_multiple_of(hidden) && d_weight.len() == hidden, "x is no rows of the weight");
    assert!(d_out.len() == x.len() && d_x.len() == x.len(), "x, d_out and d_x are not the same rows");
    let part = rows_of_part(hidden) * hidden;
    let of_parts: Vec<Vec<f32>> = x
        .par_chunks(part)
        .zip(d_out.par_chunks(part))
        .zip(d_x.par_chunks_mut(part))
        .map(|((x, d_out), d_x)| {
            let mut d_weight = vec![0.0; hidden];
            let sums = &mut d_weight[..];
            for_isa!(
                isa,
                backward_rows(x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32], sums: &mut [f32])
            );
            d_weight
        })
        .collect();
    d_weight.fill(0.0);
    for part in of_parts {
        operators::add(isa, d_weight, &part);
    }
}

/// [`backward`] of some rows, whose terms are added to `d_weight`.
#[inline(always)]
pub(super) fn backward_rows<S: Simd>(
    s: S,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    d_out: &[f32],
    d_x: &mut [f32],
    d_weight: &mut [f32],
) {
    let hidden = weight.len();
    let rows = x.chunks_exact(hidden).zip(d_out.chunks_exact(hidden)).zip(d_x.chunks_exact_mut(hidden));
    for ((x, d_out), d_x) in rows {
        let (mut squares, mut products) = (s.splat(0.0), s.splat(0.0));
        for_lanes!(hidden, place => {
            let x = load(s, &x[place.clone()]);
            let g = s.mul(load(s, &d_out[place.clone()]), load(s, &weight[place]));
            squares = s.mul_add(x, x, squares);
            products = s.mul_add(g, x, products);
        });
        let inverse = 1.0 / (s.sum(squares) / hidden as f32 + eps).sqrt();
        // mean(g y) r^2, which times x is mean(g y) y r.
        let mean = s.splat(-s.sum(products) / hidden as f32 * inverse * inverse * inverse);
        let inverse = s.splat(inverse);
        for_lanes!(hidden, place => {
            let (x, d_out) = (load(s, &x[place.clone()]), load(s, &d_out[place.clone()]));
            let g = s.mul(d_out, load(s, &weight[place.clone()]));
            store(s, s.mul_add(x, mean, s.mul(g, inverse)), &mut d_x[place.clone()]);
            let sums = load(s, &d_weight[place.clone()]);
            store(s, s.mul_add(d_out, s.mul(x, inverse), sums), &mut d_weight[place]);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// Against the derivative of a sum of outputs, by differences in f64.
    #[test]
    fn gradients_are_those_of_the_definition() {
        let eps = 1e-5;
        for (rows, hidden) in [(1, 1), (3, 5), (2, 16), (5, 37), (300, 576)] {
            let (x, weight, d_out) = (numbers(rows * hidden, 1), numbers(hidden, 2), numbers(rows * hidden, 3));
            for isa in Isa::available() {
                let (mut d_x, mut d_weight) = (vec![f32::NAN; x.len()], vec![f32::NAN; hidden]);
                backward(isa, &x, &weight, eps, &d_out, &mut d_x, &mut d_weight);
                let loss = |x: &[f64], weight: &[f64]| {
                    let row = |(x, d_out): (&[f64], &[f32])| {
                        let square = x.iter().map(|x| x * x).sum::<f64>() / hidden as f64;
                        let inverse = 1.0 / (square + eps as f64).sqrt();
                        x.iter().zip(weight).zip(d_out).map(|((x, w), d)| x * inverse * w * *d as f64).sum::<f64>()
                    };
                    x.chunks(hidden).zip(d_out.chunks(hidden)).map(row).sum::<f64>()
                };
                let wide = |x: &[f32]| x.iter().map(|x| *x as f64).collect::<Vec<_>>();
                let (x64, weight64) = (wide(&x), wide(&weight));
                for i in (0..x.len()).step_by(1 + x.len() / 20) {
                    let row = i / hidden * hidden..(i / hidden + 1) * hidden;
                    let at = |by: f64| {
                        let mut x = x64.clone();
                        x[i] += by;
                        // Other rows do not change, and only cost precision.
                        loss(&x[..row.end], &weight64) - loss(&x64[..row.start], &weight64)
                    };
                    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                    assert!(
                        (d_x[i] as f64 - slope).abs() < 1e-4 * (1.0 + slope.abs()),
                        "{isa} {i}: {} {slope}",
                        d_x[i]
                    );
                }
                for i in (0..hidden).step_by(1 + hidden / 10) {
                    let at = |by: f64| {
                        let mut weight = weight64.clone();
                        weight[i] += by;
                        loss(&x64, &weight)
                    };
                    let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
                    let error = (d_weight[i] as f64 - slope).abs();
                    assert!(error < 1e-4 * (1.0 + slope.abs()), "{isa} {i}: {} {slope}", d_weight[i]);
                }
            }
        }
    }
}
