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
use bitllama_core::{Activation, ActivationPlan, RowMatrix};
use bitllama_kernels::Isa;
use bitllama_kernels::training::blocks::{Cut, Part, for_each_block};
use bitllama_kernels::training::buffer::written;
use bitllama_kernels::training::rows::Rows;
use burn::tensor::Tensor;

use crate::decoder::Llama;
use crate::fake_quant::matrix::TensorMatrix;
use crate::linear::Linear;
use crate::ops;
use crate::ops::node::{Input, Numbers, record};
use crate::profile::operator;

/// `x` with each row, that is all along the last dimension, rounded; as it is without an `activation`.
pub fn rounded<const D: usize>(x: Tensor<D>, activation: Option<Activation>) -> Tensor<D> {
    let Some(activation) = activation else { return x };
    if ops::fused(&x.device()) {
        return rounded_in_blocks(x, activation);
    }
    let shape = x.shape();
    let (width, all) = (shape[D - 1], shape.num_elements());
    let plain = x.clone().inner();
    let rows = plain.clone().reshape([all / width, width, 1]);
    let quantized = round_rows(activation, TensorMatrix(rows.clone()));
    let factor = factor(activation, TensorMatrix(rows), quantized.scales.clone());
    let value = quantized.dequantize().0.reshape(shape.clone());
    if !x.is_autodiff() {
        return value;
    }
    // `x - x` is 0 in every element and carries the gradient, so that the sum is the rounded value to the bit.
    let residual = x - Tensor::from_inner(plain);
    let residual = match factor {
        None => residual,
        Some(factor) => residual * Tensor::from_inner(factor.0.reshape(shape)),
    };
    Tensor::from_inner(value) + residual
}

/// What the gradient of rounded rows is multiplied by; `None` is 1.
fn factor<M: RowMatrix>(activation: Activation, x: M, scales: M) -> Option<M> {
    match activation {
        Activation::Int8 | Activation::Int4 => None,
        Activation::Sign => Some(x.div_rows(scales.clamp(f32::MIN_POSITIVE, f32::MAX)).within(-1.0, 1.0)),
    }
}

/// [`rounded`] in one pass for a few rows at a time, in the forward and in the backward pass.
fn rounded_in_blocks<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    let (dims, inputs) = (x.dims(), vec![Input::of(x)]);
    let (x, width) = (inputs[0].numbers(), dims[D - 1]);
    let cut = Cut::Rows(x.len() / width);
    let value = operator("activations", || {
        written(x.len(), |out| {
            for_each_block(cut, &[&x], &mut [out], |_, x, mut out| {
                round_rows(activation, rows(x[0], width)).dequantize().write(&mut out[0]);
            });
        })
    });
    // Nothing is kept where the gradient does not depend on it.
    let x = (activation == Activation::Sign).then_some(x);
    record("activations", inputs, Numbers::new(value, dims), move |d_value, wanted| {
        let Some(x) = x else { return vec![Some(d_value.into_gradient())] };
        let d_x = wanted.gradient(0, || {
            written(x.len(), |d_x| {
                for_each_block(cut, &[&x, &d_value], &mut [d_x], |_, parts, mut out| {
                    let (x, gradient) = (rows(parts[0], width), rows(parts[1], width));
                    let scales = round_rows(activation, x.clone()).scales;
                    let gradient = match factor(activation, x, scales) {
                        Some(factor) => gradient.mul(factor),
                        None => gradient,
                    };
                    gradient.write(&mut out[0]);
                });
            })
        });
        vec![d_x]
    })
}

fn rows(part: Part<'_>, width: usize) -> Rows<'_> {
    Rows::new(part, width, 1, Isa::current())
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
