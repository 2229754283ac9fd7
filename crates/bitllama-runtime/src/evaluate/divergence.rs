//! How far a student's next-token distributions are from its teacher's: the statistics of llama.cpp's
//! `perplexity --kl-divergence`.
//!
//! One difference: llama.cpp reads the teacher's log probabilities from a file in 16 bits and leaves out those below
//! e^-16; here both models run side by side and nothing is left out.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::softmax::log_softmax;
use super::{LogitModel, Mean, Options, Perplexity, Progress, for_each_chunk};
use crate::{Error, Result};

/// A student beside its teacher, on the same tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Perplexity of the student; its fields stand at the top level in JSON.
    #[serde(flatten)]
    pub student: Perplexity,
    /// Perplexity of the teacher.
    pub teacher: Perplexity,
    /// Mean Kullback-Leibler divergence KL(teacher || student) of a position, in nats.
    pub mean_kld: f64,
    /// Standard error of `mean_kld`.
    pub mean_kld_error: f64,
    /// Distribution of the divergence over positions.
    pub kld: Percentiles,
    /// Root mean square of Δp, the student's minus the teacher's probability of the token that follows, as a fraction.
    pub rms_delta_p: f64,
    /// Standard error of `rms_delta_p`.
    pub rms_delta_p_error: f64,
    /// Mean of Δp: below 0 where the student is less sure of the text.
    pub mean_delta_p: f64,
    /// Standard error of `mean_delta_p`.
    pub mean_delta_p_error: f64,
    /// Fraction of positions where both models find the same token the likeliest.
    pub same_top: f64,
    /// Standard error of `same_top`.
    pub same_top_error: f64,
    /// Mean negative log likelihood of the student in each chunk, nats: two students of a teacher are told apart by the differences
    /// in the same chunks, which scatter far less than chunks do.
    #[serde(default)]
    pub chunk_nll: Vec<f64>,
}

/// Percentiles, interpolated linearly between neighbouring values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// 50 %.
    pub median: f64,
    /// 90 %.
    pub p90: f64,
    /// 95 %.
    pub p95: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p99_9: f64,
    /// The largest value.
    pub max: f64,
}

impl Percentiles {
    /// Of at least one value.
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |fraction: f64| {
            let place = fraction * (values.len() - 1) as f64;
            let (below, share) = (place as usize, place.fract());
            let above = (below + 1).min(values.len() - 1);
            (1.0 - share) * values[below] + share * values[above]
        };
        Self { median: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99), p99_9: at(0.999), max: at(1.0) }
    }
}

/// What one position contributes.
struct Position {
    nll: f64,
    teacher_nll: f64,
    kld: f64,
    same_top: bool,
}

/// Compares `student` with `teacher` on the tokens of a text, by the protocol of [the module](super). `progress` is told
/// after each chunk.
///
/// # Errors
/// As [`super::perplexity`], for either model; [`Error::Vocabularies`] if the two have different vocabularies.
pub fn compare(
    student: &mut (impl LogitModel + ?Sized),
    teacher: &mut (impl LogitModel + ?Sized),
    tokens: &[u32],
    options: Options,
    mut progress: impl FnMut(Progress),
) -> Result<Comparison> {
    let vocab_size = student.vocab_size();
    if vocab_size != teacher.vocab_size() {
        return Err(Error::Vocabularies { student: vocab_size, teacher: teacher.vocab_size() });
    }
    let mut sums = Sums::default();
    for_each_chunk(tokens, options, |chunk| {
        let (of_teacher, of_student) = (chunk.logits(teacher)?, chunk.logits(student)?);
        let rows = of_student.par_chunks_exact(vocab_size).zip(of_teacher.par_chunks_exact(vocab_size));
        let positions: Result<Vec<Position>> =
            rows.zip(chunk.targets).map(|((s, t), target)| position(s, t, *target as usize)).collect();
        let positions = positions?;
        positions.iter().for_each(|position| sums.add(position));
        sums.chunks.push(positions.iter().map(|position| position.nll).sum::<f64>() / positions.len() as f64);
        progress(chunk.progress(sums.nll.value().exp()));
        Ok(())
    })?;
    Ok(sums.finish())
}

fn position(student: &[f32], teacher: &[f32], target: usize) -> Result<Position> {
    let (s, t) = (log_softmax(student)?, log_softmax(teacher)?);
    let terms = student.iter().zip(teacher).map(|(student, teacher)| {
        let log_p = *teacher as f64 - t.log_sum_exp;
        let p = (log_p as f32).exp() as f64;
        // A token that the teacher excludes counts nothing, whatever the student thinks of it.
        if p > 0.0 { p * (log_p - (*student as f64 - s.log_sum_exp)) } else { 0.0 }
    });
    Ok(Position {
        nll: s.log_sum_exp - student[target] as f64,
        teacher_nll: t.log_sum_exp - teacher[target] as f64,
        kld: terms.sum(),
        same_top: s.top == t.top,
    })
}

/// Sums over positions.
#[derive(Default)]
struct Sums {
    nll: Mean,
    teacher_nll: Mean,
    kld: Mean,
    klds: Vec<f64>,
    delta_p: Mean,
    delta_p_squared: Mean,
    same_top: usize,
    /// The student's mean negative log likelihood.
    chunks: Vec<f64>,
}

