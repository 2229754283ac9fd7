//! GPTQ (Frantar et al. 2022, <https://arxiv.org/abs/2210.17323>): a matrix is rounded column after column, and what
//! rounding a column takes from the layer's outputs is given back by the columns that are not rounded yet.
//!
//! With inputs `x` and `H = sum x x^T`, the rounded matrix is to have small `(w - q) H (w - q)^T` in each row. Let
//! `H^-1 = L L^T`. When column `j` is rounded, with the error `e = (w_j - q_j) / L_jj`, the best that the columns `k > j`
//! can do is `w_k -= e * L_kj`, and `e^2` is what stays. So `1 / L_jj^2` is how much the error of column `j` weighs, which
//! is what scales are searched by.

use anyhow::{Result, anyhow, ensure};
use bitllama_core::search::{Found, nested_parts, quantized, round_together, search};
use bitllama_core::{Granularity, Quantizer, RoundedMatrix, ScaleFormat};
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Mat, Side, get_global_parallelism};
use rayon::prelude::*;

/// What inputs of a matrix were like.
#[derive(Debug, Clone)]
pub struct Hessian {
    /// `sum x x^T`, `[columns, columns]`.
    pub sum: Vec<f32>,
    /// `in_features`.
    pub columns: usize,
}

/// How to go about it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Added to the diagonal, as a share of its mean.
    pub damping: f64,
    /// Columns whose inputs are largest come first, with scales set beforehand; those are also where scales are to be
    /// double-quantized, which takes all of a matrix.
    pub act_order: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { damping: 0.01, act_order: false }
    }
}

/// Rows that a thread works on at a time, so that each column of `L` is read once for all of them.
const ROWS: usize = 16;

impl Hessian {
    /// The mean square of each input, up to a factor.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.columns).map(|i| self.sum[i * self.columns + i]).collect()
    }

    /// The order to take columns in, and `L` of the inverse in that order: column `j` has the elements from the diagonal
    /// down.
    fn factor(&self, options: Options) -> Result<(Vec<usize>, Vec<Vec<f32>>)> {
        let n = self.columns;
        let mut diagonal: Vec<f64> = self.diagonal().into_iter().map(f64::from).collect();
        ensure!(diagonal.iter().all(|x| x.is_finite()), "the calibration text gives inputs that are not finite");
        let damping = options.damping * diagonal.iter().sum::<f64>() / n as f64;
        ensure!(damping > 0.0, "the calibration text gives inputs that are all zero");
        let mut order: Vec<usize> = (0..n).collect();
        if options.act_order {
            order.sort_by(|a, b| diagonal[*b].total_cmp(&diagonal[*a]));
        }
        // Inputs that are always zero: any weight will do.
        diagonal.iter_mut().filter(|x| **x == 0.0).for_each(|x| *x = 1.0);
        // Rows and columns in reverse: with `H = U U^T`, U upper triangular, `L` is the transpose of U's inverse. One factorization and
        // the inverse of a triangle take half of the operations of `H`'s inverse and its factorization.
        let matrix = Mat::from_fn(n, n, |i, j| match (order[n - 1 - i], order[n - 1 - j]) {
            (a, b) if a == b => diagonal[a] + damping,
            (a, b) => self.sum[a * n + b] as f64,
        });
        let reversed = matrix.llt(Side::Lower).map_err(|_| {
            anyhow!("the inputs of a layer are too much alike for GPTQ; use more calibration text or damping")
        })?;
        drop(matrix);
        let mut inverse = Mat::zeros(n, n);
        invert_lower_triangular(inverse.as_mut(), reversed.L(), get_global_parallelism());
        let column = |j: usize| (j..n).map(|i| inverse[(n - 1 - j, n - 1 - i)] as f32).collect();
        Ok((order, (0..n).into_par_iter().map(column).collect()))
    }
}

