//! Losses: cross-entropy with the text, divergence from the teacher.

use bitllama_nn::{Head, ops};
use burn::tensor::{Int, Tensor, TensorData};

use super::divergence::{TeacherSide, divergence, softened};
use super::teacher::Known;
use crate::data::batches::Batch;
use crate::recipe::{Distill, Divergence};

/// The loss of a batch and its terms, each a scalar of shape `[1]`, in nats a token.
pub struct Terms {
    /// `alpha * ce + (1 - alpha) * T^2 * divergence`; tracked by autodiff.
    pub loss: Tensor<1>,
    /// Cross-entropy of the scored targets, its sum divided by [`ScoredTargets::mean`].
    pub ce: Tensor<1>,
    /// The recipe's divergence from the teacher at temperature T, over all positions; `None` without a teacher.
    pub divergence: Option<Tensor<1>>,
}

/// The targets that are scored.
#[derive(Debug, Clone, Copy)]
pub struct ScoredTargets<'a> {
    /// Flags of a batch's targets, `[rows, seq]`, row-major.
    pub of: &'a [bool],
    /// Mean number per batch of the step, by which a batch's sum of cross-entropies is divided, so that each target
    /// of the step counts the same, whatever batch it is in.
    pub mean: f64,
}

impl<'a> ScoredTargets<'a> {
    /// Those of one batch out of a step's `all`.
    pub fn of_step(of: &'a [bool], all: &[Batch]) -> Self {
        let scored = all.iter().flat_map(|batch| &batch.scored).filter(|scored| **scored).count();
        Self { of, mean: scored.max(1) as f64 / all.len() as f64 }
    }
}

/// Losses of a student whose `hidden` (`[rows, seq, hidden]`, tracked) goes into `head`, against `targets` (`[rows, seq]`,
/// row-major) where `scored`, and against what is known of the teacher. The logits are stored only where there is no fused
/// operator.
pub fn losses(
    hidden: Tensor<3>,
    head: &Head,
    known: Known,
    targets: &[u32],
    scored: ScoredTargets,
    distill: &Distill,
) -> Terms {
    let [rows, seq, width] = hidden.dims();
    let positions = rows * seq;
    let device = hidden.device();
    if ops::fused(&device) {
        let of_teacher = match &known {
            Known::Model(model) => Some(model.0.clone().reshape([positions, model.0.dims()[2]])),
            _ => None,
        };
        let side = match (&known, &of_teacher) {
            (Known::Model(model), Some(hidden)) => ops::loss::Side::Model(hidden, &model.1, distill.top_k),
            (Known::Cached(likeliest), _) => ops::loss::Side::Likeliest(&likeliest.tokens, &likeliest.log_p),
            _ => ops::loss::Side::Absent,
        };
        let (present, temperature) = (!matches!(known, Known::Absent), distill.temperature);
        let mixture = ops::loss::Mixture {
            ce: if present { distill.alpha } else { 1.0 },
            scored: scored.mean,
            divergence: if present { (1.0 - distill.alpha) * temperature * temperature } else { 0.0 },
            temperature,
            kind: match distill.divergence() {
                Divergence::ForwardKl => ops::loss::Divergence::ForwardKl,
                Divergence::ReverseKl => ops::loss::Divergence::ReverseKl,
                Divergence::Jsd { beta } => ops::loss::Divergence::Jsd { beta: beta as f32 },
            },
        };
        let losses = ops::loss::forward(hidden.reshape([positions, width]), head, side, targets, scored.of, &mixture);
        let term = |value: f64| Tensor::from_data(TensorData::new(vec![value as f32], [1]), &device);
        let divergence = present.then(|| term(losses.divergence));
        return Terms { loss: losses.loss, ce: term(losses.ce), divergence };
    }
    let inner = device.clone().inner();
    let teacher = match known {
        Known::Absent => None,
        Known::Model(model) => {
            let (hidden, head) = *model;
            let logits = head.logits(hidden).reshape([positions, head.vocab()]);
            Some(TeacherSide::of(logits, distill.temperature, distill.top_k))
        }
        Known::Cached(likeliest) => Some(TeacherSide::of_cache(likeliest, positions, &inner)),
    };
    let targets: Vec<i32> = targets.iter().map(|target| *target as i32).collect();
    let count = Tensor::from_data(TensorData::new(vec![scored.mean as f32], [1]), &device);
    let scored: Vec<f32> = scored.of.iter().map(|scored| *scored as u8 as f32).collect();
    terms(
        head.logits(hidden).reshape([positions, head.vocab()]),
        teacher,
        Tensor::from_data(TensorData::new(targets, [positions]), &device),
        (Tensor::from_data(TensorData::new(scored, [positions]), &device), count),
        distill,
    )
}

