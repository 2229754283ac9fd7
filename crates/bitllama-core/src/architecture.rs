//! Choices in which decoders differ beside their sizes: norms, biases, activation, attention of each layer, scales and caps.
//!
//! [`Architecture::default`] is Llama: an RMSNorm in front of attention and feed-forward layer, no biases, SwiGLU, full attention
//! with rotary embedding everywhere. A [family](crate::families) is such a set of choices with the names that files have for it.

use serde::{Deserialize, Serialize};

use crate::families::FamilyName;
use crate::rope::Rope;
use crate::{Error, HiddenAct};

/// The choices of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Architecture {
    /// Family whose names the model's files have.
    pub family: FamilyName,
    /// Places of the norms of a block.
    pub norms: NormPlaces,
    /// RMSNorm of queries and keys before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// Biases of `q_proj`, `k_proj` and `v_proj`.
    pub qkv_bias: bool,
    /// Bias of `o_proj`.
    pub o_bias: bool,
    /// Biases of `gate_proj`, `up_proj` and `down_proj`.
    pub mlp_bias: bool,
    /// Activation function of the feed-forward layer.
    pub hidden_act: HiddenAct,
    /// Attention of each layer, in order; empty if all layers have full attention with rotary embedding.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerKind>,
    /// Positions that a token of a layer with a window sees, its own included.
    pub sliding_window: Option<usize>,
    /// Rotary embedding of the layers with a window, where it is not that of the others.
    pub local_rope: Option<Rope>,
    /// Elements of a head that are rotated, the first ones; all of them if absent.
    pub rotary_dim: Option<usize>,
    /// Factor of the embedding's rows.
    pub embedding_scale: f64,
    /// Factor of what attention and feed-forward layer add to the residual stream.
    pub residual_scale: f64,
    /// Factor of the products of queries and keys; `1 / sqrt(head_dim)` if absent.
    pub attention_scale: Option<f64>,
    /// Factor of the logits.
    pub logits_scale: f64,
    /// Soft cap of the scaled products of queries and keys: `cap * tanh(x / cap)`.
    pub attention_cap: Option<f64>,
    /// Soft cap of the logits.
    pub logits_cap: Option<f64>,
}

/// Places of the norms of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlaces {
    /// In front of attention and feed-forward layer, as in Llama.
    #[default]
    Before,
    /// Behind them, before their output is added to the residual stream, as in OLMo 2.
    After,
    /// In front of and behind each, as in Gemma 2.
    Both,
}

/// Names of the norms of a block, below `layers.N.`, by their place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNorms {
    /// In front of the attention.
    pub attention_in: Option<&'static str>,
    /// Behind the attention.
    pub attention_out: Option<&'static str>,
    /// In front of the feed-forward layer.
    pub mlp_in: Option<&'static str>,
    /// Behind the feed-forward layer.
    pub mlp_out: Option<&'static str>,
}

impl NormPlaces {
    /// Names of the norms, which are Hugging Face's: `post_attention_layernorm` stands in front of the feed-forward layer of a
    /// Llama and behind the attention elsewhere.
    pub fn names(self) -> BlockNorms {
        const INPUT: Option<&str> = Some("input_layernorm");
        const POST_ATTENTION: Option<&str> = Some("post_attention_layernorm");
        const POST_FEEDFORWARD: Option<&str> = Some("post_feedforward_layernorm");
        match self {
            Self::Before => {
                BlockNorms { attention_in: INPUT, attention_out: None, mlp_in: POST_ATTENTION, mlp_out: None }
            }
            Self::After => BlockNorms {
                attention_in: None,
                attention_out: POST_ATTENTION,
                mlp_in: None,
                mlp_out: POST_FEEDFORWARD,
            },
            Self::Both => BlockNorms {
                attention_in: INPUT,
                attention_out: POST_ATTENTION,
                mlp_in: Some("pre_feedforward_layernorm"),
                mlp_out: POST_FEEDFORWARD,
            },
        }
    }
}

impl BlockNorms {
    /// The names, in the order of computation.
    pub fn iter(self) -> impl Iterator<Item = &'static str> {
        [self.attention_in, self.attention_out, self.mlp_in, self.mlp_out].into_iter().flatten()
    }
}

/// Numbers that a norm of queries or keys goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Each head by itself, with one weight `[head_dim]` for all heads, as in Qwen 3 and Gemma 3.
    Head,
    /// All heads of a token together, with a weight as wide, as in OLMo 2.
    Token,
}

/// Attention of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKind {
    /// Whether a token sees [`Architecture::sliding_window`] positions only.
    pub window: bool,
    /// Whether queries and keys are rotated by their position.
    pub rotary: bool,
}

