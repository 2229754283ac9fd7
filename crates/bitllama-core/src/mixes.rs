//! Mixes of GGUF types, as llama.cpp makes them (`llama_tensor_get_type` in `llama-quant.cpp`): which matrix gets more bits than the
//! others. llama.cpp's cases for mixtures of experts, for Falcon and for models of 70 billion parameters are left out.

use crate::ModelConfig;
use crate::names::gguf_place;
use crate::weights::WeightSpec;

/// The choice of a mix for one matrix: the name of a target, or `None` for the target of most.
pub type Mix = fn(&Tensor<'_>) -> Option<&'static str>;

/// A matrix of a GGUF file.
#[derive(Debug)]
pub struct Tensor<'a> {
    /// Its name without block and ending: `attn_v`.
    pub part: &'a str,
    /// Its block.
    pub layer: usize,
    /// Blocks of the model.
    pub layers: usize,
    /// Query heads per key head.
    pub heads_per_key: usize,
}

impl Tensor<'_> {
    /// Whether it is in the first or last eighth of the blocks, or every third one between (`use_more_bits`).
    fn gets_more_bits(&self) -> bool {
        let (layer, eighth) = (self.layer, self.layers / 8);
        layer < eighth || layer >= 7 * self.layers / 8 || (layer - eighth) % 3 == 2
    }
}

/// The target that a mix chooses for a weight.
pub(crate) fn choice(mix: Mix, config: &ModelConfig, weight: &WeightSpec) -> Option<&'static str> {
    let place = gguf_place(config, weight)?;
    let name = place.tensor.strip_suffix(".weight").unwrap_or(&place.tensor);
    let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (layer.parse().ok()?, part),
        None => (0, name),
    };
    // The head; for a tied model the embedding is one.
    if part == "output" || part == "token_embd" && config.tie_word_embeddings {
        return Some("gguf:q6_k");
    }
    let heads_per_key = config.num_attention_heads / config.num_key_value_heads.max(1);
    mix(&Tensor { part, layer, layers: config.num_hidden_layers, heads_per_key })
}

