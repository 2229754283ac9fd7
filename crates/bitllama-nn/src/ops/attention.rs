//! Rotary embedding and causal grouped-query attention, fused: the matrix of scores is never stored.

use std::sync::Arc;

use bitllama_core::{Activation, ModelConfig};
use bitllama_kernels::Isa;
use bitllama_kernels::training::attention::{self, Shape};
use bitllama_kernels::training::buffer::written;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use super::node::{Input, Numbers, record};
use crate::activations::rounded;
use crate::mask::Mask;
use crate::profile::operator;
use crate::rotary::Rotary;

/// Sizes and constants of an attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; as many query heads share each.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Elements of a head that are rotated, the first ones; 0 without rotary embedding.
    pub rotary_dim: usize,
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Soft cap of the scaled products: `cap * tanh(x / cap)`.
    pub cap: Option<f32>,
}

impl Heads {
    /// Heads that are turned as wholes, with scores times `1 / sqrt(head_dim)` and no cap.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        let Shape { rotary_dim, scale, cap, .. } = Shape::new([1, 1, heads, kv_heads, head_dim]);
        Self { heads, kv_heads, head_dim, rotary_dim, scale, cap }
    }

    /// Those of layer `index` of a model.
    pub fn of_layer(config: &ModelConfig, index: usize) -> Self {
        let rotary = config.arch.layer(index).rotary;
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            rotary_dim: if rotary { config.rotary_dim() } else { 0 },
            scale: config.attention_scale(),
            cap: config.arch.attention_cap.map(|cap| cap as f32),
        }
    }

    fn shape(&self, batch: usize, seq: usize) -> Shape {
        let Self { heads, kv_heads, head_dim, rotary_dim, scale, cap } = *self;
        Shape { batch, seq, heads, kv_heads, head_dim, rotary_dim, scale, cap }
    }
}

/// Attention of the queries over keys and values, `[batch, seq, heads * head_dim]`, for `qkv` (`[batch, seq, (heads + 2 * kv_heads)
/// * head_dim]`): in each row queries, keys and values, not yet rotated. The tables of `rotary` are `[seq, rotary_dim / 2]`; there is
/// one unless `rotary_dim` is 0.
pub fn forward(qkv: Tensor<3>, rotary: Option<&Rotary>, mask: &Mask, heads: &Heads) -> Tensor<3> {
    let [batch, seq, _] = qkv.dims();
    let shape = heads.shape(batch, seq);
    let isa = Isa::current();
    let tables: Arc<(Vec<f32>, Vec<f32>)> = rotary.map(|rotary| rotary.tables().clone()).unwrap_or_default();
    let first = mask.first().clone();
    let inputs = vec![Input::of(qkv)];
    let qkv = inputs[0].numbers();
    let Shape { heads, head_dim, .. } = shape;
    let mut log_sum_exp = vec![0.0; batch * heads * seq];
    let out = operator("attention", || {
        written(batch * seq * heads * head_dim, |out| {
            attention::forward(isa, &shape, &qkv, &tables.0, &tables.1, &first, out, &mut log_sum_exp);
        })
    });
    let out = Numbers::new(out, [batch, seq, heads * head_dim]);
    record("attention", inputs, out.clone(), move |d_out, wanted| {
        let backward = || {
            written(qkv.len(), |d_qkv| {
                let (cos, sin) = (&tables.0, &tables.1);
                attention::backward(isa, &shape, &qkv, cos, sin, &first, &out, &log_sum_exp, &d_out, d_qkv);
            })
        };
        vec![wanted.gradient(0, backward)]
    })
}

/// As [`forward`], composed out of Burn's operators; with `kv_cache`, each head's keys (rotated) and values of a position are
/// rounded, as a low-bit cache would.
pub fn composed(
    qkv: Tensor<3>,
    rotary: Option<&Rotary>,
    mask: &Mask,
    heads: &Heads,
    kv_cache: Option<Activation>,
) -> Tensor<3> {
    let [batch, seq, _] = qkv.dims();
    let Heads { heads, kv_heads, head_dim, scale, cap, .. } = *heads;
    let (group, kv) = (heads / kv_heads, kv_heads * head_dim);
    let part = |start: usize, n: usize| {
        let part = qkv.clone().narrow(2, start, n * head_dim);
        part.reshape([batch, seq, n, head_dim]).swap_dims(1, 2)
    };
    let turn = |x: Tensor<4>| match rotary {
        Some(rotary) => rotary.apply(x),
        None => x,
    };
    let q = heads * head_dim;
    let k = rounded(turn(part(q, kv_heads)), kv_cache);
    let v = rounded(part(q + kv, kv_heads), kv_cache);
    let q = turn(part(0, heads));

    // The queries of a group lie under one another as rows of one matrix, so that keys and values need no copies.
    let q = (q * scale).reshape([batch, kv_heads, group * seq, head_dim]);
    let mask = mask.additive(q.is_autodiff());
    let scores = q.matmul(k.swap_dims(2, 3)).reshape([batch, heads, seq, seq]);
    let scores = match cap {
        Some(cap) => (scores / cap).tanh() * cap,
        None => scores,
    };
    let probabilities = softmax(scores + mask, 3).reshape([batch, kv_heads, group * seq, seq]);
    let out = probabilities.matmul(v).reshape([batch, heads, seq, head_dim]);
    out.swap_dims(1, 2).reshape([batch, seq, heads * head_dim])
}
