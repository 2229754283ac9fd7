//! Log probabilities of one position.

use rayon::prelude::*;

use crate::{Error, Result};

/// Normalizer of one row of logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogSoftmax {
    /// `ln(sum of exp(logits))`.
    pub log_sum_exp: f64,
    /// Index of the largest logit, the lowest of several.
    pub top: usize,
}

/// Normalizes `logits` (`[vocab_size]`, at least one), summing in f64.
pub(super) fn log_softmax(logits: &[f32]) -> Result<LogSoftmax> {
    let (mut top, mut max) = (0, f32::NEG_INFINITY);
    for (index, logit) in logits.iter().enumerate() {
        if *logit > max {
            (top, max) = (index, *logit);
        }
    }
    // A NaN passes the search above unseen but not the sum; the exponential itself is accurate enough in f32, and the
    // same in llama.cpp.
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp() as f64).sum();
    let log_sum_exp = max as f64 + sum.ln();
    if !log_sum_exp.is_finite() {
        return Err(Error::NotFinite(format!("their largest is {max}, the sum of their exponentials {sum}")));
    }
    Ok(LogSoftmax { log_sum_exp, top })
}

/// Negative log likelihood of each of `targets` at its row of `logits`, `[targets, vocab_size]`, in nats.
pub(super) fn negative_log_likelihoods(logits: &[f32], vocab_size: usize, targets: &[u32]) -> Result<Vec<f64>> {
    let rows = logits.par_chunks_exact(vocab_size).zip(targets);
    rows.map(|(row, target)| Ok(log_softmax(row)?.log_sum_exp - row[*target as usize] as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes_and_finds_the_top() {
        let row = [0.0, 3f32.ln(), 3f32.ln()];
        let softmax = log_softmax(&row).unwrap();
        assert!((softmax.log_sum_exp - 7f64.ln()).abs() < 1e-6);
        assert_eq!(softmax.top, 1);
        assert!((log_softmax(&[1e30, 0.0]).unwrap().log_sum_exp - 1e30).abs() < 1e24);
    }

    #[test]
    fn nan_and_infinity_are_errors() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(log_softmax(&[0.0, bad, 1.0]).is_err());
        }
        assert!(log_softmax(&[f32::NEG_INFINITY; 2]).is_err());
        assert!(log_softmax(&[f32::NEG_INFINITY, 0.0]).is_ok());
    }
}
