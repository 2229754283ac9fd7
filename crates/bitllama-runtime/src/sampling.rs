//! The choice of the next token.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// The choice of the next token. The default is greedy.
///
/// Steps follow `transformers`: logits are changed by bias and penalties, divided by the temperature, and cut by `top_k`, `top_p` and
/// `min_p` in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divisor of logits; 0 takes the likeliest token, whatever `top_k`, `top_p` and `min_p` say.
    pub temperature: f32,
    /// The so many likeliest tokens only, at least 1.
    pub top_k: Option<usize>,
    /// The likeliest tokens only whose probabilities together reach this, in (0, 1] (nucleus sampling,
    /// <https://arxiv.org/abs/1904.09751>).
    pub top_p: Option<f32>,
    /// Tokens only that are at least this times as probable as the likeliest, in [0, 1] (<https://arxiv.org/abs/2407.01082>).
    pub min_p: Option<f32>,
    /// Divisor of the positive logits of tokens that the text has so far, prompt included, and factor of the negative ones
    /// (CTRL, <https://arxiv.org/abs/1909.05858>); above 0, 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that were generated (OpenAI's `presence_penalty`).
    pub presence_penalty: f32,
    /// Subtracted for each time that a token was generated (OpenAI's `frequency_penalty`).
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens; `-inf` forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Refuses parameters out of their ranges.
    ///
    /// # Errors
    /// [`Error::Sampling`] with the parameter, its value and its range.
    pub fn check(&self) -> Result<()> {
        let within = |name, value: f32, fine: bool, expected| match fine {
            true => Ok(()),
            false => Err(Error::Sampling { name, value: value.to_string(), expected }),
        };
        let Self { temperature, top_p, min_p, repetition_penalty: repetition, .. } = *self;
        within("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "a number from 0 up")?;
        if self.top_k == Some(0) {
            return Err(Error::Sampling { name: "top-k", value: "0".into(), expected: "at least 1" });
        }
        if let Some(p) = top_p {
            within("top-p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        }
        if let Some(p) = min_p {
            within("min-p", p, (0.0..=1.0).contains(&p), "from 0 to 1")?;
        }
        within("repetition-penalty", repetition, repetition.is_finite() && repetition > 0.0, "a number above 0")?;
        for (name, penalty) in
            [("presence-penalty", self.presence_penalty), ("frequency-penalty", self.frequency_penalty)]
        {
            within(name, penalty, penalty.is_finite(), "a number")?;
        }
        for (_, bias) in &self.logit_bias {
            within("logit-bias", *bias, *bias < f32::INFINITY, "a number")?;
        }
        Ok(())
    }

    /// Whether logits are taken as they are.
    fn keeps_logits(&self) -> bool {
        (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) == (1.0, 0.0, 0.0)
            && self.logit_bias.is_empty()
    }
}

/// A guess of the next token, drawn by a smaller model.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    /// The token.
    pub token: u32,
    /// Its probability in the smaller model, before any temperature: how sure that one is.
    pub confidence: f64,
    /// Tokens that could have been drawn, with their probabilities; empty where there was no draw.
    drawn_from: Vec<(u32, f64)>,
}

/// [`Sampling`] with its state, random numbers and the tokens so far: equal seeds, prompts and logits give equal tokens on every
/// machine.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    /// Tokens so far with the number of times that each was generated.
    seen: BTreeMap<u32, u32>,
}

