//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>).

use bitllama_core::Activation;
use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

use crate::activations::rounded;
use crate::decoder::Site;
use crate::linear::{Linear, forward_all};
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
    /// `x`: `[batch, seq, hidden]`; `mask`: `[1 or batch, 1, seq, seq]`, added to the scores. `observe` is shown each
    /// [`Site`] of the attention, before any rounding.
    pub fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        mask: Tensor<4>,
        observe: &mut dyn FnMut(Site, &Tensor<3>),
    ) -> Tensor<3> {
        observe(Site::Input(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]), &x);
        let [batch, seq, _] = x.dims();
        let group = self.num_heads / self.num_kv_heads;
        let heads = |x: Tensor<3>, n: usize| x.reshape([batch, seq, n, self.head_dim]).swap_dims(1, 2);

        let [q, k, v] = forward_all([&self.q_proj, &self.k_proj, &self.v_proj], x);
        observe(Site::Queries, &q);
        observe(Site::Keys, &k);
        observe(Site::Values, &v);
        let q = rotary.apply(heads(q, self.num_heads));
        let k = rounded(rotary.apply(heads(k, self.num_kv_heads)), self.kv_cache);
        let v = rounded(heads(v, self.num_kv_heads), self.kv_cache);

        // The queries of a group lie under one another as rows of one matrix, so that keys and values need no copies.
        let q = (q * (self.head_dim as f64).powf(-0.5)).reshape([batch, self.num_kv_heads, group * seq, self.head_dim]);
        let scores = q.matmul(k.swap_dims(2, 3)).reshape([batch, self.num_heads, seq, seq]) + mask;
        let probabilities = softmax(scores, 3).reshape([batch, self.num_kv_heads, group * seq, seq]);
        let out = probabilities.matmul(v).reshape([batch, self.num_heads, seq, self.head_dim]);
        let out = out.swap_dims(1, 2).reshape([batch, seq, self.num_heads * self.head_dim]);
        let out = match &self.attn_sub_norm {
            Some(norm) => norm.forward(out),
            None => out,
        };
        observe(Site::Input(&["self_attn.o_proj"]), &out);
        self.o_proj.forward(out)
    }
}
