//! The decoder: embedding, blocks, final norm, head. Field names give the parameter paths of
//! [`bitllama_core::weights`].

use bitllama_core::weights::BLOCK_MATRICES;
use bitllama_core::{Activation, ModelConfig};
use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::module::{embedding, linear};
use burn::tensor::{Int, Tensor};

use crate::activations::rounded;
use crate::attention::Attention;
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::rms_norm::RmsNorm;
use crate::rotary::Rotary;

/// A Llama-family language model.
#[derive(Module, Debug)]
pub struct Llama {
    /// `[vocab, hidden]`; the head too, where tied.
    pub embed_tokens: Embedding,
    /// Decoder blocks in order.
    pub layers: Vec<Block>,
    /// Norm before the head.
    pub norm: RmsNorm,
    /// hidden to vocab; `None` where tied to the embedding.
    pub lm_head: Option<Linear>,
    /// How the input of a tied head is rounded; `None` leaves it as it is.
    #[module(skip)]
    pub tied_head_input: Option<Activation>,
    /// Architecture.
    #[module(skip)]
    pub config: ModelConfig,
}

/// A place in a block, `[batch, seq, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// What goes into the matrices of these names (of [`bitllama_core::weights::BLOCK_MATRICES`]), which share it.
    Input(&'static [&'static str]),
    /// What `q_proj` gives, all heads side by side, before the rotation.
    Queries,
    /// What `k_proj` gives, before the rotation.
    Keys,
    /// What `v_proj` gives.
    Values,
    /// What the block gives.
    Output,
}

/// Attention and feed-forward, each behind a norm and beside a residual path.
#[derive(Module, Debug)]
pub struct Block {
    /// Norm before the attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: Attention,
    /// Norm before the feed-forward layer.
    pub post_attention_layernorm: RmsNorm,
    /// Feed-forward layer.
    pub mlp: Mlp,
}

impl Llama {
    /// Logits `[batch, seq, vocab]` of `tokens` (`[batch, seq]`) under an additive `mask` (`[1 or batch, 1, seq, seq]`,
    /// see [`crate::mask`]).
    pub fn forward(&self, tokens: Tensor<2, Int>, mask: Tensor<4>) -> Tensor<3> {
        self.forward_observed(tokens, mask, &mut |_, _, _| ())
    }

    /// As [`Llama::forward`]; `observe` is shown the number of each block with what [`Site`] names, in the order
    /// of computation.
    pub fn forward_observed(
        &self,
        tokens: Tensor<2, Int>,
        mask: Tensor<4>,
        observe: &mut dyn FnMut(usize, Site, &Tensor<3>),
    ) -> Tensor<3> {
        let [_, seq] = tokens.dims();
        let rotary = Rotary::new(&self.config, seq, &mask.device());
        // Taken once, for embedding and head: with a quantized embedding every `val()` rounds the whole table.
        let table = self.embed_tokens.weight.val();
        let mut x = embedding(table.clone(), tokens);
        for (layer, block) in self.layers.iter().enumerate() {
            x = block.forward_observed(x, &rotary, mask.clone(), &mut |site, value| observe(layer, site, value));
        }
        let x = self.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(rounded(x, self.tied_head_input), table.transpose(), None),
        }
    }
}

impl Llama {
    /// The first block's input of `tokens` (`[batch, seq]`), `[batch, seq, hidden]`.
    pub fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.embed_tokens.weight.val(), tokens)
    }
}

impl Block {
    /// `[batch, seq, hidden]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, rotary: &Rotary, mask: Tensor<4>) -> Tensor<3> {
        self.forward_observed(x, rotary, mask, &mut |_, _| ())
    }

    /// The linear layers, in the order and by the names of [`BLOCK_MATRICES`].
    pub fn linears(&self) -> [(&'static str, &Linear); 7] {
        let (Attention { q_proj, k_proj, v_proj, o_proj, .. }, mlp) = (&self.self_attn, &self.mlp);
        let linears = [q_proj, k_proj, v_proj, o_proj, &mlp.gate_proj, &mlp.up_proj, &mlp.down_proj];
        std::array::from_fn(|i| (BLOCK_MATRICES[i], linears[i]))
    }

    /// As [`Block::linears`], to be changed.
    pub fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        let Attention { q_proj, k_proj, v_proj, o_proj, .. } = &mut self.self_attn;
        let Mlp { gate_proj, up_proj, down_proj, .. } = &mut self.mlp;
        let mut names = BLOCK_MATRICES.into_iter();
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
            .map(|linear| (names.next().unwrap_or_default(), linear))
    }

    /// As [`Block::forward`]; `observe` is shown every [`Site`], inputs before any rounding.
    pub fn forward_observed(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        mask: Tensor<4>,
        observe: &mut dyn FnMut(Site, &Tensor<3>),
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(x.clone());
        let x = x + self.self_attn.forward(normed, rotary, mask, observe);
        let normed = self.post_attention_layernorm.forward(x.clone());
        let x = x + self.mlp.forward(normed, observe);
        observe(Site::Output, &x);
        x
    }
}
