//! Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>): the frequencies of a config.
//!
//! The convention is Hugging Face's half rotation: element `i` of a head turns together with element `i + rotary_dim / 2`, where
//! `rotary_dim` is `head_dim` in most models. Formulas are those of `modeling_rope_utils.py` of `transformers`.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};

use crate::{Error, ModelConfig};

/// Base and scaling of rotary frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Scaling, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<RopeScaling>,
}

/// Stretching of rotary frequencies for contexts longer than those of pretraining.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
pub enum RopeScaling {
    /// Every frequency is divided by `factor`.
    Linear {
        /// Divisor, at least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Below `original / low_freq_factor` turns, a frequency counts as low.
        low_freq_factor: f64,
        /// Above `original / high_freq_factor` turns, a frequency counts as high.
        high_freq_factor: f64,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
    },
    /// YaRN (Peng et al. 2023, <https://arxiv.org/abs/2309.00071>): as Llama 3.1's with a ramp over the index of a pair, and a
    /// factor of cosines and sines.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
        /// Turns in that context above which a frequency is kept.
        beta_fast: f64,
        /// Turns in that context below which a frequency is divided.
        beta_slow: f64,
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are whole indices.
        #[serde(default = "yes")]
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024, <https://arxiv.org/abs/2402.13753>): a divisor for each frequency, and a second set of divisors
    /// for sequences longer than those of pretraining.
    LongRope {
        /// Divisors for sequences of at most `original_max_position_embeddings` positions, `[rotary_dim / 2]`.
        short_factor: Vec<f64>,
        /// Divisors for longer sequences, `[rotary_dim / 2]`.
        long_factor: Vec<f64>,
        /// Context length of pretraining.
        original_max_position_embeddings: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
}

fn yes() -> bool {
    true
}

impl RopeScaling {
    /// YaRN's factor of cosines and sines where a model does not state it: `0.1 mscale ln(factor) + 1`, of `mscale` over that of
    /// `mscale_all_dim` where both are given.
    pub fn yarn_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
        let of = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        match (mscale.filter(|m| *m != 0.0), mscale_all_dim.filter(|m| *m != 0.0)) {
            (Some(mscale), Some(all)) => of(mscale) / of(all),
            _ => of(1.0),
        }
    }

    /// LongRoPE's factor of cosines and sines where a model does not state it: `sqrt(1 + ln(factor) / ln(original))`.
    pub fn longrope_attention_factor(factor: f64, original_max_position_embeddings: usize) -> f64 {
        match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / (original_max_position_embeddings as f64).ln()).sqrt(),
        }
    }
}

impl Rope {
    /// Checks that frequencies of `rotary_dim / 2` pairs follow from it.
    ///
    /// # Errors
    /// [`Error::Config`] with the value and what it must be.
    pub fn validate(&self, rotary_dim: usize) -> Result<(), Error> {
        let wrong = |message: String| Err(Error::Config(message));
        if !(self.theta.is_finite() && self.theta > 0.0) {
            return wrong(format!("rope_theta = {} is not positive", self.theta));
        }
        let Some(scaling) = &self.scaling else { return Ok(()) };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        match scaling {
            RopeScaling::Linear { factor } | RopeScaling::Llama3 { factor, .. } | RopeScaling::Yarn { factor, .. }
                if !(factor.is_finite() && *factor >= 1.0) =>
            {
                return wrong(format!("rope_scaling.factor = {factor} is less than 1"));
            }
            RopeScaling::Llama3 { low_freq_factor, high_freq_factor, .. }
                if !(*low_freq_factor > 0.0 && high_freq_factor > low_freq_factor && high_freq_factor.is_finite()) =>
            {
                return wrong(format!(
                    "rope_scaling: high_freq_factor = {high_freq_factor} must exceed low_freq_factor = {low_freq_factor} > 0"
                ));
            }
            RopeScaling::Yarn { beta_fast, beta_slow, .. } if !(positive(*beta_slow) && positive(*beta_fast)) => {
                return wrong(format!(
                    "rope_scaling: beta_fast = {beta_fast} and beta_slow = {beta_slow} must be positive"
                ));
            }
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                for (name, factors) in [("short_factor", short_factor), ("long_factor", long_factor)] {
                    if factors.len() != rotary_dim / 2 || !factors.iter().all(|factor| positive(*factor)) {
                        let count = factors.len();
                        return wrong(format!(
                            "rope_scaling.{name} has {count} numbers, {} positive ones are needed",
                            rotary_dim / 2
                        ));
                    }
                }
            }
            _ => {}
        }
        if let RopeScaling::Yarn { attention_factor, original_max_position_embeddings, .. }
        | RopeScaling::LongRope { attention_factor, original_max_position_embeddings, .. } = scaling
            && !(positive(*attention_factor) && *original_max_position_embeddings > 1)
        {
            return wrong(format!(
                "rope_scaling: attention_factor = {attention_factor} must be positive, original_max_position_embeddings = \
                 {original_max_position_embeddings} more than 1"
            ));
        }
        Ok(())
    }

    /// The frequencies of `rotary_dim / 2` pairs for sequences of at most `longest` positions.
    pub fn frequencies(&self, rotary_dim: usize, longest: usize) -> Frequencies {
        // `transformers` computes the powers in f32, and so do models made with it.
        let power = |i: usize| (self.theta as f32).powf((2 * i) as f32 / rotary_dim as f32);
        let pairs = 0..rotary_dim / 2;
        let scaled = |scale: &dyn Fn(usize, f64) -> f64| -> Vec<f32> {
            pairs.clone().map(|i| scale(i, f64::from(1.0 / power(i))) as f32).collect()
        };
        let plain = |inverse| Frequencies { inverse, factor: 1.0 };
        match &self.scaling {
            None => plain(scaled(&|_, frequency| frequency)),
            Some(RopeScaling::Linear { factor }) => plain(scaled(&|_, frequency| frequency / factor)),
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            }) => plain(scaled(&|_, frequency| {
                let turns = *original_max_position_embeddings as f64 * frequency / TAU;
                if turns < *low_freq_factor {
                    frequency / factor
                } else if turns > *high_freq_factor {
                    frequency
                } else {
                    let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            })),
            Some(RopeScaling::Yarn {
                factor,
                original_max_position_embeddings,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
            }) => {
                let dim = rotary_dim as f64;
                let index = |turns: f64| {
                    dim * (*original_max_position_embeddings as f64 / (turns * TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (low, high) = (index(*beta_fast), index(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let inverse = scaled(&|i, frequency| {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * divided + frequency * (1.0 - divided)
                });
                Frequencies { inverse, factor: *attention_factor as f32 }
            }
            Some(RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
            }) => {
                let factors = if longest > *original_max_position_embeddings { long_factor } else { short_factor };
                let inverse = pairs.map(|i| 1.0 / (factors[i] as f32 * power(i))).collect();
                Frequencies { inverse, factor: *attention_factor as f32 }
            }
        }
    }
}

/// Frequencies of a rotary embedding, and the factor of its cosines and sines.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    /// Radians per position, one for each pair: `[rotary_dim / 2]`.
    pub inverse: Vec<f32>,
    /// Factor of cosines and sines.
    pub factor: f32,
}

impl Frequencies {
    /// Cosines and sines of the positions `0 .. positions`, each `[positions, rotary_dim / 2]`, row-major.
    pub fn tables(&self, positions: usize) -> (Vec<f32>, Vec<f32>) {
        let mut tables = (Vec::new(), Vec::new());
        (0..positions).for_each(|position| self.push(position, &mut tables.0, &mut tables.1));
        tables
    }

    /// Appends the cosines and sines of one position.
    pub fn push(&self, position: usize, cos: &mut Vec<f32>, sin: &mut Vec<f32>) {
        for frequency in &self.inverse {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c * self.factor);
            sin.push(s * self.factor);
        }
    }
}

