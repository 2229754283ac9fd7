//! `[activations]`: how the student reads its activations, and keeps keys and values, while it is trained.
//!
//! ```toml
//! [activations]                      # glob over matrices that `[bits]` rounds = int8, int4, sign or f32
//! "layers.*" = "int8"                # the last rule that matches decides
//! "layers.*.mlp.down_proj" = "f32"
//! kv_cache = "int4"                  # int8 or int4
//! ```

pub use bitllama_core::ActivationRules as Activations;

#[cfg(test)]
mod tests {
    use bitllama_core::{Activation, BitPlan, Scheme};

    use super::*;

    #[test]
    fn rules_and_the_cache_are_told_apart() {
        let text = "\"layers.*\" = \"int8\"\nkv_cache = \"int4\"\n\"*down_proj\" = \"f32\"\n";
        let activations: Activations = toml::from_str(text).unwrap();
        assert_eq!(toml::to_string(&activations).unwrap(), text);
        let config = bitllama_formats::hf::read_config("../../configs/nano.json".as_ref()).unwrap();
        let weights = BitPlan::uniform(Scheme::Ternary).resolve(&config).unwrap();
        let plan = activations.plan_for(&weights).unwrap();
        assert_eq!((plan.inputs.len(), plan.kv_cache), (6 * config.num_hidden_layers, Some(Activation::Int4)));
        let error = toml::from_str::<Activations>("\"*\" = \"int9\"").unwrap_err().to_string();
        assert!(error.contains("`int9`") && error.contains("`sign`"), "{error}");
        let signs: Activations = toml::from_str("kv_cache = \"sign\"").unwrap();
        assert!(signs.plan_for(&weights).is_err());
    }
}
