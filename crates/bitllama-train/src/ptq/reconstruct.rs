//! Block-wise reconstruction, "Block-AP" of EfficientQAT (Chen et al. 2024, <https://arxiv.org/abs/2407.11062>): each
//! decoder block is trained alone, weights and scales both, to give the output of the teacher's block on calibration
//! text. Its inputs come through the rounded blocks before it, the teacher's through the teacher's own.
//!
//! A block starts from GPTQ here and not from rounding to nearest: from the scales that it found, and from the weights as
//! they were when each was rounded.

use std::collections::HashMap;

use anyhow::{Result, bail};
use bitllama_core::Quantizer;
use bitllama_core::rounding::StoredScales;
use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_nn::Block;
use bitllama_nn::fake_quant::{FakeQuant, quantize};
use bitllama_nn::weights::{block_matrices, pack, read, set_block_matrix};
use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor};
use rand::seq::SliceRandom;

use super::blocks::Stream;
use super::gptq::Rounded;
use super::trained_scales;
use crate::seeded;

/// How long and how fast a block is trained.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Times that the calibration text is gone through.
    pub epochs: usize,
    /// Learning rate of the weights at the start; it falls to a twentieth, along half a cosine.
    pub lr: f64,
    /// That of the scales.
    pub scale_lr: f64,
    /// Of the order of the text.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { epochs: 2, lr: 2e-3, scale_lr: 4e-4, seed: 0 }
    }
}

/// The quantizer with a method that trains scales.
pub fn trained(quantizer: Quantizer) -> Quantizer {
    if quantizer.method.trains_scales() {
        return quantizer;
    }
    quantizer.with_method(quantizer.scheme.description().trained_method)
}

/// Squared error of a block's output over the square of the teacher's, the mean over tokens and over an epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// In the first epoch.
    pub first: f64,
    /// In the last.
    pub last: f64,
}

/// A matrix of a block to train: its name within the block, and what it starts from.
pub struct Start {
    /// Such as `mlp.up_proj`.
    pub name: &'static str,
    /// With a method that trains scales.
    pub quantizer: Quantizer,
    /// GPTQ's result.
    pub rounded: Rounded,
}

/// Trains the matrices `starts` of `block` so that it gives `targets` for the hidden states in `stream`; what else it has
/// stays as it is. Returns the matrices by their names.
///
/// # Errors
/// If the loss is not finite.
pub fn reconstruct(
    block: &Block,
    starts: Vec<Start>,
    stream: &Stream,
    targets: &Stream,
    options: Options,
    device: &Device,
) -> Result<(HashMap<&'static str, Rounded>, Report)> {
    let tracked = device.clone().autodiff();
    let mut block = block.clone().train();
    let (mut stored, mut plan) = (StoredScales::new(), Vec::new());
    for Start { name, quantizer, rounded: Rounded { packed, weight } } in starts {
        let shape = [packed.rows(), packed.columns()];
        set_block_matrix(&mut block, name, shape, &weight, &tracked);
        let spec = WeightSpec { name: format!("{name}.weight"), shape: shape.to_vec(), kind: Kind::Linear };
        stored.insert(spec.name.clone(), trained_scales(&quantizer, &packed));
        plan.push((spec, Some(quantizer)));
    }
    let mut block = quantize(block, &plan, &stored);
    let fakes =
        || block_matrices(&block).into_iter().filter_map(|(_, p)| Some((p, p.reparameterization::<FakeQuant>()?)));
    let weight_ids: Vec<_> = fakes().map(|(param, _)| param.id).collect();
    let scale_ids: Vec<_> = fakes().filter_map(|(_, fake)| fake.scales_id()).collect();
    let adamw = || ModuleOptimizer::from(AdamWConfig::new().with_weight_decay(0.0).build());
    let (mut weights, mut scales) = (adamw(), adamw());

    let batches = stream.batches().len();
    let steps = options.epochs * batches;
    let mut errors = Vec::new();
    for epoch in 0..options.epochs {
        let mut order: Vec<usize> = (0..batches).collect();
        order.shuffle(&mut seeded(options.seed, "reconstruct", epoch as u64));
        let mut error = 0.0;
        for (index, batch) in order.into_iter().enumerate() {
            let target = targets.batches()[batch].clone();
            // Each token relative to its size: the next norm takes the size away, and a few tokens are far larger.
            let size = target.clone().square().mean_dim(2) + 1e-8;
            let x = Tensor::from_inner(stream.batches()[batch].clone());
            let out = block.forward(x, &stream.positions()[batch]);
            let loss = ((out - Tensor::from_inner(target)).square() / Tensor::from_inner(size)).mean();
            let value: f32 = loss.clone().inner().into_scalar();
            if !value.is_finite() {
                bail!("the reconstruction loss is {value}: lower the learning rates");
            }
            error += value as f64 / batches as f64;
            let progress = (epoch * batches + index) as f64 / steps as f64;
            let fall = 0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
            let mut grads = loss.backward();
            let weight_grads = GradientsParams::from_params(&mut grads, &block, &weight_ids);
            let scale_grads = GradientsParams::from_params(&mut grads, &block, &scale_ids);
            block = weights.step(options.lr * fall, block, weight_grads);
            block = scales.step(options.scale_lr * fall, block, scale_grads);
        }
        errors.push(error);
    }
    let mut rounded = HashMap::new();
    for (name, param) in block_matrices(&block) {
        rounded.extend(pack(param)?.map(|packed| (name, Rounded { packed, weight: read(param, Kind::Linear) })));
    }
    Ok((
        rounded,
        Report { first: errors.first().copied().unwrap_or(f64::NAN), last: errors.last().copied().unwrap_or(f64::NAN) },
    ))
}
