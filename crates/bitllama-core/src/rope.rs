//! Rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>): the frequencies of a config.
//!
//! The convention is Hugging Face's half rotation: element `i` of a head turns together with element
//! `i + head_dim / 2`.

use crate::{ModelConfig, RopeScaling};

/// Radians a position, one for each pair of a head: `[head_dim / 2]`.
pub fn inverse_frequencies(config: &ModelConfig) -> Vec<f32> {
    let pairs = config.head_dim / 2;
    (0..pairs)
        .map(|i| {
            // `transformers` computes the powers in f32, and so do models made with it.
            let frequency = 1.0 / (config.rope_theta as f32).powf((2 * i) as f32 / config.head_dim as f32);
            scaled(frequency as f64, config.rope_scaling.as_ref()) as f32
        })
        .collect()
}

/// Cosines and sines of every position and pair, each `[positions, head_dim / 2]`, row-major.
pub fn tables(config: &ModelConfig, positions: usize) -> (Vec<f32>, Vec<f32>) {
    let frequencies = inverse_frequencies(config);
    let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
    angles.map(|a| (a.cos(), a.sin())).unzip()
}

/// `modeling_rope_utils.py` of `transformers`: `linear` and `llama3`.
fn scaled(frequency: f64, scaling: Option<&RopeScaling>) -> f64 {
    match scaling {
        None => frequency,
        Some(RopeScaling::Linear { factor }) => frequency / factor,
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            let turns = *original_max_position_embeddings as f64 * frequency / std::f64::consts::TAU;
            if turns < *low_freq_factor {
                frequency / factor
            } else if turns > *high_freq_factor {
                frequency
            } else {
                let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
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
}
