//! Weights of sub-norms that are put into a trained model, such that they disturb it least.
//!
//! Where a matrix read `x`, it now reads `w * x / rms(x)`. The squared error of column `j` over the tokens of a text is
//! least with `w_j = sum(x_j^2 / rms) / sum(x_j^2 / rms^2)`: the mean size of the vectors, weighed by what each has in that
//! column, and `rms` is with the norm's epsilon. What is left is that vectors differ in size from token to token and a norm does not let them.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bitllama_core::weights::BLOCK_SUB_NORMS;
use bitllama_nn::{Block, Llama, Site};
use burn::tensor::{Device, Tensor};

use crate::ptq::blocks::Stream;

/// The matrices that sub-norms stand before, in the order of [`BLOCK_SUB_NORMS`].
const BEHIND: [&str; 2] = ["self_attn.o_proj", "mlp.down_proj"];

/// Sums over tokens, `[width]`: `x^2 / rms` and `x^2 / rms^2`.
type Sums = (Tensor<1>, Tensor<1>);

/// The weights of all sub-norms of `llama`, by name, that disturb it least on calibration text: `rows` of tokens of one
/// length. `llama` is in full precision on `device`. Each block sees the text through the blocks before it as they have
/// become.
///
/// # Errors
/// If the device does not give the sums back.
pub fn calibrated(llama: Llama, rows: &[Vec<u32>], device: &Device) -> Result<HashMap<String, Vec<f32>>> {
    let eps = llama.config.rms_norm_eps;
    let mut stream = Stream::new(&llama, rows, device)?;
    let mut weights = HashMap::new();
    for (layer, mut block) in llama.layers.into_iter().enumerate() {
        let norms = (block.self_attn.attn_sub_norm.take(), block.mlp.ffn_sub_norm.take());
        let sums = sums(&stream, &block, eps);
        let mut found = Vec::new();
        for (name, behind) in BLOCK_SUB_NORMS.into_iter().zip(BEHIND) {
            let (numerator, denominator) = sums.get(behind).context("a block without sub-norms")?.clone();
            // A column that is always 0 stays 0 whatever it is multiplied with.
            let ones = denominator.clone().equal_elem(0.0).float();
            let weight = (numerator + ones.clone()) / (denominator + ones);
            let values: Vec<f32> = weight
                .clone()
                .into_data_as::<f32>()
                .try_into_vec()
                .ok()
                .context("the device did not give its sums back")?;
            weights.insert(format!("layers.{layer}.{name}.weight"), values);
            found.push(weight);
        }
        let set = |norm: Option<bitllama_nn::rms_norm::RmsNorm>, weight: Option<Tensor<1>>| {
            norm.zip(weight).map(|(mut norm, weight)| {
                norm.weight = norm.weight.map(|_| weight);
                norm
            })
        };
        block.mlp.ffn_sub_norm = set(norms.1, found.pop());
        block.self_attn.attn_sub_norm = set(norms.0, found.pop());
        stream.advance(&block);
    }
    Ok(weights)
}

fn sums(stream: &Stream, block: &Block, eps: f64) -> HashMap<&'static str, Sums> {
    let mut sums: HashMap<&'static str, Sums> = HashMap::new();
    for (x, positions) in stream.batches().iter().zip(stream.positions()) {
        block.forward_observed(x.clone(), positions, &mut |site, input| {
            let Site::Input(names) = site else { return };
            let Some(name) = BEHIND.into_iter().find(|name| names.contains(name)) else { return };
            let input = input();
            let [rows, seq, width] = input.dims();
            let square = input.reshape([rows * seq, width]).square();
            let mean = square.clone().mean_dim(1) + eps;
            let numerator = (square.clone() / mean.clone().sqrt()).sum_dim(0).reshape([width]);
            let denominator = (square / mean).sum_dim(0).reshape([width]);
            let sum = match sums.remove(name) {
                Some((a, b)) => (a + numerator, b + denominator),
                None => (numerator, denominator),
            };
            sums.insert(name, sum);
        });
    }
    sums
}
