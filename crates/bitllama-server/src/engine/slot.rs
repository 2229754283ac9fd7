//! A request in progress.

use std::sync::Arc;
use std::time::Instant;

use bitllama_runtime::text::{StopStrings, TextStream};
use bitllama_runtime::{Error, KvCache, LogitsOf, Sampler, Stop};
use tokenizers::Tokenizer;
use tokio::sync::mpsc::UnboundedSender;

use super::{Done, Event, Generated, Job, Model, Prompt, Request, TokenLogprob};

/// A request, its tokens so far, and keys and values of those that are computed. A slot whose cache was taken away computes its
/// tokens anew and goes on.
pub(super) struct Slot {
    request: Request,
    events: UnboundedSender<Event>,
    submitted: Instant,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// Keys and values of the first tokens; none while the request waits.
    pub cache: Option<KvCache>,
    sampler: Sampler,
    stream: Option<TextStream<Arc<Tokenizer>>>,
    stops: StopStrings,
    /// The event for when the prompt is computed; none once it was.
    prompt: Option<Prompt>,
}

/// The state of a slot after a pass.
pub(super) enum Next {
    /// More of its prompt is to be computed.
    Prompt,
    /// A token was generated, and more are to come.
    Token,
    /// It is over.
    Over,
}

impl Slot {
    pub fn new(job: Job, model: &Model) -> Result<Self, (UnboundedSender<Event>, Error)> {
        let Job { request, events, submitted } = job;
        let sampler = match Sampler::new(request.options.sampling.clone()) {
            Ok(sampler) => sampler.after(&request.prompt),
            Err(error) => return Err((events, error)),
        };
        let stream = Some(TextStream::new(Arc::clone(&model.tokenizer), &request.prompt));
        let (tokens, stops) = (request.prompt.clone(), StopStrings::new(&request.options.stop));
        let prompt = Some(Prompt::default());
        Ok(Self { request, events, submitted, tokens, cache: None, sampler, stream, stops, prompt })
    }

    /// Whether nobody waits for its events.
    pub fn is_cancelled(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether positions of its prompt may come from the prefix cache.
    pub fn may_share(&self) -> bool {
        !self.request.prompt_logprobs
    }

    /// Positions that are to be computed before the next token can be chosen.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.computed()
    }

