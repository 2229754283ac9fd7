//! Cross-entropy and divergence from a teacher: values, and gradients with respect to logits, one position at a time. No more
//! than the logits of a few positions need to exist.
//!
//! With `q = softmax(s / T)` and `p` the teacher's distribution at the same temperature, the gradient of a divergence `D`
//! with respect to the student's logits `s` is `q_i (G_i - sum(q G)) / T`, where `G = dD/dq` up to a constant:
//!
//! | divergence | D | G |
//! |---|---|---|
//! | forward KL | `sum p (log p - log q)` | `-p / q`, so that the gradient is `(q - p) / T` |
//! | reverse KL | `sum q (log q - log p)` | `log q - log p` |
//! | generalized Jensen-Shannon (Agarwal et al. 2024, <https://arxiv.org/abs/2306.13649>, equation 1) | `beta KL(p \|\| m) + (1 - beta) KL(q \|\| m)` with `m = beta p + (1 - beta) q` | `(1 - beta) (log q - log m)` |
//!
//! Where only the likeliest tokens of a teacher are known, the categories are these and "any other token", whose `G` all
//! other tokens share.

use std::ops::Range;

use super::runs::{first, for_lanes, load, store};
use crate::isa::Isa;
use crate::operators::exp_lanes;
use crate::simd::{LANES, Simd, for_isa};

/// How a student's distribution is compared with a teacher's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// KL(teacher || student).
    ForwardKl,
    /// KL(student || teacher).
    ReverseKl,
    /// The generalized Jensen-Shannon divergence.
    Jsd {
        /// The teacher's share of the mixture, between 0 and 1.
        beta: f32,
    },
}

/// What is known of the teacher's distribution at one position.
#[derive(Debug, Clone, Copy)]
pub enum Teacher<'a> {
    /// Nothing.
    Absent,
    /// Its logits, `[vocab]`, before any temperature.
    Logits(&'a [f32]),
    /// Some tokens, `[k]`, and natural logarithms of their probabilities at the temperature of the loss; behind these that of
    /// all other tokens together, `[k + 1]`.
    Likeliest(&'a [u32], &'a [f32]),
}

/// What the loss of a position is made of: `ce * cross-entropy + divergence * D`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Of the cross-entropy with the target.
    pub ce: f32,
    /// Of the divergence from the teacher.
    pub divergence: f32,
    /// T, by which both sides' logits are divided for the divergence.
    pub temperature: f32,
    /// Which divergence.
    pub kind: Divergence,
}

/// The terms at one position, in nats, not weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Cross-entropy with the target.
    pub ce: f32,
    /// Divergence from the teacher; 0 without one.
    pub divergence: f32,
}

/// The terms of one position, and in `logits` (`[vocab]`) in place of the student's logits the gradient of the weighed loss
/// with respect to them.
///
/// # Panics
/// If `target` or a token is not in the vocabulary, or lengths disagree.
pub fn row(isa: Isa, weights: &Weights, teacher: Teacher, target: usize, logits: &mut [f32]) -> Terms {
    assert!(target < logits.len(), "token {target} of a vocabulary of {}", logits.len());
    match teacher {
        Teacher::Absent => {}
        Teacher::Logits(of_teacher) => assert_eq!(of_teacher.len(), logits.len(), "two vocabularies"),
        Teacher::Likeliest(tokens, log_p) => {
            assert_eq!(tokens.len() + 1, log_p.len(), "one logarithm for each token and one for the others");
            assert!(tokens.iter().all(|token| (*token as usize) < logits.len()), "a token beyond the vocabulary");
        }
    }
    for_isa!(isa, row_of(weights: &Weights, teacher: Teacher, target: usize, logits: &mut [f32]) -> Terms)
}

