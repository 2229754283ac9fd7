//! The name and shape of every weight of a config.
//!
//! Names are Hugging Face's without the leading `model.`; they are also the parameter paths of the Burn modules and
//! what the globs of a bit plan match: `layers.3.mlp.gate_proj.weight`. Matrices are `[out_features, in_features]`.

use crate::{ModelConfig, QkNorm};

/// The embedding, `[vocab_size, hidden_size]`; the head too where the two are tied.
pub const EMBEDDING: &str = "embed_tokens.weight";
/// The final norm, `[hidden_size]`.
pub const FINAL_NORM: &str = "norm.weight";
/// The head, `[vocab_size, hidden_size]`; absent where it is tied to the embedding.
pub const HEAD: &str = "lm_head.weight";

/// The linear layers of a block, below `layers.N.`.
pub const BLOCK_MATRICES: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];

/// The norms of a block with [`ModelConfig::sub_norm`] in front of `o_proj`, `[num_attention_heads * head_dim]`, and of
/// `down_proj`, `[intermediate_size]`, below `layers.N.`; named as in Hugging Face's `BitNetForCausalLM`.
pub const BLOCK_SUB_NORMS: [&str; 2] = ["self_attn.attn_sub_norm", "mlp.ffn_sub_norm"];

/// The norms of queries and of keys, below `layers.N.`, where a model has them.
pub const QK_NORMS: [&str; 2] = ["self_attn.q_norm", "self_attn.k_norm"];

/// What a weight is for: decides whether a `*` in a bit plan may reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The token embedding (and the head, where tied).
    Embedding,
    /// A linear layer of a block.
    Linear,
    /// An RMSNorm weight, as the factor that it multiplies by.
    Norm,
    /// A bias of a linear layer.
    Bias,
    /// An untied head.
    Head,
}

impl Kind {
    /// True for a vector, which no bit plan reaches: a norm or a bias.
    pub fn is_vector(self) -> bool {
        matches!(self, Kind::Norm | Kind::Bias)
    }

    /// Number that a random or inserted vector of the kind starts from: 1 for a norm, 0 for a bias.
    pub fn neutral(self) -> f32 {
        if self == Kind::Norm { 1.0 } else { 0.0 }
    }
}

/// One weight of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name, such as `layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// `[out_features, in_features]`, or the width of a norm.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: Kind,
}

impl WeightSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Never: every weight has elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// All weights of a model, in the order of computation.
pub fn specs(config: &ModelConfig) -> Vec<WeightSpec> {
    let spec = |name: &str, shape: &[usize], kind| WeightSpec { name: name.into(), shape: shape.to_vec(), kind };
    let mut all = vec![spec(EMBEDDING, &[config.vocab_size, config.hidden_size], Kind::Embedding)];
    let block = block_specs(config);
    for layer in 0..config.num_hidden_layers {
        let of_layer = |spec: &WeightSpec| WeightSpec { name: format!("layers.{layer}.{}", spec.name), ..spec.clone() };
        all.extend(block.iter().map(of_layer));
    }
    all.push(spec(FINAL_NORM, &[config.hidden_size], Kind::Norm));
    if !config.tie_word_embeddings {
        all.push(spec(HEAD, &[config.vocab_size, config.hidden_size], Kind::Head));
    }
    all
}

/// The weights of a block, by their names below `layers.N.`: norms, then matrices, each with its bias behind it.
pub fn block_specs(config: &ModelConfig) -> Vec<WeightSpec> {
    let hidden = config.hidden_size;
    let spec = |name: &str, shape: &[usize], kind| WeightSpec { name: name.into(), shape: shape.to_vec(), kind };
    let norm = |name: &str, width: usize| spec(&format!("{name}.weight"), &[width], Kind::Norm);
    let mut all: Vec<WeightSpec> = config.arch.norms.names().iter().map(|name| norm(name, hidden)).collect();
    if let Some(over) = config.arch.qk_norm {
        let widths = match over {
            QkNorm::Head => [config.head_dim; 2],
            QkNorm::Token => [config.q_size(), config.kv_size()],
        };
        all.extend(QK_NORMS.into_iter().zip(widths).map(|(name, width)| norm(name, width)));
    }
    if config.sub_norm {
        let widths = [config.q_size(), config.intermediate_size];
        all.extend(BLOCK_SUB_NORMS.into_iter().zip(widths).map(|(name, width)| norm(name, width)));
    }
    for matrix in BLOCK_MATRICES {
        let [rows, columns] = match matrix {
            "self_attn.q_proj" => [config.q_size(), hidden],
            "self_attn.k_proj" | "self_attn.v_proj" => [config.kv_size(), hidden],
            "self_attn.o_proj" => [hidden, config.q_size()],
            "mlp.down_proj" => [hidden, config.intermediate_size],
            _ => [config.intermediate_size, hidden],
        };
        all.push(spec(&format!("{matrix}.weight"), &[rows, columns], Kind::Linear));
        if config.arch.has_bias(matrix) {
            all.push(spec(&format!("{matrix}.bias"), &[rows], Kind::Bias));
        }
    }
    all
}

/// Number of parameters; a tied head counts once.
pub fn parameter_count(config: &ModelConfig) -> usize {
    specs(config).iter().map(WeightSpec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;

    #[test]
    fn a_tied_model_has_no_head_of_its_own() {
        let mut config = tiny();
        assert!(!specs(&config).iter().any(|w| w.name == HEAD));
        let tied = parameter_count(&config);
        config.tie_word_embeddings = false;
        assert_eq!(parameter_count(&config) - tied, 32 * 16);
    }

    #[test]
    fn sub_norms_come_before_the_matrices_of_their_block() {
        let plain = specs(&tiny());
        let config = ModelConfig { sub_norm: true, ..tiny() };
        let all = specs(&config);
        let added: Vec<_> = all.iter().filter(|spec| !plain.contains(spec)).collect();
        assert_eq!(all.len(), plain.len() + 2 * config.num_hidden_layers);
        assert_eq!(added[0].name, "layers.0.self_attn.attn_sub_norm.weight");
        assert_eq!((&added[1].name[..], &added[1].shape[..]), ("layers.0.mlp.ffn_sub_norm.weight", &[24][..]));
        assert_eq!(all.iter().position(|spec| spec == added[1]), Some(4));
    }

    #[test]
    fn smollm2_has_134_515_008_parameters() {
        let config = ModelConfig {
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            ..tiny()
        };
        assert_eq!(parameter_count(&config), 134_515_008);
    }
}
