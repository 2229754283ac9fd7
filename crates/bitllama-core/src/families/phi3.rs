//! Phi 3, 3.5 and 4 (`configuration_phi3.py`): fused matrices, LongRoPE, a rotary embedding of a part of each head.

use super::keys::{hidden_act, set_windows};
use super::{Absent, Extra, Family, GgufFamily};
use crate::{Architecture, RopeScaling};

pub(super) static PHI3: Family = Family {
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    gguf: Some(GgufFamily { architecture: "phi3", paired_rows: false }),
    choices: || Architecture::LLAMA,
    absent: Absent { max_position_embeddings: 4096, rms_norm_eps: 1e-5, ..Absent::LLAMA },
    norm_offset: 0.0,
    fused: true,
    partial_rotary: true,
    read: |config, keys| {
        hidden_act(config, keys, &["hidden_act"])?;
        let window = keys.whole("sliding_window")?;
        set_windows(config, window, |_| true);
        Ok(())
    },
    read_gguf: |config, keys| {
        let window = keys.whole("attention.sliding_window")?.filter(|window| *window > 0);
        set_windows(config, window, |_| true);
        Ok(())
    },
    write: |config| {
        let mut keys = vec![("sliding_window", Extra::from(config.arch.sliding_window))];
        if let Some(dim) = config.arch.rotary_dim {
            keys.push(("partial_rotary_factor", Extra::Number(dim as f64 / config.head_dim as f64)));
        }
        let original = match &config.rope_scaling {
            Some(RopeScaling::LongRope { original_max_position_embeddings, .. }) => *original_max_position_embeddings,
            _ => config.max_position_embeddings,
        };
        keys.push(("original_max_position_embeddings", Extra::Whole(original)));
        keys
    },
};
