//! A model block by block: what the layers of each block see on calibration text, with all earlier blocks as they have
//! become.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bitllama_nn::{Block, Llama, Mask, Positions, Site};
use burn::tensor::{Device, Tensor};

use super::gptq::Hessian;
use crate::evaluate::token_tensor;

/// Hidden states of the calibration text between two blocks.
#[derive(Clone)]
pub struct Stream {
    /// `[rows, seq, hidden]` each.
    batches: Vec<Tensor<3>>,
    /// One for each batch.
    positions: Vec<Positions>,
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
        let whole = Positions::new(&llama.config, Mask::causal(ROWS, seq, device));
        let of_rows = |rows: &[Vec<u32>]| match rows.len() {
            ROWS => whole.clone(),
            fewer => whole.with_mask(Mask::causal(fewer, seq, device)),
        };
        Ok(Self { batches, positions: rows.chunks(ROWS).map(of_rows).collect() })
    }

    /// `sum x x^T` of the inputs of each matrix of `block`, by the names of [`bitllama_core::weights::BLOCK_MATRICES`].
    ///
    /// # Errors
    /// If the device does not give the sums back.
    pub fn hessians(&self, block: &Block) -> Result<HashMap<&'static str, Hessian>> {
        let mut sums: Vec<(&'static [&'static str], Tensor<2>)> = Vec::new();
        for (x, positions) in self.batches.iter().zip(&self.positions) {
            block.forward_observed(x.clone(), positions, &mut |site, input| {
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

    /// Rotations and masks for each.
    pub fn positions(&self) -> &[Positions] {
        &self.positions
    }

    /// Goes on to the next block.
    pub fn advance(&mut self, block: &Block) {
        for (x, positions) in self.batches.iter_mut().zip(&self.positions) {
            *x = block.forward(x.clone(), positions);
        }
    }
}
