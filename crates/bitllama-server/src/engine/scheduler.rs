//! The thread of an engine: which tokens of which requests run in the next pass.
//!
//! Every pass has one token of each request that is generating, and beside them a chunk of the prompts that are not computed yet, so
//! that no stream waits for a long prompt. Requests are admitted in the order in which they came. Keys and values of all of them and
//! of the prefix cache stay within a budget: where it runs out, kept prefixes are forgotten first, and then the youngest requests
//! lose their positions and compute them again later.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bitllama_runtime::speculate::guess;
use bitllama_runtime::{Error, LogitsOf, Sequence};
use rayon::prelude::*;

use super::metrics::Metrics;
use super::prefix::{Prefixes, common};
use super::slot::{Next, Part, Slot, Taken};
use super::{Job, Limits, Model, Positions};

/// Positions by which memory for keys and values grows.
const GROWTH: usize = 256;

/// Tokens of a prompt that are worth waiting for, if another request computes them just now.
const WORTH_WAITING: usize = 64;

pub(super) struct Scheduler {
    model: Arc<Model>,
    limits: Limits,
    metrics: Arc<Metrics>,
    abort: Arc<AtomicBool>,
    /// Requests that wait, those that lost their positions first.
    waiting: VecDeque<Slot>,
    /// Requests that run, by the time of their admission.
    running: Vec<Slot>,
    prefixes: Prefixes,
}

impl Scheduler {
    pub fn new(model: Arc<Model>, limits: Limits, metrics: Arc<Metrics>, abort: Arc<AtomicBool>) -> Self {
        let (waiting, running, prefixes) = (VecDeque::new(), Vec::new(), Prefixes::default());
        Self { model, limits, metrics, abort, waiting, running, prefixes }
    }

