//! Low-bit activations, keys and values in training: rounded in the forward pass by
//! [`round_rows`](bitllama_core::activation::round_rows), and passed through in the backward pass.
//!
//! | kind | gradient to x |
//! |---|---|
//! | `int8`, `int4` | 1: the straight-through estimator (Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>); no number is beyond the codes |
//! | `sign` | 1 where \|x\| is at most the scale, else 0: the clipped one of BinaryNet (Hubara et al. 2016, <https://arxiv.org/abs/1602.02830>), which clips at 1, in units of the token's scale as BiT's (<https://arxiv.org/abs/2205.13016>) |
//!
//! Scales count as constants. A model has places for the rounding and leaves them empty; [`quantize`] fills them from
//! outside.

use std::collections::BTreeMap;

use bitllama_core::activation::round_rows;
use bitllama_core::weights::{EMBEDDING, HEAD};
use bitllama_core::{Activation, ActivationPlan};
use burn::tensor::Tensor;

use crate::decoder::Llama;
use crate::fake_quant::matrix::TensorMatrix;
use crate::linear::Linear;

/// `x` with each row, that is all along the last dimension, rounded; as it is without an `activation`.
pub fn rounded<const D: usize>(x: Tensor<D>, activation: Option<Activation>) -> Tensor<D> {
    let Some(activation) = activation else { return x };
    let shape = x.shape();
    let (width, all) = (shape[D - 1], shape.num_elements());
    let plain = x.clone().inner();
    let rows = plain.clone().reshape([all / width, width, 1]);
    let quantized = round_rows(activation, TensorMatrix(rows.clone()));
    let scales = quantized.scales.0.clone();
    let value = quantized.dequantize().0.reshape(shape.clone());
    if !x.is_autodiff() {
        return value;
    }
    // `x - x` is 0 in every element and carries the gradient, so that the sum is the rounded value to the bit.
    let residual = x - Tensor::from_inner(plain);
    let residual = match activation {
        Activation::Int8 | Activation::Int4 => residual,
        Activation::Sign => {
            let within = rows.abs().lower_equal(scales).float();
            residual * Tensor::from_inner(within.reshape(shape))
        }
    };
    Tensor::from_inner(value) + residual
}

/// Rounds what `plan` names in a model, and nothing else.
///
/// # Panics
/// If the plan names a matrix that the model has not.
pub fn quantize(mut model: Llama, plan: &ActivationPlan) -> Llama {
    let mut left = plan.inputs.clone();
    for (layer, block) in model.layers.iter_mut().enumerate() {
        block.self_attn.kv_cache = plan.kv_cache;
        for (name, linear) in block.linears_mut() {
            linear.input = left.remove(&format!("layers.{layer}.{name}.weight"));
        }
    }
    match &mut model.lm_head {
        Some(head) => head.input = left.remove(HEAD),
        None => model.tied_head_input = left.remove(EMBEDDING),
    }
    assert!(left.is_empty(), "the model has no {:?}", left.keys());
    model
}

/// What a model rounds: the plan that was given to [`quantize`].
pub fn plan_of(model: &Llama) -> ActivationPlan {
    let mut inputs = BTreeMap::new();
    let mut add = |name: String, input: Option<Activation>| inputs.extend(input.map(|kind| (name, kind)));
    for (layer, block) in model.layers.iter().enumerate() {
        for (name, linear) in block.linears() {
            add(format!("layers.{layer}.{name}.weight"), linear.input);
        }
    }
    add(HEAD.into(), model.lm_head.as_ref().and_then(|head: &Linear| head.input));
    add(EMBEDDING.into(), model.tied_head_input);
    ActivationPlan { inputs, kv_cache: model.layers.first().and_then(|block| block.self_attn.kv_cache) }
}
