//! The thread of an engine: which tokens of which requests run in the next pass.
//!
//! Every pass has one token of each request that is generating, and beside them a chunk of the prompts that are not computed yet, so
//! that no stream waits for a long prompt. Requests are admitted in the order in which they came. Keys and values of all of them and
//! of the prefix cache stay within a budget: where it runs out, kept prefixes are forgotten first, and then the youngest requests
//! lose their positions and compute them again later.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use bitllama_runtime::{Error, LogitsOf, Sequence};
use rayon::prelude::*;

use super::metrics::Metrics;
use super::prefix::{Prefixes, common};
use super::slot::{Next, Slot, Taken};
use super::{Job, Limits, Model, bytes_of};

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
            let bytes = self.running.iter().map(Slot::bytes).sum::<usize>() + self.prefixes.bytes();
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
            let tokens = self.waiting[next].tokens.len();
            if !self.make_room(bytes_of(&self.model.decoder, tokens + GROWTH), self.running.is_empty()) {
                return;
            }
            let Some(mut slot) = self.waiting.remove(next) else { return };
            let kept = if slot.may_share() { self.prefixes.take(&slot.tokens) } else { None };
            let cached = kept.as_ref().map_or(0, |cache| cache.len());
            slot.start(kept.unwrap_or_else(|| self.model.decoder.new_cache_for(slot.most_positions())));
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

    /// Forgets prefixes until so many more bytes fit into the budget. Says whether they do; `at_least_one` takes them in any case.
    fn make_room(&mut self, bytes: usize, at_least_one: bool) -> bool {
        let running: usize = self.running.iter().map(Slot::bytes).sum();
        while running + self.prefixes.bytes() + bytes > self.limits.kv_bytes {
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
            let positions = self.running[index].computed() + wanted[index];
            let grown = positions.next_multiple_of(GROWTH).min(self.running[index].most_positions().max(positions));
            let before = self.running[index].bytes();
            let after = bytes_of(&self.model.decoder, grown);
            if after > before && !self.make_room(after - before, self.running.len() == 1) {
                if let Some(mut slot) = self.running.pop() {
                    wanted.pop();
                    slot.cache = None;
                    self.metrics.requeue();
                    self.waiting.push_front(slot);
                }
                continue;
            }
            if let Some(cache) = &mut self.running[index].cache {
                cache.reserve(grown);
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
        let plans: Vec<(Range<usize>, LogitsOf)> =
            self.running.iter().zip(&wanted).map(|(slot, most)| slot.wanted(*most)).collect();
        let logits = self.forward(&plans);
        let logits = match logits {
            Ok(logits) => logits,
            Err(error) => {
                let error = error.to_string();
                let failed = std::mem::take(&mut self.running);
                return failed.iter().for_each(|slot| slot.fail(error.clone()));
            }
        };
        let taken = self.distribute(plans, &logits);
        self.finish(taken, start.elapsed());
    }

    fn forward(&mut self, plans: &[(Range<usize>, LogitsOf)]) -> Result<Vec<f32>, Error> {
        let mut batch = Vec::new();
        for (slot, (tokens, logits)) in self.running.iter_mut().zip(plans) {
            let Slot { tokens: all, cache, .. } = slot;
            if let Some(cache) = cache.as_mut().filter(|_| !tokens.is_empty()) {
                batch.push(Sequence { tokens: &all[tokens.clone()], cache, logits: *logits });
            }
        }
        self.model.decoder.forward_batch(&mut batch)
    }

    /// Gives each slot its logits; slots choose their tokens side by side.
    fn distribute(&mut self, plans: Vec<(Range<usize>, LogitsOf)>, logits: &[f32]) -> Vec<Taken> {
        let (model, vocab) = (&self.model, self.model.decoder.config().vocab_size);
        let mut rest = logits;
        let parts: Vec<(Range<usize>, &[f32])> = plans
            .into_iter()
            .map(|(tokens, wanted)| {
                let rows = match wanted {
                    LogitsOf::All => tokens.len(),
                    LogitsOf::From(from) => tokens.len().saturating_sub(from),
                    LogitsOf::Last => tokens.len().min(1),
                };
                let (own, others) = rest.split_at(rows * vocab);
                rest = others;
                (tokens, own)
            })
            .collect();
        let take = |(slot, (tokens, logits)): (&mut Slot, (Range<usize>, &[f32]))| match tokens.is_empty() {
            true => Taken { next: Ok(Next::Prompt), events: Vec::new() },
            false => slot.take(tokens, logits, model),
        };
        self.running.par_iter_mut().zip(parts).map(take).collect()
    }

    /// Tells what came out, and keeps the positions of what is over for texts that begin the same way.
    fn finish(&mut self, taken: Vec<Taken>, took: Duration) {
        let (mut generated, mut going) = (0, Vec::with_capacity(self.running.len()));
        for (mut slot, Taken { next, events }) in std::mem::take(&mut self.running).into_iter().zip(taken) {
            let is_new = events.iter().any(|event| matches!(event, super::Event::Prompt(_)));
            if is_new {
                self.metrics.first_token(slot.age());
            }
            generated += usize::from(events.iter().any(|event| matches!(event, super::Event::Token(_))));
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
        if let Some(cache) = slot.cache.take() {
            self.prefixes.keep(std::mem::take(&mut slot.tokens), cache);
        }
        self.make_room(0, true);
    }

    /// Keeps a copy of the positions of a prompt, if another request waits for them.
    fn keep_prompt(&mut self, slot: &Slot) {
        let awaited = |other: &Slot| {
            other.may_share()
                && common(&other.tokens, &slot.tokens) >= self.prefixes.shared(&other.tokens) + WORTH_WAITING
        };
        if self.waiting.iter().any(awaited)
            && let Some(cache) = &slot.cache
        {
            self.prefixes.keep(slot.tokens.clone(), cache.clone());
        }
    }
}
