//! The decoder: embedding, blocks, final norm, head. Field names give the parameter paths of
//! [`bitllama_core::weights`].

use bitllama_core::ModelConfig;
use burn::module::Module;
use burn::nn::{Embedding, Linear};
use burn::tensor::module::{embedding, linear};
use burn::tensor::{Int, Tensor};

use crate::attention::Attention;
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
    /// Architecture.
    #[module(skip)]
    pub config: ModelConfig,
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
        let [_, seq] = tokens.dims();
        let rotary = Rotary::new(&self.config, seq, &mask.device());
        // Taken once: with a quantized embedding every `val()` rounds the whole table.
        let table = self.embed_tokens.weight.val();
        let mut x = embedding(table.clone(), tokens);
        for block in &self.layers {
            x = block.forward(x, &rotary, mask.clone());
        }
        let x = self.norm.forward(x);
        match &self.lm_head {
            Some(head) => head.forward(x),
            None => linear(x, table.transpose(), None),
        }
    }
}

impl Block {
    fn forward(&self, x: Tensor<3>, rotary: &Rotary, mask: Tensor<4>) -> Tensor<3> {
        let x = x.clone() + self.self_attn.forward(self.input_layernorm.forward(x), rotary, mask);
        x.clone() + self.mlp.forward(self.post_attention_layernorm.forward(x))
    }
}