/// The `k` largest of the teacher's `logits` (`[vocab]`), the largest first and of equal ones the earlier first, into `tokens`,
/// and logarithms of probabilities as [`Teacher::Likeliest`] takes them into `log_p`.
///
/// # Panics
/// If `k` is 0 or not below the size of the vocabulary.
pub fn likeliest(isa: Isa, logits: &[f32], temperature: f32, k: usize, tokens: &mut Vec<u32>, log_p: &mut Vec<f32>) {
    assert!(k > 0 && k < logits.len(), "the {k} likeliest of {} tokens", logits.len());
    let largest_first = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    tokens.clear();
    tokens.extend(0..logits.len() as u32);
    tokens.select_nth_unstable_by(k - 1, largest_first);
    tokens.truncate(k);
    tokens.sort_unstable_by(largest_first);
    let inverse = 1.0 / temperature;
    let lse = for_isa!(isa, log_sum_exp(logits: &[f32], inverse: f32) -> f32);
    log_p.clear();
    log_p.extend(tokens.iter().map(|token| (logits[*token as usize] * inverse - lse).max(LEAST)));
    let rest = 1.0 - log_p.iter().map(|log_p| log_p.exp()).sum::<f32>();
    log_p.push(rest.max(LEAST_REST).ln());
}

/// The logarithm of the least probability that counts, near the smallest normal f32: a token that the teacher excludes has
/// minus infinity, which times its probability is no number.
const LEAST: f32 = -87.0;

/// The least that is left for all other tokens.
const LEAST_REST: f32 = 1e-7;

/// The sum over all of `$numbers` of an expression of its `$place` and the numbers `$x` there.
macro_rules! sum_over {
    ($s:ident, $numbers:expr, $place:ident, $x:ident => $term:expr) => {{
        let numbers: &[f32] = $numbers;
        let mut sum = $s.splat(0.0);
        for_lanes!(numbers.len(), place => {
            let $x = load($s, &numbers[place.clone()]);
            let (len, $place) = (place.len(), place);
            let term = $term;
            // Lanes beyond the end are no terms.
            sum = $s.add(sum, first($s, term, len));
        });
        $s.sum(sum)
    }};
}

/// Puts the gradient in place of the logits: an expression of the `$place`, `$log_q` and `$q` there, and what the cross-entropy
/// adds, less its target.
macro_rules! gradient {
    ($s:ident, $student:ident, $logits:ident, $place:ident, $log_q:ident, $q:ident => $gradient:expr) => {
        for_lanes!($logits.len(), $place => {
            let x = load($s, &$logits[$place.clone()]);
            let $log_q = $student.log_q($s, x);
            let $q = exp_lanes($s, $log_q);
            let gradient = $gradient;
            store($s, $student.with_ce($s, gradient, x, $q), &mut $logits[$place]);
        })
    };
}

#[inline(always)]
fn row_of<S: Simd>(s: S, weights: &Weights, teacher: Teacher, target: usize, logits: &mut [f32]) -> Terms {
    let inverse = 1.0 / weights.temperature;
    let lse = log_sum_exp(s, logits, 1.0);
    let ce = lse - logits[target];
    // Softened at the same time, where there is nothing to soften.
    let soft = if inverse == 1.0 { lse } else { log_sum_exp(s, logits, inverse) };
    let student = Student { inverse, soft, ce: weights.ce, lse };
    let weight = weights.divergence * inverse;
    let divergence = match teacher {
        Teacher::Absent => {
            gradient!(s, student, logits, place, _log_q, q => s.mul(q, s.splat(0.0)));
            0.0
        }
        Teacher::Logits(of_teacher) => {
            let lse = log_sum_exp(s, of_teacher, inverse);
            against_all(s, weights.kind, &student, &Known { logits: of_teacher, lse }, weight, logits)
        }
        Teacher::Likeliest(tokens, log_p) => against_some(s, weights.kind, &student, (tokens, log_p), weight, logits),
    };
    logits[target] -= weights.ce;
    Terms { ce, divergence }
}

/// What all loops over the student's logits need.
struct Student {
    /// One over the temperature.
    inverse: f32,
    /// The logarithm of the sum of exponentials of softened logits.
    soft: f32,
    /// Weight of the cross-entropy.
    ce: f32,
    /// As `soft`, of the logits as they are.
    lse: f32,
}

impl Student {
    /// Natural logarithms of probabilities at the temperature of the divergence.
    #[inline(always)]
    fn log_q<S: Simd>(&self, s: S, logits: S::Floats) -> S::Floats {
        s.mul_add(logits, s.splat(self.inverse), s.splat(-self.soft))
    }

