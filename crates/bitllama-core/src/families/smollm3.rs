//! SmolLM3 (`configuration_smollm3.py`): every fourth layer without rotary embedding.

use super::keys::{Extra, bias_keys, biases, hidden_act, layer_type_names, layer_types, set_layers};
use super::{Absent, Family, GgufFamily};
use crate::{Architecture, LayerKind};

/// Layers from one without rotary embedding to the next.
const INTERVAL: usize = 4;

pub(super) static SMOLLM3: Family = Family {
    model_type: "smollm3",
    class: "SmolLM3ForCausalLM",
    gguf: Some(GgufFamily { architecture: "smollm3", paired_rows: true }),
    choices: || Architecture::LLAMA,
    absent: Absent {
        num_key_value_heads: Some(4),
        max_position_embeddings: 32_768,
        rope_theta: 2e6,
        tie_word_embeddings: true,
        ..Absent::LLAMA
    },
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        biases(config, keys, true)?;
        let layers = config.num_hidden_layers;
        let rotary = match keys.wholes("no_rope_layers")? {
            Some(listed) if listed.len() >= layers => listed.iter().take(layers).map(|rotary| *rotary != 0).collect(),
            Some(_) => return Err(keys.wrong("no_rope_layers", "must have an entry for each layer")),
            None => {
                let interval = keys.whole("no_rope_layer_interval")?.unwrap_or(INTERVAL).max(1);
                (0..layers).map(|index| (index + 1) % interval != 0).collect::<Vec<bool>>()
            }
        };
        let window = keys.whole("sliding_window")?;
        let used = keys.flag("use_sliding_window")?.unwrap_or(false) && window.is_some();
        let listed = layer_types(config, keys)?;
        let kind = |(index, rotary): (usize, bool)| {
            let window = listed.as_ref().map_or(used && !rotary, |kinds| kinds[index].window);
            LayerKind { window, rotary }
        };
        let kinds = rotary.into_iter().enumerate().map(kind).collect();
        set_layers(config, window, kinds);
        Ok(())
    },
    read_gguf: |config, _| {
        let kind = |index| LayerKind { window: false, rotary: (index + 1) % INTERVAL != 0 };
        let kinds = (0..config.num_hidden_layers).map(kind).collect();
        set_layers(config, None, kinds);
        Ok(())
    },
    write: |config| {
        let rotary = (0..config.num_hidden_layers).map(|index| usize::from(config.arch.layer(index).rotary)).collect();
        let mut keys = bias_keys(config);
        keys.extend([
            ("no_rope_layers", Extra::Wholes(rotary)),
            ("layer_types", layer_type_names(config)),
            ("use_sliding_window", Extra::Flag(config.arch.sliding_window.is_some())),
            ("sliding_window", config.arch.sliding_window.into()),
        ]);
        keys
    },
};