/// `Q2_K_S`.
pub(crate) fn q2_k_s(tensor: &Tensor<'_>) -> Option<&'static str> {
    match tensor.part {
        "attn_v" if tensor.heads_per_key >= 4 => Some("gguf:q4_k"),
        "ffn_down" if tensor.layer < tensor.layers / 8 => Some("gguf:q4_k"),
        _ => None,
    }
}

/// `Q3_K_S`.
pub(crate) fn q3_k_s(_: &Tensor<'_>) -> Option<&'static str> {
    None
}

/// `Q3_K_M`.
pub(crate) fn q3_k_m(tensor: &Tensor<'_>) -> Option<&'static str> {
    match tensor.part {
        "attn_v" if tensor.layer < 2 => Some("gguf:q5_k"),
        "ffn_down" if tensor.layer < tensor.layers / 16 => Some("gguf:q5_k"),
        "attn_v" | "attn_qkv" | "ffn_down" | "attn_output" => Some("gguf:q4_k"),
        _ => None,
    }
}

/// `Q3_K_L`.
pub(crate) fn q3_k_l(tensor: &Tensor<'_>) -> Option<&'static str> {
    match tensor.part {
        "attn_v" | "ffn_down" | "attn_output" => Some("gguf:q5_k"),
        "attn_qkv" => Some("gguf:q4_k"),
        _ => None,
    }
}

/// `Q4_K_S`.
pub(crate) fn q4_k_s(tensor: &Tensor<'_>) -> Option<&'static str> {
    match tensor.part {
        "attn_v" if tensor.layer < 4 => Some("gguf:q5_k"),
        "ffn_down" if tensor.layer < tensor.layers / 8 => Some("gguf:q5_k"),
        _ => None,
    }
}

/// `Q4_K_M`.
pub(crate) fn q4_k_m(tensor: &Tensor<'_>) -> Option<&'static str> {
    match tensor.part {
        "attn_v" | "ffn_down" if tensor.gets_more_bits() => Some("gguf:q6_k"),
        "attn_qkv" => Some("gguf:q5_k"),
        _ => None,
    }
}

/// `Q5_K_S`.
pub(crate) fn q5_k_s(_: &Tensor<'_>) -> Option<&'static str> {
    None
}

/// `Q5_K_M`.
pub(crate) fn q5_k_m(tensor: &Tensor<'_>) -> Option<&'static str> {
    match tensor.part {
        "attn_v" | "ffn_down" if tensor.gets_more_bits() => Some("gguf:q6_k"),
        "attn_qkv" => Some("gguf:q6_k"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::weights::specs;
    use crate::{Target, families};

    /// Targets of the matrices of a model, by what llama.cpp's own files have: `part layers...` of each that is not `most`.
    fn differing(mix: &str, config: &ModelConfig) -> Vec<(String, &'static str)> {
        let mix = Target::named(mix).unwrap();
        let most = mix.quantizers[0];
        let chosen = specs(config).into_iter().filter(|spec| !spec.kind.is_vector()).map(|spec| {
            let target = mix.chosen(config, &spec);
            (spec.name.trim_end_matches(".weight").to_string(), target)
        });
        chosen.filter(|(_, target)| target.quantizers[0] != most).map(|(name, target)| (name, target.name)).collect()
    }

    #[test]
    fn layers_with_more_bits_are_those_of_llama_cpp() {
        // 30 blocks, as SmolLM2 has: those of `ffn_down` that llama.cpp's Q4_K_M gives Q6_K.
        let config = ModelConfig { num_hidden_layers: 30, tie_word_embeddings: true, ..tiny() };
        let expected = [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29];
        let found = differing("gguf:q4_k_m", &config);
        assert_eq!(found[0], ("embed_tokens".into(), "gguf:q6_k"));
        let of = |part: &str| {
            let of_part = found.iter().filter(|(name, target)| name.ends_with(part) && *target == "gguf:q6_k");
            of_part.map(|(name, _)| name.split('.').nth(1).unwrap().parse::<usize>().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!((of("down_proj"), of("v_proj")), (expected.to_vec(), expected.to_vec()));
        assert_eq!(found.len(), 1 + 2 * expected.len());
    }

    #[test]
    fn every_mix_names_targets_and_gives_heads_six_bits() {
        let config = ModelConfig { num_hidden_layers: 4, tie_word_embeddings: false, ..tiny() };
        for target in crate::targets::ALL.iter().filter(|target| target.mix.is_some()) {
            let found = differing(target.name, &config);
            assert!(found.contains(&("lm_head".into(), "gguf:q6_k")), "{} {found:?}", target.name);
            assert!(!found.iter().any(|(name, _)| name == "embed_tokens"), "{}", target.name);
        }
        let wide = differing("gguf:q3_k_m", &config);
        let of = |name: &str| wide.iter().find(|(found, _)| found == name).map(|(_, target)| *target);
        assert_eq!(of("layers.1.self_attn.v_proj"), Some("gguf:q5_k"));
        assert_eq!(of("layers.2.self_attn.v_proj"), Some("gguf:q4_k"));
        assert_eq!((of("layers.2.mlp.down_proj"), of("layers.2.mlp.up_proj")), (Some("gguf:q4_k"), None));
    }

    #[test]
    fn matrices_of_one_tensor_have_one_target() {
        let phi = families::of_model_type("phi3").unwrap();
        let mut config = ModelConfig { num_hidden_layers: 4, ..tiny() };
        config.arch = phi.arch();
        let found = differing("gguf:q4_k_m", &config);
        for part in ["q_proj", "k_proj", "v_proj"] {
            assert!(found.contains(&(format!("layers.1.self_attn.{part}"), "gguf:q5_k")), "{found:?}");
        }
    }
}
