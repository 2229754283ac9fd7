//! A sequence whose computed positions are kept from one generation to the next.

use crate::model::{Decoder, LogitsOf};
use crate::{Error, KvCache, Result};

/// Tokens of a prompt that run at once: bounds the memory of activations, and is enough to keep the cores busy.
const PROMPT_BATCH: usize = 512;

/// The tokens of a sequence with their keys and values. A text that begins as the one before costs its new tokens only.
#[derive(Debug)]
pub struct Session<'a> {
    decoder: &'a Decoder,
    cache: KvCache,
    /// Tokens of the positions in the cache.
    tokens: Vec<u32>,
}

impl<'a> Session<'a> {
    /// An empty session for texts of at most so many positions, see [`Decoder::new_cache_for`].
    pub fn new(decoder: &'a Decoder, positions: usize) -> Self {
        Self { decoder, cache: decoder.new_cache_for(positions), tokens: Vec::new() }
    }

    /// The decoder that computes.
    pub fn decoder(&self) -> &'a Decoder {
        self.decoder
    }

    /// Tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that still fit into the model's context.
    pub fn remaining(&self) -> usize {
        self.cache.remaining()
    }

    /// Replaces the text by `tokens`, of which those that it begins with are not computed again, and returns the logits behind the
    /// last one. Also gives the number of tokens that were computed.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`] without a token, [`Error::Context`] for more tokens than the context has, [`Error::Token`] for one
    /// outside the vocabulary. The session is empty after an error.
    pub fn restart(&mut self, tokens: &[u32]) -> Result<(Vec<f32>, usize)> {
        let Some((_, before)) = tokens.split_last() else { return Err(Error::EmptyPrompt) };
        // The last token is computed in any case: its logits are wanted.
        let shared = before.iter().zip(&self.tokens).take_while(|(new, old)| new == old).count();
        let kept = if self.cache.can_truncate(shared) { shared } else { 0 };
        self.cache.truncate(kept);
        self.tokens.truncate(kept);
        let limit = self.cache.len() + self.cache.remaining();
        let logits = match tokens.len() <= limit {
            true => self.extend(&tokens[kept..]),
            false => Err(Error::Context { positions: tokens.len(), limit }),
        };
        if logits.is_err() {
            self.cache.clear();
            self.tokens.clear();
        }
        Ok((logits?, tokens.len() - kept))
    }

    /// Appends tokens, at least one, and returns the logits behind the last one.
    ///
    /// # Errors
    /// [`Error::Context`] if they do not fit, [`Error::Token`] for one outside the vocabulary.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let mut logits = Vec::new();
        let mut left = tokens.len();
        for batch in tokens.chunks(PROMPT_BATCH) {
            left -= batch.len();
            let wanted = if left == 0 { LogitsOf::Last } else { LogitsOf::From(batch.len()) };
            logits = self.decoder.forward(batch, &mut self.cache, wanted)?;
            self.tokens.extend(batch);
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_text_that_begins_as_the_last_costs_its_new_tokens() {
        let decoder = Decoder::new(testing::tiny_config(), |spec| Ok(testing::random_weight(spec, None, 1))).unwrap();
        let mut session = Session::new(&decoder, 64);
        let fresh = |tokens: &[u32]| Session::new(&decoder, 64).restart(tokens).unwrap().0;
        let near = |a: &[f32], b: &[f32]| assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4));
        for (text, computed) in
            [(&[1u32, 2, 3, 4][..], 4), (&[1, 2, 3, 4, 5, 6], 2), (&[1, 2, 9], 1), (&[1, 2, 9], 1), (&[7], 1)]
        {
            let (logits, count) = session.restart(text).unwrap();
            assert_eq!((count, session.tokens()), (computed, text));
            near(&logits, &fresh(text));
        }
        near(&session.extend(&[8]).unwrap(), &fresh(&[7, 8]));
        assert!(matches!(session.restart(&[1; 65]), Err(Error::Context { positions: 65, limit: 64 })));
        assert!(session.tokens().is_empty() && session.remaining() == 64);
        assert!(matches!(session.restart(&[]), Err(Error::EmptyPrompt)));
    }
}
