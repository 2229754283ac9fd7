//! Values of a `config.json` or of GGUF metadata, as families read them.

use crate::{Architecture, HiddenAct, LayerKind, ModelConfig, excerpt};

/// Values by key. A key that is absent and one that is null are the same but for [`Keys::has`].
pub trait Keys {
    /// Whether the key is there, null or not.
    fn has(&self, key: &str) -> bool;

    /// A count.
    ///
    /// # Errors
    /// The key and its value, if it is something else.
    fn whole(&self, key: &str) -> Result<Option<usize>, String>;

    /// A number.
    ///
    /// # Errors
    /// As [`Keys::whole`].
    fn number(&self, key: &str) -> Result<Option<f64>, String>;

    /// A flag.
    ///
    /// # Errors
    /// As [`Keys::whole`].
    fn flag(&self, key: &str) -> Result<Option<bool>, String>;

    /// A string.
    ///
    /// # Errors
    /// As [`Keys::whole`].
    fn text(&self, key: &str) -> Result<Option<String>, String>;

    /// A list of strings.
    ///
    /// # Errors
    /// As [`Keys::whole`].
    fn texts(&self, key: &str) -> Result<Option<Vec<String>>, String>;

    /// A list of counts; flags count as 0 and 1.
    ///
    /// # Errors
    /// As [`Keys::whole`].
    fn wholes(&self, key: &str) -> Result<Option<Vec<usize>>, String>;

    /// A message about the value of a key: `key = value what`.
    fn wrong(&self, key: &str, what: &str) -> String;
}

/// A value that a family writes into a `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub enum Extra {
    /// `null`.
    Null,
    /// A flag.
    Flag(bool),
    /// A count.
    Whole(usize),
    /// A number.
    Number(f64),
    /// A string.
    Text(&'static str),
    /// Several strings.
    Texts(Vec<&'static str>),
    /// Several counts.
    Wholes(Vec<usize>),
}

impl From<Option<usize>> for Extra {
    fn from(value: Option<usize>) -> Self {
        value.map_or(Self::Null, Self::Whole)
    }
}

impl From<Option<f64>> for Extra {
    fn from(value: Option<f64>) -> Self {
        value.map_or(Self::Null, Self::Number)
    }
}

/// The value of a key that changes nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Neutral {
    /// Absent or null only.
    Absent,
    /// `false`.
    False,
    /// This number.
    Number(f64),
}

/// Keys of a `config.json` that change what a model computes, each with the value that changes nothing. A family that does not
/// read such a key computes something else than was meant where it has another value.
pub const NEUTRAL: [(&str, Neutral); 39] = [
    ("attention_bias", Neutral::False),
    ("mlp_bias", Neutral::False),
    ("use_bias", Neutral::False),
    ("bias", Neutral::False),
    ("qkv_bias", Neutral::False),
    ("lm_head_bias", Neutral::False),
    ("use_sliding_window", Neutral::False),
    ("sliding_window", Neutral::Absent),
    ("layer_types", Neutral::Absent),
    ("sliding_window_pattern", Neutral::Absent),
    ("partial_rotary_factor", Neutral::Number(1.0)),
    ("rotary_pct", Neutral::Number(1.0)),
    ("rope_local_base_freq", Neutral::Absent),
    ("no_rope_layers", Neutral::Absent),
    ("attn_logit_softcapping", Neutral::Absent),
    ("final_logit_softcapping", Neutral::Absent),
    ("query_pre_attn_scalar", Neutral::Absent),
    ("embedding_multiplier", Neutral::Number(1.0)),
    ("residual_multiplier", Neutral::Number(1.0)),
    ("attention_multiplier", Neutral::Absent),
    ("logits_scaling", Neutral::Number(1.0)),
    ("logit_scale", Neutral::Number(1.0)),
    ("scale_emb", Neutral::Number(1.0)),
    ("scale_depth", Neutral::Absent),
    ("clip_qkv", Neutral::Absent),
    ("qk_layernorm", Neutral::False),
    ("use_qk_norm", Neutral::False),
    ("use_bidirectional_attention", Neutral::False),
    ("llama_4_scaling_beta", Neutral::Absent),
    ("attention_chunk_size", Neutral::Absent),
    ("parallel_attn", Neutral::False),
    ("alibi", Neutral::False),
    ("num_experts", Neutral::Number(0.0)),
    ("num_local_experts", Neutral::Number(0.0)),
    ("n_routed_experts", Neutral::Number(0.0)),
    ("q_lora_rank", Neutral::Absent),
    ("kv_lora_rank", Neutral::Absent),
    ("hidden_activation", Neutral::Absent),
    ("per_layer_input", Neutral::False),
];

/// `model_type`s and GGUF architectures that are mixtures of experts.
pub const MIXTURES: [&str; 22] = [
    "mixtral",
    "qwen2_moe",
    "qwen2moe",
    "qwen3_moe",
    "qwen3moe",
    "qwen3_next",
    "qwen3next",
    "deepseek",
    "deepseek_v2",
    "deepseek2",
    "deepseek_v3",
    "deepseek_v32",
    "granitemoe",
    "granitemoehybrid",
    "phimoe",
    "olmoe",
    "llama4",
    "llama4_text",
    "gpt_oss",
    "gpt-oss",
    "glm4_moe",
    "mistral4",
];

