//! Rotary position embedding on Burn tensors; frequencies and convention are [`bitllama_core::rope`]'s.

use std::sync::Arc;

use bitllama_core::rope::Frequencies;
use burn::tensor::{Device, Tensor, TensorData};

/// Cosines and sines of the positions `0 .. seq`.
#[derive(Debug, Clone)]
pub struct Rotary {
    /// Cosines, then sines, each `[seq, rotary_dim / 2]`.
    tables: Arc<(Vec<f32>, Vec<f32>)>,
    /// `[1, 1, seq, rotary_dim / 2]`, without autodiff.
    cos: Tensor<4>,
    /// `[1, 1, seq, rotary_dim / 2]`, without autodiff.
    sin: Tensor<4>,
}

impl Rotary {
    /// Tables for sequences of `seq` tokens.
    pub fn new(frequencies: &Frequencies, seq: usize, device: &Device) -> Self {
        let tables = frequencies.tables(seq);
        let device = device.clone().inner();
        let shape = [1, 1, seq, frequencies.inverse.len()];
        let tensor = |table: &Vec<f32>| Tensor::from_data(TensorData::new(table.clone(), shape), &device);
        Self { cos: tensor(&tables.0), sin: tensor(&tables.1), tables: Arc::new(tables) }
    }

    /// Cosines, then sines, each `[seq, rotary_dim / 2]`.
    pub fn tables(&self) -> &Arc<(Vec<f32>, Vec<f32>)> {
        &self.tables
    }

    /// Elements of a head that are turned, the first ones.
    pub fn dim(&self) -> usize {
        2 * self.cos.dims()[3]
    }

    /// Turns `[batch, heads, seq, head_dim]` by position.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let of_x = |table: &Tensor<4>| match x.is_autodiff() {
            true => Tensor::from_inner(table.clone()),
            false => table.clone(),
        };
        let (cos, sin) = (of_x(&self.cos), of_x(&self.sin));
        let (pairs, rest) = (self.dim() / 2, x.dims()[3] - self.dim());
        let (a, b) = (x.clone().narrow(3, 0, pairs), x.clone().narrow(3, pairs, pairs));
        let turned_a = a.clone() * cos.clone() - b.clone() * sin.clone();
        let turned_b = b * cos + a * sin;
        let mut parts = vec![turned_a, turned_b];
        parts.extend((rest > 0).then(|| x.narrow(3, 2 * pairs, rest)));
        Tensor::cat(parts, 3)
    }
}