    /// What the cross-entropy adds to a gradient, less its target; `q` is the probability of softened `logits`.
    #[inline(always)]
    fn with_ce<S: Simd>(&self, s: S, gradient: S::Floats, logits: S::Floats, q: S::Floats) -> S::Floats {
        if self.ce == 0.0 {
            return gradient;
        }
        let softmax = if self.inverse == 1.0 { q } else { exp_lanes(s, s.sub(logits, s.splat(self.lse))) };
        s.mul_add(s.splat(self.ce), softmax, gradient)
    }
}

/// A teacher's logits, and the logarithm of the sum of exponentials of softened ones.
struct Known<'a> {
    logits: &'a [f32],
    lse: f32,
}

impl Known<'_> {
    /// Natural logarithms of probabilities at the temperature of the divergence.
    #[inline(always)]
    fn log_p<S: Simd>(&self, s: S, inverse: f32, place: Range<usize>) -> S::Floats {
        let log_p = s.mul_add(load(s, &self.logits[place]), s.splat(inverse), s.splat(-self.lse));
        s.max(log_p, s.splat(LEAST))
    }
}

/// Against all tokens. `weight` is that of the divergence over T.
#[inline(always)]
fn against_all<S: Simd>(
    s: S,
    kind: Divergence,
    student: &Student,
    teacher: &Known,
    weight: f32,
    logits: &mut [f32],
) -> f32 {
    let (weight, inverse) = (s.splat(weight), student.inverse);
    match kind {
        Divergence::ForwardKl => {
            let sum = sum_over!(s, logits, place, x => {
                let log_p = teacher.log_p(s, inverse, place);
                s.mul(exp_lanes(s, log_p), s.sub(log_p, student.log_q(s, x)))
            });
            gradient!(s, student, logits, place, _log_q, q => {
                s.mul(weight, s.sub(q, exp_lanes(s, teacher.log_p(s, inverse, place.clone()))))
            });
            sum
        }
        Divergence::ReverseKl => {
            let sum = sum_over!(s, logits, place, x => {
                let log_q = student.log_q(s, x);
                s.mul(exp_lanes(s, log_q), s.sub(log_q, teacher.log_p(s, inverse, place)))
            });
            gradient!(s, student, logits, place, log_q, q => {
                let difference = s.sub(log_q, teacher.log_p(s, inverse, place.clone()));
                s.mul(s.mul(weight, q), s.sub(difference, s.splat(sum)))
            });
            sum
        }
        Divergence::Jsd { beta } => {
            let of_teacher = sum_over!(s, logits, place, x => {
                let log_p = teacher.log_p(s, inverse, place);
                let (p, q) = (exp_lanes(s, log_p), exp_lanes(s, student.log_q(s, x)));
                s.mul(p, s.sub(log_p, log_mixture(s, beta, p, q)))
            });
            let of_student = sum_over!(s, logits, place, x => {
                let log_q = student.log_q(s, x);
                let (p, q) = (exp_lanes(s, teacher.log_p(s, inverse, place)), exp_lanes(s, log_q));
                s.mul(q, s.sub(log_q, log_mixture(s, beta, p, q)))
            });
            let weight = s.mul(weight, s.splat(1.0 - beta));
            gradient!(s, student, logits, place, log_q, q => {
                let log_m = log_mixture(s, beta, exp_lanes(s, teacher.log_p(s, inverse, place.clone())), q);
                s.mul(s.mul(weight, q), s.sub(s.sub(log_q, log_m), s.splat(of_student)))
            });
            beta * of_teacher + (1.0 - beta) * of_student
        }
    }
}

/// The least share of a mixture that has a logarithm here.
const LEAST_MIXED: f32 = 1e-30;

/// `ln(beta p + (1 - beta) q)`.
#[inline(always)]
fn log_mixture<S: Simd>(s: S, beta: f32, p: S::Floats, q: S::Floats) -> S::Floats {
    let m = s.mul_add(s.splat(beta), p, s.mul(s.splat(1.0 - beta), q));
    let mut lanes = [0.0; LANES];
    s.store(s.max(m, s.splat(LEAST_MIXED)), &mut lanes);
    s.load(&lanes.map(f32::ln))
}

