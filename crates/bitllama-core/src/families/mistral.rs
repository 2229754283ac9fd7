//! Mistral 7B and Nemo (`configuration_mistral.py`), Ministral (`configuration_ministral.py`).

use super::keys::{Extra, hidden_act, layer_type_names, layer_types, set_layers, set_windows};
use super::{Absent, Family};
use crate::Architecture;

const ABSENT: Absent = Absent { num_key_value_heads: Some(8), max_position_embeddings: 131_072, ..Absent::LLAMA };

pub(super) static MISTRAL: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    // llama.cpp's converter writes them as `llama`.
    gguf: None,
    choices: || Architecture::LLAMA,
    absent: ABSENT,
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        // An absent key means 4096, null no window.
        let window = keys.whole("sliding_window")?;
        let window = if keys.has("sliding_window") { window } else { Some(4096) };
        set_windows(config, window, |_| true);
        Ok(())
    },
    read_gguf: |_, _| Ok(()),
    write: |config| vec![("sliding_window", config.arch.sliding_window.into())],
};

pub(super) static MINISTRAL: Family = Family {
    model_type: "ministral",
    class: "MinistralForCausalLM",
    gguf: None,
    choices: || Architecture::LLAMA,
    absent: ABSENT,
    norm_offset: 0.0,
    fused: false,
    partial_rotary: false,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        let window = keys.whole("sliding_window")?;
        let window = if keys.has("sliding_window") { window } else { Some(4096) };
        match layer_types(config, keys)? {
            Some(kinds) => set_layers(config, window, kinds),
            None => set_windows(config, window, |_| true),
        }
        Ok(())
    },
    read_gguf: |_, _| Ok(()),
    write: |config| {
        vec![("sliding_window", Extra::from(config.arch.sliding_window)), ("layer_types", layer_type_names(config))]
    },
};
