//! Perplexity: the exponential of the mean negative log likelihood of a text's tokens.

use serde::{Deserialize, Serialize};

use super::softmax::negative_log_likelihoods;
use super::{LogitModel, Mean, Options, Progress, for_each_chunk};
use crate::Result;

/// How well a model predicts a text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Perplexity {
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Standard error of `perplexity`: `perplexity` times the standard error of `nll`.
    #[serde(rename = "perplexity_error")]
    pub error: f64,
    /// Mean negative log likelihood of a token, in nats.
    pub nll: f64,
    /// Tokens scored.
    pub tokens_scored: usize,
    /// Chunks scored.
    pub chunks: usize,
}

impl Perplexity {
    pub(super) fn new(nll: Mean, chunks: usize) -> Self {
        let perplexity = nll.value().exp();
        Self { perplexity, error: perplexity * nll.error(), nll: nll.value(), tokens_scored: nll.count, chunks }
    }
}

/// Perplexity of `model` on the tokens of a text, by the protocol of [the module](super). `progress` is told after each
/// chunk.
///
/// # Errors
/// [`crate::Error`] if the text is empty or shorter than one chunk, if a token or BOS is outside the vocabulary, if the
/// model fails, or if its logits are not finite.
pub fn perplexity(
    model: &mut (impl LogitModel + ?Sized),
    tokens: &[u32],
    options: Options,
    mut progress: impl FnMut(Progress),
) -> Result<Perplexity> {
    let vocab_size = model.vocab_size();
    let (mut nll, mut chunks) = (Mean::default(), 0);
    for_each_chunk(tokens, options, |chunk| {
        let logits = chunk.logits(model)?;
        negative_log_likelihoods(&logits, vocab_size, chunk.targets)?.into_iter().for_each(|score| nll.add(score));
        chunks += 1;
        progress(chunk.progress(nll.value().exp()));
        Ok(())
    })?;
    Ok(Perplexity::new(nll, chunks))
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixed;
    use super::*;

    #[test]
    fn by_hand() {
        // Probabilities 1/2, 1/4, 1/4; the scored tokens are those after positions 2 and 3 (ctx 5: 5 / 2 ..= 3).
        let mut model = Fixed::new(&[2f32.ln(), 0.0, 0.0]);
        let options = Options { ctx: 5, ..Options::default() };
        let result = perplexity(&mut model, &[2, 2, 2, 0, 1], options, |_| ()).unwrap();
        let (a, b) = (2f64.ln(), 4f64.ln());
        let nll = (a + b) / 2.0;
        assert_eq!((result.tokens_scored, result.chunks), (2, 1));
        assert!((result.nll - nll).abs() < 1e-6);
        assert!((result.perplexity - nll.exp()).abs() < 1e-5);
        assert!((result.error - nll.exp() * (b - a) / 2.0).abs() < 1e-5);
    }

    #[test]
    fn nan_logits_are_an_error() {
        let mut model = Fixed::new(&[f32::NAN, 0.0]);
        let options = Options { ctx: 4, ..Options::default() };
        assert!(perplexity(&mut model, &[0; 4], options, |_| ()).unwrap_err().to_string().contains("not finite"));
    }

    #[test]
    fn field_names_in_json() {
        let mut nll = Mean::default();
        nll.add(1.0);
        let json = serde_json::to_value(Perplexity::new(nll, 1)).unwrap();
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["perplexity", "perplexity_error", "nll", "tokens_scored", "chunks"]);
    }
}
