//! Gemma 2 (`configuration_gemma2.py`): norms in front of and behind attention and feed-forward layer, soft caps, a scale of queries,
//! and a window in every other layer.

use super::gemma::{ABSENT, scale_embedding};
use super::keys::{Extra, Keys, biases, hidden_act, layer_type_names, layer_types, set_layers, set_windows};
use super::{Absent, Family, GgufFamily};
use crate::{Architecture, HiddenAct, ModelConfig, NormPlaces};

pub(super) static GEMMA2: Family = Family {
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    gguf: Some(GgufFamily { architecture: "gemma2", paired_rows: false }),
    choices: || Architecture {
        norms: NormPlaces::Both,
        hidden_act: HiddenAct::GeluTanh,
        attention_cap: Some(50.0),
        logits_cap: Some(30.0),
        ..Architecture::LLAMA
    },
    absent: Absent { num_key_value_heads: Some(4), ..ABSENT },
    norm_offset: 1.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| read(config, keys, 2),
    read_gguf: |config, keys| {
        scale_embedding(config);
        config.arch.attention_scale = Some(f64::from(scale_of_gguf(config, 46)));
        if let Some(cap) = keys.number("attn_logit_softcapping")? {
            config.arch.attention_cap = Some(cap);
        }
        if let Some(cap) = keys.number("final_logit_softcapping")? {
            config.arch.logits_cap = Some(cap);
        }
        let window = keys.whole("attention.sliding_window")?.or(Some(4096));
        set_windows(config, window, |index| index % 2 == 0);
        Ok(())
    },
    write: keys_of,
};

/// Keys that Gemma 2 and 3 share; of `pattern` layers all but the last have a window, unless `layer_types` lists them.
///
/// # Errors
/// The key, its value and what it must be.
pub(super) fn read(config: &mut ModelConfig, keys: &dyn Keys, pattern: usize) -> Result<(), String> {
    scale_embedding(config);
    hidden_act(config, keys, &["hidden_activation", "hidden_act"])?;
    biases(config, keys, false)?;
    let scalar = keys.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    config.arch.attention_scale = Some(f64::from(scalar.powf(-0.5) as f32));
    for (key, cap) in [
        ("attn_logit_softcapping", &mut config.arch.attention_cap),
        ("final_logit_softcapping", &mut config.arch.logits_cap),
    ] {
        let stated = keys.number(key)?;
        if keys.has(key) {
            *cap = stated;
        }
    }
    let window = keys.whole("sliding_window")?;
    let window = if keys.has("sliding_window") { window } else { Some(4096) };
    match layer_types(config, keys)? {
        Some(kinds) => set_layers(config, window, kinds),
        None => set_windows(config, window, |index| (index + 1) % pattern != 0),
    }
    Ok(())
}

/// The keys of [`read`].
pub(super) fn keys_of(config: &ModelConfig) -> Vec<(&'static str, Extra)> {
    let Architecture { attention_scale, attention_cap, logits_cap, sliding_window, hidden_act, o_bias, .. } =
        &config.arch;
    let scale = attention_scale.unwrap_or_else(|| f64::from(config.attention_scale()));
    let scalar = (scale * scale).recip();
    // A whole number, in all published models.
    let whole = scalar.round();
    let scalar = if (whole.powf(-0.5) as f32) == scale as f32 { whole } else { scalar };
    let scalar = if scalar.fract() == 0.0 { Extra::Whole(scalar as usize) } else { Extra::Number(scalar) };
    vec![
        ("hidden_activation", Extra::Text(hidden_act.name())),
        ("attention_bias", Extra::Flag(*o_bias)),
        ("query_pre_attn_scalar", scalar),
        ("attn_logit_softcapping", (*attention_cap).into()),
        ("final_logit_softcapping", (*logits_cap).into()),
        ("sliding_window", sliding_window.or(Some(config.max_position_embeddings)).into()),
        ("layer_types", layer_type_names(config)),
    ]
}

/// llama.cpp's scale of queries, which no metadata state: that of the width of a head, and of the width over the number of heads
/// in the model of 27 billion parameters, which it knows by its `layers` (`load_hparams` of `llama-model.cpp`).
pub(super) fn scale_of_gguf(config: &ModelConfig, layers: usize) -> f32 {
    let width = match config.num_hidden_layers == layers {
        true => config.hidden_size / config.num_attention_heads,
        false => config.head_dim,
    };
    1.0 / (width as f32).sqrt()
}
