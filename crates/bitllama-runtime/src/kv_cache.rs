//! Keys and values of the positions seen so far, so that a new token costs one position only.

use bitllama_core::ModelConfig;
use bitllama_kernels::kv::{KvKind, LayerKv};

use crate::{Error, Result};

/// Keys and values of one sequence. Memory grows with the sequence.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerKv>,
    len: usize,
    limit: usize,
}

impl KvCache {
    /// An empty cache in f32 for a model of this config.
    pub fn new(config: &ModelConfig) -> Self {
        Self::with_kind(config, KvKind::F32)
    }

    /// An empty cache for a model of this config.
    pub fn with_kind(config: &ModelConfig, kind: KvKind) -> Self {
        let layer = || LayerKv::new(kind, config.num_key_value_heads, config.head_dim);
        let layers = (0..config.num_hidden_layers).map(|_| layer()).collect();
        Self { layers, len: 0, limit: config.max_position_embeddings }
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

    /// Bytes of memory held, those for positions to come included.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(LayerKv::bytes).sum()
    }

    /// Bytes that `positions` of a sequence take in f32, which no kind exceeds.
    pub fn bytes_at_most(config: &ModelConfig, positions: usize) -> u128 {
        let numbers = 2 * config.num_hidden_layers * config.kv_size();
        positions as u128 * numbers as u128 * size_of::<f32>() as u128
    }

    /// Takes memory for `positions` in all, or as many as the context has, which spares the copies of growth up to
    /// there.
    pub fn reserve(&mut self, positions: usize) {
        let positions = positions.min(self.limit);
        self.layers.iter_mut().for_each(|layer| layer.reserve(positions));
    }

    /// Forgets all positions and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// Forgets the positions from `len` on, if there are so many, and keeps the memory.
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