impl Sampler {
    /// A sampler at the start of a text.
    ///
    /// # Errors
    /// [`Error::Sampling`] for a parameter out of its range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.check()?;
        let rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        Ok(Self { sampling, rng, seen: BTreeMap::new() })
    }

    /// The same sampler after the tokens of a prompt, which `repetition_penalty` counts.
    #[must_use]
    pub fn after(mut self, prompt: &[u32]) -> Self {
        if self.sampling.repetition_penalty != 1.0 {
            self.seen.extend(prompt.iter().map(|token| (*token, 0)));
        }
        self
    }

    /// Chooses a token by its logits (`[vocab_size]`). Of equally likely tokens the lowest comes first.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or +∞, or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let (logits, top) = self.prepared(logits)?;
        let token = match self.sampling.temperature {
            0.0 => top,
            _ => {
                let mut candidates = Candidates::new(&self.sampling, &logits, top);
                candidates.at(self.rng.random::<f64>() * candidates.total, |_| 0.0)
            }
        };
        self.see(token);
        Ok(token)
    }

    /// Logits after bias and penalties, and the likeliest token by them.
    fn prepared<'a>(&self, logits: &'a [f32]) -> Result<(Cow<'a, [f32]>, u32)> {
        let top = argmax(logits)?;
        if self.sampling.keeps_logits() {
            return Ok((logits.into(), top));
        }
        let changed = self.changed(logits.to_vec());
        let top = argmax(&changed)?;
        Ok((changed.into(), top))
    }

    /// Counts a token that was chosen.
    fn see(&mut self, token: u32) {
        if !self.sampling.keeps_logits() {
            *self.seen.entry(token).or_default() += 1;
        }
    }

    /// Logits after bias and penalties.
    fn changed(&self, mut logits: Vec<f32>) -> Vec<f32> {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, logit_bias, .. } = &self.sampling;
        for (token, bias) in logit_bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += bias;
            }
        }
        for (token, count) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if *count > 0 {
                *logit -= presence_penalty + frequency_penalty * *count as f32;
            }
        }
        logits
    }

    /// A sampler of guesses for this one: the same choice of tokens, other random numbers.
    #[must_use]
    pub fn for_guesses(&self) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(self.sampling.seed);
        rng.set_stream(1);
        Self { rng, ..self.clone() }
    }

    /// Takes over the tokens that `other` has seen.
    pub fn follow(&mut self, other: &Self) {
        self.seen.clone_from(&other.seen);
    }

    /// Draws a guess from the logits of a smaller model, among its likeliest tokens: which distribution a guess comes from decides how
    /// often it is accepted, not what comes out.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn guess(&mut self, logits: &[f32]) -> Result<Proposal> {
        const GUESSED_AMONG: usize = 32;
        let (logits, top) = self.prepared(logits)?;
        let (token, drawn_from) = match self.sampling.temperature {
            0.0 => (top, Vec::new()),
            _ => {
                let top_k = self.sampling.top_k.unwrap_or(GUESSED_AMONG).min(GUESSED_AMONG);
                let narrow = Sampling { top_k: Some(top_k), ..self.sampling.clone() };
                let mut candidates = Candidates::new(&narrow, &logits, top);
                let token = candidates.at(self.rng.random::<f64>() * candidates.total, |_| 0.0);
                (token, candidates.probabilities())
            }
        };
        // All tokens further below the likeliest have a thousandth of its probability together, in vocabularies of today.
        const NEGLIGIBLE: f32 = -20.0;
        let below = |logit: f32| logit - logits[top as usize];
        let counted = logits.iter().map(|logit| below(*logit)).filter(|below| *below > NEGLIGIBLE);
        let confidence = f64::from(below(logits[token as usize]).exp() / counted.map(f32::exp).sum::<f32>());
        self.see(token);
        Ok(Proposal { token, confidence, drawn_from })
    }

    /// Chooses a token by its logits, as [`Sampler::sample`] does, where a guess is there: the chance of every token is the same as
    /// without, and the guess is chosen as often as that allows (rejection sampling, Leviathan et al. 2023,
    /// <https://arxiv.org/abs/2211.17192>, section 2.3). Without a temperature, the token is that of [`Sampler::sample`].
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn check_guess(&mut self, logits: &[f32], guess: &Proposal) -> Result<u32> {
        if self.sampling.temperature == 0.0 {
            return self.sample(logits);
        }
        let (logits, top) = self.prepared(logits)?;
        let mut candidates = Candidates::new(&self.sampling, &logits, top);
        // A guess without a draw was certain.
        let certain = [(guess.token, 1.0)];
        let drawn_from = if guess.drawn_from.is_empty() { &certain[..] } else { &guess.drawn_from };
        let guessed = |token: u32| drawn_from.iter().find(|(other, _)| *other == token).map_or(0.0, |(_, p)| *p);
        let accepted = self.rng.random::<f64>() * guessed(guess.token) < candidates.probability(guess.token);
        let token = if accepted {
            guess.token
        } else {
            let common: f64 = drawn_from.iter().map(|(token, p)| p.min(candidates.probability(*token))).sum();
            let point = self.rng.random::<f64>() * (1.0 - common) * candidates.total;
            candidates.at(point, guessed)
        };
        self.see(token);
        Ok(token)
    }
}

/// The tokens that may be drawn, likeliest first, sorted as far as somebody looks. Of equally likely tokens the lowest comes first.
struct Candidates<'a> {
    logits: &'a [f32],
    /// All tokens, the first `sorted` of them in their places.
    tokens: Vec<u32>,
    sorted: usize,
    /// The first so many may be drawn, at least one.
    count: usize,
    /// The largest logit.
    max: f32,
    temperature: f64,
    /// Sum of the weights of those that may be drawn.
    total: f64,
}

