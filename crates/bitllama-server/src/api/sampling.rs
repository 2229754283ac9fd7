//! Parameters that both kinds of completions have.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

use bitllama_runtime::{GenerationOptions, Sampling};
use serde::Deserialize;

use super::error::{ApiError, Result};

/// Keys of [`Parameters`].
pub const KEYS: [&str; 14] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
    "n",
    "stop",
    "stream",
    "stream_options",
    "ignore_eos",
];

/// Answers to one prompt, at most.
const MAX_N: usize = 128;

/// Strings that end a text, at most.
const MAX_STOPS: usize = 16;

/// Choice of tokens, as OpenAI names it; `top_k`, `min_p`, `repetition_penalty` and `ignore_eos` are those of vLLM and llama.cpp.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Parameters {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<i64>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    seed: Option<i64>,
    n: Option<usize>,
    stop: Option<serde_json::Value>,
    /// Whether the answer comes in pieces.
    #[serde(default)]
    pub stream: bool,
    /// Further parts of a stream.
    pub stream_options: Option<StreamOptions>,
    /// Whether end tokens are tokens as others.
    #[serde(default)]
    pub ignore_eos: bool,
}

/// Parts of a stream beside its pieces.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether a last piece counts tokens.
    #[serde(default)]
    pub include_usage: bool,
}

impl Parameters {
    /// Answers to each prompt.
    ///
    /// # Errors
    /// A number out of its range.
    pub fn answers(&self) -> Result<usize> {
        match self.n.unwrap_or(1) {
            n @ 1..=MAX_N => Ok(n),
            n => Err(ApiError::parameter("n", format!("n = {n} is not between 1 and {MAX_N}"))),
        }
    }

    /// Whether the last piece of a stream counts tokens.
    pub fn counts(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
    }

    /// The options of answer `index` of `max_tokens` at most.
    ///
    /// # Errors
    /// A parameter out of its range.
    pub fn options(&self, max_tokens: usize, index: usize) -> Result<GenerationOptions> {
        // vLLM and llama.cpp take -1 and 0 for all tokens.
        let top_k = self.top_k.filter(|k| *k > 0).map(|k| usize::try_from(k).unwrap_or(usize::MAX));
        let seed = self.seed.map_or_else(random, |seed| seed as u64);
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.biases()?,
            seed: seed.wrapping_add(index as u64),
        };
        sampling.check().map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(GenerationOptions { max_tokens, sampling, stop: self.stops()? })
    }

    fn biases(&self) -> Result<Vec<(u32, f32)>> {
        let parsed = |(token, bias): (&String, &f32)| Some((token.parse().ok()?, *bias));
        let biases: Option<Vec<_>> = self.logit_bias.iter().flatten().map(parsed).collect();
        biases.ok_or_else(|| ApiError::parameter("logit_bias", "logit_bias is no object with ids of tokens as keys"))
    }

    fn stops(&self) -> Result<Vec<String>> {
        use serde_json::Value;
        let unfit = || ApiError::parameter("stop", "stop is no text or list of texts");
        let text = |stop: &Value| stop.as_str().map(str::to_owned).ok_or_else(unfit);
        let stops = match &self.stop {
            None => Vec::new(),
            Some(Value::Array(stops)) => stops.iter().map(text).collect::<Result<_>>()?,
            Some(stop) => vec![text(stop)?],
        };
        match stops.len() > MAX_STOPS {
            true => Err(ApiError::parameter(
                "stop",
                format!("there are {} stop strings, more than {MAX_STOPS}", stops.len()),
            )),
            false => Ok(stops),
        }
    }
}

/// A number that nobody can guess, from the keys of the standard library's hash maps.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
