//! `[train]`: the loop and what moves the weights.

use serde::{Deserialize, Serialize};

/// `[train]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps; 0, of `distill`, rounds the student (by `quant.init`), evaluates and exports it.
    pub steps: usize,
    /// Rows a forward pass.
    #[serde(default = "defaults::batch_size")]
    pub batch_size: usize,
    /// Forward passes an optimizer step.
    #[serde(default = "defaults::one")]
    pub grad_accumulation: usize,
    /// Of the factors of matrix products, forward and backward; sums, weights, gradients and moments are f32 always.
    #[serde(default)]
    pub precision: Precision,
    /// Forward products of 8-bit activations with ternary and binary weights in whole numbers, which is exact, and on CPUs with
    /// AVX512_VNNI fast; gradients in `precision`. On flex, and where groups of columns share no scale.
    #[serde(default)]
    pub int8_forward: bool,
    /// What is computed again in the backward pass instead of being kept for it. It changes memory and time, and no result.
    #[serde(default)]
    pub recompute: Recompute,
    /// With `recompute = "block"`: how many blocks, from the first on, are computed again; the others are kept. All if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recompute_layers: Option<usize>,
    /// `adamw`, `muon` or `adafactor`.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Peak learning rate.
    pub lr: f64,
    /// That of trained scales, which AdamW moves without decay whatever the optimizer; `lr` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_lr: Option<f64>,
    /// Learning rate at the end, as a share of the peak.
    #[serde(default = "defaults::lr_final_fraction")]
    pub lr_final_fraction: f64,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup_steps: usize,
    /// Decoupled decay, on matrices only.
    #[serde(default)]
    pub weight_decay: f64,
    /// AdamW's decay of the first moment; of the others' matrices it is their own.
    #[serde(default = "defaults::beta1")]
    pub beta1: f64,
    /// AdamW's decay of the second moment.
    #[serde(default = "defaults::beta2")]
    pub beta2: f64,
    /// AdamW's epsilon.
    #[serde(default = "defaults::epsilon")]
    pub epsilon: f64,
    /// Gradients are scaled down to this global L2 norm; 0 leaves them.
    #[serde(default = "defaults::max_grad_norm")]
    pub max_grad_norm: f64,
    /// Steps between lines of metrics.
    #[serde(default = "defaults::log_every")]
    pub log_every: usize,
    /// Steps between evaluations, each with a checkpoint; also at the end.
    #[serde(default = "defaults::checkpoint_every")]
    pub checkpoint_every: usize,
    /// Newest checkpoints kept, beside the best.
    #[serde(default = "defaults::keep_checkpoints")]
    pub keep_checkpoints: usize,
    /// Histograms of weights and scales in TensorBoard at each evaluation.
    #[serde(default = "defaults::yes")]
    pub histograms: bool,
}

impl Train {
    /// How many of a model's blocks, from the first on, are computed again in the backward pass.
    pub fn recomputed(&self, blocks: usize) -> usize {
        match self.recompute {
            Recompute::None => 0,
            Recompute::Block => self.recompute_layers.unwrap_or(blocks).min(blocks),
        }
    }
}

/// In which numbers the factors of matrix products are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// As they are.
    #[default]
    F32,
    /// Rounded to bf16; on CPUs faster where they multiply pairs of bf16 numbers (AVX512_BF16 of AMD's).
    Bf16,
    /// 12-bit block floating point: whole numbers of 12 bits with a scale for each row and block of the sum; on CPUs about
    /// twice as fast as f32 where they multiply pairs of 16-bit numbers (AVX512_VNNI). On other devices than flex it is f32.
    Bfp12,
}

impl From<Precision> for bitllama_nn::linear::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
            Precision::Bfp12 => Self::Bfp12,
        }
    }
}

/// What is computed twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: everything is kept that gradients need.
    #[default]
    None,
    /// Each block of the decoder: only what goes into it is kept, and no rounded weights but those of one block (gradient
    /// checkpointing, Chen et al. 2016, <https://arxiv.org/abs/1604.06174>).
    Block,
}

/// What moves the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>.
    #[default]
    Adamw,
    /// Muon (<https://kellerjordan.github.io/posts/muon/>) for the matrices of blocks, its steps as large as AdamW's
    /// (<https://arxiv.org/abs/2502.16982>, so that learning rates carry over); AdamW for everything else.
    Muon,
    /// Adafactor (<https://arxiv.org/abs/1804.04235>) with the recipe's learning rate as it is, neither relative to the step
    /// nor to the size of the parameter; its state is a row and a column for each matrix.
    Adafactor,
}

mod defaults {
    pub fn batch_size() -> usize {
        4
    }
    pub fn one() -> usize {
        1
    }
    pub fn lr_final_fraction() -> f64 {
        0.1
    }
    pub fn beta1() -> f64 {
        0.9
    }
    pub fn beta2() -> f64 {
        0.95
    }
    pub fn epsilon() -> f64 {
        1e-8
    }
    pub fn max_grad_norm() -> f64 {
        1.0
    }
    pub fn log_every() -> usize {
        10
    }
    pub fn checkpoint_every() -> usize {
        100
    }
    pub fn keep_checkpoints() -> usize {
        2
    }
    pub fn yes() -> bool {
        true
    }
}