    /// Runs requests until nobody can send any more and none is left.
    pub fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let open = self.receive(jobs);
            if self.abort.load(Ordering::Relaxed) {
                self.running.clear();
                self.waiting.clear();
            }
            if !open && self.running.is_empty() && self.waiting.is_empty() {
                return;
            }
            self.drop_cancelled();
            self.admit();
            // What a request asks for must not end the thread of all others.
            let pass = catch_unwind(AssertUnwindSafe(|| self.pass()));
            if pass.is_err() {
                let failed = std::mem::take(&mut self.running);
                failed.iter().for_each(|slot| slot.fail("a pass over the weights failed".into()));
                self.prefixes = Prefixes::default();
            }
            let bytes = self.bytes();
            self.metrics.state(self.running.len(), bytes);
        }
    }

    /// Takes what was sent, and waits for something where there is nothing else to do. Says whether more can come.
    fn receive(&mut self, jobs: &Receiver<Job>) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            // Not forever: somebody may ask to abort.
            match jobs.recv_timeout(Duration::from_millis(200)) {
                Ok(job) => self.enqueue(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match jobs.try_recv() {
                Ok(job) => self.enqueue(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn enqueue(&mut self, job: Job) {
        match Slot::new(job, &self.model) {
            Ok(slot) => self.waiting.push_back(slot),
            Err((events, error)) => {
                self.metrics.dequeue();
                drop(events.send(super::Event::Failed(error.to_string())));
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let (metrics, before) = (&self.metrics, self.waiting.len() + self.running.len());
        self.waiting.retain(|slot| {
            let keep = !slot.is_cancelled();
            if !keep {
                metrics.dequeue();
            }
            keep
        });
        self.running.retain(|slot| !slot.is_cancelled());
        (0..before - self.waiting.len() - self.running.len()).for_each(|_| metrics.cancel());
    }

    /// Lets requests run, in the order in which they came, while there is room.
    fn admit(&mut self) {
        let mut next = 0;
        while next < self.waiting.len() && self.running.len() < self.limits.batch {
            if self.shares_with_running(&self.waiting[next]) {
                next += 1;
                continue;
            }
            let slot = &self.waiting[next];
            let (tokens, most) = (slot.tokens.len(), slot.most_positions());
            // Held from here on, whatever is forgotten to make room.
            let kept = if slot.may_share() { self.prefixes.take(&slot.tokens) } else { None };
            let cached = kept.as_ref().map_or(0, Positions::len);
            let needed = Positions::bytes_for(&self.model, tokens - cached + GROWTH);
            if !self.make_room(needed, self.running.is_empty()) {
                return;
            }
            let Some(mut slot) = self.waiting.remove(next) else { return };
            slot.start(kept.unwrap_or_else(|| Positions::new(&self.model, most)));
            self.metrics.dequeue();
            self.metrics.prompt(slot.tokens.len() - cached, cached);
            self.running.push(slot);
        }
    }

    /// Whether a request that is being computed will soon have much of the beginning of this one's prompt.
    fn shares_with_running(&self, slot: &Slot) -> bool {
        if !slot.may_share() {
            return false;
        }
        let there = self.prefixes.shared(&slot.tokens);
        let soon = |other: &Slot| common(&other.tokens, &slot.tokens);
        // A prompt is kept as soon as it is computed, so only those wait whose beginning is still computed.
        self.running.iter().any(|other| other.pending() > 1 && soon(other) >= there + WORTH_WAITING)
    }

    /// Bytes of all keys and values.
    fn bytes(&self) -> usize {
        self.running.iter().map(Slot::share_of_bytes).sum::<usize>() + self.prefixes.share_of_bytes()
    }

    /// Forgets prefixes until so many more bytes fit into the budget. Says whether they do; `at_least_one` takes them in any case.
    fn make_room(&mut self, bytes: usize, at_least_one: bool) -> bool {
        while self.bytes() + bytes > self.limits.kv_bytes {
            if !self.prefixes.forget_one() {
                return at_least_one;
            }
        }
        true
    }

    /// Makes room for the next tokens of all that run: the youngest wait where there is none.
    fn grow(&mut self, wanted: &mut Vec<usize>) {
        let mut index = 0;
        while index < self.running.len() {
            let slot = &self.running[index];
            let positions = slot.computed() + wanted[index];
            let grown = positions.next_multiple_of(GROWTH).min(slot.most_positions().max(positions));
            let copied = slot.positions.as_ref().is_some_and(Positions::copies_next);
            let copied = if copied { Positions::bytes_for(&self.model, GROWTH) } else { 0 };
            let (before, after) =
                (slot.positions.as_ref().map_or(0, Positions::bytes), Positions::bytes_for(&self.model, grown));
            let more = after.saturating_sub(before) + copied;
            if more > 0 && !self.make_room(more, self.running.len() == 1) {
                if let Some(mut slot) = self.running.pop() {
                    wanted.pop();
                    slot.positions = None;
                    self.metrics.requeue();
                    self.waiting.push_front(slot);
                }
                continue;
            }
            if let Some(positions) = &mut self.running[index].positions {
                positions.reserve(grown);
            }
            index += 1;
        }
    }

    /// One pass over the weights.
    fn pass(&mut self) {
        let mut left = self.limits.chunk;
        let mut share = |slot: &Slot| match slot.pending() {
            1 => 1,
            pending => {
                let share = pending.min(left);
                left -= share;
                share
            }
        };
        let mut wanted: Vec<usize> = self.running.iter().map(&mut share).collect();
        self.grow(&mut wanted);
        if wanted.iter().all(|tokens| *tokens == 0) {
            return;
        }
        let start = Instant::now();
        let computed = self.guess().and_then(|()| {
            let parts: Vec<Part> = self.running.iter().zip(&wanted).map(|(slot, most)| slot.wanted(*most)).collect();
            let logits = self.forward(&parts)?;
            Ok((parts, logits))
        });
        let (parts, logits) = match computed {
            Ok(computed) => computed,
            Err(error) => {
                let error = error.to_string();
                let failed = std::mem::take(&mut self.running);
                return failed.iter().for_each(|slot| slot.fail(error.clone()));
            }
        };
        let taken = self.distribute(parts, &logits);
        self.finish(taken, start.elapsed());
    }

    /// Lets the model's draft, if there is one, read what it has not read, a chunk at a time as the model does, and guess the next tokens
    /// of texts that it has read.
    fn guess(&mut self) -> Result<(), Error> {
        let model = Arc::clone(&self.model);
        let Some(draft) = &model.draft else { return Ok(()) };
        let mut left = self.limits.chunk;
        let mut unread = Vec::new();
        for slot in self.running.iter_mut().filter(|slot| slot.pending() == 1) {
            if let Some((tokens, cache)) = slot.unread(left) {
                left -= tokens.len();
                unread.push(Sequence { tokens, cache, logits: LogitsOf::From(tokens.len()) });
            }
        }
        draft.forward_batch(&mut unread)?;
        let (mut slots, mut texts) = (Vec::new(), Vec::new());
        for (index, slot) in self.running.iter_mut().enumerate() {
            if slot.unread(usize::MAX).is_none()
                && let Some(text) = slot.guessing()
            {
                slots.push(index);
                texts.push(text);
            }
        }
        let guesses = guess(draft, &mut texts)?;
        slots.into_iter().zip(guesses).for_each(|(index, guesses)| self.running[index].set_guesses(guesses));
        Ok(())
    }

    fn forward(&mut self, parts: &[Part]) -> Result<Vec<f32>, Error> {
        let mut batch = Vec::new();
        for (slot, Part { input, logits, .. }) in self.running.iter_mut().zip(parts) {
            if let Some(positions) = slot.positions.as_mut().filter(|_| !input.is_empty()) {
                batch.push(Sequence { tokens: input, cache: &mut positions.model, logits: *logits });
            }
        }
        self.model.decoder.forward_batch(&mut batch)
    }

    /// Gives each slot its logits; slots choose their tokens side by side.
    fn distribute(&mut self, parts: Vec<Part>, logits: &[f32]) -> Vec<Taken> {
        let (model, vocab) = (&self.model, self.model.decoder.config().vocab_size);
        let mut rest = logits;
        let parts: Vec<(Part, &[f32])> = parts
            .into_iter()
            .map(|part| {
                let rows = match part.logits {
                    LogitsOf::All => part.input.len(),
                    LogitsOf::From(from) => part.input.len().saturating_sub(from),
                    LogitsOf::Last => part.input.len().min(1),
                };
                let (own, others) = rest.split_at(rows * vocab);
                rest = others;
                (part, own)
            })
            .collect();
        let take = |(slot, (part, logits)): (&mut Slot, (Part, &[f32]))| match part.range.is_empty() {
            true => Taken { next: Ok(Next::Prompt), events: Vec::new(), accepted: None },
            false => slot.take(&part, logits, model),
        };
        self.running.par_iter_mut().zip(parts).map(take).collect()
    }

    /// Tells what came out, and keeps the positions of what is over for texts that begin the same way.
    fn finish(&mut self, taken: Vec<Taken>, took: Duration) {
        let (mut generated, mut going) = (0, Vec::with_capacity(self.running.len()));
        for (mut slot, Taken { next, events, accepted }) in std::mem::take(&mut self.running).into_iter().zip(taken) {
            let is_new = events.iter().any(|event| matches!(event, super::Event::Prompt(_)));
            if is_new {
                self.metrics.first_token(slot.age());
            }
            generated += events.iter().filter(|event| matches!(event, super::Event::Token(_))).count();
            if let Some((guessed, accepted)) = accepted {
                self.metrics.guesses(guessed, accepted);
            }
            slot.tell(events);
            match next {
                Err(error) => slot.fail(error),
                Ok(Next::Over) => self.keep(&mut slot),
                Ok(next) => {
                    if is_new && matches!(next, Next::Token) {
                        self.keep_prompt(&slot);
                    }
                    going.push(slot);
                }
            }
        }
        self.running = going;
        self.metrics.pass(generated, took);
    }

    /// Keeps the positions of a finished request.
    fn keep(&mut self, slot: &mut Slot) {
        if let Some(positions) = slot.positions.take() {
            self.prefixes.keep(std::mem::take(&mut slot.tokens), positions);
        }
        self.make_room(0, true);
    }

    /// Keeps the positions of a prompt, if another request waits for them.
    fn keep_prompt(&mut self, slot: &Slot) {
        let awaited = |other: &Slot| {
            other.may_share()
                && common(&other.tokens, &slot.tokens) >= self.prefixes.shared(&other.tokens) + WORTH_WAITING
        };
        if self.waiting.iter().any(awaited)
            && let Some(positions) = &slot.positions
        {
            self.prefixes.keep(slot.tokens.clone(), positions.clone());
        }
    }
}