impl<'a> Candidates<'a> {
    fn new(sampling: &Sampling, logits: &'a [f32], top: u32) -> Self {
        let max = logits[top as usize];
        let tokens: Vec<u32> = (0..logits.len() as u32).collect();
        let (count, temperature) = (tokens.len(), sampling.temperature as f64);
        let mut all = Self { logits, tokens, sorted: 0, count, max, temperature, total: 0.0 };
        if let Some(k) = sampling.top_k.filter(|k| *k < count) {
            all.sort_to(k);
            all.cut(k);
        }
        all.total = all.tokens.iter().map(|token| all.weight(*token)).sum();
        if let Some(p) = sampling.top_p {
            let goal = p as f64 * all.total;
            let (mut sum, mut count) = (0.0, 0);
            while count < all.count && (sum < goal || count == 0) {
                sum += all.weight_at(count);
                count += 1;
            }
            all.count = count;
            all.total = sum;
        }
        if let Some(p) = sampling.min_p {
            let (mut sum, mut count) = (all.weight_at(0), 1);
            while count < all.count && all.weight_at(count) >= p as f64 {
                sum += all.weight_at(count);
                count += 1;
            }
            (all.count, all.total) = (count, sum);
        }
        all
    }

    /// The probability of a token over that of the likeliest.
    fn weight(&self, token: u32) -> f64 {
        ((self.logits[token as usize] - self.max) as f64 / self.temperature).exp()
    }

    fn weight_at(&mut self, rank: usize) -> f64 {
        let token = self.ranked(rank);
        self.weight(token)
    }

    fn likelier(&self, a: u32, b: u32) -> std::cmp::Ordering {
        self.logits[b as usize].total_cmp(&self.logits[a as usize]).then(a.cmp(&b))
    }

    /// The token with so many likelier ones.
    fn ranked(&mut self, rank: usize) -> u32 {
        const FIRST: usize = 256;
        if rank >= self.sorted {
            // A draw rarely looks far.
            self.sort_to((8 * self.sorted).clamp(FIRST, self.tokens.len().max(FIRST)).max(rank + 1));
        }
        self.tokens[rank]
    }

    /// Puts the first `end` tokens into their places.
    fn sort_to(&mut self, end: usize) {
        let mut tokens = std::mem::take(&mut self.tokens);
        let rest = &mut tokens[self.sorted..];
        let wanted = end - self.sorted;
        if wanted < rest.len() {
            rest.select_nth_unstable_by(wanted, |a, b| self.likelier(*a, *b));
        }
        let wanted = wanted.min(rest.len());
        rest[..wanted].sort_unstable_by(|a, b| self.likelier(*a, *b));
        self.sorted += wanted;
        self.tokens = tokens;
    }

    fn cut(&mut self, count: usize) {
        self.tokens.truncate(count);
        self.count = count;
    }

    /// Whether a token may be drawn.
    fn has(&mut self, token: u32) -> bool {
        if self.count == self.logits.len() {
            return true;
        }
        let last = self.ranked(self.count - 1);
        token == last || self.likelier(token, last).is_lt()
    }

    /// The probability of a token in a draw.
    fn probability(&mut self, token: u32) -> f64 {
        if self.has(token) { self.weight(token) / self.total } else { 0.0 }
    }

    /// All tokens that may be drawn with their probabilities.
    fn probabilities(&mut self) -> Vec<(u32, f64)> {
        let ranked = (0..self.count).map(|rank| self.ranked(rank)).collect::<Vec<_>>();
        ranked.into_iter().map(|token| (token, self.weight(token) / self.total)).collect()
    }

    /// The token at a point of the line on which each has a piece as long as its weight, or what is left of it without the
    /// probability `taken`, likeliest first.
    fn at(&mut self, point: f64, taken: impl Fn(u32) -> f64) -> u32 {
        let (mut left, mut last) = (point, None);
        for rank in 0..self.count {
            let token = self.ranked(rank);
            let piece = self.weight(token) - taken(token) * self.total;
            if piece > 0.0 {
                last = Some(token);
                left -= piece;
                if left < 0.0 {
                    break;
                }
            }
        }
        // Rounding may leave a crumb after the last piece.
        last.unwrap_or_else(|| self.ranked(0))
    }
}

