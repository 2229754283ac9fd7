//! The sizes and constants of a decoder, in the field names of Hugging Face's `config.json`.

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;
use crate::rope::{Rope, RopeScaling};
use crate::{Error, LayerKind};

/// Sizes and constants of a decoder with RMSNorm, rotary embedding, grouped-query attention and a gated feed-forward layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between `gate_proj` / `up_proj` and `down_proj`.
    pub intermediate_size: usize,
    /// Number of decoder blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of one head; even. Often `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Scaling of the rotary frequencies, if any.
    pub rope_scaling: Option<RopeScaling>,
    /// Whether the head shares the weight of the embedding.
    pub tie_word_embeddings: bool,
    /// Whether each block has an RMSNorm in front of `o_proj` and one in front of `down_proj`: SubLN (Wang et al. 2022,
    /// <https://arxiv.org/abs/2210.06423>), as BitNet and BitDistill (<https://arxiv.org/abs/2510.13998>) have it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sub_norm: bool,
    /// Choices in which the model differs from a Llama.
    #[serde(default, skip_serializing_if = "Architecture::is_llama")]
    pub arch: Architecture,
    /// Token put in front of a text, if the model has one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a text. Documents to train on end with the first.
    pub eos_token_ids: Vec<u32>,
    /// Tokens that end a generation beside those, such as the end of a turn in a chat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub end_token_ids: Vec<u32>,
}

/// No dimension of a published model comes near; larger values are damage, not models.
const MAX_DIMENSION: usize = 1 << 24;
/// A block is a dozen names to keep, before the first weight is looked for.
const MAX_LAYERS: usize = 1 << 12;
/// No published model comes near; its bytes, times all that a training step keeps of each, still fit into 64 bits.
const MAX_PARAMETERS: u128 = 1 << 44;

