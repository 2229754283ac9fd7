//! Speculative decoding: a small model, the draft, guesses the next tokens, and the model that is asked computes all of them in one
//! pass over its weights, which costs little more than a pass for one token (Leviathan et al. 2023,
//! <https://arxiv.org/abs/2211.17192>). Guesses that it would have chosen itself are tokens that it need not compute one by one.
//!
//! How many tokens are guessed is decided token by token: another guess is made while the chance that it and all before it are
//! accepted is worth its cost. Chances are learned from what was accepted at which confidence of the draft. Costs are those of the
//! weights that are read, not seconds, so that the same text with the same seed is generated the same way every time.

use tokenizers::Tokenizer;

use crate::sampling::{Proposal, Sampler};
use crate::{Decoder, Error, KvCache, LogitsOf, Result, Sequence};

/// Guesses of a round, at most.
pub const MOST_GUESSES: usize = 15;

/// Guesses of a round for a model that computes in f32, at most: with more tokens in a pass its products sum in another order, and the
/// text could be another one where two tokens are equally likely but for rounding.
const MOST_IN_F32: usize = bitllama_kernels::SAME_ORDER - 1;

/// The cost of another token in a pass, in passes of one token: that of a 1.5B model in int8 on two cores.
const ROW_COST: f64 = 0.13;

/// The time that a byte of a draft takes, in that of a byte of the model: fewer bits per weight need more instructions per byte.
const BYTE_OF_DRAFT: f64 = 1.2;

/// Classes of confidence, for each of which acceptance is learned.
const CLASSES: usize = 10;

/// The number of observations that a class starts with: its confidence is taken at its word to this degree.
const PRIOR: f64 = 2.0;

/// The share that the past keeps from round to round.
const MEMORY: f64 = 0.95;

/// Rounds without a guess after which one is tried.
const TRY_AGAIN: usize = 16;

/// State of speculative decoding in one text: acceptance of the draft so far, and its random numbers.
#[derive(Debug, Clone)]
pub struct Speculation {
    sampler: Sampler,
    /// Tokens of the large model; the draft may have room for more.
    vocab: usize,
    /// Guesses of a round, at most.
    most: usize,
    /// Cost of a guess, in passes of the large model.
    guess_cost: f64,
    /// For each class of confidence the guesses that were accepted, and those that were checked.
    classes: [[f64; 2]; CLASSES],
    /// Tokens of the last rounds, and their costs in passes.
    tokens: f64,
    cost: f64,
    /// Rounds without a guess.
    idle: usize,
    /// The round in progress: the share of this text in a pass of one token per text, passes of the draft, and the chance that all
    /// guesses so far are accepted.
    share: f64,
    steps: usize,
    chance: f64,
    counts: Counts,
}

/// Counts of guesses and passes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Passes of the large model after the prompt's.
    pub passes: usize,
    /// Guesses that it checked.
    pub guessed: usize,
    /// Guesses that were its own choice.
    pub accepted: usize,
}

impl Speculation {
    /// For a text whose tokens `sampler` chooses by the logits of `decoder`.
    pub fn new(decoder: &Decoder, draft: &Decoder, sampler: &Sampler) -> Self {
        let guess_cost = BYTE_OF_DRAFT * draft.bytes_per_token() as f64 / decoder.bytes_per_token() as f64;
        let most = if decoder.computes_in_f32() { MOST_IN_F32 } else { MOST_GUESSES };
        let classes = std::array::from_fn(|class| [PRIOR * (class as f64 + 1.0) / CLASSES as f64, PRIOR]);
        let (sampler, vocab) = (sampler.for_guesses(), decoder.config().vocab_size);
        let (tokens, cost, chance, counts) = (1.0, 1.0, 1.0, Counts::default());
        Self { sampler, vocab, most, guess_cost, classes, tokens, cost, idle: 0, share: 1.0, steps: 0, chance, counts }
    }

    /// Counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Begins a round of guesses, for so many texts together, after the tokens that `sampler` has seen.
    fn begin(&mut self, sampler: &Sampler, texts: usize) {
        self.sampler.follow(sampler);
        self.share = (1.0 + (texts - 1) as f64 * ROW_COST) / texts as f64;
        (self.steps, self.chance) = (0, 1.0);
    }

    /// Whether another pass of the draft is worth it.
    fn is_worth_a_guess(&self) -> bool {
        let [accepted, checked] = self.classes.iter().fold([0.0; 2], |[a, b], [c, d]| [a + c, b + d]);
        self.chance * accepted / checked > (self.guess_cost * self.share + ROW_COST) * self.rate() || self.tries_again()
    }

