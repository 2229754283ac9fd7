//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>).

use bitllama_core::{Activation, LayerKind, ModelConfig};
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::activations::rounded;
use crate::decoder::{Site, Value};
use crate::linear::{Linear, side_by_side};
use crate::mask::Mask;
use crate::ops;
use crate::positions::Positions;
use crate::rms_norm::RmsNorm;
use crate::rotary::Rotary;

/// Attention of some heads of queries over as many or fewer heads of keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// hidden to heads * head_dim.
    pub q_proj: Linear,
    /// hidden to kv_heads * head_dim.
    pub k_proj: Linear,
    /// hidden to kv_heads * head_dim.
    pub v_proj: Linear,
    /// Norm of the queries before the rotation, where the model has one: of each head, or of all heads of a token, as its weight is
    /// wide.
    pub q_norm: Option<RmsNorm>,
    /// Norm of the keys, likewise.
    pub k_norm: Option<RmsNorm>,
    /// Norm before `o_proj`, over heads * head_dim, where the model has sub-norms.
    pub attn_sub_norm: Option<RmsNorm>,
    /// heads * head_dim to hidden.
    pub o_proj: Linear,
    /// Sizes and constants.
    #[module(skip)]
    pub heads: Heads,
    /// How each head's keys (rotated) and values of a position are rounded, as a low-bit cache would (LLM-QAT,
    /// <https://arxiv.org/abs/2305.17888>); `None` leaves them as they are.
    #[module(skip)]
    pub kv_cache: Option<Activation>,
}

/// Sizes and constants of a layer's attention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Window and rotation.
    pub kind: LayerKind,
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Soft cap of the scaled products.
    pub cap: Option<f32>,
}

impl Heads {
    /// Those of a layer of a config.
    pub fn new(config: &ModelConfig, layer: usize) -> Self {
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            kind: config.arch.layer(layer),
            scale: config.attention_scale(),
            cap: config.arch.attention_cap.map(|cap| cap as f32),
        }
    }
}

impl Attention {
    /// `x`: `[batch, seq, hidden]`. `observe` is shown each [`Site`] of the attention, before any rounding.
    pub fn forward(&self, x: Tensor<3>, positions: &Positions, observe: &mut dyn FnMut(Site, Value)) -> Tensor<3> {
        observe(Site::Input(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), &|| x.clone());
        let qkv = self.normed(side_by_side([&self.q_proj, &self.k_proj, &self.v_proj], x));
        let Heads { heads, kv_heads, head_dim, kind, .. } = self.heads;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        observe(Site::Queries, &|| qkv.clone().narrow(2, 0, q));
        observe(Site::Keys, &|| qkv.clone().narrow(2, q, kv));
        observe(Site::Values, &|| qkv.clone().narrow(2, q + kv, kv));
        let (rotary, mask) = positions.of(kind);
        let plain = self.heads.cap.is_none() && self.heads.scale == 1.0 / (head_dim as f32).sqrt();
        let out = match rotary.filter(|rotary| plain && rotary.dim() == head_dim) {
            Some(rotary) if self.kv_cache.is_none() && ops::fused(&qkv.device()) => {
                ops::attention::forward(qkv, rotary, mask, [heads, kv_heads, head_dim])
            }
            rotary => self.composed(qkv, rotary.or(positions.of(kind).0), mask),
        };
        let out = match &self.attn_sub_norm {
            Some(norm) => norm.forward(out),
            None => out,
        };
        observe(Site::Input(&["self_attn.o_proj"]), &|| out.clone());
        self.o_proj.forward(out)
    }

    /// Queries, keys and values side by side, queries and keys normalized where the model does so.
    fn normed(&self, qkv: Tensor<3>) -> Tensor<3> {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else { return qkv };
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let (weights, sizes) = ([q_norm.weight.val(), k_norm.weight.val()], [heads, kv_heads, head_dim]);
        match ops::fused(&qkv.device()) {
            true => ops::qk_norm::forward(qkv, weights, sizes, q_norm.eps),
            false => ops::qk_norm::composed(qkv, weights, sizes, q_norm.eps),
        }
    }

    /// From queries, keys and values side by side to the values that the heads see, `[batch, seq, heads * head_dim]`.
    fn composed(&self, qkv: Tensor<3>, rotary: Option<&Rotary>, mask: &Mask) -> Tensor<3> {
        let [batch, seq, _] = qkv.dims();
        let Heads { heads, kv_heads, head_dim, scale, cap, .. } = self.heads;
        let (group, kv) = (heads / kv_heads, kv_heads * head_dim);
        let part = |start: usize, n: usize| {
            let part = qkv.clone().narrow(2, start, n * head_dim);
            part.reshape([batch, seq, n, head_dim]).swap_dims(1, 2)
        };
        let turned = |x: Tensor<4>| match rotary {
            Some(rotary) => rotary.apply(x),
            None => x,
        };
        let q = heads * head_dim;
        let k = rounded(turned(part(q, kv_heads)), self.kv_cache);
        let v = rounded(part(q + kv, kv_heads), self.kv_cache);
        let q = turned(part(0, heads));

        // The queries of a group lie under one another as rows of one matrix, so that keys and values need no copies.
        let q = (q * scale).reshape([batch, kv_heads, group * seq, head_dim]);
        let mask = mask.additive(q.is_autodiff());
        let scores = q.matmul(k.swap_dims(2, 3));
        let scores = match cap {
            Some(cap) => (scores / cap).tanh() * cap,
            None => scores,
        };
        let scores = scores.reshape([batch, heads, seq, seq]) + mask;
        let probabilities = softmax(scores, 3).reshape([batch, kv_heads, group * seq, seq]);
        let out = probabilities.matmul(v).reshape([batch, heads, seq, head_dim]);
        out.swap_dims(1, 2).reshape([batch, seq, heads * head_dim])
    }
}
