//! The decoder: embedding, blocks, final norm, head. Field names give the parameter paths of
//! [`bitllama_core::weights`].

use std::ops::Range;

use bitllama_core::weights::{BLOCK_MATRICES, BLOCK_SUB_NORMS, QK_NORMS};
use bitllama_core::{Activation, ModelConfig, NormPlaces};
use bitllama_kernels::gemm::Precision;
use burn::module::Module;
use burn::nn::Embedding;
use burn::tensor::module::embedding;
use burn::tensor::{IndexingUpdateOp, Int, Tensor};

use crate::activations::rounded;
use crate::attention::Attention;
use crate::linear::{Linear, product, wide};
use crate::mask::Mask;
use crate::mlp::Mlp;
use crate::positions::Positions;
use crate::rms_norm::RmsNorm;

/// A language model of any family of [`bitllama_core::families`].
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

/// Attention and feed-forward layer, each beside a residual path and between norms as the model has them. Fields have the names of
/// [`NormPlaces::names`].
#[derive(Module, Debug)]
pub struct Block {
    /// Norm in front of the attention.
    pub input_layernorm: Option<RmsNorm>,
    /// Attention.
    pub self_attn: Attention,
    /// Norm behind the attention, or in front of the feed-forward layer where norms stand in front only.
    pub post_attention_layernorm: RmsNorm,
    /// Norm in front of the feed-forward layer, where norms stand on both sides.
    pub pre_feedforward_layernorm: Option<RmsNorm>,
    /// Feed-forward layer.
    pub mlp: Mlp,
    /// Norm behind the feed-forward layer.
    pub post_feedforward_layernorm: Option<RmsNorm>,
    /// Places of the norms.
    #[module(skip)]
    pub norms: NormPlaces,
    /// Factor of what attention and feed-forward layer add.
    #[module(skip)]
    pub residual_scale: f64,
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
    /// Factor of the product: 1 in most models, one over Granite's `logits_scaling`.
    pub scale: f32,
    /// Soft cap of the scaled product: `cap * tanh(x / cap)` (Gemma 2's `final_logit_softcapping`).
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
        let logits = product(hidden, if self.tied { weight.transpose() } else { weight }, self.precision, false);
        let logits = scaled(logits, f64::from(self.scale));
        match self.cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
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
        let positions = Positions::new(&self.config, mask.clone());
        // Taken once, for embedding and head: with a quantized embedding every `val()` rounds the whole table.
        let table = self.embed_tokens.weight.val();
        let x = self.embedded(&table, tokens);
        let x = self.forward_blocks(0..self.layers.len(), x, &positions, observe);
        self.forward_head(x, table)
    }

    /// What the last of some blocks gives, `[batch, seq, hidden]`, from what goes into the first; `observe` as in
    /// [`Llama::forward_observed`].
    pub fn forward_blocks(
        &self,
        blocks: Range<usize>,
        mut x: Tensor<3>,
        positions: &Positions,
        observe: &mut dyn FnMut(usize, Site, Value),
    ) -> Tensor<3> {
        for layer in blocks {
            x = self.layers[layer].forward_observed(x, positions, &mut |site, value| observe(layer, site, value));
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
        let arch = &self.config.arch;
        let head = Head {
            weight,
            tied: self.lm_head.is_none(),
            precision: self.head_precision,
            scale: arch.logits_scale as f32,
            cap: arch.logits_cap.map(|cap| cap as f32),
        };
        (rounded(self.norm.forward(x), input), head)
    }

    /// The first block's input of `tokens` (`[batch, seq]`), `[batch, seq, hidden]`.
    pub fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        self.embedded(&self.embed_tokens.weight.val(), tokens)
    }

    /// As [`Llama::embed`], from an embedding's `table` (`[vocab, hidden]`).
    pub fn embedded(&self, table: &Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
        scaled(looked_up(table, tokens), self.config.arch.embedding_scale)
    }

    /// The gradient `d_table` of an embedding's table, to which those of the rows are added that `tokens` (`[batch, seq]`) took,
    /// from `d_x` (`[batch, seq, hidden]`), the gradient of what [`Llama::embedded`] gave.
    pub fn with_embedded(&self, d_table: Tensor<2>, tokens: Tensor<2, Int>, d_x: Tensor<3>) -> Tensor<2> {
        let [rows, seq, width] = d_x.dims();
        let d_x = scaled(d_x, self.config.arch.embedding_scale).reshape([rows * seq, width]);
        d_table.select_assign(0, tokens.reshape([rows * seq]), d_x, IndexingUpdateOp::Add)
    }
}

/// `x` times a factor, which is 1 in most models.
fn scaled(x: Tensor<3>, factor: f64) -> Tensor<3> {
    if factor == 1.0 { x } else { x * factor }
}

/// Rows of an embedding's `table` (`[vocab, hidden]`, in any type), `[batch, seq, hidden]` in `f32`.
pub fn looked_up(table: &Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
    wide(embedding(table.clone(), tokens))
}

impl Block {
    /// `[batch, seq, hidden]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, positions: &Positions) -> Tensor<3> {
        self.forward_observed(x, positions, &mut |_, _| ())
    }

    /// The norms, by their names below `layers.N.`.
    pub fn norms(&self) -> Vec<(&'static str, &RmsNorm)> {
        let norms = [
            ("input_layernorm", self.input_layernorm.as_ref()),
            ("post_attention_layernorm", Some(&self.post_attention_layernorm)),
            ("pre_feedforward_layernorm", self.pre_feedforward_layernorm.as_ref()),
            ("post_feedforward_layernorm", self.post_feedforward_layernorm.as_ref()),
            (QK_NORMS[0], self.self_attn.q_norm.as_ref()),
            (QK_NORMS[1], self.self_attn.k_norm.as_ref()),
            (BLOCK_SUB_NORMS[0], self.self_attn.attn_sub_norm.as_ref()),
            (BLOCK_SUB_NORMS[1], self.mlp.ffn_sub_norm.as_ref()),
        ];
        norms.into_iter().filter_map(|(name, norm)| Some((name, norm?))).collect()
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
        positions: &Positions,
        observe: &mut dyn FnMut(Site, Value),
    ) -> Tensor<3> {
        let post_attention = Some(&self.post_attention_layernorm);
        let (attention_out, mlp_in) = match self.norms {
            NormPlaces::Before => (None, post_attention),
            NormPlaces::After | NormPlaces::Both => (post_attention, self.pre_feedforward_layernorm.as_ref()),
        };
        let mixed = self.self_attn.forward(normed(self.input_layernorm.as_ref(), x.clone()), positions, observe);
        let x = x + scaled(normed(attention_out, mixed), self.residual_scale);
        let fed = self.mlp.forward(normed(mlp_in, x.clone()), observe);
        let x = x + scaled(normed(self.post_feedforward_layernorm.as_ref(), fed), self.residual_scale);
        observe(Site::Output, &|| x.clone());
        x
    }
}

fn normed(norm: Option<&RmsNorm>, x: Tensor<3>) -> Tensor<3> {
    match norm {
        Some(norm) => norm.forward(x),
        None => x,
    }
}
