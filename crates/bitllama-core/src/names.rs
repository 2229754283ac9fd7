//! Places of weights in files: names of tensors in Hugging Face and GGUF files, and rows of tensors that hold several weights.

use crate::weights::{BLOCK_SUB_NORMS, EMBEDDING, FINAL_NORM, HEAD, QK_NORMS, WeightSpec};
use crate::{ModelConfig, NormPlaces};

/// A tensor of a file and the rows of it that are a weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Name of the tensor.
    pub tensor: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// First row of the weight; the weight's own shape says how many follow.
    pub first_row: usize,
}

impl Place {
    fn whole(tensor: String, spec: &WeightSpec) -> Self {
        Self { tensor, shape: spec.shape.clone(), first_row: 0 }
    }

    /// Numbers of the tensor in front of the weight.
    pub fn offset(&self) -> usize {
        self.first_row * self.shape[1..].iter().product::<usize>()
    }
}

/// The place of a weight in Hugging Face files, without the `model.` in front.
pub fn hf_place(config: &ModelConfig, spec: &WeightSpec) -> Place {
    fused(config, spec, ["self_attn.qkv_proj", "mlp.gate_up_proj"])
        .unwrap_or_else(|| Place::whole(spec.name.clone(), spec))
}

/// The place of a weight in GGUF files; `None` for a weight that they have no name for.
pub fn gguf_place(config: &ModelConfig, spec: &WeightSpec) -> Option<Place> {
    let name = match spec.name.as_str() {
        EMBEDDING => "token_embd.weight".into(),
        FINAL_NORM => "output_norm.weight".into(),
        HEAD => "output.weight".into(),
        _ => {
            let place = fused(config, spec, ["attn_qkv", "ffn_up"]);
            if let Some(place) = place {
                return Some(Place { tensor: in_block(&place.tensor)?, ..place });
            }
            let (layer, part) = spec.name.strip_prefix("layers.")?.split_once('.')?;
            let (part, suffix) = part.rsplit_once('.')?;
            format!("blk.{layer}.{}.{suffix}", gguf_part(config.arch.norms, part)?)
        }
    };
    Some(Place::whole(name, spec))
}

/// `layers.N.` as GGUF files have it.
fn in_block(name: &str) -> Option<String> {
    Some(format!("blk.{}", name.strip_prefix("layers.")?))
}

/// The name of a part of a block in GGUF files.
fn gguf_part(places: NormPlaces, part: &str) -> Option<&'static str> {
    let norms = places.names();
    let norms = [
        (norms.attention_in, "attn_norm"),
        (norms.attention_out, "post_attention_norm"),
        (norms.mlp_in, "ffn_norm"),
        (norms.mlp_out, "post_ffw_norm"),
    ];
    if let Some((_, name)) = norms.into_iter().find(|(norm, _)| *norm == Some(part)) {
        return Some(name);
    }
    let names = [
        (QK_NORMS[0], "attn_q_norm"),
        (QK_NORMS[1], "attn_k_norm"),
        (BLOCK_SUB_NORMS[0], "attn_sub_norm"),
        (BLOCK_SUB_NORMS[1], "ffn_sub_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    names.into_iter().find(|(known, _)| *known == part).map(|(_, name)| name)
}

/// The place of a weight that shares a tensor with others, if its family has such: queries, keys and values in the tensor
/// `attention`, gates and values of the feed-forward layer in `mlp`.
fn fused(config: &ModelConfig, spec: &WeightSpec, [attention, mlp]: [&str; 2]) -> Option<Place> {
    if !config.arch.family.family().fused {
        return None;
    }
    let (layer, part) = spec.name.strip_prefix("layers.")?.split_once('.')?;
    let (part, suffix) = part.rsplit_once('.')?;
    let (q, kv, intermediate) = (config.q_size(), config.kv_size(), config.intermediate_size);
    let (tensor, first_row, rows) = match part {
        "self_attn.q_proj" => (attention, 0, q + 2 * kv),
        "self_attn.k_proj" => (attention, q, q + 2 * kv),
        "self_attn.v_proj" => (attention, q + kv, q + 2 * kv),
        "mlp.gate_proj" => (mlp, 0, 2 * intermediate),
        "mlp.up_proj" => (mlp, intermediate, 2 * intermediate),
        _ => return None,
    };
    let shape = std::iter::once(rows).chain(spec.shape[1..].iter().copied()).collect();
    Some(Place { tensor: format!("layers.{layer}.{tensor}.{suffix}"), shape, first_row })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::tiny;
    use crate::families::of_model_type;
    use crate::weights::specs;

    fn places(config: &ModelConfig, name: &str) -> (Place, Place) {
        let spec = specs(config).into_iter().find(|spec| spec.name == name).unwrap();
        (hf_place(config, &spec), gguf_place(config, &spec).unwrap())
    }

    #[test]
    fn fused_weights_are_rows_of_one_tensor() {
        let mut config = tiny();
        config.arch = of_model_type("phi3").unwrap().arch();
        let (hf, gguf) = places(&config, "layers.1.self_attn.v_proj.weight");
        assert_eq!(
            (hf.tensor.as_str(), &hf.shape[..], hf.first_row),
            ("layers.1.self_attn.qkv_proj.weight", &[32, 16][..], 24)
        );
        assert_eq!((gguf.tensor.as_str(), gguf.offset()), ("blk.1.attn_qkv.weight", 24 * 16));
        let (hf, gguf) = places(&config, "layers.0.mlp.up_proj.weight");
        assert_eq!((hf.tensor.as_str(), hf.first_row), ("layers.0.mlp.gate_up_proj.weight", 24));
        assert_eq!(gguf.tensor, "blk.0.ffn_up.weight");
    }

    #[test]
    fn norms_are_named_by_their_place() {
        let mut config = tiny();
        let name = "layers.0.post_attention_layernorm.weight";
        assert_eq!(places(&config, name).1.tensor, "blk.0.ffn_norm.weight");
        config.arch.norms = NormPlaces::Both;
        assert_eq!(places(&config, name).1.tensor, "blk.0.post_attention_norm.weight");
        assert_eq!(places(&config, "layers.1.pre_feedforward_layernorm.weight").1.tensor, "blk.1.ffn_norm.weight");
    }

    #[test]
    fn every_weight_of_every_family_has_a_name_of_its_own() {
        for family in crate::families::ALL {
            let mut config = tiny();
            config.arch = family.arch();
            let all = specs(&config);
            let mut names: Vec<_> =
                all.iter().map(|spec| (gguf_place(&config, spec).unwrap(), hf_place(&config, spec))).collect();
            names.sort_by_key(|(gguf, _)| (gguf.tensor.clone(), gguf.first_row));
            names.dedup();
            assert_eq!(names.len(), all.len(), "{}", family.model_type);
        }
    }
}
