//! Divergences of a student's distribution over the next token from a teacher's, in nats.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::recipe::Divergence;
use crate::teacher_cache::Likeliest;

/// What is known of a teacher's distribution over the next token; not tracked by autodiff.
#[derive(Debug, Clone)]
pub struct TeacherSide {
    /// The likeliest tokens, the likeliest first, `[positions, k]`; `None`: all, in the order of the vocabulary.
    pub tokens: Option<Tensor<2, Int>>,
    /// Natural logarithms of their probabilities, and behind those of the likeliest that of all other tokens together,
    /// `[positions, vocab]` or `[positions, k + 1]`.
    pub log_p: Tensor<2>,
}

impl TeacherSide {
    /// Of logits `[positions, vocab]` divided by `temperature`: of all tokens, or of the `top_k` likeliest.
    pub fn of(logits: Tensor<2>, temperature: f64, top_k: Option<usize>) -> Self {
        let [_, vocab] = logits.dims();
        // A token that the teacher excludes has the logarithm minus infinity, which times its probability is no number.
        let log_p = softened(logits, temperature).clamp_min(LEAST);
        match top_k.filter(|k| *k < vocab) {
            None => Self { tokens: None, log_p },
            Some(k) => {
                let (log_p, tokens) = log_p.topk_with_indices(k, 1);
                Self { tokens: Some(tokens), log_p: with_rest(log_p) }
            }
        }
    }
}

impl TeacherSide {
    /// Of what a cache knows of as many positions.
    pub fn of_cache(likeliest: Likeliest, positions: usize, device: &Device) -> Self {
        let k = likeliest.tokens.len() / positions.max(1);
        let tokens: Vec<i32> = likeliest.tokens.into_iter().map(|token| token as i32).collect();
        Self {
            tokens: Some(Tensor::from_data(TensorData::new(tokens, [positions, k]), device)),
            log_p: Tensor::from_data(TensorData::new(likeliest.log_p, [positions, k + 1]), device),
        }
    }
}

/// Natural logarithms of probabilities, `[positions, categories]`.
struct Pair {
    /// Not tracked by autodiff, but on the student's device.
    teacher: Tensor<2>,
    student: Tensor<2>,
}

/// The mean over positions of the divergence of the student's distribution (`[positions, vocab]`, natural logarithms of
/// probabilities, tracked) from the teacher's, which was taken at the same temperature, as a scalar of shape `[1]`.
///
/// Where the likeliest tokens are known only, the categories are these and "any other token": the mass of all others is
/// compared as one, so that a student cannot hide mass where the teacher has none. By the data processing inequality the
/// forward and reverse KL divergences are then lower bounds of those over all tokens.
pub fn divergence(kind: Divergence, student: Tensor<2>, teacher: TeacherSide) -> Tensor<1> {
    let [positions, _] = student.dims();
    let student = match teacher.tokens {
        None => student,
        Some(tokens) => with_rest(student.gather(1, Tensor::from_inner(tokens))),
    };
    let pair = Pair { teacher: Tensor::from_inner(teacher.log_p), student };
    pair.divergence(kind) / positions as f64
}

/// Natural logarithms of the probabilities of logits divided by `temperature`.
pub fn softened(logits: Tensor<2>, temperature: f64) -> Tensor<2> {
    log_softmax(if temperature == 1.0 { logits } else { logits / temperature }, 1)
}

/// One category more: what is left of the mass, at least 1e-7 of it.
fn with_rest(log_p: Tensor<2>) -> Tensor<2> {
    let rest = (log_p.clone().exp().sum_dim(1).neg() + 1.0).clamp_min(1e-7).log();
    Tensor::cat(vec![log_p, rest], 1)
}

impl Pair {
    /// The sum over positions.
    fn divergence(self, kind: Divergence) -> Tensor<1> {
        let Pair { teacher, student } = self;
        match kind {
            Divergence::ForwardKl => kl(teacher, student),
            Divergence::ReverseKl => kl(student, teacher),
            // Agarwal et al. 2024, <https://arxiv.org/abs/2306.13649>, equation 1.
            Divergence::Jsd { beta } => {
                let mixture =
                    (teacher.clone().exp() * beta + student.clone().exp() * (1.0 - beta)).clamp_min(1e-30).log();
                kl(teacher, mixture.clone()) * beta + kl(student, mixture) * (1.0 - beta)
            }
        }
    }
}

/// `sum p (log p - log q)`.
fn kl(log_p: Tensor<2>, log_q: Tensor<2>) -> Tensor<1> {
    (log_p.clone().exp() * (log_p - log_q)).sum()
}

