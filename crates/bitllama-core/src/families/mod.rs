//! Families of models: for each the choices of its architecture, and how `config.json` and GGUF metadata say them.
//!
//! A family is a table, [`Family`], in a file of its own. Readers and writers know the sizes that all families share, and ask the
//! table for the rest; nothing else in the workspace knows a family by name. `CONTRIBUTING.md` explains how to add one.

mod bitnet;
mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod keys;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Architecture, ModelConfig};

pub use keys::{Extra, Keys, MIXTURES, NEUTRAL, Neutral, refuse_mixture};

/// Every family.
pub static ALL: [&Family; 13] = [
    &llama::LLAMA,
    &mistral::MISTRAL,
    &mistral::MINISTRAL,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &smollm3::SMOLLM3,
    &olmo2::OLMO2,
    &granite::GRANITE,
    &bitnet::BITNET,
];

/// A family of models: its choices, and how files say them.
pub struct Family {
    /// `model_type` in a `config.json`.
    pub model_type: &'static str,
    /// Class in `transformers`, the only entry of `architectures`.
    pub class: &'static str,
    /// The family in GGUF files; `None` where they have another family's name or none.
    pub gguf: Option<GgufFamily>,
    /// Choices that all its models share, or have unless a file says otherwise, but for [`Architecture::family`].
    pub choices: fn() -> Architecture,
    /// Values of keys that a `config.json` leaves out.
    pub absent: Absent,
    /// Difference between a norm's factor and its weight in Hugging Face files: 1 where the model multiplies by `1 + weight`. GGUF
    /// files, and everything here, have the factor.
    pub norm_offset: f32,
    /// Whether Hugging Face and GGUF files have `q_proj`, `k_proj` and `v_proj` as rows of one matrix, and `gate_proj` and
    /// `up_proj` of another.
    pub fused: bool,
    /// Whether `partial_rotary_factor` is a share of each head that is rotated.
    pub partial_rotary: bool,
    /// Reads the family's own keys of a `config.json` into a config that has the common ones and [`Family::arch`].
    ///
    /// # Errors
    /// The key, its value and what it must be.
    pub read: fn(&mut ModelConfig, &dyn Keys) -> Result<(), String>,
    /// As [`Family::read`], for GGUF metadata; keys have no architecture in front.
    ///
    /// # Errors
    /// As [`Family::read`].
    pub read_gguf: fn(&mut ModelConfig, &dyn Keys) -> Result<(), String>,
    /// The family's own keys of a `config.json`.
    pub write: fn(&ModelConfig) -> Vec<(&'static str, Extra)>,
}

impl Family {
    /// The choices of its models, unless a file says otherwise.
    pub fn arch(&'static self) -> Architecture {
        Architecture { family: FamilyName(self), ..(self.choices)() }
    }
}

/// A family in GGUF files.
#[derive(Debug, Clone, Copy)]
pub struct GgufFamily {
    /// `general.architecture`, and what its metadata keys begin with.
    pub architecture: &'static str,
    /// Whether llama.cpp rotates neighbouring rows of a head together (`LLAMA_ROPE_TYPE_NORM`), so that files have the rows of
    /// `q_proj` and `k_proj` in another order than Hugging Face's.
    pub paired_rows: bool,
}

/// Values of keys that a `config.json` leaves out: the defaults of the class in `transformers`.
pub struct Absent {
    /// `num_key_value_heads`; as many as `num_attention_heads` if `None`.
    pub num_key_value_heads: Option<usize>,
    /// `head_dim`; `hidden_size / num_attention_heads` if `None`.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// `rms_norm_eps`.
    pub rms_norm_eps: f64,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// `tie_word_embeddings`.
    pub tie_word_embeddings: bool,
}

impl Absent {
    const LLAMA: Absent = Absent {
        num_key_value_heads: None,
        head_dim: None,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-6,
        rope_theta: 1e4,
        tie_word_embeddings: false,
    };
}

/// The family of a `model_type`.
pub fn of_model_type(name: &str) -> Option<&'static Family> {
    ALL.into_iter().find(|family| family.model_type == name)
}

/// The family of a GGUF's `general.architecture`.
pub fn of_gguf(architecture: &str) -> Option<&'static Family> {
    ALL.into_iter().find(|family| family.gguf.is_some_and(|gguf| gguf.architecture == architecture))
}

/// A family by its name, as configs hold it.
#[derive(Clone, Copy)]
pub struct FamilyName(&'static Family);

impl FamilyName {
    /// Llama.
    pub const LLAMA: FamilyName = FamilyName(&llama::LLAMA);
    /// Qwen 2, which is a Llama with biases of queries, keys and values.
    pub const QWEN2: FamilyName = FamilyName(&qwen2::QWEN2);
    /// BitNet, which is a Llama with sub-norms.
    pub const BITNET: FamilyName = FamilyName(&bitnet::BITNET);

    /// The family.
    pub fn family(self) -> &'static Family {
        self.0
    }
}

impl From<&'static Family> for FamilyName {
    fn from(family: &'static Family) -> Self {
        Self(family)
    }
}

impl PartialEq for FamilyName {
    fn eq(&self, other: &Self) -> bool {
        self.0.model_type == other.0.model_type
    }
}

impl fmt::Debug for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.model_type)
    }
}

impl fmt::Display for FamilyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.model_type)
    }
}

impl Serialize for FamilyName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.model_type)
    }
}

impl<'de> Deserialize<'de> for FamilyName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let unknown = || serde::de::Error::custom(format!("unknown family `{}`", crate::excerpt(&name)));
        of_model_type(&name).map(Self).ok_or_else(unknown)
    }
}

/// Names of all families, for messages.
pub fn model_types() -> String {
    ALL.map(|family| family.model_type).join(", ")
}

/// Names of all GGUF architectures, for messages.
pub fn gguf_architectures() -> String {
    ALL.iter().filter_map(|family| Some(family.gguf?.architecture)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_and_each_is_of_one_family() {
        for family in ALL {
            assert!(std::ptr::eq(of_model_type(family.model_type).unwrap(), family));
            if let Some(gguf) = family.gguf {
                assert!(std::ptr::eq(of_gguf(gguf.architecture).unwrap(), family), "{}", gguf.architecture);
            }
            assert_eq!(family.arch().family, FamilyName::from(family), "{}", family.model_type);
        }
        assert!(of_model_type("mixtral").is_none());
    }
}