impl Sums {
    fn add(&mut self, position: &Position) {
        self.nll.add(position.nll);
        self.teacher_nll.add(position.teacher_nll);
        self.kld.add(position.kld);
        self.klds.push(position.kld);
        let delta_p = (-position.nll).exp() - (-position.teacher_nll).exp();
        self.delta_p.add(delta_p);
        self.delta_p_squared.add(delta_p * delta_p);
        self.same_top += position.same_top as usize;
    }

    fn finish(self) -> Comparison {
        let count = self.klds.len() as f64;
        let rms_delta_p = self.delta_p_squared.value().sqrt();
        let same_top = self.same_top as f64 / count;
        Comparison {
            student: Perplexity::new(self.nll, self.chunks.len()),
            teacher: Perplexity::new(self.teacher_nll, self.chunks.len()),
            mean_kld: self.kld.value(),
            mean_kld_error: self.kld.error(),
            kld: Percentiles::of(self.klds),
            rms_delta_p,
            // d sqrt(x) = dx / (2 sqrt(x)); two models that agree exactly leave nothing to be unsure of.
            rms_delta_p_error: if rms_delta_p > 0.0 { self.delta_p_squared.error() / (2.0 * rms_delta_p) } else { 0.0 },
            mean_delta_p: self.delta_p.value(),
            mean_delta_p_error: self.delta_p.error(),
            same_top,
            same_top_error: if count > 1.0 { (same_top * (1.0 - same_top) / (count - 1.0)).sqrt() } else { 0.0 },
            chunk_nll: self.chunks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixed;
    use super::*;

    const OPTIONS: Options = Options { ctx: 6, chunks: None, bos: None };

    #[test]
    fn a_model_agrees_with_itself() {
        let row = [0.3, -1.0, 2.5, 0.0];
        let result =
            compare(&mut Fixed::new(&row), &mut Fixed::new(&row), &[0, 1, 2, 3, 0, 1], OPTIONS, |_| ()).unwrap();
        assert_eq!((result.mean_kld, result.kld.max, result.rms_delta_p, result.mean_delta_p), (0.0, 0.0, 0.0, 0.0));
        assert_eq!((result.same_top, result.same_top_error, result.rms_delta_p_error), (1.0, 0.0, 0.0));
        assert_eq!(result.student, result.teacher);
    }

    #[test]
    fn by_hand() {
        // Teacher 1/2, 1/4, 1/4; student 1/4, 1/2, 1/4.
        let (student, teacher) = ([0.0, 2f32.ln(), 0.0], [2f32.ln(), 0.0, 0.0]);
        let tokens = [2, 2, 2, 2, 0, 1];
        let result = compare(&mut Fixed::new(&student), &mut Fixed::new(&teacher), &tokens, OPTIONS, |_| ()).unwrap();
        // 1/2 ln 2 - 1/4 ln 2, at both positions.
        let kld = 2f64.ln() / 4.0;
        assert!((result.mean_kld - kld).abs() < 1e-6 && (result.kld.median - kld).abs() < 1e-6);
        assert!(result.mean_kld_error < 1e-6);
        // Δp is -1/4 on token 0 and +1/4 on token 1.
        assert!((result.rms_delta_p - 0.25).abs() < 1e-6 && result.mean_delta_p.abs() < 1e-6);
        assert_eq!(result.same_top, 0.0);
        assert!((result.student.perplexity - result.teacher.perplexity).abs() < 1e-6);
        assert_eq!(result.student.tokens_scored, 2);
        assert_eq!(result.chunk_nll, [result.student.nll]);
    }

    #[test]
    fn tokens_that_the_teacher_excludes_count_nothing() {
        let teacher = [0.0, 0.0, f32::NEG_INFINITY];
        let result = compare(&mut Fixed::new(&[0.0; 3]), &mut Fixed::new(&teacher), &[0; 6], OPTIONS, |_| ()).unwrap();
        assert!((result.mean_kld - 1.5f64.ln()).abs() < 1e-6);
    }

    #[test]
    fn different_vocabularies_are_refused() {
        let (mut two, mut three) = (Fixed::new(&[0.0; 2]), Fixed::new(&[0.0; 3]));
        assert!(matches!(compare(&mut two, &mut three, &[0; 6], OPTIONS, |_| ()), Err(Error::Vocabularies { .. })));
    }

    #[test]
    fn percentiles_are_interpolated() {
        let p = Percentiles::of((0..=100).rev().map(f64::from).collect());
        assert_eq!((p.median, p.p90, p.max), (50.0, 90.0, 100.0));
        assert!((p.p99_9 - 99.9).abs() < 1e-9);
        assert_eq!(Percentiles::of(vec![3.0]).p95, 3.0);
    }

    #[test]
    fn field_names_in_json() {
        let result = compare(&mut Fixed::new(&[0.0; 2]), &mut Fixed::new(&[0.0; 2]), &[0; 6], OPTIONS, |_| ()).unwrap();
        let json = serde_json::to_value(&result).unwrap();
        for name in ["perplexity", "perplexity_error", "tokens_scored", "mean_kld", "mean_kld_error", "same_top"] {
            assert!(json[name].is_number(), "{name} in {json}");
        }
        assert!(json["rms_delta_p"].is_number() && json["teacher"]["perplexity"].is_number());
        assert!(json["kld"]["p99_9"].is_number());
        assert_eq!(serde_json::from_value::<Comparison>(json).unwrap(), result);
    }
}