/// Against the teacher's likeliest tokens, and all others as one. `weight` is that of the divergence over T.
#[inline(always)]
fn against_some<S: Simd>(
    s: S,
    kind: Divergence,
    student: &Student,
    (tokens, log_p): (&[u32], &[f32]),
    weight: f32,
    logits: &mut [f32],
) -> f32 {
    let mut log_q: Vec<f32> =
        tokens.iter().map(|token| logits[*token as usize] * student.inverse - student.soft).collect();
    let rest = 1.0 - log_q.iter().map(|log_q| log_q.exp()).sum::<f32>();
    log_q.push(rest.max(LEAST_REST).ln());
    // D and q G of each category.
    let mut divergence = 0.0;
    let mut products = Vec::with_capacity(log_q.len());
    for (log_p, log_q) in log_p.iter().zip(&log_q) {
        let (p, q) = (log_p.exp(), log_q.exp());
        let (term, product) = match kind {
            Divergence::ForwardKl => (p * (log_p - log_q), -p),
            Divergence::ReverseKl => (q * (log_q - log_p), q * (log_q - log_p)),
            Divergence::Jsd { beta } => {
                let log_m = (beta * p + (1.0 - beta) * q).max(LEAST_MIXED).ln();
                let own = q * (log_q - log_m);
                (beta * p * (log_p - log_m) + (1.0 - beta) * own, (1.0 - beta) * own)
            }
        };
        divergence += term;
        products.push(product);
    }
    // What was raised to the least has no gradient.
    if rest <= LEAST_REST {
        products[tokens.len()] = 0.0;
    }
    let mean: f32 = products.iter().sum();
    // The gradients of the known tokens, taken before their logits are overwritten.
    let put: Vec<f32> = tokens
        .iter()
        .zip(products.iter().zip(&log_q))
        .map(|(token, (product, log_q))| {
            let of_ce = student.ce * (logits[*token as usize] - student.lse).exp();
            weight * (product - log_q.exp() * mean) + of_ce
        })
        .collect();
    let others = s.splat(weight * (products[tokens.len()] / log_q[tokens.len()].exp() - mean));
    gradient!(s, student, logits, place, _log_q, q => s.mul(others, q));
    for (token, gradient) in tokens.iter().zip(put) {
        logits[*token as usize] = gradient;
    }
    divergence
}