/// What GPTQ made of a matrix.
#[derive(Debug, Clone)]
pub struct Rounded {
    /// The result.
    pub packed: RoundedMatrix,
    /// The weights as they were when they were rounded, row-major `[rows, columns]`: with the scales of `packed` they
    /// round to its codes.
    pub weight: Vec<f32>,
}

/// Rounds `weight`, row-major `[rows, columns]`, to the grid of `quantizer`.
///
/// # Errors
/// If the Hessian has no inverse, or a weight is not finite.
pub fn gptq(
    quantizer: &Quantizer,
    shape: [usize; 2],
    weight: &[f32],
    hessian: &Hessian,
    options: Options,
) -> Result<Rounded> {
    let [rows, columns] = shape;
    quantizer.check_shape(shape)?;
    let (order, factor) = hessian.factor(options)?;
    let mut weighs = vec![0.0; columns];
    order.iter().zip(&factor).for_each(|(column, factor)| weighs[*column] = factor[0].powi(-2));
    let group = match quantizer.granularity {
        Granularity::Group(size) => size,
        Granularity::Row | Granularity::Tensor => columns,
    };
    let whole =
        (quantizer.granularity == Granularity::Tensor).then(|| search(quantizer, weight, Some(&weighs.repeat(rows))));
    let task = Task { quantizer, columns, group, order: &order, factor: &factor, weighs: &weighs, whole };

    let groups = columns / group;
    let (mut weight, mut codes) = (weight.to_vec(), vec![0.0; rows * columns]);
    let mut found = vec![Found { scale: 1.0, ..Found::default() }; rows * groups];
    let beforehand = options.act_order || quantizer.scales == ScaleFormat::Double;
    if beforehand {
        let rows = weight.par_chunks(columns).zip(found.par_chunks_mut(groups));
        rows.for_each(|(row, found)| {
            found.iter_mut().enumerate().for_each(|(group, found)| *found = task.scale(row, group));
        });
    }
    let parts = if beforehand { round_together(quantizer, &mut found) } else { None };
    let chunks = weight.par_chunks_mut(ROWS * columns).zip(codes.par_chunks_mut(ROWS * columns));
    chunks
        .zip(found.par_chunks_mut(ROWS * groups))
        .for_each(|((weight, codes), found)| task.run(weight, codes, found, beforehand));

    let parts = parts.or_else(|| nested_parts(quantizer, &found));
    let packed = RoundedMatrix::pack(quantizer, shape, quantized(quantizer, codes, &found, parts))?;
    Ok(Rounded { packed, weight })
}

/// What all rows share.
struct Task<'a> {
    quantizer: &'a Quantizer,
    columns: usize,
    /// Columns that share a scale.
    group: usize,
    order: &'a [usize],
    factor: &'a [Vec<f32>],
    /// How much the error of each column weighs.
    weighs: &'a [f32],
    /// The scale of the whole matrix, where there is one.
    whole: Option<Found>,
}

