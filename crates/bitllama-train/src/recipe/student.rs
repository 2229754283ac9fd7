//! `[student]`: the model that is trained.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `[student]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// Start weights: a Hugging Face directory, a GGUF file or a hub id; the teacher's if absent.
    pub model: Option<String>,
    /// Start from random weights in the shape of this `config.json` instead.
    pub config: Option<PathBuf>,
    /// `tokenizer.json` of a student made from a `config`; if absent it is the teacher's, and in `pretrain` one is
    /// trained on the text (byte-level BPE, as large as the config's vocabulary).
    pub tokenizer: Option<PathBuf>,
    /// Put an RMSNorm in front of `o_proj` and of `down_proj` (SubLN, as BitDistill does,
    /// <https://arxiv.org/abs/2510.13998>) where the start weights have none. That changes what they compute, see
    /// `sub_norm_init`; training has to make up for it.
    #[serde(default)]
    pub sub_norm: bool,
    /// The weights of norms that are put in: by default `calibrated`, and `ones` in a student of random weights.
    pub sub_norm_init: Option<SubNormInit>,
}

/// What the weights of inserted norms start from. No weight leaves a model as it was: a norm takes away the size of each
/// token's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubNormInit {
    /// 1, as BitDistill. What goes into the matrix is then of size 1 a number, in most models many times what it was:
    /// `models/nano` in int8 falls from a perplexity of 18.9 to 1202.
    Ones,
    /// Those that change the matrix's inputs least, in the mean square over `quant.calibration_tokens` of the training
    /// text ([`crate::sub_norm`]): `models/nano` falls to 22.4.
    Calibrated,
}
