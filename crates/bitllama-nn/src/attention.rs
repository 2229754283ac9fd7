//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>).

use bitllama_core::Activation;
use burn::module::Module;
use burn::tensor::Tensor;

use crate::decoder::{Site, Value};
use crate::linear::{Linear, side_by_side};
use crate::mask::Mask;
use crate::ops::{self, attention::Heads};
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
        let heads = Heads::new(self.num_heads, self.num_kv_heads, self.head_dim);
        let out = if self.kv_cache.is_none() && ops::fused(&qkv.device()) {
            ops::attention::forward(qkv, rotary, mask, &heads)
        } else {
            ops::attention::composed(qkv, rotary, mask, &heads, self.kv_cache)
        };
        let out = match &self.attn_sub_norm {
            Some(norm) => norm.forward(out),
            None => out,
        };
        observe(Site::Input(&["self_attn.o_proj"]), &|| out.clone());
        self.o_proj.forward(out)
    }
}