    /// Whether a guess is made to see whether guesses have become better.
    fn tries_again(&self) -> bool {
        self.steps == 0 && self.idle >= TRY_AGAIN
    }

    /// Takes a guess of the draft. Says whether it is worth being checked.
    fn take(&mut self, guess: &Proposal) -> bool {
        let tried = self.tries_again();
        self.steps += 1;
        let [accepted, checked] = self.classes[class_of(guess)];
        self.chance *= accepted / checked;
        self.chance > ROW_COST * self.rate() || tried
    }

    /// Tokens for the cost of a pass.
    fn rate(&self) -> f64 {
        self.tokens / self.cost
    }

    /// Ends a round, of whose `guesses` the first `accepted` were.
    pub fn learn(&mut self, guesses: &[Proposal], accepted: usize) {
        for (index, guess) in guesses.iter().enumerate().take(accepted + 1) {
            let [accepted_before, checked] = &mut self.classes[class_of(guess)];
            *accepted_before = *accepted_before * MEMORY + f64::from(u8::from(index < accepted));
            *checked = *checked * MEMORY + 1.0;
        }
        self.idle = if guesses.is_empty() { self.idle + 1 } else { 0 };
        let cost = self.share * (1.0 + self.steps as f64 * self.guess_cost) + guesses.len() as f64 * ROW_COST;
        self.tokens = self.tokens * MEMORY + (accepted + 1) as f64;
        self.cost = self.cost * MEMORY + cost;
        self.steps = 0;
        let Counts { passes, guessed, accepted: all } = &mut self.counts;
        (*passes, *guessed, *all) = (*passes + 1, *guessed + guesses.len(), *all + accepted);
    }
}

fn class_of(guess: &Proposal) -> usize {
    ((guess.confidence * CLASSES as f64) as usize).min(CLASSES - 1)
}

/// A text whose next tokens are to be guessed.
pub struct Guessing<'a> {
    /// Its tokens, of which the draft has computed the first `cache.len()` and not the last one.
    pub tokens: &'a [u32],
    /// Keys and values of the draft.
    pub cache: &'a mut KvCache,
    /// The choice of its tokens.
    pub sampler: &'a Sampler,
    /// State of speculation in this text.
    pub speculation: &'a mut Speculation,
    /// Guesses, at most.
    pub most: usize,
}

