//! RMSNorm of queries and keys before their rotation, in rows that hold queries, keys and values side by side: of each head by
//! itself, as in Qwen 3 (<https://arxiv.org/abs/2505.09388>) and Gemma 3 (<https://arxiv.org/abs/2503.19786>), or of all heads of
//! a row at once, as in OLMo 2 (<https://arxiv.org/abs/2501.00656>).

use rayon::prelude::*;

use super::rms_norm::backward_rows;
use super::rows_of_part;
use crate::isa::Isa;
use crate::operators;
use crate::simd::for_isa;

/// Numbers of queries and of keys in a row, and of all of it; values come last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Of the queries, heads * head_dim.
    pub q: usize,
    /// Of the keys, kv_heads * head_dim, and of the values.
    pub kv: usize,
}

impl Widths {
    fn row(&self) -> usize {
        self.q + 2 * self.kv
    }

    fn check(&self, qkv: &[f32], [q, k]: [&[f32]; 2]) {
        assert!(self.row() > 0 && qkv.len().is_multiple_of(self.row()), "qkv is no rows of {self:?}");
        let fits = |weight: &[f32], width: usize| !weight.is_empty() && width.is_multiple_of(weight.len());
        assert!(fits(q, self.q) && fits(k, self.kv), "weights of {} and {} numbers for {self:?}", q.len(), k.len());
    }
}

/// Queries and keys of `qkv` (`[n, q + 2 * kv]`) divided by their root mean square, times the weights of queries and keys, and
/// values as they are, into `out` (as `qkv`). As many numbers as a weight has are normalized together: those of a head, or of
/// all heads of a row.
///
/// # Panics
/// If the lengths disagree.
pub fn forward(isa: Isa, widths: Widths, qkv: &[f32], weights: [&[f32]; 2], eps: f32, out: &mut [f32]) {
    widths.check(qkv, weights);
    assert_eq!(qkv.len(), out.len(), "qkv and out differ in length");
    let (row, Widths { q, kv }, [q_weight, k_weight]) = (widths.row(), widths, weights);
    let part = rows_of_part(row) * row;
    qkv.par_chunks(part).zip(out.par_chunks_mut(part)).for_each(|(qkv, out)| {
        for (qkv, out) in qkv.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
            operators::rms_norm(isa, &qkv[..q], q_weight, eps, &mut out[..q]);
            operators::rms_norm(isa, &qkv[q..q + kv], k_weight, eps, &mut out[q..q + kv]);
            out[q + kv..].copy_from_slice(&qkv[q + kv..]);
        }
    });
}

