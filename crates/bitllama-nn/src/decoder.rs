//! The decoder: embedding, blocks, final norm, head. Field names give the parameter paths of
//! [`bitllama_core::weights`].

use std::ops::Range;

use bitllama_core::weights::BLOCK_MATRICES;
use bitllama_core::{Activation, ModelConfig};
use bitllama_kernels::gemm::Precision;
use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::module::embedding;
use burn::tensor::{Int, Tensor};

use crate::activations::rounded;
use crate::attention::Attention;
use crate::linear::{Linear, product, wide};
use crate::mask::Mask;
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
    /// Of both factors of the head's product, forward and backward.
    #[module(skip)]
    pub head_precision: Precision,
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

/// Gives what is at a [`Site`], when it is asked for.
pub type Value<'a> = &'a dyn Fn() -> Tensor<3>;

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

/// From hidden states to logits.
#[derive(Debug, Clone)]
pub struct Head {
    /// `[hidden, vocab]`, or `[vocab, hidden]` if `tied`.
    pub weight: Tensor<2>,
    /// Whether the weight is the embedding's.
    pub tied: bool,
    /// Of both factors of the product.
    pub precision: Precision,
    /// What the product is multiplied with (Granite's `logits_scaling`, one over it); 1 in most models.
    pub scale: f32,
    /// What logits are bound by, if so: the scaled product `x` becomes `cap * tanh(x / cap)` (Gemma 2's
    /// `final_logit_softcapping`).
    pub cap: Option<f32>,
}

impl Head {
    /// Size of the vocabulary.
    pub fn vocab(&self) -> usize {
        self.weight.dims()[usize::from(!self.tied)]
    }

    /// Logits `[batch, seq, vocab]` of `[batch, seq, hidden]`.
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let weight = self.weight.clone();
        let x = product(hidden, if self.tied { weight.transpose() } else { weight }, self.precision, false);
        let x = if self.scale == 1.0 { x } else { x * self.scale };
        match self.cap {
            Some(cap) => (x / cap).tanh() * cap,
            None => x,
        }
    }
}

impl Llama {
    /// Logits `[batch, seq, vocab]` of `tokens` (`[batch, seq]`) under a mask for as many.
    pub fn forward(&self, tokens: Tensor<2, Int>, mask: &Mask) -> Tensor<3> {
        let (hidden, head) = self.forward_observed(tokens, mask, &mut |_, _, _| ());
        head.logits(hidden)
    }

    /// What goes into the head (`[batch, seq, hidden]`, after the final norm and any rounding) and the head, of `tokens`
    /// (`[batch, seq]`); `observe` is shown the number of each block with what [`Site`] names, in the order of computation,
    /// as functions that give it.
    pub fn forward_observed(
        &self,
        tokens: Tensor<2, Int>,
        mask: &Mask,
        observe: &mut dyn FnMut(usize, Site, Value),
    ) -> (Tensor<3>, Head) {
        let rotary = Rotary::new(&self.config, mask.seq(), mask.device());
        // Taken once, for embedding and head: with a quantized embedding every `val()` rounds the whole table.
        let table = self.embed_tokens.weight.val();
        let x = looked_up(&table, tokens);
        let x = self.forward_blocks(0..self.layers.len(), x, &rotary, mask, observe);
        self.forward_head(x, table)
    }

    /// What the last of some blocks gives, `[batch, seq, hidden]`, from what goes into the first; `observe` as in
    /// [`Llama::forward_observed`].
    pub fn forward_blocks(
        &self,
        blocks: Range<usize>,
        mut x: Tensor<3>,
        rotary: &Rotary,
        mask: &Mask,
        observe: &mut dyn FnMut(usize, Site, Value),
    ) -> Tensor<3> {
        for layer in blocks {
            x = self.layers[layer].forward_observed(x, rotary, mask, &mut |site, value| observe(layer, site, value));
        }
        x
    }

    /// What goes into the head (`[batch, seq, hidden]`, after the final norm and any rounding), and the head, from what the last
    /// block gives; a tied head has the embedding's `table`.
    pub fn forward_head(&self, x: Tensor<3>, table: Tensor<2>) -> (Tensor<3>, Head) {
        let (weight, input) = match &self.lm_head {
            Some(head) => (head.weight.val(), head.input),
            None => (table, self.tied_head_input),
        };
        let tied = self.lm_head.is_none();
        let head = Head { weight, tied, precision: self.head_precision, scale: 1.0, cap: None };
        (rounded(self.norm.forward(x), input), head)
    }

    /// The first block's input of `tokens` (`[batch, seq]`), `[batch, seq, hidden]`.
    pub fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        looked_up(&self.embed_tokens.weight.val(), tokens)
    }
}

/// Rows of an embedding's `table` (`[vocab, hidden]`, in any type), `[batch, seq, hidden]` in `f32`.
pub fn looked_up(table: &Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
    wide(embedding(table.clone(), tokens))
}

impl Block {
    /// `[batch, seq, hidden]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, rotary: &Rotary, mask: &Mask) -> Tensor<3> {
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
        mask: &Mask,
        observe: &mut dyn FnMut(Site, Value),
    ) -> Tensor<3> {
        let normed = self.input_layernorm.forward(x.clone());
        let x = x + self.self_attn.forward(normed, rotary, mask, observe);
        let normed = self.post_attention_layernorm.forward(x.clone());
        let x = x + self.mlp.forward(normed, observe);
        observe(Site::Output, &|| x.clone());
        x
    }
}
