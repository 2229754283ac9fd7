//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>).

use bitllama_core::Activation;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::activations::rounded;
use crate::decoder::{Site, Value};
use crate::linear::{Linear, side_by_side};
use crate::mask::Mask;
use crate::ops;
use crate::rms_norm::RmsNorm;
use crate::rotary::Rotary;

/// Attention of `num_heads` queries over `num_kv_heads` keys and values.
#[derive(Module, Debug)]
pub struct Attention {
    /// hidden to heads * head_dim.
    pub q_proj: Linear,
    /// hidden to kv_heads * head_dim.
    pub k_proj: Linear,
    /// hidden to kv_heads * head_dim.
    pub v_proj: Linear,
    /// Norm before `o_proj`, over heads * head_dim, where the model has sub-norms.
    pub attn_sub_norm: Option<RmsNorm>,
    /// heads * head_dim to hidden.
    pub o_proj: Linear,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// How each head's keys (rotated) and values of a position are rounded, as a low-bit cache would (LLM-QAT,
    /// <https://arxiv.org/abs/2305.17888>); `None` leaves them as they are.
    #[module(skip)]
    pub kv_cache: Option<Activation>,
}

impl Attention {
    /// `x`: `[batch, seq, hidden]`. `observe` is shown each [`Site`] of the attention, before any rounding.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        mask: &Mask,
        observe: &mut dyn FnMut(Site, Value),
    ) -> Tensor<3> {
        observe(Site::Input(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), &|| x.clone());
        let qkv = side_by_side([&self.q_proj, &self.k_proj, &self.v_proj], x);
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        observe(Site::Queries, &|| qkv.clone().narrow(2, 0, q));
        observe(Site::Keys, &|| qkv.clone().narrow(2, q, kv));
        observe(Site::Values, &|| qkv.clone().narrow(2, q + kv, kv));
        let out = if self.kv_cache.is_none() && ops::fused(&qkv.device()) {
            ops::attention::forward(qkv, rotary, mask, [self.num_heads, self.num_kv_heads, self.head_dim])
        } else {
            self.composed(qkv, rotary, mask)
        };
        let out = match &self.attn_sub_norm {
            Some(norm) => norm.forward(out),
            None => out,
        };
        observe(Site::Input(&["self_attn.o_proj"]), &|| out.clone());
        self.o_proj.forward(out)
    }

    /// From queries, keys and values side by side to the values that the heads see, `[batch, seq, heads * head_dim]`.
    fn composed(&self, qkv: Tensor<3>, rotary: &Rotary, mask: &Mask) -> Tensor<3> {
        let [batch, seq, _] = qkv.dims();
        let (group, kv) = (self.num_heads / self.num_kv_heads, self.num_kv_heads * self.head_dim);
        let heads = |start: usize, n: usize| {
            let part = qkv.clone().narrow(2, start, n * self.head_dim);
            part.reshape([batch, seq, n, self.head_dim]).swap_dims(1, 2)
        };
        let q = self.num_heads * self.head_dim;
        let k = rounded(rotary.apply(heads(q, self.num_kv_heads)), self.kv_cache);
        let v = rounded(heads(q + kv, self.num_kv_heads), self.kv_cache);
        let q = rotary.apply(heads(0, self.num_heads));

        // The queries of a group lie under one another as rows of one matrix, so that keys and values need no copies.
        let q = (q * (self.head_dim as f64).powf(-0.5)).reshape([batch, self.num_kv_heads, group * seq, self.head_dim]);
        let mask = mask.additive(q.is_autodiff());
        let scores = q.matmul(k.swap_dims(2, 3)).reshape([batch, self.num_heads, seq, seq]) + mask;
        let probabilities = softmax(scores, 3).reshape([batch, self.num_kv_heads, group * seq, seq]);
        let out = probabilities.matmul(v).reshape([batch, self.num_heads, seq, self.head_dim]);
        out.swap_dims(1, 2).reshape([batch, seq, self.num_heads * self.head_dim])
    }
}