/// The gradients `d_qkv` (as `qkv`) and `d_weights` (as `weights`) of [`forward`] for `d_out` (as `qkv`). All are overwritten.
///
/// # Panics
/// If the lengths disagree.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    isa: Isa,
    widths: Widths,
    qkv: &[f32],
    weights: [&[f32]; 2],
    eps: f32,
    d_out: &[f32],
    d_qkv: &mut [f32],
    d_weights: [&mut [f32]; 2],
) {
    widths.check(qkv, weights);
    assert!(d_out.len() == qkv.len() && d_qkv.len() == qkv.len(), "qkv, d_out and d_qkv are not the same rows");
    let fits = weights.iter().zip(&d_weights).all(|(weight, d_weight)| weight.len() == d_weight.len());
    assert!(fits, "a weight and its gradient differ in length");
    let row = widths.row();
    let part = rows_of_part(row) * row;
    let of_parts: Vec<[Vec<f32>; 2]> = qkv
        .par_chunks(part)
        .zip(d_out.par_chunks(part))
        .zip(d_qkv.par_chunks_mut(part))
        .map(|((qkv, d_out), d_qkv)| {
            let mut sums = weights.map(|weight| vec![0.0; weight.len()]);
            let rows = qkv.chunks_exact(row).zip(d_out.chunks_exact(row)).zip(d_qkv.chunks_exact_mut(row));
            for ((qkv, d_out), d_qkv) in rows {
                let mut start = 0;
                for ((weight, sums), width) in weights.into_iter().zip(&mut sums).zip([widths.q, widths.kv]) {
                    let (x, d_out) = (&qkv[start..][..width], &d_out[start..][..width]);
                    let (d_x, sums) = (&mut d_qkv[start..][..width], &mut sums[..]);
                    for_isa!(
                        isa,
                        backward_rows(
                            x: &[f32], weight: &[f32], eps: f32, d_out: &[f32], d_x: &mut [f32], sums: &mut [f32],
                        )
                    );
                    start += width;
                }
                d_qkv[start..].copy_from_slice(&d_out[start..]);
            }
            sums
        })
        .collect();
    for (index, d_weight) in d_weights.into_iter().enumerate() {
        d_weight.fill(0.0);
        for part in &of_parts {
            operators::add(isa, d_weight, &part[index]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(len: usize, seed: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    const EPS: f32 = 1e-5;

    /// The definition, in f64.
    fn reference(widths: Widths, qkv: &[f64], weights: [&[f64]; 2]) -> Vec<f64> {
        let mut out = qkv.to_vec();
        for row in out.chunks_mut(widths.row()) {
            let (q, kv) = row.split_at_mut(widths.q);
            for (part, weight) in [q, &mut kv[..widths.kv]].into_iter().zip(weights) {
                for head in part.chunks_mut(weight.len()) {
                    let square = head.iter().map(|x| x * x).sum::<f64>() / weight.len() as f64;
                    let inverse = 1.0 / (square + f64::from(EPS)).sqrt();
                    head.iter_mut().zip(weight).for_each(|(x, weight)| *x *= inverse * weight);
                }
            }
        }
        out
    }

    /// Heads of queries, heads of keys, their width, whether each is a row of its own, and rows.
    const CASES: [(usize, usize, usize, bool, usize); 6] = [
        (1, 1, 2, true, 1),
        (4, 2, 6, true, 3),
        (4, 2, 6, false, 3),
        (3, 1, 64, true, 5),
        (3, 1, 64, false, 5),
        (2, 2, 80, true, 500),
    ];

    #[test]
    fn values_and_gradients_are_those_of_the_definition() {
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        for (heads, kv_heads, head_dim, each, rows) in CASES {
            let widths = Widths { q: heads * head_dim, kv: kv_heads * head_dim };
            let lens = if each { [head_dim; 2] } else { [widths.q, widths.kv] };
            let (qkv, d_out) = (numbers(rows * widths.row(), 1), numbers(rows * widths.row(), 2));
            let weights = [numbers(lens[0], 3), numbers(lens[1], 4)];
            let of = |qkv: &[f64], weights: [&[f64]; 2]| -> f64 {
                reference(widths, qkv, weights).iter().zip(&d_out).map(|(out, d)| out * f64::from(*d)).sum()
            };
            let (wide_qkv, wide_weights) = (wide(&qkv), [wide(&weights[0]), wide(&weights[1])]);
            let expected = reference(widths, &wide_qkv, [&wide_weights[0], &wide_weights[1]]);
            for isa in Isa::available() {
                let weights = [&weights[0][..], &weights[1]];
                let case = format!("{isa}, {heads} and {kv_heads} heads of {head_dim}, each by itself: {each}");
                let (mut out, mut d_qkv) = (vec![f32::NAN; qkv.len()], vec![f32::NAN; qkv.len()]);
                let mut d_weights = lens.map(|len| vec![f32::NAN; len]);
                forward(isa, widths, &qkv, weights, EPS, &mut out);
                let [d_q, d_k] = &mut d_weights;
                backward(isa, widths, &qkv, weights, EPS, &d_out, &mut d_qkv, [d_q, d_k]);
                for (out, expected) in out.iter().zip(&expected) {
                    assert!(
                        (f64::from(*out) - expected).abs() < 1e-5 * (1.0 + expected.abs()),
                        "{case}: {out} {expected}"
                    );
                }
                let close = |got: f32, expected: f64| {
                    assert!(
                        (f64::from(got) - expected).abs() < 1e-4 * (1.0 + expected.abs()),
                        "{case}: {got} {expected}"
                    );
                };
                for i in (0..qkv.len()).step_by(1 + qkv.len() / 40) {
                    // Other rows do not change, and only cost precision.
                    let row = i / widths.row() * widths.row()..(i / widths.row() + 1) * widths.row();
                    let at = |by: f64| {
                        let mut x = wide_qkv[row.clone()].to_vec();
                        x[i - row.start] += by;
                        let out = reference(widths, &x, [&wide_weights[0], &wide_weights[1]]);
                        out.iter().zip(&d_out[row.clone()]).map(|(out, d)| out * f64::from(*d)).sum::<f64>()
                    };
                    close(d_qkv[i], (at(1e-5) - at(-1e-5)) / 2e-5);
                }
                for (index, d_weight) in d_weights.iter().enumerate() {
                    for i in (0..d_weight.len()).step_by(1 + d_weight.len() / 10) {
                        let at = |by: f64| {
                            let mut weights = wide_weights.clone();
                            weights[index][i] += by;
                            of(&wide_qkv, [&weights[0], &weights[1]])
                        };
                        close(d_weight[i], (at(1e-4) - at(-1e-4)) / 2e-4);
                    }
                }
            }
        }
    }
}
