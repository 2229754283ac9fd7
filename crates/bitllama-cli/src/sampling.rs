//! Flags of commands that generate text.

use std::str::FromStr;

use bitllama_runtime::{GenerationOptions, Sampling};
use clap::Args;

/// Length, choice of tokens and end of a generation.
#[derive(Debug, Args)]
pub struct SamplingFlags {
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Randomness: 0 takes the likeliest token always, 1 follows the model's probabilities
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the likeliest tokens whose probabilities together reach P only
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Sample from tokens only that are at least P times as probable as the likeliest
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens that the text has already less likely: a number above 1, by which their logits shrink
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Number to subtract from the logits of tokens that were generated already
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Number to subtract from a token's logit for each time that it was generated
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Number to add to the logit of a token, by its id; `-inf` forbids it; may be given several times
    #[arg(long, value_name = "TOKEN=BIAS")]
    logit_bias: Vec<Bias>,
    /// String that ends the text, which does not have it; may be given several times
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl SamplingFlags {
    /// The flags as the library takes them.
    pub fn options(&self) -> GenerationOptions {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.iter().map(|bias| (bias.token, bias.bias)).collect(),
            seed: self.seed,
        };
        GenerationOptions { max_tokens: self.max_tokens, sampling, stop: self.stop.clone() }
    }
}

/// The bias of a token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Bias {
    token: u32,
    bias: f32,
}

impl FromStr for Bias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
        let (token, bias) = parsed.ok_or("expected a token's id and a number, such as 13=-5")?;
        Ok(Self { token, bias })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_an_id_and_a_number() {
        assert_eq!("13=-inf".parse(), Ok(Bias { token: 13, bias: f32::NEG_INFINITY }));
        assert_eq!("0=2.5".parse(), Ok(Bias { token: 0, bias: 2.5 }));
        for bad in ["13", "x=1", "-1=2", "1=x", ""] {
            assert!(bad.parse::<Bias>().is_err(), "{bad}");
        }
    }
}
