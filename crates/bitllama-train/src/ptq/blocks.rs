//! A model block by block: what the layers of each block see on calibration text, with all earlier blocks as they have
//! become.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bitllama_nn::rotary::Rotary;
use bitllama_nn::{Block, Llama, Site, mask};
use burn::tensor::{Device, Tensor};

use super::gptq::Hessian;
use crate::evaluate::token_tensor;

/// Hidden states of the calibration text between two blocks.
#[derive(Clone)]
pub struct Stream {
    /// `[rows, seq, hidden]` each.
    batches: Vec<Tensor<3>>,
    rotary: Rotary,
    mask: Tensor<4>,
}

/// Rows that go through a block at a time.
const ROWS: usize = 4;

impl Stream {
    /// The embeddings of `rows` of tokens, all of the same length.
    pub fn new(llama: &Llama, rows: &[Vec<u32>], device: &Device) -> Self {
        let seq = rows.first().map_or(0, Vec::len);
        let batches =
            rows.chunks(ROWS).map(|rows| llama.embed(token_tensor(&rows.concat(), rows.len(), device))).collect();
        Self { batches, rotary: Rotary::new(&llama.config, seq, device), mask: mask::causal(seq, device) }
    }

    /// `sum x x^T` of the inputs of each matrix of `block`, by the names of [`bitllama_core::weights::BLOCK_MATRICES`].
    ///
    /// # Errors
    /// If the device does not give the sums back.
    pub fn hessians(&self, block: &Block) -> Result<HashMap<&'static str, Hessian>> {
        let mut sums: Vec<(&'static [&'static str], Tensor<2>)> = Vec::new();
        for x in &self.batches {
            block.forward_observed(x.clone(), &self.rotary, self.mask.clone(), &mut |site, input| {
                let Site::Input(names) = site else { return };
                let [rows, seq, width] = input.dims();
                let input = input.clone().reshape([rows * seq, width]);
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

    /// The causal mask for them.
    pub fn mask(&self) -> Tensor<4> {
        self.mask.clone()
    }

    /// Goes on to the next block.
    pub fn advance(&mut self, block: &Block) {
        for x in &mut self.batches {
            *x = block.forward(x.clone(), &self.rotary, self.mask.clone());
        }
    }
}