impl ModelConfig {
    /// Checks that the numbers can describe a model, so that later arithmetic on them neither overflows nor divides
    /// by zero.
    ///
    /// # Errors
    /// [`Error::Config`] with the field, its value and what it must be.
    pub fn validate(&self) -> Result<(), Error> {
        self.validate_sizes()?;
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return Err(Error::Config(format!("rms_norm_eps = {} is not a small positive number", self.rms_norm_eps)));
        }
        self.arch.validate(self.num_hidden_layers, self.head_dim)?;
        self.rope().validate(self.rotary_dim())?;
        for id in self.bos_token_id.into_iter().chain(self.end_tokens()) {
            if id as usize >= self.vocab_size {
                return Err(Error::Config(format!(
                    "special token {id} is outside the vocabulary of {} tokens",
                    self.vocab_size
                )));
            }
        }
        Ok(())
    }

    /// The part of [`ModelConfig::validate`] that concerns sizes alone.
    ///
    /// # Errors
    /// As [`ModelConfig::validate`].
    pub fn validate_sizes(&self) -> Result<(), Error> {
        let dimensions = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        let limited = dimensions.map(|(name, value)| (name, value, MAX_DIMENSION));
        for (name, value, limit) in
            limited.into_iter().chain([("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)])
        {
            if value == 0 || value > limit {
                return Err(Error::Config(format!("{name} = {value} is not between 1 and {limit}")));
            }
        }
        if self.q_size() > MAX_DIMENSION {
            let (heads, width) = (self.num_attention_heads, self.head_dim);
            return Err(Error::Config(format!(
                "num_attention_heads = {heads} times head_dim = {width} is more than {MAX_DIMENSION}"
            )));
        }
        let parameters = self.parameters_at_most();
        if parameters > MAX_PARAMETERS {
            return Err(Error::Config(format!("a model of {parameters} parameters is larger than any there is")));
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(Error::Config(format!(
                "num_attention_heads = {} is no multiple of num_key_value_heads = {}",
                self.num_attention_heads, self.num_key_value_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(Error::Config(format!("head_dim = {} is odd, rotary embedding needs pairs", self.head_dim)));
        }
        Ok(())
    }

    /// Elements of the embedding, a head, and all blocks' matrices.
    fn parameters_at_most(&self) -> u128 {
        let of = |n: usize| n as u128;
        let block = 2 * of(self.q_size()) + 2 * of(self.kv_size()) + 3 * of(self.intermediate_size);
        of(self.hidden_size) * (2 * of(self.vocab_size) + of(self.num_hidden_layers) * block)
    }

    /// All tokens that end a generation.
    pub fn end_tokens(&self) -> impl Iterator<Item = u32> {
        self.eos_token_ids.iter().chain(&self.end_token_ids).copied()
    }

    /// Makes `token` end a generation, if it does not yet.
    pub fn add_end(&mut self, token: u32) {
        if !self.end_tokens().any(|known| known == token) {
            self.end_token_ids.push(token);
        }
    }

    /// Output width of `q_proj`: all query heads side by side.
    pub fn q_size(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Output width of `k_proj` and of `v_proj`.
    pub fn kv_size(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Elements of a head that are rotated, the first ones.
    pub fn rotary_dim(&self) -> usize {
        self.arch.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Rotary embedding of the layers without a window.
    pub fn rope(&self) -> Rope {
        Rope { theta: self.rope_theta, scaling: self.rope_scaling.clone() }
    }

    /// Rotary embedding of layers of a kind; `None` for those without.
    pub fn rope_of(&self, kind: LayerKind) -> Option<Rope> {
        let rope = || self.arch.local_rope.clone().filter(|_| kind.window).unwrap_or_else(|| self.rope());
        kind.rotary.then(rope)
    }

    /// Positions that a token of a layer sees, its own included; `None` for all of them. A window as long as the context is none.
    pub fn window_of(&self, kind: LayerKind) -> Option<usize> {
        self.arch.sliding_window.filter(|window| kind.window && *window < self.max_position_embeddings)
    }

    /// Factor of the products of queries and keys.
    pub fn attention_scale(&self) -> f32 {
        match self.arch.attention_scale {
            Some(scale) => scale as f32,
            None => 1.0 / (self.head_dim as f32).sqrt(),
        }
    }

    /// Longest sequence for which the rotary embedding is the one of short sequences.
    pub fn short_context(&self) -> usize {
        match &self.rope_scaling {
            Some(RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings, .. })
                if short_factor != long_factor =>
            {
                self.max_position_embeddings.min(*original_max_position_embeddings)
            }
            _ => self.max_position_embeddings,
        }
    }

    /// The config of a model that has the chosen layers only.
    pub fn with_layers(&self, chosen: &[usize]) -> Self {
        Self { num_hidden_layers: chosen.len(), arch: self.arch.with_layers(chosen), ..self.clone() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            vocab_size: 32,
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 4,
            max_position_embeddings: 64,
            rms_norm_eps: 1e-5,
            rope_theta: 1e4,
            rope_scaling: None,
            tie_word_embeddings: true,
            sub_norm: false,
            arch: Architecture::LLAMA,
            bos_token_id: Some(1),
            eos_token_ids: vec![2],
            end_token_ids: vec![],
        }
    }

    #[test]
    fn a_sound_config_passes_and_each_fault_is_named() {
        tiny().validate().unwrap();
        type Spoil = fn(&mut ModelConfig);
        let faults: [(&str, Spoil); 10] = [
            ("hidden_size", |c| c.hidden_size = 0),
            ("vocab_size", |c| c.vocab_size = usize::MAX),
            ("num_key_value_heads", |c| c.num_key_value_heads = 3),
            ("head_dim", |c| c.head_dim = 5),
            ("rope_theta", |c| c.rope_theta = f64::NAN),
            ("special token 99", |c| c.eos_token_ids = vec![99]),
            ("num_hidden_layers = 5000", |c| c.num_hidden_layers = 5000),
            ("num_attention_heads = 65536 times head_dim = 65536", |c| {
                (c.num_attention_heads, c.num_key_value_heads, c.head_dim) = (1 << 16, 1, 1 << 16);
            }),
            ("a model of 562953979953152 parameters", |c| (c.vocab_size, c.hidden_size) = (1 << 24, 1 << 24)),
            ("special token 98", |c| c.end_token_ids = vec![98]),
        ];
        for (word, spoil) in faults {
            let mut config = tiny();
            spoil(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