/// `ln(sum(exp(x * inverse)))`.
#[inline(always)]
fn log_sum_exp<S: Simd>(s: S, x: &[f32], inverse: f32) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut largest = s.splat(f32::NEG_INFINITY);
    for x in whole {
        largest = s.max(s.load(x), largest);
    }
    let mut largest = s.largest(largest);
    for x in rest {
        largest = largest.max(*x);
    }
    let largest = largest * inverse;
    let sum = sum_over!(s, x, place, x => {
        let _ = place;
        exp_lanes(s, s.mul_add(x, s.splat(inverse), s.splat(-largest)))
    });
    largest + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(vocab: usize, seed: usize) -> Vec<f32> {
        (0..vocab).map(|i| ((i * (5 + seed) % 23) as f32 - 11.0) * 0.3).collect()
    }

    fn softmax(row: &[f64], temperature: f64) -> Vec<f64> {
        let e: Vec<f64> = row.iter().map(|x| (x / temperature).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect()
    }

    /// By the definitions, in f64: cross-entropy and divergence.
    fn reference(
        kind: Divergence,
        k: Option<usize>,
        t: f64,
        student: &[f64],
        teacher: &[f64],
        target: usize,
    ) -> [f64; 2] {
        let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        let ce = -softmax(student, 1.0)[target].ln();
        let (mut q, mut p) = (softmax(student, t), softmax(teacher, t));
        if let Some(k) = k {
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
            let coarse = |x: &[f64]| {
                let mut kept: Vec<f64> = order[..k].iter().map(|i| x[*i]).collect();
                kept.push(order[k..].iter().map(|i| x[*i]).sum());
                kept
            };
            (q, p) = (coarse(&q), coarse(&p));
        }
        let divergence = match kind {
            Divergence::ForwardKl => kl(&p, &q),
            Divergence::ReverseKl => kl(&q, &p),
            Divergence::Jsd { beta } => {
                let beta = beta as f64;
                let m: Vec<f64> = p.iter().zip(&q).map(|(p, q)| beta * p + (1.0 - beta) * q).collect();
                beta * kl(&p, &m) + (1.0 - beta) * kl(&q, &m)
            }
        };
        [ce, divergence]
    }

    #[test]
    fn values_and_gradients_are_those_of_the_definitions() {
        for vocab in [6, 37] {
            let (student, teacher, target) = (logits(vocab, 2), logits(vocab, 4), 3);
            let wide = |x: &[f32]| x.iter().map(|x| *x as f64).collect::<Vec<_>>();
            for kind in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd { beta: 0.3 }] {
                for k in [None, Some(2), Some(5)] {
                    for (temperature, ce) in [(1.0, 0.7), (2.5, 0.7), (2.5, 0.0)] {
                        for isa in Isa::available() {
                            let weights = Weights { ce, divergence: 1.3, temperature, kind };
                            let (mut tokens, mut log_p) = (Vec::new(), Vec::new());
                            let side = match k {
                                None => Teacher::Logits(&teacher),
                                Some(k) => {
                                    likeliest(isa, &teacher, temperature, k, &mut tokens, &mut log_p);
                                    Teacher::Likeliest(&tokens, &log_p)
                                }
                            };
                            let mut gradient = student.clone();
                            let terms = row(isa, &weights, side, target, &mut gradient);
                            let of = |student: &[f64]| {
                                reference(kind, k, temperature as f64, student, &wide(&teacher), target)
                            };
                            let expected = of(&wide(&student));
                            let case = format!("{isa} {kind:?} {k:?} {temperature} {ce}");
                            assert!((terms.ce as f64 - expected[0]).abs() < 1e-5, "{case}: {terms:?} {expected:?}");
                            assert!(
                                (terms.divergence as f64 - expected[1]).abs() < 1e-5,
                                "{case}: {terms:?} {expected:?}"
                            );
                            for i in 0..vocab {
                                let moved = |by: f64| {
                                    let mut student = wide(&student);
                                    student[i] += by;
                                    let [own, divergence] = of(&student);
                                    ce as f64 * own + 1.3 * divergence
                                };
                                let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
                                assert!(
                                    (gradient[i] as f64 - slope).abs() < 2e-5,
                                    "{case} {i}: {} {slope}",
                                    gradient[i]
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn tokens_that_the_teacher_excludes_make_no_nan() {
        let teacher = [0.0, 1.0, f32::NEG_INFINITY];
        for kind in [Divergence::ForwardKl, Divergence::ReverseKl, Divergence::Jsd { beta: 0.5 }] {
            for isa in Isa::available() {
                let mut gradient = [0.0, 1.0, 2.0];
                let weights = Weights { ce: 0.0, divergence: 1.0, temperature: 1.0, kind };
                let terms = row(isa, &weights, Teacher::Logits(&teacher), 0, &mut gradient);
                assert!(terms.divergence.is_finite() && terms.divergence > 0.0, "{kind:?} {terms:?}");
                assert!(gradient.iter().all(|g| g.is_finite()), "{kind:?} {gradient:?}");
            }
        }
    }

    #[test]
    fn without_a_teacher_it_is_the_gradient_of_cross_entropy() {
        let mut gradient = logits(37, 1);
        let p = softmax(&gradient.iter().map(|x| *x as f64).collect::<Vec<_>>(), 1.0);
        let weights = Weights { ce: 0.5, divergence: 1.0, temperature: 1.0, kind: Divergence::ForwardKl };
        let terms = row(Isa::best(), &weights, Teacher::Absent, 36, &mut gradient);
        assert_eq!(terms.divergence, 0.0);
        for (i, (gradient, p)) in gradient.into_iter().zip(p).enumerate() {
            let expected = 0.5 * (p - f64::from(i == 36));
            assert!((gradient as f64 - expected).abs() < 1e-6, "{i}: {gradient} {expected}");
        }
    }
}
