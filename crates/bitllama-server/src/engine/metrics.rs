//! Counters of an engine.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// Counters and gauges of an engine.
#[derive(Debug, Default)]
pub struct Metrics {
    waiting: AtomicUsize,
    running: AtomicUsize,
    kv_bytes: AtomicUsize,
    requests: AtomicU64,
    refused: AtomicU64,
    cancelled: AtomicU64,
    passes: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    guessed_tokens: AtomicU64,
    accepted_tokens: AtomicU64,
    first_tokens: AtomicU64,
    /// Microseconds from submission to the first token, summed over `first_tokens` requests.
    first_token_micros: AtomicU64,
    /// Microseconds of all passes.
    busy_micros: AtomicU64,
}

impl Metrics {
    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    pub(super) fn enqueue(&self) {
        self.waiting.fetch_add(1, Relaxed);
        self.requests.fetch_add(1, Relaxed);
    }

    pub(super) fn requeue(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    pub(super) fn dequeue(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    pub(super) fn cancel(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    pub(super) fn prompt(&self, computed: usize, cached: usize) {
        self.prompt_tokens.fetch_add(computed as u64, Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Relaxed);
    }

    pub(super) fn first_token(&self, after: Duration) {
        self.first_tokens.fetch_add(1, Relaxed);
        self.first_token_micros.fetch_add(after.as_micros() as u64, Relaxed);
    }

    pub(super) fn pass(&self, generated: usize, took: Duration) {
        self.passes.fetch_add(1, Relaxed);
        self.generated_tokens.fetch_add(generated as u64, Relaxed);
        self.busy_micros.fetch_add(took.as_micros() as u64, Relaxed);
    }

    pub(super) fn guesses(&self, guessed: usize, accepted: usize) {
        self.guessed_tokens.fetch_add(guessed as u64, Relaxed);
        self.accepted_tokens.fetch_add(accepted as u64, Relaxed);
    }

    pub(super) fn state(&self, running: usize, kv_bytes: usize) {
        self.running.store(running, Relaxed);
        self.kv_bytes.store(kv_bytes, Relaxed);
    }

    /// All of them in Prometheus' text format, without types: name, and value for the model of this label.
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        let counter = |value: &AtomicU64| value.load(Relaxed) as f64;
        let gauge = |value: &AtomicUsize| value.load(Relaxed) as f64;
        let seconds = |value: &AtomicU64| value.load(Relaxed) as f64 / 1e6;
        vec![
            ("bitllama_requests_waiting", gauge(&self.waiting)),
            ("bitllama_requests_running", gauge(&self.running)),
            ("bitllama_kv_cache_bytes", gauge(&self.kv_bytes)),
            ("bitllama_requests_total", counter(&self.requests)),
            ("bitllama_requests_refused_total", counter(&self.refused)),
            ("bitllama_requests_cancelled_total", counter(&self.cancelled)),
            ("bitllama_passes_total", counter(&self.passes)),
            ("bitllama_prompt_tokens_total", counter(&self.prompt_tokens)),
            ("bitllama_prompt_tokens_cached_total", counter(&self.cached_tokens)),
            ("bitllama_generated_tokens_total", counter(&self.generated_tokens)),
            ("bitllama_draft_tokens_total", counter(&self.guessed_tokens)),
            ("bitllama_draft_tokens_accepted_total", counter(&self.accepted_tokens)),
            ("bitllama_time_to_first_token_seconds_sum", seconds(&self.first_token_micros)),
            ("bitllama_time_to_first_token_seconds_count", counter(&self.first_tokens)),
            ("bitllama_busy_seconds_total", seconds(&self.busy_micros)),
        ]
    }
}