impl Task<'_> {
    /// The scale of a group of a row.
    fn scale(&self, row: &[f32], group: usize) -> Found {
        let range = group * self.group..(group + 1) * self.group;
        self.whole.unwrap_or_else(|| search(self.quantizer, &row[range.clone()], Some(&self.weighs[range])))
    }

    /// Rounds some rows: `weight` and `codes` are `[rows, columns]`, `found` is `[rows, groups]`, which holds the scales
    /// if they were set `beforehand`. Weights become what they were when they were rounded.
    fn run(&self, weight: &mut [f32], codes: &mut [f32], found: &mut [Found], beforehand: bool) {
        let (columns, groups) = (self.columns, self.columns / self.group);
        // The columns in their order, so that updates run along memory.
        let mut ordered: Vec<f32> = Vec::with_capacity(weight.len());
        for row in weight.chunks_exact(columns) {
            ordered.extend(self.order.iter().map(|column| row[*column]));
        }
        for (position, (column, factor)) in self.order.iter().zip(self.factor).enumerate() {
            let group = column / self.group;
            // Columns whose scales are rounded together.
            let unit = self.group * self.quantizer.nested_groups();
            if !beforehand && column % unit == 0 {
                // Columns are in their own order then, and these as the updates so far have left them.
                for (row, ordered) in weight.chunks_exact_mut(columns).zip(ordered.chunks_exact(columns)) {
                    row[*column..column + unit].copy_from_slice(&ordered[position..position + unit]);
                }
                for (row, found) in weight.chunks_exact(columns).zip(found.chunks_exact_mut(groups)) {
                    let found = &mut found[group..group + unit / self.group];
                    (group..).zip(&mut *found).for_each(|(group, found)| *found = self.scale(row, group));
                    round_together(self.quantizer, found);
                }
            }
            for (row, ordered) in ordered.chunks_exact_mut(columns).enumerate() {
                let found = found[row * groups + group];
                let code = self.quantizer.code_of(ordered[position], found);
                codes[row * columns + column] = code;
                weight[row * columns + column] = ordered[position];
                let rounded = found.weight(self.quantizer.offset, code);
                let error = (ordered[position] - rounded) / factor[0];
                ordered[position + 1..].iter_mut().zip(&factor[1..]).for_each(|(w, l)| *w -= error * l);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bitllama_core::{Method, Offset, Scheme, Target};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Inputs that go together, as those of a layer do.
    fn example(rows: usize, columns: usize) -> (Vec<f32>, Hessian) {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect::<Vec<_>>();
        let (weight, mixing) = (random(rows * columns), random(columns * columns / 4));
        let mut sum = vec![0.0; columns * columns];
        for _ in 0..4 * columns {
            let hidden = random(columns / 4);
            let noise = random(columns);
            let x: Vec<f32> = (0..columns)
                .map(|i| {
                    let row = &mixing[i * (columns / 4)..][..columns / 4];
                    row.iter().zip(&hidden).map(|(a, b)| a * b).sum::<f32>() + 0.2 * noise[i]
                })
                .collect();
            for i in 0..columns {
                for j in 0..columns {
                    sum[i * columns + j] += x[i] * x[j];
                }
            }
        }
        (weight, Hessian { sum, columns })
    }

    /// `sum over rows of (w - q) H (w - q)^T`.
    fn loss(weight: &[f32], packed: &RoundedMatrix, hessian: &Hessian) -> f64 {
        let n = hessian.columns;
        let error: Vec<f64> = weight.iter().zip(packed.dequantize().data).map(|(w, q)| (w - q) as f64).collect();
        let of_row = |error: &[f64]| {
            (0..n)
                .map(|i| (0..n).map(|j| error[i] * hessian.sum[i * n + j] as f64 * error[j]).sum::<f64>())
                .sum::<f64>()
        };
        error.chunks_exact(n).map(of_row).sum()
    }

    #[test]
    fn the_factor_is_that_of_the_inverse() {
        let (_, hessian) = example(1, 24);
        for act_order in [false, true] {
            let (order, factor) = hessian.factor(Options { act_order, damping: 1e-12 }).unwrap();
            let inverse = |i: usize, j: usize| {
                (0..=i.min(j)).map(|k| f64::from(factor[k][i - k] * factor[k][j - k])).sum::<f64>()
            };
            for i in 0..24 {
                for j in 0..24 {
                    let of = |k: usize| f64::from(hessian.sum[order[i] * 24 + order[k]]) * inverse(k, j);
                    let found: f64 = (0..24).map(of).sum();
                    assert!((found - f64::from(u8::from(i == j))).abs() < 1e-3, "{i} {j}: {found}");
                }
            }
        }
    }

    #[test]
    fn every_grid_loses_less_than_by_rounding_to_nearest() {
        let (weight, hessian) = example(20, 64);
        for scheme in Scheme::ALL {
            for granularity in [Granularity::Row, Granularity::Group(32), Granularity::Tensor] {
                for offset in [Offset::None, Offset::ZeroPoint] {
                    let quantizer = Quantizer { granularity, offset, ..scheme.into() };
                    if quantizer.check().is_err() {
                        continue;
                    }
                    // Formats of scales in turn, where they go together.
                    let double = quantizer.with_scales(ScaleFormat::Double);
                    let quantizer = match double.check() {
                        Ok(()) => double,
                        Err(_) => quantizer.with_scales(ScaleFormat::F16),
                    };
                    let nearest = RoundedMatrix::quantize(&quantizer, [20, 64], weight.clone(), None).unwrap();
                    let nearest = loss(&weight, &nearest, &hessian);
                    for act_order in [false, true] {
                        let options = Options { act_order, ..Options::default() };
                        let Rounded { packed, weight: latent } =
                            gptq(&quantizer, [20, 64], &weight, &hessian, options).unwrap();
                        assert_eq!(latent.len(), weight.len());
                        let found = loss(&weight, &packed, &hessian);
                        assert!(found < 0.9 * nearest, "{quantizer} {act_order}: {found} {nearest}");
                    }
                }
            }
        }
    }

    #[test]
    fn grids_of_blocks_are_better_than_rounding_to_nearest() {
        let (weight, hessian) = example(20, 256);
        for name in ["gguf:q4_1", "gguf:q2_k", "gguf:q3_k", "gguf:q4_k", "gguf:q6_k"] {
            let plain = Target::named(name).unwrap().quantizers[0];
            let nearest = RoundedMatrix::quantize(&plain, [20, 256], weight.clone(), None).unwrap();
            let (nearest, quantizer) = (loss(&weight, &nearest, &hessian), plain.with_method(Method::Lsq));
            for act_order in [false, true] {
                let options = Options { act_order, ..Options::default() };
                let Rounded { packed, weight: latent } =
                    gptq(&quantizer, [20, 256], &weight, &hessian, options).unwrap();
                let found = loss(&weight, &packed, &hessian);
                assert!(found < 0.8 * nearest, "{name} {act_order}: {found} {nearest}");
                // The weights round to these codes by these scales, as training starts from them.
                let again = RoundedMatrix::quantize(&quantizer, [20, 256], latent, Some(packed.scales())).unwrap();
                let (again, packed) = (again.dequantize().data, packed.dequantize().data);
                let differ = again.iter().zip(&packed).filter(|(a, b)| a != b).count();
                assert!(differ < 20 * 256 / 100, "{name} {act_order}: {differ}");
            }
        }
    }

    #[test]
    fn inputs_that_do_not_depend_on_each_other_leave_rounding_to_nearest() {
        let (weight, _) = example(5, 32);
        let mut sum = vec![0.0; 32 * 32];
        (0..32).for_each(|i| sum[i * 33] = 3.0);
        let quantizer = Quantizer::from(Scheme::Int4);
        let rounded = gptq(&quantizer, [5, 32], &weight, &Hessian { sum, columns: 32 }, Options::default());
        let Rounded { packed, weight: latent } = rounded.unwrap();
        assert_eq!(latent, weight);
        for (row, weight) in weight.chunks_exact(32).enumerate() {
            let found = search(&quantizer, weight, None);
            let mut codes = vec![0.0; 32];
            let RoundedMatrix::Packed(packed) = &packed else { panic!("{quantizer} has panels") };
            packed.codes_into(row, &mut codes);
            let nearest: Vec<f32> = weight.iter().map(|w| quantizer.code_of(*w, found)).collect();
            assert_eq!(codes, nearest);
        }
    }

    #[test]
    fn what_cannot_be_inverted_is_an_error() {
        let quantizer = Quantizer::from(Scheme::Int4);
        for value in [0.0, f32::NAN] {
            let hessian = Hessian { sum: vec![value; 16], columns: 4 };
            assert!(gptq(&quantizer, [1, 4], &[1.0; 4], &hessian, Options::default()).is_err());
        }
        // Columns of zeros are no harm.
        let mut sum = vec![0.0; 16];
        sum[0] = 1.0;
        assert!(gptq(&quantizer, [1, 4], &[1.0; 4], &Hessian { sum, columns: 4 }, Options::default()).is_ok());
    }
}
