//! Text generation: a prompt in, pieces of text out as they become whole.

use std::ops::ControlFlow;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use crate::Result;
use crate::model::Decoder;
use crate::sampling::{Proposal, Sampler, Sampling};
use crate::session::Session;
use crate::speculate::Counts;
use crate::text::{StopStrings, TextStream, encode, own_bos};

/// The reason for the end of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model gave one of its [`end_tokens`](bitllama_core::ModelConfig::end_tokens).
    EndOfText,
    /// One of the strings that end it came.
    StopString,
    /// As many tokens as were asked for.
    MaxTokens,
    /// The model's context is full.
    ContextFull,
    /// The receiver of the text wanted no more.
    Interrupted,
}

/// Length, choice and end of a generation. The default is greedy, up to 128 tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Choice of each token.
    pub sampling: Sampling,
    /// Strings that end the text; it has none of them.
    pub stop: Vec<String>,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self { max_tokens: 128, sampling: Sampling::default(), stop: Vec::new() }
    }
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Generation {
    /// The text after the prompt.
    pub text: String,
    /// Its tokens, without an end token that ended it; those of a stop string are among them.
    pub tokens: Vec<u32>,
    /// The reason for its end.
    pub stop: Stop,
    /// Tokens of the prompt, BOS included.
    pub prompt_tokens: usize,
    /// Prompt tokens run per second; of those that a session had computed before, none is counted.
    pub prompt_tokens_per_second: f64,
    /// Generated tokens per second, without the first one, which counts to the prompt. 0 if there was only one.
    pub decode_tokens_per_second: f64,
    /// Counts of guesses, where the session has a draft.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draft: Option<Counts>,
}

/// Continues `prompt`, and hands each piece of text to `on_text`.
///
/// ```no_run
/// use std::ops::ControlFlow;
///
/// use bitllama_runtime::{GenerationOptions, Settings, generate, open};
///
/// # fn main() -> bitllama_runtime::Result<()> {
/// let model = open("runs/quickstart/artifact".as_ref())?;
/// let decoder = model.decoder.with_settings(Settings::fast());
/// let options = GenerationOptions { max_tokens: 32, ..GenerationOptions::default() };
/// let generation = generate(&decoder, &model.tokenizer, "It is a truth", &options, |piece| {
///     print!("{piece}");
///     ControlFlow::Continue(())
/// })?;
/// println!("\n{:.1} tokens/s", generation.decode_tokens_per_second);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`EmptyPrompt`](crate::Error::EmptyPrompt) without a single token to start from, [`Context`](crate::Error::Context) if the prompt exceeds the model's
/// context, [`Sampling`](crate::Error::Sampling) for parameters out of range, [`Tokenizer`](crate::Error::Tokenizer), or [`NotFinite`](crate::Error::NotFinite) where the
/// model computes nonsense.
pub fn generate(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerationOptions,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    generate_with_draft(decoder, None, tokenizer, prompt, options, on_text)
}

/// As [`generate`], where a smaller model with the same tokenizer may guess tokens, which costs nothing but time where it is wrong
/// ([`crate::speculate`]).
///
/// # Errors
/// As [`generate`].
pub fn generate_with_draft(
    decoder: &Decoder,
    draft: Option<&Decoder>,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: &GenerationOptions,
    on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut prompt = encode(tokenizer, own_bos(tokenizer)?, prompt)?;
    if prompt.is_empty() {
        // Nothing to go on from but the token that begins texts.
        prompt.extend(decoder.config().bos_token_id);
    }
    let mut session = Session::new(decoder, prompt.len().saturating_add(options.max_tokens));
    if let Some(draft) = draft {
        session = session.with_draft(draft);
    }
    generate_in(&mut session, tokenizer, &prompt, options, on_text)
}