/// Guesses the next tokens of several texts in step, one pass of the draft for a token of each. Every text has as many guesses as are
/// worth it, which may be none.
///
/// # Errors
/// As [`Decoder::forward`] and [`Sampler::sample`].
pub fn guess(draft: &Decoder, texts: &mut [Guessing<'_>]) -> Result<Vec<Vec<Proposal>>> {
    let mut guesses: Vec<Vec<Proposal>> = vec![Vec::new(); texts.len()];
    let mut going: Vec<bool> = vec![true; texts.len()];
    let count = texts.len();
    texts.iter_mut().for_each(|text| text.speculation.begin(text.sampler, count));
    loop {
        for ((text, guesses), going) in texts.iter().zip(&guesses).zip(&mut going) {
            let new = text.tokens.get(text.cache.len()..).unwrap_or_default();
            let known = new.iter().all(|token| (*token as usize) < draft.config().vocab_size);
            let fits =
                guesses.len() < text.most.min(text.speculation.most) && text.cache.remaining() >= new.len().max(1);
            *going = *going && known && fits && text.speculation.is_worth_a_guess();
        }
        let last: Vec<Option<[u32; 1]>> = guesses.iter().map(|all| all.last().map(|guess| [guess.token])).collect();
        let mut batch: Vec<Sequence<'_>> = Vec::new();
        for ((text, last), _) in texts.iter_mut().zip(&last).zip(&going).filter(|(_, going)| **going) {
            let tokens = match last {
                Some(last) => &last[..],
                None => &text.tokens[text.cache.len()..],
            };
            batch.push(Sequence { tokens, cache: text.cache, logits: LogitsOf::Last });
        }
        if batch.is_empty() {
            return Ok(guesses);
        }
        let logits = draft.forward_batch(&mut batch)?;
        let mut rows = logits.chunks_exact(draft.config().vocab_size);
        for ((text, guesses), going) in texts.iter_mut().zip(&mut guesses).zip(&mut going).filter(|(_, going)| **going)
        {
            let Some(logits) = rows.next() else { break };
            let vocab = logits.len().min(text.speculation.vocab);
            let guess = text.speculation.sampler.guess(&logits[..vocab])?;
            *going = text.speculation.take(&guess);
            if *going {
                guesses.push(guess);
            }
        }
    }
}

/// Refuses a draft whose tokens are not those of the model.
///
/// # Errors
/// [`Error::Draft`] with a token that differs.
pub fn check_draft(tokenizer: &Tokenizer, of_draft: &Tokenizer) -> Result<()> {
    let (tokens, of_draft) = (tokenizer.get_vocab(true), of_draft.get_vocab(true));
    let differs = tokens.iter().filter(|(token, id)| of_draft.get(*token) != Some(id)).map(|(token, _)| token).min();
    match differs {
        None => Ok(()),
        Some(token) => Err(Error::Draft(bitllama_core::excerpt(token).into_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::Sampling;
    use crate::testing;

    fn decoder(seed: u64) -> Decoder {
        let weight = |spec: &_| Ok(testing::random_weight(spec, Some(bitllama_core::Scheme::Int4), seed));
        Decoder::new(testing::tiny_config(), weight).unwrap().with_settings(crate::Settings::fast())
    }

    fn guesses(decoder: &Decoder, draft: &Decoder, rounds: &mut dyn FnMut(usize) -> usize) -> Vec<usize> {
        let sampler = Sampler::new(Sampling::default()).unwrap();
        let mut speculation = Speculation::new(decoder, draft, &sampler);
        speculation.guess_cost = 0.1;
        let tokens = [1, 2, 3];
        let mut lengths = Vec::new();
        for round in 0..60 {
            let mut cache = draft.new_cache_for(64);
            let text = Guessing {
                tokens: &tokens,
                cache: &mut cache,
                sampler: &sampler,
                speculation: &mut speculation,
                most: 99,
            };
            let found = guess(draft, &mut [text]).unwrap().remove(0);
            speculation.learn(&found, rounds(round).min(found.len()));
            lengths.push(found.len());
        }
        lengths
    }

    #[test]
    fn guesses_are_as_many_as_are_accepted() {
        let (decoder, draft) = (decoder(1), decoder(1));
        let mean = |lengths: &[usize]| lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
        let all = guesses(&decoder, &draft, &mut |_| 99);
        assert!(mean(&all[30..]) > 8.0, "{all:?}");
        let none = guesses(&decoder, &draft, &mut |_| 0);
        assert!(mean(&none[30..]) < 0.2 && none[30..].iter().any(|n| *n > 0), "{none:?}");
        let some = guesses(&decoder, &draft, &mut |_| 2);
        assert!((1.0..6.0).contains(&mean(&some[30..])), "{some:?}");
    }

    #[test]
    fn guesses_continue_the_text_as_the_draft_would() {
        let draft = decoder(1);
        let sampler = Sampler::new(Sampling::default()).unwrap();
        let mut speculation = Speculation::new(&draft, &draft, &sampler);
        (speculation.guess_cost, speculation.tokens) = (0.0, 1e-12);
        let tokens = [5, 6, 7, 8];
        let mut cache = draft.new_cache_for(64);
        draft.forward(&tokens[..2], &mut cache, LogitsOf::Last).unwrap();
        let text =
            Guessing { tokens: &tokens, cache: &mut cache, sampler: &sampler, speculation: &mut speculation, most: 5 };
        let found = guess(&draft, &mut [text]).unwrap().remove(0);
        let mut all = tokens.to_vec();
        for guess in &found {
            let logits = draft.forward(&all, &mut draft.new_cache_for(64), LogitsOf::Last).unwrap();
            assert_eq!(guess.token, Sampler::new(Sampling::default()).unwrap().sample(&logits).unwrap());
            all.push(guess.token);
        }
        // The last guess is not computed.
        assert_eq!((found.len(), cache.len()), (5, tokens.len() + 4));
    }

    #[test]
    fn a_draft_of_other_tokens_is_refused() {
        let tokenizer = testing::byte_tokenizer();
        check_draft(&tokenizer, &testing::byte_tokenizer()).unwrap();
        let nano = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/nano/tokenizer.json");
        let error = check_draft(&tokenizer, &Tokenizer::from_file(nano).unwrap()).unwrap_err().to_string();
        assert!(error.contains("token `"), "{error}");
    }
}
