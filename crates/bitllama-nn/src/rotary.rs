//! Rotary position embedding on Burn tensors; frequencies and convention are [`bitllama_core::rope`]'s.

use bitllama_core::{ModelConfig, rope};
use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of the positions `0 .. seq`.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// `[1, 1, seq, head_dim / 2]`.
    cos: Tensor<4>,
    /// `[1, 1, seq, head_dim / 2]`.
    sin: Tensor<4>,
}

impl Rotary {
    /// Tables for sequences of `seq` tokens.
    pub fn new(config: &ModelConfig, seq: usize, device: &Device) -> Self {
        let (cos, sin) = rope::tables(config, seq);
        let tensor = |table| Tensor::from_data(TensorData::new(table, [1, 1, seq, config.head_dim / 2]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// The tables for tensors with a gradient.
    pub fn tracked(&self) -> Self {
        Self { cos: Tensor::from_inner(self.cos.clone()), sin: Tensor::from_inner(self.sin.clone()) }
    }

    /// Turns `[batch, heads, seq, head_dim]` by position.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let mut halves = x.chunk(2, 3).into_iter();
        let (Some(a), Some(b)) = (halves.next(), halves.next()) else {
            unreachable!("head_dim is even, ModelConfig::validate says");
        };
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let turned_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let turned_b = b * cos + a * sin;
        Tensor::cat(vec![turned_a, turned_b], 3)
    }
}