/// As [`generate`] from tokens, in a session that keeps what it computes: the next prompt that begins with the same tokens costs its
/// new ones only.
///
/// # Errors
/// As [`generate`]; [`Token`](crate::Error::Token) for a token of the prompt outside the vocabulary.
pub fn generate_in(
    session: &mut Session<'_>,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerationOptions,
    mut on_text: impl FnMut(&str) -> ControlFlow<()>,
) -> Result<Generation> {
    let mut sampler = Sampler::new(options.sampling.clone())?.after(prompt);
    let start = Instant::now();
    let (mut logits, computed) = session.restart(prompt)?;
    let prompt_tokens_per_second = rate(computed, start);

    let start = Instant::now();
    let mut text =
        Text { stream: TextStream::new(tokenizer, prompt), stops: StopStrings::new(&options.stop), all: String::new() };
    let mut speculation = session.speculation(&sampler);
    let (vocab, ends) = (session.decoder().config().vocab_size, session.decoder().config().end_tokens());
    let ends: Vec<u32> = ends.collect();
    let (mut tokens, mut guesses, mut steps) = (Vec::<u32>::new(), Vec::<Proposal>::new(), 0);
    let stop = 'text: loop {
        // A row of logits behind each guess and the token before them; those after the first wrong guess are of another text.
        let mut accepted = 0;
        for (index, logits) in logits.chunks_exact(vocab).enumerate() {
            if tokens.len() == options.max_tokens {
                break 'text Stop::MaxTokens;
            }
            let guess = guesses.get(index);
            let token = match guess {
                Some(guess) => sampler.check_guess(logits, guess)?,
                None => sampler.sample(logits)?,
            };
            if ends.contains(&token) {
                break 'text Stop::EndOfText;
            }
            tokens.push(token);
            if let Some(stop) = text.push(token, &mut on_text)? {
                break 'text stop;
            }
            if guess.is_none_or(|guess| guess.token != token) {
                break;
            }
            accepted += 1;
        }
        if steps > 0
            && let Some(speculation) = &mut speculation
        {
            speculation.learn(&guesses, accepted);
        }
        let Some(last) = tokens.last().copied().filter(|_| tokens.len() < options.max_tokens) else {
            break Stop::MaxTokens;
        };
        session.truncate(prompt.len() + tokens.len() - 1);
        if session.remaining() == 0 {
            break Stop::ContextFull;
        }
        // Each pass gives a token beside the guesses.
        let most = (options.max_tokens - tokens.len() - 1).min(session.remaining() - 1);
        guesses = match &mut speculation {
            Some(speculation) => session.guess(last, &sampler, speculation, most)?,
            None => Vec::new(),
        };
        logits = session.extend_by_guesses(last, &guesses)?;
        steps += 1;
    };
    let draft = speculation.map(|speculation| speculation.counts());
    // Each pass gives a token beside the guesses that it accepts.
    let later = steps + draft.map_or(0, |draft| draft.accepted);
    let decode_tokens_per_second = if steps == 0 { 0.0 } else { rate(later, start) };
    let (text, stop) = text.finish(stop, &mut on_text)?;
    let prompt_tokens = prompt.len();
    Ok(Generation { text, tokens, stop, prompt_tokens, prompt_tokens_per_second, decode_tokens_per_second, draft })
}

/// The text of a generation on its way out.
struct Text<'a> {
    stream: TextStream<&'a Tokenizer>,
    stops: StopStrings,
    all: String,
}

impl Text<'_> {
    /// Takes a token, and gives the reason if the text ends with it.
    fn push(&mut self, token: u32, on_text: &mut impl FnMut(&str) -> ControlFlow<()>) -> Result<Option<Stop>> {
        let Some(piece) = self.stream.push(token)? else { return Ok(None) };
        let (piece, stopped) = self.stops.push(&piece);
        self.all.push_str(&piece);
        let wanted = piece.is_empty() || on_text(&piece).is_continue();
        Ok(match (stopped, wanted) {
            (true, _) => Some(Stop::StopString),
            (false, false) => Some(Stop::Interrupted),
            (false, true) => None,
        })
    }

    /// The whole text, whose held rest goes out now unless a stop string or nobody's interest ended it. A stop string may end within
    /// the rest.
    fn finish(mut self, stop: Stop, on_text: &mut impl FnMut(&str) -> ControlFlow<()>) -> Result<(String, Stop)> {
        if matches!(stop, Stop::Interrupted | Stop::StopString) {
            return Ok((self.all, stop));
        }
        let (mut rest, stopped) = self.stops.push(&self.stream.finish()?.unwrap_or_default());
        if !stopped {
            rest.push_str(&self.stops.finish());
        }
        self.all.push_str(&rest);
        if !rest.is_empty() {
            // Nothing follows that could be interrupted.
            let _ = on_text(&rest);
        }
        Ok((self.all, if stopped { Stop::StopString } else { stop }))
    }
}

fn rate(tokens: usize, start: Instant) -> f64 {
    tokens as f64 / start.elapsed().as_secs_f64().max(1e-9)
}
