//! Exports for APL: the folder of the older tools ([`Layout::V2`]) with two files more, `variables.apl`, from which a workspace
//! starts, and `decoder.apl`, which computes logits in GNU APL 1.8.
//!
//! The first lines of the variables are those that the older tools' `manifest_to_apl.py` makes of a manifest. Behind them
//! stands what that leaves out and a model cannot be computed without.

use std::path::Path;

use bitllama_core::weights::WeightSpec;
use bitllama_core::{ActivationPlan, ModelConfig, RopeScaling};
use serde_json::Value;

use crate::artifact::{self, Layout};
use crate::{Result, StoredWeight, TokenizerFiles, atomic};

/// One assignment a line: the architecture, and for every weight its shape and the files that hold it.
pub const VARIABLES_FILE: &str = "variables.apl";
/// Functions that read those files and compute logits.
pub const DECODER_FILE: &str = "decoder.apl";

const DECODER: &str = include_str!("decoder.apl");

/// Writes a folder, whole or not at all, as [`artifact::write_trained`] does in the layout of the older tools.
///
/// # Errors
/// As there: a model that computes other things than a Llama and a scheme that the older tools lack among them.
pub fn write<'a>(
    folder: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    activations: &ActivationPlan,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    provenance: Value,
) -> Result<()> {
    let more = |temporary: &Path, manifest: &Value| {
        atomic::write_bytes(&temporary.join(VARIABLES_FILE), variables(config, manifest).as_bytes())?;
        atomic::write_bytes(&temporary.join(DECODER_FILE), DECODER.as_bytes())
    };
    artifact::write_with(folder, config, weights, activations, tokenizer, Layout::V2, provenance, more)
}

/// The text of [`VARIABLES_FILE`] for a manifest that was written in the layout of the older tools.
fn variables(config: &ModelConfig, manifest: &Value) -> String {
    let (architecture, attention) = (&manifest["architecture"], &manifest["architecture"]["attention"]);
    let mut lines = vec![
        format!("MANIFEST_FILE ← {}", quoted(artifact::MANIFEST_FILE)),
        format!("MODEL_FAMILY ← {}", quoted(&config.arch.family.to_string())),
        String::new(),
        "⍝ === Architecture Metadata ===".into(),
        format!("HIDDEN_SIZE ← {}", config.hidden_size),
        format!("INTERMEDIATE_SIZE ← {}", config.intermediate_size),
        format!("NUM_LAYERS ← {}", config.num_hidden_layers),
        format!("VOCAB_SIZE ← {}", config.vocab_size),
        format!("CONTEXT_LENGTH ← {}", config.max_position_embeddings),
        format!("NUM_HEADS ← {}", config.num_attention_heads),
        format!("KV_GROUPS ← {}", config.num_key_value_heads),
        format!("HEAD_DIM ← {}", config.head_dim),
        format!("ATTENTION_VARIANT ← {}", text(&attention["variant"])),
        format!("ACTIVATION ← {}", text(&architecture["activation"])),
        format!("NORM_TYPE ← {}", text(&architecture["norm"])),
        format!("ROPE_BASE ← {}", number(config.rope_theta)),
        format!("ROPE_SCALE ← {}", number(architecture["rope"]["scale"].as_f64().unwrap_or(1.0))),
        String::new(),
        "⍝ === Weight Names ===".into(),
    ];
    let entries: Vec<(&String, &Value)> = manifest["weights"].as_object().into_iter().flatten().collect();
    let mut names: Vec<String> = entries.iter().map(|(name, _)| quoted(name)).collect();
    names.sort_unstable();
    lines.extend([format!("WEIGHT_NAMES ← {}", names.join(" ")), String::new(), "⍝ === Per-Weight Paths ===".into()]);
    for (name, entry) in entries {
        let variable: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        for field in ["packed", "q", "q_scales", "q_zero_point", "scales_txt", "fp32"] {
            if entry[field].is_string() {
                lines.push(format!("{variable}_{field} ← {}", text(&entry[field])));
            }
        }
        if let [rows, columns] = entry["shape"].as_array().map_or(&[][..], Vec::as_slice) {
            lines.push(format!("{variable}_shape ← {rows} {columns}"));
        }
    }
    lines.extend([
        String::new(),
        "⍝ === What decoder.apl needs beside these: radians per position of each pair of a head ===".into(),
        format!("RMS_NORM_EPS ← {}", number(config.rms_norm_eps)),
    ]);
    let frequencies = |longest| config.rope().frequencies(config.rotary_dim(), longest);
    let list = |numbers: &[f32]| numbers.iter().map(number).collect::<Vec<_>>().join(" ");
    let short = frequencies(1);
    lines.push(format!("ROPE_FACTOR ← {}", number(short.factor)));
    lines.push(format!("ROPE_FREQUENCIES ← {}", list(&short.inverse)));
    if let Some(RopeScaling::LongRope { original_max_position_embeddings, .. }) = config.rope_scaling {
        lines.push(format!("ROPE_LONG_BEYOND ← {original_max_position_embeddings}"));
        lines.push(format!("ROPE_LONG_FREQUENCIES ← {}", list(&frequencies(usize::MAX).inverse)));
    }
    lines.join("\n") + "\n"
}

/// A text in APL.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn text(value: &Value) -> String {
    quoted(value.as_str().unwrap_or_default())
}

/// A number in APL, which has a minus of its own. Rust's `Debug` gives the shortest decimal that is the same number, as Python does.
fn number(value: impl std::fmt::Debug) -> String {
    format!("{value:?}").replace('-', "¯").replace('e', "E")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_those_of_apl() {
        assert_eq!(number(1e-5), "1E¯5");
        assert_eq!(number(10000.0), "10000.0");
        assert_eq!(number(-0.25f32), "¯0.25");
        assert_eq!(number(1e16), "1E16");
        assert_eq!(quoted("it's"), "'it''s'");
    }
}