/// The logarithm of the least probability that counts, near the smallest normal f32.
const LEAST: f64 = -87.0;

#[cfg(test)]
mod tests {
    use super::*;

    const POSITIONS: usize = 3;
    const VOCAB: usize = 6;

    fn logits(seed: usize) -> Vec<f32> {
        (0..POSITIONS * VOCAB).map(|i| ((i * (5 + seed) % 13) as f32 - 6.0) * 0.4).collect()
    }

    fn softmax(row: &[f32], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = row.iter().map(|x| (*x as f64 / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect()
    }

    /// By the definitions, in f64.
    fn reference(kind: Divergence, top_k: Option<usize>, temperature: f64, student: &[f32], teacher: &[f32]) -> f64 {
        let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        let rows = student.chunks(VOCAB).zip(teacher.chunks(VOCAB)).map(|(student, teacher)| {
            let (mut q, mut p) = (softmax(student, temperature), softmax(teacher, temperature));
            if let Some(k) = top_k {
                let mut order: Vec<usize> = (0..VOCAB).collect();
                order.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
                let coarse = |x: &[f64]| {
                    let mut kept: Vec<f64> = order[..k].iter().map(|i| x[*i]).collect();
                    kept.push(order[k..].iter().map(|i| x[*i]).sum());
                    kept
                };
                (q, p) = (coarse(&q), coarse(&p));
            }
            match kind {
                Divergence::ForwardKl => kl(&p, &q),
                Divergence::ReverseKl => kl(&q, &p),
                Divergence::Jsd { beta } => {
                    let m: Vec<f64> = p.iter().zip(&q).map(|(p, q)| beta * p + (1.0 - beta) * q).collect();
                    beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
                }
            }
        });
        rows.sum::<f64>() / POSITIONS as f64
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definitions() {
        let device = Device::flex().autodiff();
        let (student, teacher) = (logits(2), logits(4));
        let tensor = |data: &[f32], device: &Device| {
            Tensor::<2>::from_data(TensorData::new(data.to_vec(), [POSITIONS, VOCAB]), device)
        };
        for kind in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd { beta: 0.3 }] {
            for top_k in [None, Some(2), Some(5), Some(6)] {
                let reached = top_k.filter(|k| *k < VOCAB);
                for temperature in [1.0, 2.5] {
                    let leaf = tensor(&student, &device).require_grad();
                    let value = {
                        let teacher = TeacherSide::of(tensor(&teacher, &Device::flex()), temperature, top_k);
                        divergence(kind, softened(leaf.clone(), temperature), teacher)
                    };
                    let grads = value.clone().backward();
                    let value: f32 = value.into_scalar();
                    let of = |student: &[f32]| reference(kind, reached, temperature, student, &teacher);
                    assert!((value as f64 - of(&student)).abs() < 1e-5, "{kind:?} {top_k:?}: {value} {}", of(&student));
                    let gradient: Vec<f32> = leaf.grad(&grads).unwrap().into_data_as::<f32>().try_into_vec().unwrap();
                    for (i, gradient) in gradient.into_iter().enumerate() {
                        let moved = |by: f32| {
                            let mut student = student.clone();
                            student[i] += by;
                            of(&student)
                        };
                        let slope = (moved(0.01) - moved(-0.01)) / 0.02;
                        assert!((gradient as f64 - slope).abs() < 1e-4, "{kind:?} {top_k:?} {i}: {gradient} {slope}");
                    }
                }
            }
        }
    }

    #[test]
    fn tokens_that_the_teacher_excludes_make_no_nan() {
        let device = Device::flex().autodiff();
        let data = |values: [f32; 3]| TensorData::new(values.to_vec(), [1, 3]);
        for kind in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd { beta: 0.5 }] {
            let leaf = Tensor::<2>::from_data(data([0.0, 1.0, 2.0]), &device).require_grad();
            let teacher = Tensor::from_data(data([0.0, 1.0, f32::NEG_INFINITY]), &Device::flex());
            let value = divergence(kind, softened(leaf.clone(), 1.0), TeacherSide::of(teacher, 1.0, None));
            let grads = value.clone().backward();
            let value: f32 = value.into_scalar();
            let gradient: Vec<f32> = leaf.grad(&grads).unwrap().into_data_as::<f32>().try_into_vec().unwrap();
            assert!(value.is_finite() && value > 0.0 && gradient.iter().all(|g| g.is_finite()), "{kind:?} {value}");
        }
    }
}