/// The frequencies of a config's layers without a window, for short sequences: `[rotary_dim / 2]`.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    config.rope().frequencies(config.rotary_dim(), 1).inverse
}

/// Cosines and sines of every position and pair of a config's layers without a window, each `[positions, rotary_dim / 2]`,
/// row-major.
pub fn tables(config: &ModelConfig, positions: usize) -> (Vec<f32>, Vec<f32>) {
    config.rope().frequencies(config.rotary_dim(), positions).tables(positions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn frequencies_fall_from_one_by_powers_of_theta() {
        let mut config = tiny();
        assert_eq!(inverse_frequencies(&config), [1.0, 0.01]);
        config.rope_scaling = Some(RopeScaling::Linear { factor: 2.0 });
        assert_eq!(inverse_frequencies(&config), [0.5, 0.005]);
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let mut config = tiny();
        config.head_dim = 64;
        config.rope_theta = 5e5;
        let plain = inverse_frequencies(&config);
        config.rope_scaling = Some(RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        });
        let scaled = inverse_frequencies(&config);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[31] / scaled[31] - 8.0).abs() < 1e-4);
        assert!(scaled.windows(2).all(|w| w[0] > w[1]), "frequencies stay ordered");
    }

    #[test]
    fn tables_are_position_major() {
        let (cos, sin) = tables(&tiny(), 3);
        assert_eq!(cos.len(), 6);
        assert_eq!((cos[0], sin[0]), (1.0, 0.0));
        assert!((sin[4] - 2f32.sin()).abs() < 1e-6);
    }

    #[test]
    fn longrope_has_other_divisors_for_long_sequences_and_a_factor() {
        let scaling = RopeScaling::LongRope {
            short_factor: vec![1.0, 2.0],
            long_factor: vec![1.0, 8.0],
            original_max_position_embeddings: 16,
            attention_factor: RopeScaling::longrope_attention_factor(4.0, 16),
        };
        let rope = Rope { theta: 1e4, scaling: Some(scaling) };
        rope.validate(4).unwrap();
        assert!(rope.validate(8).unwrap_err().to_string().contains("short_factor has 2 numbers"));
        let (short, long) = (rope.frequencies(4, 16), rope.frequencies(4, 17));
        assert_eq!((short.inverse[1], long.inverse[1]), (0.005, 0.00125));
        assert!((short.factor - 1.5f32.sqrt()).abs() < 1e-6);
        assert!((long.tables(1).0[0] - 1.5f32.sqrt()).abs() < 1e-6, "cosines carry the factor");
    }

    #[test]
    fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_max_position_embeddings: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: RopeScaling::yarn_attention_factor(4.0, None, None),
            truncate: true,
        };
        let (rope, plain) = (Rope { theta: 1e4, scaling: Some(scaling) }, Rope { theta: 1e4, scaling: None });
        let (scaled, plain) = (rope.frequencies(64, 1), plain.frequencies(64, 1));
        assert_eq!(scaled.inverse[0], plain.inverse[0]);
        assert!((plain.inverse[31] / scaled.inverse[31] - 4.0).abs() < 1e-5);
        assert!((scaled.factor - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
    }
}