/// Refuses a model type that is a mixture of experts.
///
/// # Errors
/// The reason, with the key and its value.
pub fn refuse_mixture(key: &str, name: &str) -> Result<(), String> {
    match MIXTURES.contains(&name) {
        true => Err(format!(
            "{key} = {} is a mixture of experts, and experts are not supported; dense models are",
            excerpt(&format!("{name:?}"))
        )),
        false => Ok(()),
    }
}

/// The layers that `layer_types` lists, if it does.
///
/// # Errors
/// A type that is not known; a list of another length.
pub(super) fn layer_types(config: &ModelConfig, keys: &dyn Keys) -> Result<Option<Vec<LayerKind>>, String> {
    let Some(types) = keys.texts("layer_types")? else { return Ok(None) };
    if types.len() != config.num_hidden_layers {
        let what =
            format!("has {} entries; it must have one for each of {} layers", types.len(), config.num_hidden_layers);
        return Err(keys.wrong("layer_types", &what));
    }
    let kind = |name: &String| match name.as_str() {
        "full_attention" => Ok(LayerKind::FULL),
        "sliding_attention" => Ok(LayerKind::WINDOW),
        other => {
            let other = excerpt(other);
            Err(format!("layer_types has `{other}`; supported are full_attention and sliding_attention"))
        }
    };
    types.iter().map(kind).collect::<Result<_, _>>().map(Some)
}

/// Sets a window of the layers for which `has_window` holds; a window of `None` leaves all attention full.
pub(super) fn set_windows(config: &mut ModelConfig, window: Option<usize>, has_window: impl Fn(usize) -> bool) {
    let kinds = (0..config.num_hidden_layers).map(|i| if has_window(i) { LayerKind::WINDOW } else { LayerKind::FULL });
    set_layers(config, window, kinds.collect());
}

/// Sets the layers with their window. Layers that are all alike and full are left out, and so is a window that no layer has.
pub(super) fn set_layers(config: &mut ModelConfig, window: Option<usize>, kinds: Vec<LayerKind>) {
    let full = |kind: &LayerKind| LayerKind { window: kind.window && window.is_some(), ..*kind };
    let kinds: Vec<LayerKind> = kinds.iter().map(full).collect();
    let plain = kinds.iter().all(|kind| *kind == LayerKind::FULL);
    config.arch.sliding_window = window.filter(|_| kinds.iter().any(|kind| kind.window));
    config.arch.layers = if plain { Vec::new() } else { kinds };
}

/// Names of the layers for `layer_types`.
pub(super) fn layer_type_names(config: &ModelConfig) -> Extra {
    let name = |index| if config.arch.layer(index).window { "sliding_attention" } else { "full_attention" };
    Extra::Texts((0..config.num_hidden_layers).map(name).collect())
}

/// Qwen's windows: from `max_window_layers` on, where `use_sliding_window` is set, unless `layer_types` lists them.
///
/// # Errors
/// A value that cannot be meant.
pub(super) fn qwen_windows(config: &mut ModelConfig, keys: &dyn Keys) -> Result<(), String> {
    let (window, first) = (keys.whole("sliding_window")?, keys.whole("max_window_layers")?.unwrap_or(28));
    let used = keys.flag("use_sliding_window")?.unwrap_or(false);
    let window = if keys.has("sliding_window") { window } else { Some(4096) }.filter(|_| used);
    match layer_types(config, keys)? {
        Some(kinds) => set_layers(config, window, kinds),
        None => set_windows(config, window, |index| index >= first),
    }
    Ok(())
}

/// The keys of [`qwen_windows`].
pub(super) fn qwen_window_keys(config: &ModelConfig) -> Vec<(&'static str, Extra)> {
    let Architecture { sliding_window, layers, .. } = &config.arch;
    let first = layers.iter().position(|kind| kind.window).unwrap_or(config.num_hidden_layers);
    vec![
        ("use_sliding_window", Extra::Flag(sliding_window.is_some())),
        ("sliding_window", (*sliding_window).into()),
        ("max_window_layers", Extra::Whole(first)),
        ("layer_types", layer_type_names(config)),
    ]
}

/// Reads `attention_bias` and, if the family has it, `mlp_bias`.
///
/// # Errors
/// A value that is no flag.
pub(super) fn biases(config: &mut ModelConfig, keys: &dyn Keys, mlp: bool) -> Result<(), String> {
    let attention = keys.flag("attention_bias")?.unwrap_or(false);
    (config.arch.qkv_bias, config.arch.o_bias) = (attention, attention);
    config.arch.mlp_bias = mlp && keys.flag("mlp_bias")?.unwrap_or(false);
    Ok(())
}

/// The keys of [`biases`].
pub(super) fn bias_keys(config: &ModelConfig) -> Vec<(&'static str, Extra)> {
    vec![("attention_bias", Extra::Flag(config.arch.o_bias)), ("mlp_bias", Extra::Flag(config.arch.mlp_bias))]
}

/// Reads the activation function from the first of `names` that is there.
///
/// # Errors
/// A function that is not supported.
pub(super) fn hidden_act(config: &mut ModelConfig, keys: &dyn Keys, names: &[&str]) -> Result<(), String> {
    for name in names {
        if let Some(act) = keys.text(name)? {
            config.arch.hidden_act = match HiddenAct::from_name(&act) {
                Some(act) => act,
                None => {
                    let known = HiddenAct::ALL.map(HiddenAct::name).join(", ");
                    return Err(keys.wrong(name, &format!("is not supported; supported are {known}")));
                }
            };
            return Ok(());
        }
    }
    Ok(())
}
