//! Choosing the next token.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Error, Result};

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token, whatever the other fields say.
    pub temperature: f32,
    /// Only the so many likeliest tokens, at least 1.
    pub top_k: Option<usize>,
    /// Of these only the likeliest whose probabilities together reach this, in (0, 1] (nucleus sampling,
    /// <https://arxiv.org/abs/1904.09751>). Applied after temperature and `top_k`, as in `transformers`.
    pub top_p: Option<f32>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: None, seed: 0 }
    }
}

/// [`Sampling`] with the state of its random numbers: equal seeds and logits give equal tokens on every machine.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// Starts from the seed.
    ///
    /// # Errors
    /// [`Error::Sampling`] for a parameter out of its range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        let Sampling { temperature, top_k, top_p, seed } = sampling;
        let fault = |name, value: String, expected| Err(Error::Sampling { name, value, expected });
        if !(temperature.is_finite() && temperature >= 0.0) {
            return fault("temperature", temperature.to_string(), "a number from 0 up");
        }
        if top_k == Some(0) {
            return fault("top-k", "0".into(), "at least 1");
        }
        if let Some(p) = top_p
            && !(p > 0.0 && p <= 1.0)
        {
            return fault("top-p", p.to_string(), "above 0 and at most 1");
        }
        Ok(Self { sampling, rng: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// Chooses a token by its logits (`[vocab_size]`). Of equally likely tokens the lowest comes first.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or +∞, or none is finite.
    pub fn sample(&mut self, logits: &[f32]) -> Result<u32> {
        let top = argmax(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(top as u32);
        }
        let max = logits[top];
        let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
        let logit = |token: &u32| logits[*token as usize];
        let likelier = |a: &u32, b: &u32| logit(b).total_cmp(&logit(a)).then(a.cmp(b));
        if let Some(k) = self.sampling.top_k.filter(|k| *k < tokens.len()) {
            tokens.select_nth_unstable_by(k, likelier);
            tokens.truncate(k);
        }
        // Sorted in any case: the draw below walks the tokens in an order that only logits decide.
        tokens.sort_unstable_by(likelier);
        let temperature = self.sampling.temperature as f64;
        let mut weights: Vec<f64> = tokens.iter().map(|t| ((logit(t) - max) as f64 / temperature).exp()).collect();
        if let Some(p) = self.sampling.top_p {
            weights.truncate(nucleus(&weights, p as f64));
        }
        let mut left = self.rng.random::<f64>() * weights.iter().sum::<f64>();
        let drawn = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        // Rounding may leave a crumb after the last weight.
        Ok(tokens[drawn.unwrap_or(weights.len() - 1)])
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
        assert_eq!(only(hot), [0, 1, 2, 3]);
        assert_eq!(only(Sampling { top_k: Some(2), ..hot }), [1, 3]);
        assert_eq!(only(Sampling { top_k: Some(9), ..hot }), [0, 1, 2, 3]);
        assert_eq!(only(Sampling { top_p: Some(0.5), ..hot }), [1, 3]);
        assert_eq!(only(Sampling { top_p: Some(1e-9), ..hot }), [1]);
        assert_eq!(only(Sampling { top_k: Some(3), top_p: Some(1.0), ..hot }), [1, 2, 3]);
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
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
        let mut sampler = Sampler::new(Sampling::default()).unwrap();
        for bad in [[f32::NAN, 0.0], [f32::INFINITY, 0.0], [f32::NEG_INFINITY; 2]] {
            assert!(sampler.sample(&bad).is_err(), "{bad:?}");
        }
    }
}
