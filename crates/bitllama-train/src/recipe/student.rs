//! `[student]`: the model that is trained, and what it starts from.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use bitllama_core::ModelConfig;
use serde::{Deserialize, Serialize};

/// `[student]`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Student {
    /// Start weights: a Hugging Face directory, a GGUF file, a hub id, a checkpoint, an artifact, or the folder of a run, which is
    /// its best student; the teacher's if absent. Those of a student are its rounded ones.
    pub model: Option<String>,
    /// Start from the latent weights of a checkpoint, as is right to train it further with the same bit plan.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latent_weights: bool,
    /// Start from random weights in the shape of this `config.json` instead.
    pub config: Option<PathBuf>,
    /// `tokenizer.json` of a student made from a `config`, taken with the chat template and special tokens that lie beside
    /// it; if absent it is the teacher's, and in `pretrain` one is trained on the text (byte-level BPE, as large as the
    /// config's vocabulary).
    pub tokenizer: Option<PathBuf>,
    /// Blocks of the start weights that the student has: their numbers, counted from 0 and rising, or how many, spread evenly
    /// from the first to the last; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// Put an RMSNorm in front of `o_proj` and of `down_proj` (SubLN, as BitDistill does,
    /// <https://arxiv.org/abs/2510.13998>) where the start weights have none. That changes what they compute, see
    /// `sub_norm_init`; training has to make up for it.
    #[serde(default)]
    pub sub_norm: bool,
    /// The weights of norms that are put in: by default `calibrated`, and `ones` in a student of random weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_norm_init: Option<SubNormInit>,
}

/// What the weights of inserted norms start from. No weight leaves a model as it was: a norm takes away the size of each
/// token's vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubNormInit {
    /// 1, as BitDistill. What goes into the matrix is then of size 1 a number, in most models many times what it was:
    /// `models/nano` in int8 falls from a perplexity of 18.9 to 1249.
    Ones,
    /// Those that change the matrix's inputs least, in the mean square over `quant.calibration_tokens` of the training
    /// text ([`crate::sub_norm`]): `models/nano` falls to 22.7.
    Calibrated,
}

/// A choice of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a number of blocks, or a list of their numbers")]
pub enum Layers {
    /// So many, spread evenly.
    Count(usize),
    /// These.
    These(Vec<usize>),
}

impl Layers {
    /// The chosen blocks of `count`.
    ///
    /// # Errors
    /// If there are not so many, or their numbers do not rise.
    pub fn of(&self, count: usize) -> Result<Vec<usize>> {
        let chosen = match self {
            // Not listed first: there may be any number of them.
            Layers::Count(n) if *n > count => Vec::new(),
            Layers::Count(1) => vec![0],
            Layers::Count(n) => (0..*n).map(|i| (i * count.saturating_sub(1) + (n - 1) / 2) / (n - 1)).collect(),
            Layers::These(layers) => layers.clone(),
        };
        let rising = chosen.windows(2).all(|pair| pair[0] < pair[1]);
        ensure!(
            rising && chosen.last().is_some_and(|last| *last < count),
            "`student.layers` must choose at least one of the {count} blocks of the start weights, in rising order, counted from 0"
        );
        Ok(chosen)
    }
}

impl Student {
    /// The student's shape, whose start weights have that of `source`, and the blocks of the source that its own start from.
    ///
    /// # Errors
    /// Those of [`Layers::of`].
    pub fn shape(&self, source: &ModelConfig) -> Result<(ModelConfig, Vec<usize>)> {
        let layers = match &self.layers {
            Some(layers) => layers.of(source.num_hidden_layers)?,
            None => (0..source.num_hidden_layers).collect(),
        };
        Ok((source.with_layers(&layers), layers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_chosen_by_number_or_spread_evenly() {
        let of = |layers: Layers, count| layers.of(count).map_err(|e| e.to_string());
        assert_eq!(of(Layers::Count(4), 12).unwrap(), [0, 4, 7, 11]);
        assert_eq!(of(Layers::Count(2), 30).unwrap(), [0, 29]);
        assert_eq!(of(Layers::Count(1), 3).unwrap(), [0]);
        assert_eq!(of(Layers::Count(3), 3).unwrap(), [0, 1, 2]);
        assert_eq!(of(Layers::These(vec![1, 2]), 3).unwrap(), [1, 2]);
        for wrong in [
            Layers::Count(0),
            Layers::Count(4),
            Layers::Count(usize::MAX),
            Layers::These(vec![2, 1]),
            Layers::These(vec![3]),
        ] {
            assert!(of(wrong, 3).unwrap_err().contains("one of the 3 blocks"));
        }
    }
}
