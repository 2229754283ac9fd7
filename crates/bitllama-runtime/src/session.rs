//! A sequence whose computed positions are kept from one generation to the next.

use crate::model::{Decoder, LogitsOf};
use crate::sampling::{Proposal, Sampler};
use crate::speculate::{Guessing, Speculation, guess};
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
    draft: Option<Draft<'a>>,
}

/// A model that guesses tokens, and its keys and values of the beginning of the same text.
#[derive(Debug)]
struct Draft<'a> {
    decoder: &'a Decoder,
    cache: KvCache,
}

impl<'a> Session<'a> {
    /// An empty session for texts of at most so many positions, see [`Decoder::new_cache_for`].
    pub fn new(decoder: &'a Decoder, positions: usize) -> Self {
        Self { decoder, cache: decoder.new_cache_for(positions), tokens: Vec::new(), draft: None }
    }

    /// The same session with a smaller model that guesses tokens ([`crate::speculate`]), whose tokenizer must be that of the model
    /// ([`check_draft`](crate::speculate::check_draft)).
    #[must_use]
    pub fn with_draft(self, draft: &'a Decoder) -> Self {
        let cache = draft.new_cache_for(self.cache.len() + self.cache.remaining());
        Self { draft: Some(Draft { decoder: draft, cache }), ..self }
    }

    /// A new [`Speculation`] for a text whose tokens `sampler` chooses; none without a draft.
    pub fn speculation(&self, sampler: &Sampler) -> Option<Speculation> {
        let draft = self.draft.as_ref()?;
        Some(Speculation::new(self.decoder, draft.decoder, sampler))
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
        self.truncate(kept);
        let limit = self.cache.len() + self.cache.remaining();
        let logits = match tokens.len() <= limit {
            true => self.extend(&tokens[kept..]),
            false => Err(Error::Context { positions: tokens.len(), limit }),
        };
        if logits.is_err() {
            self.truncate(0);
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

    /// Forgets the tokens from `len` on, if there are so many. Layers with a window must not have forgotten what is seen from there:
    /// those of the last [`Session::extend`] can always be taken back.
    pub fn truncate(&mut self, len: usize) {
        self.cache.truncate(len);
        self.tokens.truncate(len);
        if let Some(Draft { cache, .. }) = &mut self.draft
            && cache.len() > len
        {
            cache.truncate(if cache.can_truncate(len) { len } else { 0 });
        }
    }

    /// Guesses of the draft, `most` at most, what follows the tokens so far and `next`. None without a draft.
    ///
    /// # Errors
    /// As [`Session::extend`], of the draft.
    pub fn guess(
        &mut self,
        next: u32,
        sampler: &Sampler,
        speculation: &mut Speculation,
        most: usize,
    ) -> Result<Vec<Proposal>> {
        let Some(Draft { decoder, cache }) = &mut self.draft else { return Ok(Vec::new()) };
        // As much of the text as the draft has not read yet, but for what runs with the first guess.
        while self.tokens.len() > cache.len() + PROMPT_BATCH && cache.remaining() > PROMPT_BATCH {
            let first = cache.len();
            decoder.forward(&self.tokens[first..first + PROMPT_BATCH], cache, LogitsOf::From(PROMPT_BATCH))?;
        }
        self.tokens.push(next);
        let text = Guessing { tokens: &self.tokens, cache, sampler, speculation, most };
        let guesses = guess(decoder, &mut [text]);
        self.tokens.pop();
        Ok(guesses?.pop().unwrap_or_default())
    }

    /// Appends `next` and guesses of what follows it, and returns the logits behind each of them, `[1 + guesses, vocab_size]`.
    /// [`Session::truncate`] takes back guesses that were wrong.
    ///
    /// # Errors
    /// As [`Session::extend`].
    pub fn extend_by_guesses(&mut self, next: u32, guesses: &[Proposal]) -> Result<Vec<f32>> {
        let tokens: Vec<u32> = std::iter::once(next).chain(guesses.iter().map(|guess| guess.token)).collect();
        let logits = self.decoder.forward(&tokens, &mut self.cache, LogitsOf::All)?;
        self.tokens.extend(tokens);
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