/// Losses of `student` logits (`[positions, vocab]`, tracked) against `targets` (`[positions]`) where `scored`
/// (`[positions]`, 1 or 0; with it `[1]`, what the sum of cross-entropies is divided by), and against what is known of the teacher's distribution at the recipe's temperature.
///
/// The form is Hinton et al. 2015 (<https://arxiv.org/abs/1503.02531>): T^2 keeps the gradient of the softened term in
/// proportion.
pub fn terms(
    student: Tensor<2>,
    teacher: Option<TeacherSide>,
    targets: Tensor<1, Int>,
    (scored, count): (Tensor<1>, Tensor<1>),
    distill: &Distill,
) -> Terms {
    let [positions, _] = student.dims();
    let temperature = distill.temperature;
    let log_q = softened(student.clone(), 1.0);
    // What has no share in the loss is reported, but not followed back.
    let for_ce = if distill.alpha > 0.0 || teacher.is_none() { log_q.clone() } else { untracked(&log_q) };
    let of_target = for_ce.gather(1, targets.reshape([positions, 1])).reshape([positions]);
    let ce = -(of_target * scored).sum() / count;
    let Some(teacher) = teacher else {
        return Terms { loss: ce.clone(), ce, divergence: None };
    };

    let student = if temperature == 1.0 { log_q } else { softened(student, temperature) };
    let divergence = divergence(distill.divergence(), student, teacher);
    let weighed = divergence.clone() * ((1.0 - distill.alpha) * temperature * temperature);
    let loss = if distill.alpha > 0.0 { ce.clone() * distill.alpha + weighed } else { weighed };
    Terms { loss, ce, divergence: Some(divergence) }
}

/// The same numbers on the same device, without a gradient.
fn untracked(tensor: &Tensor<2>) -> Tensor<2> {
    Tensor::from_inner(tensor.clone().inner())
}

#[cfg(test)]
mod tests {
    use bitllama_nn::linear::Precision;
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::recipe::distill::Loss;
    use crate::teacher_cache::Likeliest;

    /// Value and gradient of the loss, against plain arithmetic in f64 and finite differences.
    #[test]
    fn terms_and_gradient_by_hand() {
        let (positions, vocab) = (3, 5);
        let student: Vec<f32> = (0..15).map(|i| ((i * 7 % 11) as f32 - 5.0) * 0.4).collect();
        let teacher: Vec<f32> = (0..15).map(|i| ((i * 5 % 13) as f32 - 6.0) * 0.3).collect();
        let (targets, scored) = ([4usize, 0, 2], [1.0f64, 0.0, 1.0]);
        let distill = Distill { alpha: 0.3, temperature: 2.0, ..Distill::default() };

        let reference = |student: &[f32]| {
            let log_softmax = |row: &[f32], t: f64| {
                let sum: f64 = row.iter().map(|x| (*x as f64 / t).exp()).sum();
                row.iter().map(|x| *x as f64 / t - sum.ln()).collect::<Vec<_>>()
            };
            let (mut ce, mut kl) = (0.0, 0.0);
            for p in 0..positions {
                let row = p * vocab..(p + 1) * vocab;
                ce -= log_softmax(&student[row.clone()], 1.0)[targets[p]] * scored[p] / 2.0;
                let (q, t) = (log_softmax(&student[row.clone()], 2.0), log_softmax(&teacher[row], 2.0));
                kl += t.iter().zip(&q).map(|(t, q)| t.exp() * (t - q)).sum::<f64>() / positions as f64;
            }
            (0.3 * ce + 0.7 * 4.0 * kl, ce, kl)
        };

        let plain = Device::flex();
        let device = Device::flex().autodiff();
        let leaf = Tensor::<2>::from_data(TensorData::new(student.clone(), [positions, vocab]), &device).require_grad();
        let terms = terms(
            leaf.clone(),
            Some(TeacherSide::of(
                Tensor::from_data(TensorData::new(teacher.clone(), [positions, vocab]), &plain),
                distill.temperature,
                None,
            )),
            Tensor::from_data(TensorData::new(targets.map(|t| t as i32).to_vec(), [positions]), &device),
            (
                Tensor::from_data(TensorData::new(scored.map(|s| s as f32).to_vec(), [positions]), &device),
                Tensor::from_data([2.0], &device),
            ),
            &distill,
        );
        let (loss, ce, kl) = reference(&student);
        let close = |tensor: Tensor<1>, value: f64| {
            let got: f32 = tensor.into_scalar();
            assert!((got as f64 - value).abs() < 1e-5, "{got} {value}");
        };
        close(terms.ce, ce);
        close(terms.divergence.unwrap(), kl);
        close(terms.loss.clone(), loss);

        let grads = terms.loss.backward();
        let gradient: Vec<f32> = leaf.grad(&grads).unwrap().into_data_as::<f32>().try_into_vec().unwrap();
        for i in 0..15 {
            let moved = |by: f32| {
                let mut student = student.clone();
                student[i] += by;
                reference(&student).0
            };
            let slope = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((gradient[i] as f64 - slope).abs() < 1e-4, "{i}: {} {slope}", gradient[i]);
        }
    }