    /// Positions computed.
    pub fn computed(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::len)
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        self.cache.as_ref().map_or(0, KvCache::bytes)
    }

    /// Positions that it has at most.
    pub fn most_positions(&self) -> usize {
        self.request.prompt.len() + self.request.options.max_tokens
    }

    /// Gives it a cache, which may have its first tokens already.
    pub fn start(&mut self, cache: KvCache) {
        if let Some(prompt) = &mut self.prompt {
            // What was found before the positions were taken away is found again.
            *prompt = Prompt { cached: cache.len(), logprobs: Vec::new() };
        }
        self.cache = Some(cache);
    }

    /// The next tokens to compute, `most` of them at most, with the logits that are wanted of them.
    pub fn wanted(&self, most: usize) -> (std::ops::Range<usize>, LogitsOf) {
        let first = self.computed();
        let end = self.tokens.len().min(first + most);
        let logits = match (&self.prompt, self.request.prompt_logprobs) {
            (Some(_), true) => LogitsOf::All,
            _ if end == self.tokens.len() => LogitsOf::Last,
            _ => LogitsOf::From(end - first),
        };
        (first..end, logits)
    }

    /// Takes the logits of `tokens`, which are computed now, and chooses the next token where they were the last ones.
    pub fn take(&mut self, tokens: std::ops::Range<usize>, logits: &[f32], model: &Model) -> Taken {
        let vocab = model.decoder.config().vocab_size;
        if self.request.prompt_logprobs
            && let Some(prompt) = &mut self.prompt
        {
            let top = self.request.logprobs.unwrap_or(0);
            let followed = tokens.clone().zip(logits.chunks_exact(vocab));
            let followed = followed.filter_map(|(at, logits)| Some((*self.tokens.get(at + 1)?, logits)));
            prompt.logprobs.extend(followed.map(|(token, logits)| TokenLogprob::of(logits, token, top)));
        }
        if tokens.end < self.tokens.len() {
            return Taken { next: Ok(Next::Prompt), events: Vec::new() };
        }
        let mut events = Vec::new();
        let next = self.choose(&logits[logits.len() - vocab..], model, &mut events);
        Taken { next, events }
    }

    fn choose(&mut self, logits: &[f32], model: &Model, events: &mut Vec<Event>) -> Result<Next, String> {
        events.extend(self.prompt.take().map(Event::Prompt));
        if self.generated() == self.request.options.max_tokens {
            self.end(Stop::MaxTokens, events)?;
            return Ok(Next::Over);
        }
        let token = self.sample(logits)?;
        let ends = || model.decoder.config().end_tokens().any(|end| end == token);
        let constrained = self.request.constraint.is_some();
        if (constrained || !self.request.ignore_eos) && ends() {
            self.end(Stop::EndOfText, events)?;
            return Ok(Next::Over);
        }
        let logprob = self.request.logprobs.map(|top| TokenLogprob::of(logits, token, top));
        let piece = self.text_of(token, model)?;
        self.tokens.push(token);
        let (text, stopped) = self.stops.push(&piece);
        let over = match &mut self.request.constraint {
            None => false,
            Some(constraint) => {
                constraint.accept(token).map_err(fault)?;
                constraint.is_over()
            }
        };
        events.push(Event::Token(Generated { token, text, logprob }));
        let full = self.tokens.len() > model.decoder.config().max_position_embeddings;
        let stop = match (stopped, over, self.generated() == self.request.options.max_tokens, full) {
            (true, ..) => Stop::StopString,
            (false, true, ..) => Stop::EndOfText,
            (false, false, true, _) => Stop::MaxTokens,
            (false, false, false, true) => Stop::ContextFull,
            _ => return Ok(Next::Token),
        };
        self.end(stop, events)?;
        Ok(Next::Over)
    }

    /// The next token, among those that the grammar allows.
    fn sample(&mut self, logits: &[f32]) -> Result<u32, String> {
        let Some(constraint) = &mut self.request.constraint else { return self.sampler.sample(logits).map_err(fault) };
        let mut allowed = logits.to_vec();
        constraint.allow(&mut allowed).map_err(fault)?;
        self.sampler.sample(&allowed).map_err(fault)
    }

    /// The text that is whole with a token. Special tokens have none, unless they mark calls of functions.
    fn text_of(&mut self, token: u32, model: &Model) -> Result<String, String> {
        if let (Some(tools), Some(Ok(vocabulary))) = (&self.request.tools, model.vocabulary.get())
            && let Some(mark) = tools.mark(vocabulary, token)
        {
            let rest = self.stream.take().map(TextStream::finish).transpose().map_err(fault)?.flatten();
            let before: Vec<u32> = self.tokens.iter().copied().chain([token]).collect();
            self.stream = Some(TextStream::new(Arc::clone(&model.tokenizer), &before));
            return Ok(rest.unwrap_or_default() + mark);
        }
        let piece = self.stream.as_mut().map(|stream| stream.push(token)).transpose().map_err(fault)?.flatten();
        Ok(piece.unwrap_or_default())
    }

    /// Tokens generated.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.request.prompt.len()
    }

    /// Time since it was submitted.
    pub fn age(&self) -> std::time::Duration {
        self.submitted.elapsed()
    }

    fn end(&mut self, stop: Stop, events: &mut Vec<Event>) -> Result<(), String> {
        let tokens = self.generated();
        if stop == Stop::StopString {
            events.push(Event::Done(Done { stop, text: String::new(), tokens }));
            return Ok(());
        }
        let rest = self.stream.take().map(TextStream::finish).transpose().map_err(fault)?.flatten();
        let (mut text, stopped) = self.stops.push(&rest.unwrap_or_default());
        if !stopped {
            text.push_str(&std::mem::take(&mut self.stops).finish());
        }
        events.push(Event::Done(Done { stop: if stopped { Stop::StopString } else { stop }, text, tokens }));
        Ok(())
    }

    /// Tells what came of a pass. Nobody may listen any more.
    pub fn tell(&self, events: Vec<Event>) {
        events.into_iter().for_each(|event| drop(self.events.send(event)));
    }

    /// Tells that it failed.
    pub fn fail(&self, error: String) {
        drop(self.events.send(Event::Failed(error)));
    }
}

/// The line that an error is told in.
fn fault(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// The result of a pass for a slot.
pub(super) struct Taken {
    pub next: Result<Next, String>,
    pub events: Vec<Event>,
}
