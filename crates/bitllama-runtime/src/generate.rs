//! Text generation: a prompt in, pieces of text out as they become whole.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::model::{Decoder, LogitsOf};
use crate::sampling::{Sampler, Sampling};
use crate::text::{TextStream, encode, own_bos};
use crate::{Error, Result};

/// Tokens of a prompt that run at once: bounds the memory of activations, and is enough to keep the cores busy.
const PROMPT_BATCH: usize = 512;

/// What ends a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model gave one of its [`end_tokens`](bitllama_core::ModelConfig::end_tokens).
    EndOfText,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// The receiver of the text wanted no more.
    Interrupted,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generation {
    /// The text after the prompt.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// What ended it.
    pub stop: Stop,
    /// Tokens of the prompt, BOS included.
    pub prompt_tokens: usize,
    /// Prompt tokens run a second.
    pub prompt_tokens_per_second: f64,
    /// Generated tokens run a second, one at a time; the first one counts to the prompt. 0 if there was only one.
    pub decode_tokens_per_second: f64,
}

/// Continues `prompt` by at most `max_tokens` tokens, and hands each piece of text to `on_text`.
///
/// # Errors
/// [`Error::EmptyPrompt`] without a single token to start from, [`Error::Context`] if the prompt exceeds the model's
/// context, [`Error::Sampling`] for parameters out of range, [`Error::Tokenizer`], or [`Error::NotFinite`] where the
/// model computes nonsense.
pub fn generate(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &str,
    max_tokens: usize,
    sampling: Sampling,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(sampling)?;
    let config = decoder.config();
    let mut prompt = encode(tokenizer, own_bos(tokenizer)?, prompt)?;
    if prompt.is_empty() {
        // Nothing to go on from but the token that begins texts.
        prompt.extend(config.bos_token_id);
    }
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let mut cache = decoder.new_cache_for(prompt.len().saturating_add(max_tokens));
    if prompt.len() > cache.remaining() {
        return Err(Error::Context { positions: prompt.len(), limit: cache.remaining() });
    }

    let start = Instant::now();
    let mut logits = Vec::new();
    for batch in prompt.chunks(PROMPT_BATCH) {
        let last = cache.len() + batch.len() == prompt.len();
        logits = decoder.forward(batch, &mut cache, if last { LogitsOf::Last } else { LogitsOf::From(batch.len()) })?;
    }
    let prompt_tokens_per_second = rate(prompt.len(), start);

    let start = Instant::now();
    let mut stream = TextStream::new(tokenizer, &prompt);
    let (mut text, mut tokens, mut steps) = (String::new(), Vec::new(), 0);
    let stop = loop {
        if tokens.len() == max_tokens {
            break Stop::MaxTokens;
        }
        if !tokens.is_empty() {
            if cache.remaining() == 0 {
                break Stop::ContextFull;
            }
            logits = decoder.forward(&tokens[tokens.len() - 1..], &mut cache, LogitsOf::Last)?;
            steps += 1;
        }
        let token = sampler.sample(&logits)?;
        if config.end_tokens().any(|end| end == token) {
            break Stop::EndOfText;
        }
        tokens.push(token);
        if let Some(piece) = stream.push(token)? {
            text.push_str(&piece);
            if on_text(&piece).is_break() {
                break Stop::Interrupted;
            }
        }
    };
    let decode_tokens_per_second = if steps == 0 { 0.0 } else { rate(steps, start) };
    if stop != Stop::Interrupted
        && let Some(piece) = stream.finish()?
    {
        text.push_str(&piece);
        // Nothing follows that could be interrupted.
        let _ = on_text(&piece);
    }
    Ok(Generation {
        text,
        tokens,
        stop,
        prompt_tokens: prompt.len(),
        prompt_tokens_per_second,
        decode_tokens_per_second,
    })
}

fn rate(tokens: usize, start: Instant) -> f64 {
    tokens as f64 / start.elapsed().as_secs_f64().max(1e-9)
}
