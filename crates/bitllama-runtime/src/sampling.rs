//! The choice of the next token.

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
        let token = match self.sampling.keeps_logits() {
            true => self.choose(logits)?,
            false => {
                argmax(logits)?;
                let changed = self.changed(logits.to_vec());
                self.choose(&changed)?
            }
        };
        if !self.sampling.keeps_logits() {
            *self.seen.entry(token).or_default() += 1;
        }
        Ok(token)
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

    fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let top = argmax(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(top as u32);
        }
        let (tokens, weights) = self.candidates(logits, logits[top]);
        let mut left = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a crumb after the last weight.
        Ok(tokens[drawn.unwrap_or(weights.len() - 1)])
    }

    /// The tokens that may be drawn, likeliest first, and a weight for each of the first ones, at least one: their probabilities over
    /// that of the likeliest, whose logit is `max`.
    fn candidates(&self, logits: &[f32], max: f32) -> (Vec<u32>, Vec<f64>) {
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |token: &u32| logits[*token as usize];
        let likelier = |a: &u32, b: &u32| logit(b).total_cmp(&logit(a)).then(a.cmp(b));
        if let Some(k) = self.sampling.top_k.filter(|k| *k < tokens.len()) {
            tokens.select_nth_unstable_by(k, likelier);
            tokens.truncate(k);
        }
        // Sorted in any case: a draw walks the tokens in an order that only logits decide.
        tokens.sort_unstable_by(likelier);
        let temperature = self.sampling.temperature as f64;
        let mut weights: Vec<f64> = tokens.iter().map(|t| ((logit(t) - max) as f64 / temperature).exp()).collect();
        if let Some(p) = self.sampling.top_p {
            weights.truncate(nucleus(&weights, p as f64));
        }
        if let Some(p) = self.sampling.min_p {
            let enough = weights.iter().take_while(|weight| **weight >= p as f64).count();
            weights.truncate(enough.max(1));
        }
        (tokens, weights)
    }
}

/// How many of the descending `weights` it takes to reach the share `p` of their sum: at least one.
fn nucleus(weights: &[f64], p: f64) -> usize {
    let goal = p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights.iter().position(|weight| {
        sum += weight;
        sum >= goal
    });
    reached.map_or(weights.len(), |index| index + 1)
}

/// The lowest index of the largest logit.
fn argmax(logits: &[f32]) -> Result<usize> {
    let (mut top, mut max) = (0, f32::NEG_INFINITY);
    for (index, logit) in logits.iter().enumerate() {
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