/// The lowest index of the largest logit.
fn argmax(logits: &[f32]) -> Result<u32> {
    let (mut top, mut max) = (0, f32::NEG_INFINITY);
    for (index, logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return Err(Error::NotFinite(format!("token {index} has NaN")));
        }
        if *logit > max {
            (top, max) = (index, *logit);
        }
    }
    if max.is_finite() { Ok(top) } else { Err(Error::NotFinite(format!("their largest is {max}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..count).map(|_| sampler.sample(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        assert_eq!(draws(Sampling::default(), &[0.0, 2.0, 2.0, 1.0], 3), [1, 1, 1]);
    }

    #[test]
    fn frequencies_follow_the_probabilities() {
        // 1/2, 1/4, 1/4 at temperature 1; 2/3, 1/6, 1/6 at temperature 1/2.
        let logits = [2f32.ln(), 0.0, 0.0];
        for (temperature, expected) in [(1.0, 0.5), (0.5, 2.0 / 3.0)] {
            let sampling = Sampling { temperature, seed: 5, ..Sampling::default() };
            let drawn = draws(sampling, &logits, 20_000);
            let share = drawn.iter().filter(|t| **t == 0).count() as f64 / 20_000.0;
            assert!((share - expected).abs() < 0.02, "{share} at {temperature}");
            assert!(drawn.contains(&1) && drawn.contains(&2));
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [0.0, 3.0, 1.0, 2.0];
        let hot = Sampling { temperature: 10.0, ..Sampling::default() };
        let only = |sampling| {
            let mut drawn = draws(sampling, &logits, 500);
            drawn.sort();
            drawn.dedup();
            drawn
        };
        assert_eq!(only(hot.clone()), [0, 1, 2, 3]);
        assert_eq!(only(Sampling { top_k: Some(2), ..hot.clone() }), [1, 3]);
        assert_eq!(only(Sampling { top_k: Some(9), ..hot.clone() }), [0, 1, 2, 3]);
        assert_eq!(only(Sampling { top_p: Some(0.5), ..hot.clone() }), [1, 3]);
        assert_eq!(only(Sampling { top_p: Some(1e-9), ..hot.clone() }), [1]);
        assert_eq!(only(Sampling { top_k: Some(3), top_p: Some(1.0), ..hot }), [1, 2, 3]);
    }

    #[test]
    fn guesses_change_no_probability() {
        // Guesses of a quite different model, for all ways to cut, and one that could not be drawn at all.
        let (target, draft) = ([2.0, 1.5, 0.0, -1.0, 1.4, -30.0], [0.0, 2.0, 1.0, 0.5, -2.0, 3.0]);
        let warm = Sampling { temperature: 0.8, seed: 3, ..Sampling::default() };
        for sampling in [
            warm.clone(),
            Sampling { top_k: Some(3), ..warm.clone() },
            Sampling { top_p: Some(0.8), ..warm.clone() },
            Sampling { min_p: Some(0.2), ..warm.clone() },
            Sampling { logit_bias: vec![(0, -3.0), (3, 2.0)], ..warm.clone() },
        ] {
            let draws = 200_000;
            let mut plain = Sampler::new(sampling.clone()).unwrap();
            let mut checking = Sampler::new(Sampling { seed: 9, ..sampling.clone() }).unwrap();
            let mut guessing = checking.for_guesses();
            let (mut expected, mut found, mut accepted) = ([0.0; 6], [0.0; 6], 0);
            for _ in 0..draws {
                expected[plain.sample(&target).unwrap() as usize] += 1.0 / draws as f64;
                let guess = guessing.guess(&draft).unwrap();
                let token = checking.check_guess(&target, &guess).unwrap();
                found[token as usize] += 1.0 / draws as f64;
                accepted += usize::from(token == guess.token);
            }
            let difference = expected.iter().zip(&found).map(|(a, b): (&f64, &f64)| (a - b).abs()).fold(0.0, f64::max);
            assert!(difference < 0.006, "{sampling:?}: {expected:?} and {found:?}");
            assert!(accepted > draws / 20 && accepted < draws, "{accepted}");
        }
        // The same model: every guess is accepted.
        let mut checking = Sampler::new(warm).unwrap();
        let mut guessing = checking.for_guesses();
        for _ in 0..1000 {
            let guess = guessing.guess(&target).unwrap();
            assert_eq!(checking.check_guess(&target, &guess).unwrap(), guess.token);
        }
    }

    #[test]
    fn a_greedy_guess_is_the_likeliest_token_and_changes_nothing() {
        let mut sampler = Sampler::new(Sampling { frequency_penalty: 2.5, ..Sampling::default() }).unwrap();
        let mut guessing = sampler.for_guesses();
        let logits = [1.0, 3.0, 2.0];
        let mut guesses = Vec::new();
        let mut tokens = Vec::new();
        for _ in 0..4 {
            guessing.follow(&sampler);
            let guess = guessing.guess(&logits).unwrap();
            tokens.push(sampler.check_guess(&[1.0, 3.0, 2.5], &guess).unwrap());
            guesses.push(guess.token);
            assert!(guess.confidence > 0.3 && guess.confidence < 1.0, "{}", guess.confidence);
        }
        let mut plain = Sampler::new(Sampling { frequency_penalty: 2.5, ..Sampling::default() }).unwrap();
        let expected: Vec<u32> = (0..4).map(|_| plain.sample(&[1.0, 3.0, 2.5]).unwrap()).collect();
        assert_eq!((tokens, guesses), (expected, vec![1, 2, 0, 1]));
    }

    #[test]
    fn draws_look_as_far_as_they_must() {
        // A flat distribution over many tokens, drawn from its end too.
        let logits: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5003) as f32 * 1e-4).collect();
        let sampling = Sampling { temperature: 1.0, seed: 4, ..Sampling::default() };
        let mut candidates = Candidates::new(&sampling, &logits, argmax(&logits).unwrap());
        let mut sorted: Vec<u32> = (0..5000).collect();
        sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        for rank in [0, 255, 256, 257, 3000, 4999, 1] {
            assert_eq!(candidates.ranked(rank), sorted[rank]);
        }
        let total = candidates.total;
        assert_eq!(candidates.at(total * 0.999_999_9, |_| 0.0), sorted[4999]);
        assert_eq!(candidates.at(0.0, |_| 0.0), sorted[0]);
    }

    #[test]
    fn min_p_is_a_share_of_the_likeliest() {
        // Probabilities 1, 1/2, 1/4, 1/8 over the largest one.
        let logits = [0.0, -(2f32.ln()), -(4f32.ln()), -(8f32.ln())];
        for (min_p, expected) in [(0.6, 1), (0.3, 2), (0.2, 3), (0.0, 4)] {
            let sampling = Sampling { temperature: 1.0, min_p: Some(min_p), ..Sampling::default() };
            let mut drawn = draws(sampling, &logits, 500);
            drawn.sort();
            drawn.dedup();
            assert_eq!(drawn.len(), expected, "{min_p}");
        }
    }

    #[test]
    fn penalties_and_bias_change_logits() {
        let of = |sampling: Sampling, prompt: &[u32], count| {
            let mut sampler = Sampler::new(sampling).unwrap().after(prompt);
            (0..count).map(|_| sampler.sample(&[3.0, 2.0, -1.0, 1.0]).unwrap()).collect::<Vec<_>>()
        };
        // 3 / 2 is less than 2; then 2 / 2 less than 3 / 2.
        let repeated = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        assert_eq!(of(repeated.clone(), &[0], 3), [1, 0, 0]);
        assert_eq!(of(repeated, &[], 2), [0, 1]);
        // The prompt does not count for these two.
        let present = Sampling { presence_penalty: 1.5, ..Sampling::default() };
        assert_eq!(of(present, &[0, 1], 4), [0, 1, 0, 0]);
        let frequent = Sampling { frequency_penalty: 0.75, ..Sampling::default() };
        assert_eq!(of(frequent, &[0], 6), [0, 0, 1, 0, 1, 3]);
        let biased = Sampling { logit_bias: vec![(2, 5.0), (0, f32::NEG_INFINITY), (99, 1.0)], ..Sampling::default() };
        assert_eq!(of(biased, &[], 2), [2, 2]);
    }

    #[test]
    fn equal_seeds_give_equal_tokens() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
        let warm = |seed| draws(Sampling { temperature: 1.0, seed, ..Sampling::default() }, &logits, 40);
        assert_eq!(warm(1), warm(1));
        assert_ne!(warm(1), warm(2));
    }

    #[test]
    fn parameters_and_logits_are_checked() {
        for bad in [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f32::NAN, ..Sampling::default() },
            Sampling { top_k: Some(0), ..Sampling::default() },
            Sampling { top_p: Some(0.0), ..Sampling::default() },
            Sampling { top_p: Some(1.5), ..Sampling::default() },
            Sampling { min_p: Some(1.5), ..Sampling::default() },
            Sampling { repetition_penalty: 0.0, ..Sampling::default() },
            Sampling { presence_penalty: f32::NAN, ..Sampling::default() },
            Sampling { logit_bias: vec![(0, f32::INFINITY)], ..Sampling::default() },
        ] {
            assert!(Sampler::new(bad.clone()).is_err(), "{bad:?}");
        }
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        for bad in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert!(sampler.sample(&bad).is_err(), "{bad:?}");
        }
    }
}
