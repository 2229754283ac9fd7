//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>).

use bitllama_core::{Activation, LayerKind};
use burn::module::Module;
use burn::tensor::Tensor;

use crate::decoder::{Site, Value};
use crate::linear::{Linear, side_by_side};
use crate::ops;
use crate::ops::attention::Heads;
use crate::positions::Positions;
use crate::rms_norm::RmsNorm;

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
    /// Window and rotation.
    #[module(skip)]
    pub kind: LayerKind,
    /// How each head's keys (rotated) and values of a position are rounded, as a low-bit cache would (LLM-QAT,
    /// <https://arxiv.org/abs/2305.17888>); `None` leaves them as they are.
    #[module(skip)]
    pub kv_cache: Option<Activation>,
}

impl Attention {
    /// `x`: `[batch, seq, hidden]`. `observe` is shown each [`Site`] of the attention, before any rounding.
    pub fn forward(&self, x: Tensor<3>, positions: &Positions, observe: &mut dyn FnMut(Site, Value)) -> Tensor<3> {
        observe(Site::Input(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), &|| x.clone());
        let qkv = self.normed(side_by_side([&self.q_proj, &self.k_proj, &self.v_proj], x));
        let Heads { heads, kv_heads, head_dim, .. } = self.heads;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        observe(Site::Queries, &|| qkv.clone().narrow(2, 0, q));
        observe(Site::Keys, &|| qkv.clone().narrow(2, q, kv));
        observe(Site::Values, &|| qkv.clone().narrow(2, q + kv, kv));
        let (rotary, mask) = positions.of(self.kind);
        let out = if self.kv_cache.is_none() && ops::fused(&qkv.device()) {
            ops::attention::forward(qkv, rotary, mask, &self.heads)
        } else {
            ops::attention::composed(qkv, rotary, mask, &self.heads, self.kv_cache)
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
}
