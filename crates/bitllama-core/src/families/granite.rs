//! Granite 3 (`configuration_granite.py`): a Llama with factors of the embedding, of what blocks add, of attention and of the logits.

use super::keys::{Extra, bias_keys, biases, hidden_act};
use super::{Absent, Family, GgufFamily};
use crate::Architecture;

pub(super) static GRANITE: Family = Family {
    model_type: "granite",
    class: "GraniteForCausalLM",
    gguf: Some(GgufFamily { architecture: "granite", paired_rows: true }),
    choices: || Architecture { attention_scale: Some(1.0), ..Architecture::LLAMA },
    absent: Absent::LLAMA,
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        biases(config, keys, true)?;
        let arch = &mut config.arch;
        arch.embedding_scale = keys.number("embedding_multiplier")?.unwrap_or(1.0);
        arch.residual_scale = keys.number("residual_multiplier")?.unwrap_or(1.0);
        arch.attention_scale = Some(keys.number("attention_multiplier")?.unwrap_or(1.0));
        arch.logits_scale = keys.number("logits_scaling")?.unwrap_or(1.0).recip();
        Ok(())
    },
    read_gguf: |config, keys| {
        let arch = &mut config.arch;
        arch.embedding_scale = keys.number("embedding_scale")?.unwrap_or(1.0);
        arch.residual_scale = keys.number("residual_scale")?.unwrap_or(1.0);
        arch.attention_scale = keys.number("attention.scale")?;
        arch.logits_scale = keys.number("logit_scale")?.unwrap_or(1.0).recip();
        Ok(())
    },
    write: |config| {
        let mut keys = bias_keys(config);
        let arch = &config.arch;
        let attention = arch.attention_scale.unwrap_or_else(|| f64::from(config.attention_scale()));
        keys.extend([
            ("embedding_multiplier", Extra::Number(arch.embedding_scale)),
            ("residual_multiplier", Extra::Number(arch.residual_scale)),
            ("attention_multiplier", Extra::Number(attention)),
            ("logits_scaling", Extra::Number(arch.logits_scale.recip())),
        ]);
        keys
    },
};