impl LayerKind {
    /// Full attention with rotary embedding.
    pub const FULL: LayerKind = LayerKind { window: false, rotary: true };
    /// A window, with rotary embedding.
    pub const WINDOW: LayerKind = LayerKind { window: true, rotary: true };
    /// Full attention without rotary embedding ("NoPE").
    pub const NO_ROTARY: LayerKind = LayerKind { window: false, rotary: false };
}

impl Architecture {
    /// Llama.
    pub const LLAMA: Architecture = Architecture {
        family: FamilyName::LLAMA,
        norms: NormPlaces::Before,
        qk_norm: None,
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        hidden_act: HiddenAct::Silu,
        layers: Vec::new(),
        sliding_window: None,
        local_rope: None,
        rotary_dim: None,
        embedding_scale: 1.0,
        residual_scale: 1.0,
        attention_scale: None,
        logits_scale: 1.0,
        attention_cap: None,
        logits_cap: None,
    };

    /// True if all choices are those of [`Architecture::LLAMA`].
    pub fn is_llama(&self) -> bool {
        *self == Self::LLAMA
    }

    /// True if it computes the same as another, whatever families their files name.
    pub fn computes_as(&self, other: &Self) -> bool {
        Self { family: other.family, ..self.clone() } == *other
    }

    /// Attention of layer `index`.
    pub fn layer(&self, index: usize) -> LayerKind {
        self.layers.get(index).copied().unwrap_or(LayerKind::FULL)
    }

    /// The choices of a model that has the chosen layers only.
    pub fn with_layers(&self, chosen: &[usize]) -> Self {
        let layers = match self.layers.is_empty() {
            true => Vec::new(),
            false => chosen.iter().map(|index| self.layer(*index)).collect(),
        };
        Self { layers, ..self.clone() }
    }

    /// Whether a matrix of a block, such as `self_attn.q_proj`, has a bias.
    pub fn has_bias(&self, matrix: &str) -> bool {
        match matrix {
            "self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" => self.qkv_bias,
            "self_attn.o_proj" => self.o_bias,
            _ => self.mlp_bias,
        }
    }

    /// Checks that the choices go together and with `layers` layers and heads of `head_dim` elements.
    ///
    /// # Errors
    /// [`Error::Config`] with the choice, its value and what it must be.
    pub fn validate(&self, layers: usize, head_dim: usize) -> Result<(), Error> {
        let wrong = |message: String| Err(Error::Config(message));
        if !self.layers.is_empty() && self.layers.len() != layers {
            return wrong(format!("{} layers are described, the model has {layers}", self.layers.len()));
        }
        let windows = self.layers.iter().any(|kind| kind.window);
        match self.sliding_window {
            Some(0) => return wrong("sliding_window = 0 is not positive".into()),
            None if windows => return wrong("layers with a window need a sliding_window".into()),
            _ => {}
        }
        if let Some(dim) = self.rotary_dim
            && (dim == 0 || dim > head_dim || !dim.is_multiple_of(2))
        {
            return wrong(format!("{dim} rotated elements of a head of {head_dim}: they must be even and no more"));
        }
        let scales = [
            ("embedding scale", Some(self.embedding_scale)),
            ("residual scale", Some(self.residual_scale)),
            ("attention scale", self.attention_scale),
            ("logits scale", Some(self.logits_scale)),
            ("soft cap of attention", self.attention_cap),
            ("soft cap of logits", self.logits_cap),
        ];
        for (name, value) in scales {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return wrong(format!("{name} = {value} is not positive"));
            }
        }
        match &self.local_rope {
            Some(rope) => rope.validate(self.rotary_dim.unwrap_or(head_dim)),
            None => Ok(()),
        }
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Self::LLAMA
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_refused() {
        type Spoil = fn(&mut Architecture);
        let faults: [(&str, Spoil); 5] = [
            ("2 layers are described", |a| a.layers = vec![LayerKind::FULL; 2]),
            ("need a sliding_window", |a| a.layers = vec![LayerKind::WINDOW; 3]),
            ("sliding_window = 0", |a| a.sliding_window = Some(0)),
            ("10 rotated elements", |a| a.rotary_dim = Some(10)),
            ("logits scale = NaN", |a| a.logits_scale = f64::NAN),
        ];
        for (word, spoil) in faults {
            let mut architecture = Architecture::LLAMA;
            spoil(&mut architecture);
            let message = architecture.validate(3, 8).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
        Architecture::LLAMA.validate(3, 8).unwrap();
    }

    #[test]
    fn some_layers_of_a_model_keep_their_kinds() {
        let layers = vec![LayerKind::WINDOW, LayerKind::FULL, LayerKind::NO_ROTARY];
        let all = Architecture { layers, sliding_window: Some(4), ..Architecture::LLAMA };
        assert_eq!(all.with_layers(&[0, 2]).layers, [LayerKind::WINDOW, LayerKind::NO_ROTARY]);
        assert!(Architecture::LLAMA.with_layers(&[1]).layers.is_empty());
    }
}
