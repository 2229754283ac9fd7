//! Keys and values of the positions seen so far, so that a new token costs one position only.

use bitllama_core::{ModelConfig, rope};

use crate::{Error, Result};

/// Keys and values of one sequence, in f32. Memory grows with the sequence.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(crate) layers: Vec<LayerCache>,
    /// Cosines and sines of rotary embedding, `[rotary_positions, head_dim / 2]` each.
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
    rotary_positions: usize,
    len: usize,
    limit: usize,
}

/// Keys and values of one block.
#[derive(Debug, Clone, Default)]
pub(crate) struct LayerCache {
    /// For each key-value head `[positions, head_dim]`; rotated.
    pub keys: Vec<Vec<f32>>,
    /// For each key-value head `[positions, head_dim]`.
    pub values: Vec<Vec<f32>>,
}

impl LayerCache {
    /// Appends the keys or values of new positions: `rows` is `[n, kv_heads, head_dim]`.
    pub fn append(heads: &mut [Vec<f32>], rows: &[f32], head_dim: usize) {
        for (index, row) in rows.chunks_exact(head_dim).enumerate() {
            heads[index % heads.len()].extend_from_slice(row);
        }
    }
}

impl KvCache {
    /// An empty cache for a model of this config.
    pub fn new(config: &ModelConfig) -> Self {
        let heads = vec![Vec::new(); config.num_key_value_heads];
        let layer = LayerCache { keys: heads.clone(), values: heads };
        Self {
            layers: vec![layer; config.num_hidden_layers],
            cos: Vec::new(),
            sin: Vec::new(),
            rotary_positions: 0,
            len: 0,
            limit: config.max_position_embeddings,
        }
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

    /// Forgets all positions and keeps the memory.
    pub fn clear(&mut self) {
        for layer in &mut self.layers {
            layer.keys.iter_mut().chain(&mut layer.values).for_each(Vec::clear);
        }
        self.len = 0;
    }

    /// Makes ready for `n` more positions.
    ///
    /// # Errors
    /// [`Error::Context`] if they would exceed `max_position_embeddings`; nothing has changed then.
    pub(crate) fn reserve(&mut self, config: &ModelConfig, n: usize) -> Result<()> {
        if n > self.remaining() {
            return Err(Error::Context { positions: self.len.saturating_add(n), limit: self.limit });
        }
        if self.len + n > self.rotary_positions {
            // Doubling: the tables are made a few times in a long generation, not once a token.
            self.rotary_positions = (2 * (self.len + n)).max(256).min(self.limit);
            (self.cos, self.sin) = rope::tables(config, self.rotary_positions);
        }
        Ok(())
    }

    /// Counts `n` positions that every layer now holds.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
