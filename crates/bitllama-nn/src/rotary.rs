//! Rotary position embedding on Burn tensors; frequencies and convention are [`bitllama_core::rope`]'s.

use std::sync::Arc;

use bitllama_core::{ModelConfig, rope};
use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of the positions `0 .. seq`.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Cosines, then sines, each `[seq, head_dim / 2]`.
    tables: Arc<(Vec<f32>, Vec<f32>)>,
    /// `[1, 1, seq, head_dim / 2]`, without autodiff.
    cos: Tensor<4>,
    /// `[1, 1, seq, head_dim / 2]`, without autodiff.
    sin: Tensor<4>,
}

impl Rotary {
    /// Tables for sequences of `seq` tokens.
    pub fn new(config: &ModelConfig, seq: usize, device: &Device) -> Self {
        let tables = rope::tables(config, seq);
        let device = device.clone().inner();
        let shape = [1, 1, seq, config.head_dim / 2];
        let tensor = |table: &Vec<f32>| Tensor::from_data(TensorData::new(table.clone(), shape), &device);
        Self { cos: tensor(&tables.0), sin: tensor(&tables.1), tables: Arc::new(tables) }
    }

    /// Cosines, then sines, each `[seq, head_dim / 2]`.
    pub fn tables(&self) -> &Arc<(Vec<f32>, Vec<f32>)> {
        &self.tables
    }

    /// Turns `[batch, heads, seq, head_dim]` by position.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let of_x = |table: &Tensor<4>| match x.is_autodiff() {
            true => Tensor::from_inner(table.clone()),
            false => table.clone(),
        };
        let (cos, sin) = (of_x(&self.cos), of_x(&self.sin));
        let mut halves = x.chunk(2, 3).into_iter();
        let (Some(a), Some(b)) = (halves.next(), halves.next()) else {
            unreachable!("head_dim is even, ModelConfig::validate says");
        };
        let turned_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let turned_b = b * cos + a * sin;
        Tensor::cat(vec![turned_a, turned_b], 3)
    }
}
