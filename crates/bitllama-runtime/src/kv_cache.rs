//! Keys and values of the positions seen so far, so that a new token costs one position only.

use bitllama_core::ModelConfig;
use bitllama_kernels::kv::{KvKind, LayerKv, most_stored};

use crate::{Error, Result};

/// Bytes of a key or value of one head.
fn head_bytes(kind: KvKind, head_dim: usize) -> usize {
    let elements = head_dim.next_multiple_of(16);
    match kind {
        KvKind::F32 => 4 * elements,
        KvKind::F16 => 2 * elements,
        KvKind::Int8 => elements + size_of::<f32>(),
        KvKind::Int4 => elements / 2 + size_of::<f32>(),
    }
}

/// Keys and values of one sequence. Memory grows with the sequence. A clone shares the memory of the positions so far, until one of
/// the two changes them.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerKv>,
    len: usize,
    limit: usize,
    /// Whether its keys are rotated for sequences beyond the short context.
    long: bool,
}

impl KvCache {
    /// An empty cache in f32 for a model of this config, for sequences of at most [`ModelConfig::short_context`].
    pub fn new(config: &ModelConfig) -> Self {
        Self::with_kind(config, KvKind::F32, config.short_context())
    }

    /// An empty cache for a model of this config, for a sequence of so many `positions`, see
    /// [`Decoder::new_cache_for`](crate::Decoder::new_cache_for).
    pub fn with_kind(config: &ModelConfig, kind: KvKind, positions: usize) -> Self {
        let layer = |index| {
            let window = config.window_of(config.arch.layer(index));
            LayerKv::with_window(kind, config.num_key_value_heads, config.head_dim, window)
        };
        let layers = (0..config.num_hidden_layers).map(layer).collect();
        let long = positions > config.short_context();
        let limit = if long { config.max_position_embeddings } else { config.short_context() };
        Self { layers, len: 0, limit, long }
    }

    /// Whether its keys are rotated for sequences beyond the short context.
    pub(crate) fn is_long(&self) -> bool {
        self.long
    }

    /// Keeps what a token at `position` sees, so that [`KvCache::truncate`] can go back to there: layers with a window forget what
    /// no later token sees.
    pub fn hold(&mut self, position: usize) {
        self.layers.iter_mut().for_each(|layer| layer.hold(position));
    }

    /// Positions cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions that still fit into the model's context.
    pub fn remaining(&self) -> usize {
        self.limit - self.len
    }

    /// Its share of the memory of all caches, in bytes: memory that several share is divided among them.
    pub fn share_of_bytes(&self) -> usize {
        self.layers.iter().map(LayerKv::share_of_bytes).sum::<f64>().round() as usize
    }

    /// Whether the next position lies in memory that other caches share, which is copied then.
    pub fn copies_next(&self) -> bool {
        self.layers.iter().any(LayerKv::copies_next)
    }

    /// Bytes of memory held, those for positions to come and those shared included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerKv::bytes).sum()
    }

    /// Bytes that `positions` of a sequence take at most in f32, which no kind exceeds.
    pub fn bytes_at_most(config: &ModelConfig, positions: usize) -> u128 {
        let numbers = 2 * config.num_hidden_layers * config.kv_size();
        positions as u128 * numbers as u128 * size_of::<f32>() as u128
    }

    /// Bytes that `positions` of a sequence take in this kind, about: layers with a window keep what it needs.
    pub fn bytes_for(config: &ModelConfig, kind: KvKind, positions: usize) -> usize {
        let per_layer = |index| {
            let window = config.window_of(config.arch.layer(index));
            let stored = window.map_or(positions, |window| positions.min(most_stored(window)));
            stored * config.num_key_value_heads * 2 * head_bytes(kind, config.head_dim)
        };
        (0..config.num_hidden_layers).map(per_layer).sum()
    }

    /// Takes memory for `positions` in all, or as many as the context has, which spares the copies of growth up to
    /// there.
    pub fn reserve(&mut self, positions: usize) {
        let positions = positions.min(self.limit);
        self.layers.iter_mut().for_each(|layer| layer.reserve(positions));
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Whether [`KvCache::truncate`] can go back to `len` positions: whether all layers still have what a token there sees.
    pub fn can_truncate(&self, len: usize) -> bool {
        len >= self.len || self.layers.iter().all(|layer| layer.can_truncate(len))
    }

    /// Forgets the positions from `len` on, if there are so many.
    ///
    /// # Panics
    /// If a layer with a window has forgotten what a token at `len` sees ([`KvCache::can_truncate`], [`KvCache::hold`]).
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.layers.iter_mut().for_each(|layer| layer.truncate(len));
            self.len = len;
        }
    }

    /// Whether `n` more positions fit.
    ///
    /// # Errors
    /// [`Error::Context`] if they would exceed `max_position_embeddings`.
    pub(crate) fn check_room(&self, n: usize) -> Result<()> {
        match n <= self.remaining() {
            true => Ok(()),
            false => Err(Error::Context { positions: self.len.saturating_add(n), limit: self.limit }),
        }
    }

    /// Counts `n` positions that every layer now holds.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