    fn numbers(len: usize, seed: f32, size: f32) -> Vec<f32> {
        (0..len).map(|i| ((i as f32 + seed) * 12.9898).sin() * size).collect()
    }

    /// The operator without logits against the composition with them: terms and gradients of hidden states and head.
    #[test]
    fn the_fused_loss_is_the_composed_one() {
        const ROWS: usize = 2;
        const SEQ: usize = 3;
        const WIDTH: usize = 8;
        const VOCAB: usize = 11;
        let device = Device::flex().autodiff();
        let targets = [4u32, 0, 10, 3, 3, 7];
        // Of a step whose batches have three and a half scored targets in the mean.
        let scored = ScoredTargets { of: &[true, false, true, true, true, true], mean: 3.5 };
        let tensor = |data: Vec<f32>, shape: [usize; 2], device: &Device| {
            Tensor::<2>::from_data(TensorData::new(data, shape), device)
        };
        let shape = |tied: bool, width: usize| if tied { [VOCAB, width] } else { [width, VOCAB] };
        for loss in [Loss::ForwardKl, Loss::ReverseKl, Loss::Jsd] {
            for (alpha, temperature, top_k, tied, scale, cap) in [
                (0.3, 1.0, None, true, 1.0f32, None),
                (0.0, 2.0, None, false, 1.0, Some(0.9f32)),
                (0.4, 2.0, Some(3), true, 0.7, None),
                (0.0, 1.0, Some(11), false, 1.0, None),
                (0.5, 1.0, None, true, 1.3, Some(1.5)),
            ] {
                let distill = Distill { alpha, temperature, top_k, loss, beta: Some(0.3), ..Distill::default() };
                for source in ["model", "cache", "none"] {
                    let known = || match source {
                        "model" => {
                            let hidden = tensor(numbers(ROWS * SEQ * 6, 5.0, 1.0), [ROWS * SEQ, 6], &Device::flex());
                            let weight = tensor(numbers(VOCAB * 6, 9.0, 0.8), shape(!tied, 6), &Device::flex());
                            // A teacher has its own.
                            let (scale, cap) = (scale * 1.1, cap.map(|cap| 2.0 * cap));
                            let head = Head { weight, tied: !tied, precision: Precision::F32, scale, cap };
                            Known::Model(Box::new((hidden.reshape([ROWS, SEQ, 6]), head)))
                        }
                        "cache" => {
                            let tokens = (0..ROWS * SEQ).flat_map(|i| [i as u32, i as u32 + 2]).collect();
                            let log_p = [0.5f32, 0.2, 0.3].map(f32::ln).repeat(ROWS * SEQ);
                            Known::Cached(Likeliest { tokens, log_p })
                        }
                        _ => Known::Absent,
                    };
                    let step = || {
                        let hidden = tensor(numbers(ROWS * SEQ * WIDTH, 1.0, 1.0), [ROWS * SEQ, WIDTH], &device);
                        let (hidden, weight) = (
                            hidden.require_grad(),
                            tensor(numbers(VOCAB * WIDTH, 2.0, 0.7), shape(tied, WIDTH), &device).require_grad(),
                        );
                        let head = Head { weight: weight.clone(), tied, precision: Precision::F32, scale, cap };
                        let states = hidden.clone().reshape([ROWS, SEQ, WIDTH]);
                        let terms = losses(states, &head, known(), &targets, scored, &distill);
                        let grads = (terms.loss.clone() * 3.0).backward();
                        let floats = |tensor: Tensor<2>| tensor.into_data_as::<f32>().try_into_vec::<f32>().unwrap();
                        let terms = [Some(terms.loss.inner()), Some(terms.ce), terms.divergence];
                        let mut all: Vec<f32> =
                            terms.into_iter().flatten().map(|term| term.into_scalar::<f32>()).collect();
                        all.extend(floats(hidden.grad(&grads).unwrap()));
                        all.extend(floats(weight.grad(&grads).unwrap()));
                        all
                    };
                    let (fused, composed) = (step(), ops::composed(step));
                    assert_eq!(fused.len(), composed.len());
                    for (index, (a, b)) in fused.iter().zip(&composed).enumerate() {
                        assert!(
                            (a - b).abs() < 2e-5 * (1.0 + b.abs()),
                            "{loss:?} alpha {alpha} T {temperature} k {top_k:?} {source}, number {index}: {a} {b}"
                        );
                    }
                }
            }
        }
    }
}
