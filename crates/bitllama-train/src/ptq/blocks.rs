//! A model block by block: what the layers of each block see on calibration text, with all earlier blocks as they have
//! become.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bitllama_nn::rotary::Rotary;
use bitllama_nn::{Block, Llama, Mask, Site};
use burn::tensor::{Device, Tensor};

use super::gptq::Hessian;
use crate::evaluate::token_tensor;

/// Hidden states of the calibration text between two blocks.
#[derive(Clone)]
pub struct Stream {
    /// `[rows, seq, hidden]` each.
    batches: Vec<Tensor<3>>,
    rotary: Rotary,
    masks: Vec<Mask>,
}

/// Rows that go through a block at a time.
const ROWS: usize = 4;

impl Stream {
    /// The embeddings of `rows` of tokens, all of the same length.
    ///
    /// # Errors
    /// A token outside the vocabulary.
    pub fn new(llama: &Llama, rows: &[Vec<u32>], device: &Device) -> Result<Self> {
        let (seq, vocab_size) = (rows.first().map_or(0, Vec::len), llama.config.vocab_size);
        let embedded = |rows: &[Vec<u32>]| -> Result<Tensor<3>> {
            Ok(llama.embed(token_tensor(&rows.concat(), rows.len(), vocab_size, device)?))
        };
        let batches = rows.chunks(ROWS).map(embedded).collect::<Result<_>>()?;
        let masks = rows.chunks(ROWS).map(|rows| Mask::causal(rows.len(), seq, device)).collect();
        Ok(Self { batches, rotary: Rotary::new(&llama.config, seq, device), masks })
    }

    /// `sum x x^T` of the inputs of each matrix of `block`, by the names of [`bitllama_core::weights::BLOCK_MATRICES`].
    ///
    /// # Errors
    /// If the device does not give the sums back.
    pub fn hessians(&self, block: &Block) -> Result<HashMap<&'static str, Hessian>> {
        let mut sums: Vec<(&'static [&'static str], Tensor<2>)> = Vec::new();
        for (x, mask) in self.batches.iter().zip(&self.masks) {
            block.forward_observed(x.clone(), &self.rotary, mask, &mut |site, input| {
                let Site::Input(names) = site else { return };
                let input = input();
                let [rows, seq, width] = input.dims();
                let input = input.reshape([rows * seq, width]);
                let products = input.clone().transpose().matmul(input);
                match sums.iter_mut().find(|(known, _)| *known == names) {
                    Some((_, sum)) => *sum = sum.clone() + products,
                    None => sums.push((names, products)),
                }
            });
        }
        let mut hessians = HashMap::new();
        for (names, sum) in sums {
            let [columns, _] = sum.dims();
            let sum: Vec<f32> =
                sum.into_data_as::<f32>().try_into_vec().ok().context("the device did not give its sums back")?;
            hessians.extend(names.iter().map(|name| (*name, Hessian { sum: sum.clone(), columns })));
        }
        Ok(hessians)
    }

    /// The hidden states.
    pub fn batches(&self) -> &[Tensor<3>] {
        &self.batches
    }

    /// Rotary tables for them.
    pub fn rotary(&self) -> &Rotary {
        &self.rotary
    }

    /// The causal masks for them.
    pub fn masks(&self) -> &[Mask] {
        &self.masks
    }

    /// Goes on to the next block.
    pub fn advance(&mut self, block: &Block) {
        for (x, mask) in self.batches.iter_mut().zip(&self.masks) {
            *x = block.forward(x.clone(), &self.rotary, mask);
        }
    }
}
