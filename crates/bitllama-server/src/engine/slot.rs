//! A request in progress.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bitllama_runtime::speculate::{Guessing, Speculation};
use bitllama_runtime::text::{StopStrings, TextStream};
use bitllama_runtime::{Error, LogitsOf, Proposal, Sampler, Stop};
use tokenizers::Tokenizer;
use tokio::sync::mpsc::UnboundedSender;

use super::{Done, Event, Generated, Job, Model, Positions, Prompt, Request, TokenLogprob};

/// A request, its tokens so far, and keys and values of those that are computed. A slot whose positions were taken away computes its
/// tokens anew and goes on.
pub(super) struct Slot {
    request: Request,
    events: UnboundedSender<Event>,
    submitted: Instant,
    /// Prompt and generated tokens.
    pub tokens: Vec<u32>,
    /// Keys and values of the first tokens; none while the request waits.
    pub positions: Option<Positions>,
    sampler: Sampler,
    /// State of speculation, if the model has a draft.
    speculation: Option<Speculation>,
    /// Guesses of what follows the tokens, checked in the next pass.
    guesses: Vec<Proposal>,
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
        let draft = model.draft.as_ref();
        let speculation = draft.map(|draft| Speculation::new(&model.decoder, draft, &sampler));
        let (prompt, positions, guesses) = (Some(Prompt::default()), None, Vec::new());
        Ok(Self { request, events, submitted, tokens, positions, sampler, speculation, guesses, stream, stops, prompt })
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
        self.positions.as_ref().map_or(0, Positions::len)
    }

    /// The share of its keys and values of the bytes of all.
    pub fn share_of_bytes(&self) -> usize {
        self.positions.as_ref().map_or(0, Positions::share_of_bytes)
    }

    /// Positions that it has at most.
    pub fn most_positions(&self) -> usize {
        self.request.prompt.len() + self.request.options.max_tokens
    }

    /// Gives it positions, which may be those of its first tokens already.
    pub fn start(&mut self, positions: Positions) {
        if let Some(prompt) = &mut self.prompt {
            // What was found before the positions were taken away is found again.
            *prompt = Prompt { cached: positions.len(), logprobs: Vec::new() };
        }
        self.positions = Some(positions);
    }

    /// Tokens that the model's draft has yet to read before it can guess, `most` at most, with its keys and values.
    pub fn unread(&mut self, most: usize) -> Option<(&[u32], &mut bitllama_runtime::KvCache)> {
        let draft = self.positions.as_mut()?.draft.as_mut()?;
        // Those that run with the first guess.
        const FEW: usize = 8;
        let unread = self.tokens.get(draft.len()..)?;
        let unread = &unread[..unread.len().saturating_sub(1).min(most).min(draft.remaining())];
        (unread.len() > FEW).then_some((unread, draft))
    }

    /// Its text, for guesses of what follows; none where another pass over its prompt comes first, or there is no draft.
    pub fn guessing(&mut self) -> Option<Guessing<'_>> {
        if self.pending() != 1 || self.generated() == 0 {
            return None;
        }
        // The pass gives a token beside the guesses.
        let most = (self.request.options.max_tokens - self.generated()).saturating_sub(1);
        let Positions { model, draft } = self.positions.as_mut()?;
        let most = most.min(model.remaining().saturating_sub(1));
        let (cache, speculation) = (draft.as_mut()?, self.speculation.as_mut()?);
        Some(Guessing { tokens: &self.tokens, cache, sampler: &self.sampler, speculation, most })
    }

    /// Takes guesses, to be checked in the next pass.
    pub fn set_guesses(&mut self, guesses: Vec<Proposal>) {
        self.guesses = guesses;
    }

    /// The next part of the text to compute, of `most` tokens at most beside guesses, and the logits that are wanted of it.
    pub fn wanted(&self, most: usize) -> Part {
        let first = self.computed();
        let end = self.tokens.len().min(first + most);
        let guesses = if end == self.tokens.len() { &self.guesses[..] } else { &[] };
        let mut input = self.tokens[first..end].to_vec();
        input.extend(guesses.iter().map(|guess| guess.token));
        let logits = match (&self.prompt, self.request.prompt_logprobs) {
            (Some(_), true) => LogitsOf::All,
            _ if end == self.tokens.len() => LogitsOf::From(end - first - 1),
            _ => LogitsOf::From(end - first),
        };
        Part { range: first..end, input, logits }
    }

    /// Takes the logits of a part, which is computed now, and chooses the next tokens where it was the last one.
    pub fn take(&mut self, part: &Part, logits: &[f32], model: &Model) -> Taken {
        let vocab = model.decoder.config().vocab_size;
        if self.request.prompt_logprobs
            && let Some(prompt) = &mut self.prompt
        {
            let top = self.request.logprobs.unwrap_or(0);
            let followed = part.range.clone().zip(logits.chunks_exact(vocab));
            let followed = followed.filter_map(|(at, logits)| Some((*self.tokens.get(at + 1)?, logits)));
            prompt.logprobs.extend(followed.map(|(token, logits)| TokenLogprob::of(logits, token, top)));
        }
        if part.range.end < self.tokens.len() {
            return Taken { next: Ok(Next::Prompt), events: Vec::new(), accepted: None };
        }
        let guesses = std::mem::take(&mut self.guesses);
        let (mut events, mut accepted) = (Vec::new(), 0);
        // A row behind the last token, and one behind each guess; those after a wrong guess are of another text.
        let rows = &logits[logits.len() - (1 + guesses.len()) * vocab..];
        let next = loop {
            let guess = guesses.get(accepted);
            let next = self.choose(&rows[accepted * vocab..][..vocab], guess, model, &mut events);
            let right = guess.is_some_and(|guess| self.tokens.last() == Some(&guess.token));
            if !matches!(next, Ok(Next::Token)) || !right {
                break next;
            }
            accepted += 1;
        };
        if let (Some(speculation), true) = (&mut self.speculation, part.range.len() == 1) {
            speculation.learn(&guesses, accepted);
        }
        if let (Some(positions), false) = (&mut self.positions, guesses.is_empty()) {
            positions.truncate(self.tokens.len() - 1);
        }
        Taken { next, events, accepted: (!guesses.is_empty()).then_some((guesses.len(), accepted)) }
    }

    /// Chooses the next token by its logits, where it may have been guessed.
    fn choose(
        &mut self,
        logits: &[f32],
        guess: Option<&Proposal>,
        model: &Model,
        events: &mut Vec<Event>,
    ) -> Result<Next, String> {
        events.extend(self.prompt.take().map(Event::Prompt));
        if self.generated() == self.request.options.max_tokens {
            self.end(Stop::MaxTokens, events)?;
            return Ok(Next::Over);
        }
        let token = self.sample(logits, guess)?;
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
    fn sample(&mut self, logits: &[f32], guess: Option<&Proposal>) -> Result<u32, String> {
        let mut allowed = Cow::from(logits);
        if let Some(constraint) = &mut self.request.constraint {
            constraint.allow(allowed.to_mut()).map_err(fault)?;
        }
        let token = match guess {
            Some(guess) => self.sampler.check_guess(&allowed, guess),
            None => self.sampler.sample(&allowed),
        };
        token.map_err(fault)
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

/// A part of a text that runs in a pass.
pub(super) struct Part {
    /// Places of its tokens in the text.
    pub range: Range<usize>,
    /// The tokens, and guesses of what follows them.
    pub input: Vec<u32>,
    /// The logits that are wanted.
    pub logits: LogitsOf,
}

/// The result of a pass for a slot.
pub(super) struct Taken {
    pub next: Result<Next, String>,
    pub events: Vec<Event>,
    /// Guesses that were checked, and those of them that were right.
    pub accepted: Option<(usize, usize)>,
}
