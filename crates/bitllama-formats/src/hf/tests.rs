use std::fs;
use std::io::Write;

use bitllama_core::RopeScaling;
use bitllama_core::weights::specs;
use serde_json::{Value, json};
use tempfile::TempDir;

use tokenizers::Tokenizer;

use super::*;
use crate::StoredWeight;
use crate::companions::TOKENIZER_CONFIG;

fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: 6,
        hidden_size: 4,
        intermediate_size: 6,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 2,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: true,
        sub_norm: false,
        arch: Default::default(),
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        end_token_ids: Vec::new(),
    }
}

fn tokenizer() -> Tokenizer {
    let json = json!({
        "version": "1.0",
        "model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "merges": []},
        "added_tokens": [],
    });
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

/// Values that every dtype holds exactly.
fn weights_of(config: &ModelConfig) -> Vec<(WeightSpec, Vec<f32>)> {
    let values = |spec: &WeightSpec| (0..spec.len()).map(|i| i as f32 / 4.0 - 2.0).collect();
    specs(config).into_iter().map(|spec| (spec.clone(), values(&spec))).collect()
}

fn saved(config: &ModelConfig) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_into(folder.path(), config, weights_of(config), &tokenizer(), Dtype::F32).unwrap();
    folder
}

fn change_config(folder: &TempDir, key: &str, value: Value) {
    let path = folder.path().join(CONFIG);
    let mut json = crate::json::read(&path).unwrap();
    json[key] = value;
    write_json(&path, &json).unwrap();
}

fn error(folder: &TempDir) -> String {
    let message = open(folder.path()).err().expect("must not open").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn config_of(json: Value) -> Result<ModelConfig> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.json");
    fs::write(&path, json.to_string()).unwrap();
    read_config(&path)
}

fn least() -> Value {
    json!({"model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4})
}

fn with(key: &str, value: Value) -> Value {
    let mut json = least();
    json[key] = value;
    json
}

#[test]
fn what_was_saved_is_read_back_in_every_dtype() {
    let root = tempfile::tempdir().unwrap();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for (tied, sub_norm) in [(true, false), (false, false), (true, true)] {
            let config = ModelConfig { tie_word_embeddings: tied, sub_norm, eos_token_ids: vec![2, 0], ..tiny() };
            let folder = root.path().join("model");
            // In another order than that of the file.
            let weights = weights_of(&config).into_iter().rev();
            save(&folder, &config, weights, &tokenizer(), dtype).unwrap();
            let model = crate::model::open(&folder).unwrap();
            assert_eq!(model.config, config);
            let mut count = 0;
            for (spec, values) in weights_of(&config) {
                assert_eq!(model.weights.read(&spec).unwrap(), values, "{}", spec.name);
                count += values.len();
                match model.weights.stored(&spec).unwrap() {
                    StoredWeight::Rows(rows) => {
                        assert!(dtype != Dtype::F32 && spec.shape == [rows.rows(), rows.columns()], "{}", spec.name);
                        assert_eq!((rows.bytes(), rows.to_f32()), (2 * values.len(), values), "{}", spec.name);
                    }
                    stored => {
                        assert!(dtype == Dtype::F32 || spec.shape.len() == 1, "{}", spec.name);
                        assert_eq!(stored, StoredWeight::Full(values), "{}", spec.name);
                    }
                }
            }
            assert_eq!(model.weights.stored_bytes(), (count * dtype.size()) as u64);
            let about = crate::json::read(&folder.join(TOKENIZER_CONFIG)).unwrap();
            assert_eq!((&about["bos_token"], &about["eos_token"]), (&json!("<s>"), &json!("</s>")));
            assert_eq!(crate::json::read(&folder.join(CONFIG)).unwrap()["torch_dtype"], dtype.torch_name());
        }
    }
}

#[test]
fn weights_that_do_not_fit_the_config_are_not_written() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    let attempt = |weights, dtype| save(&folder, &tiny(), weights, &tokenizer(), dtype).unwrap_err().to_string();
    let mut short = weights_of(&tiny());
    short.pop();
    assert!(attempt(short, Dtype::F32).contains("weight norm.weight was not given"));
    let mut twice = weights_of(&tiny());
    twice.push(twice[0].clone());
    assert!(attempt(twice, Dtype::F32).contains("embed_tokens.weight of shape [6, 4] comes twice"));
    let mut cut = weights_of(&tiny());
    cut[0].1.pop();
    assert!(attempt(cut, Dtype::F32).contains("has 23 values, expected [6, 4]"));
    let mut large = weights_of(&tiny());
    large[0].1[0] = 1e6;
    assert!(attempt(large, Dtype::F16).contains("too large for float16"));
    assert!(!folder.exists());
}

#[test]
fn shards_are_found_through_the_index() {
    let config = ModelConfig { tie_word_embeddings: false, ..tiny() };
    let folder = saved(&config);
    let whole = fs::read(folder.path().join(WEIGHTS)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let mut map = serde_json::Map::new();
    for (i, half) in tensors.names().chunks(6).enumerate() {
        let name = format!("model-{i}.safetensors");
        // The second shard under the names that have no prefix.
        let short = |n: &str| if i == 1 { n.trim_start_matches("model.").to_string() } else { n.to_string() };
        let views: Vec<_> = half.iter().map(|n| (short(n), tensors.tensor(n).unwrap())).collect();
        map.extend(views.iter().map(|(n, _)| (n.clone(), json!(name))));
        safetensors::serialize_to_file(views, None, &folder.path().join(&name)).unwrap();
    }
    fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
    let index = folder.path().join(INDEX);
    write_json(&index, &json!({"metadata": {}, "weight_map": map})).unwrap();
    let model = open(folder.path()).unwrap();
    for (spec, values) in weights_of(&config) {
        assert_eq!(model.weights.read(&spec).unwrap(), values, "{}", spec.name);
    }
    map["lm_head.weight"] = json!("../model-0.safetensors");
    write_json(&index, &json!({"weight_map": map})).unwrap();
    assert!(error(&folder).contains("is no file name"));
    map["lm_head.weight"] = json!("model-9.safetensors");
    write_json(&index, &json!({"weight_map": map})).unwrap();
    assert!(error(&folder).contains("model-9.safetensors"));
    fs::remove_file(index).unwrap();
    assert!(error(&folder).contains("has neither model.safetensors nor model.safetensors.index.json"));
}

#[test]
fn the_head_and_tying_agree() {
    let folder = saved(&tiny());
    change_config(&folder, "tie_word_embeddings", json!(false));
    assert!(error(&folder).contains("tie_word_embeddings is not true, but the weights have no lm_head.weight"));
    let folder = saved(&ModelConfig { tie_word_embeddings: false, ..tiny() });
    change_config(&folder, "tie_word_embeddings", json!(true));
    let model = open(folder.path()).unwrap();
    assert_eq!(model.weights.stored_bytes(), 4 * bitllama_core::weights::parameter_count(&tiny()) as u64);
}

#[test]
fn a_weight_of_another_shape_or_type_is_named() {
    let folder = saved(&tiny());
    change_config(&folder, "intermediate_size", json!(8));
    let message = error(&folder);
    let expected = "tensor model.layers.0.mlp.gate_proj.weight has shape [6, 4], expected [8, 4]";
    assert!(message.contains(expected) && message.contains("model.safetensors"), "{message}");
    let folder = saved(&tiny());
    change_config(&folder, "num_hidden_layers", json!(2));
    assert!(error(&folder).contains("has no tensor model.layers.1.input_layernorm.weight"));
    change_config(&folder, "num_hidden_layers", json!(4_000));
    assert!(error(&folder).contains("too few for 4000 layers"));
    let folder = saved(&tiny());
    let path = folder.path().join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes).replacen("\"F32\"", "\"I32\"", 1);
    let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    fs::write(
        &path,
        [&bytes[..8], &text.as_bytes()[text.find('{').unwrap()..][..length - 8], &bytes[length..]].concat(),
    )
    .unwrap();
    assert!(error(&folder).contains("is of type I32"), "{}", error(&folder));
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let folder = saved(&tiny());
    for name in [WEIGHTS, CONFIG, TOKENIZER] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&whole).trim_end().len();
        let end = if name == WEIGHTS { whole.len() } else { text };
        let file = fs::File::options().write(true).open(&path).unwrap();
        for length in (0..end).rev() {
            file.set_len(length as u64).unwrap();
            let message = open(folder.path()).err().unwrap_or_else(|| panic!("{name} opened with {length} bytes"));
            assert!(message.to_string().contains(name), "{message}");
        }
        fs::write(&path, whole).unwrap();
    }
    open(folder.path()).unwrap();
}

#[test]
fn flipped_bits_never_panic() {
    let folder = saved(&tiny());
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for name in [WEIGHTS, CONFIG, TOKENIZER] {
        let path = folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        for round in 0..1500 {
            let mut damaged = whole.clone();
            for _ in 0..1 + round % 4 {
                let place = random(whole.len().min(1300));
                damaged[place] = if round % 2 == 0 { damaged[place] ^ (1 << random(8)) } else { random(256) as u8 };
            }
            // In place: cutting a file to nothing and writing it again makes the disk wait.
            fs::File::options().write(true).open(&path).unwrap().write_all(&damaged).unwrap();
            if let Ok(model) = open(folder.path()) {
                specs(&tiny()).iter().for_each(|spec| drop(model.weights.read(spec)));
            }
        }
        fs::write(&path, whole).unwrap();
    }
}

#[test]
fn offsets_that_overflow_are_refused() {
    let folder = saved(&tiny());
    let mut header = serde_json::Map::new();
    let size = (1u64 << 61) - 1;
    for i in 0..8 {
        header.insert(
            format!("t{i}"),
            json!({"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}),
        );
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(folder.path().join(WEIGHTS), bytes).unwrap();
    assert!(error(&folder).contains("the file has 0"));
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = config_of(least()).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim, config.max_position_embeddings), (4, 16, 2048));
    assert_eq!((config.rope_theta, config.rms_norm_eps, config.tie_word_embeddings), (1e4, 1e-6, false));
    assert_eq!((config.rope_scaling, config.bos_token_id), (None, None));
    assert!(config.eos_token_ids.is_empty());
    assert_eq!(config_of(with("eos_token_id", json!(7))).unwrap().eos_token_ids, [7]);
    assert_eq!(config_of(with("eos_token_id", json!([7, 8]))).unwrap().eos_token_ids, [7, 8]);
}

#[test]
fn rope_scaling_is_read_in_all_spellings() {
    let linear = Some(RopeScaling::Linear { factor: 2.0 });
    for key in ["type", "rope_type"] {
        let config = config_of(with("rope_scaling", json!({key: "linear", "factor": 2.0}))).unwrap();
        assert_eq!(config.rope_scaling, linear);
    }
    let parameters = json!({"rope_theta": 5e5, "rope_type": "linear", "factor": 2});
    let config = config_of(with("rope_parameters", parameters)).unwrap();
    assert_eq!((config.rope_scaling, config.rope_theta), (linear, 5e5));
    let parameters = json!({"rope_theta": 1e5, "rope_type": "default"});
    let config = config_of(with("rope_parameters", parameters)).unwrap();
    assert_eq!((config.rope_scaling, config.rope_theta), (None, 1e5));
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192});
    let config = config_of(with("rope_scaling", llama3)).unwrap();
    let written = config_of(config_json(&config, Dtype::Bf16)).unwrap();
    assert!(matches!(config.rope_scaling, Some(RopeScaling::Llama3 { factor: 8.0, .. })));
    assert_eq!(written, config);
}

#[test]
fn mistral_has_a_window_unless_it_is_null() {
    let mut json = with("model_type", json!("mistral"));
    json["num_key_value_heads"] = json!(2);
    let config = config_of(json.clone()).unwrap();
    assert_eq!((config.arch.sliding_window, config.max_position_embeddings), (Some(4096), 131_072));
    assert_eq!(config.window_of(config.arch.layer(1)), Some(4096));
    json["max_position_embeddings"] = json!(4096);
    assert_eq!(config_of(json.clone()).unwrap().window_of(config.arch.layer(1)), None, "as long as the context");
    json["sliding_window"] = json!(null);
    let config = config_of(json).unwrap();
    assert_eq!((config.arch.sliding_window, config.arch.layers.len()), (None, 0));
    assert_eq!(config_of(config_json(&config, Dtype::F32)).unwrap(), config);
}

#[test]
fn every_family_is_read_back_as_it_was_written() {
    for family in bitllama_core::families::ALL {
        let mut json = with("model_type", json!(family.model_type));
        (json["num_key_value_heads"], json["num_hidden_layers"]) = (json!(2), json!(8));
        let config = config_of(json).unwrap_or_else(|e| panic!("{e}"));
        let written = config_json(&config, Dtype::F32);
        assert_eq!(written["architectures"], json!([family.class]));
        assert_eq!(config_of(written).unwrap(), config, "{}", family.model_type);
    }
}

#[test]
fn a_missing_tie_is_what_the_weights_say() {
    let folder = saved(&tiny());
    change_config(&folder, "tie_word_embeddings", json!(null));
    assert!(open(folder.path()).unwrap().config.tie_word_embeddings);
    let folder = saved(&ModelConfig { tie_word_embeddings: false, ..tiny() });
    change_config(&folder, "tie_word_embeddings", json!(null));
    assert!(!open(folder.path()).unwrap().config.tie_word_embeddings);
}

#[test]
fn a_bitnet_with_silu_is_a_llama_with_sub_norms() {
    let mut json = with("model_type", json!("bitnet"));
    json["num_key_value_heads"] = json!(2);
    // An absent key means squared ReLU.
    assert_eq!(config_of(json.clone()).unwrap().arch.hidden_act, bitllama_core::HiddenAct::Relu2);
    assert_eq!(config_of(json.clone()).unwrap().arch.family.family().model_type, "bitnet");
    json["hidden_act"] = json!("silu");
    let config = config_of(json.clone()).unwrap();
    assert_eq!((config.sub_norm, config.rope_theta, config.rms_norm_eps), (true, 5e5, 1e-5));
    let written = config_json(&config, Dtype::F32);
    assert_eq!(written["architectures"], json!(["BitNetForCausalLM"]));
    assert_eq!(config_of(written).unwrap(), config);
    json.as_object_mut().unwrap().remove("num_key_value_heads");
    assert!(config_of(json).unwrap_err().to_string().contains("num_key_value_heads is missing"));
}

#[test]
fn each_fault_of_a_config_names_file_field_and_value() {
    let faults = [
        ("model_type", json!("gpt2"), "model_type = \"gpt2\" is not supported"),
        ("model_type", json!(null), "model_type = null must be one of llama, mistral"),
        ("hidden_act", json!("gelu"), "hidden_act = \"gelu\""),
        ("model_type", json!("mixtral"), "model_type = \"mixtral\" is a mixture of experts"),
        ("model_type", json!("gemma3"), "model_type = \"gemma3\" has images beside text"),
        ("attention_bias", json!(1), "attention_bias = 1 is neither true nor false"),
        ("sliding_window", json!(4096), "sliding_window = 4096 is not supported; it must be null"),
        ("num_local_experts", json!(8), "num_local_experts = 8 is not supported; it must be 0"),
        ("attn_logit_softcapping", json!(50.0), "attn_logit_softcapping = 50.0"),
        ("hidden_size", json!("64"), "hidden_size = \"64\" is not a whole number"),
        ("hidden_size", json!(-64), "hidden_size = -64 is not a whole number"),
        ("vocab_size", json!(null), "vocab_size is missing"),
        ("num_attention_heads", json!(0), "num_attention_heads = 0"),
        ("num_key_value_heads", json!(3), "num_key_value_heads = 3"),
        ("eos_token_id", json!([1, "x"]), "eos_token_id = [1,\"x\"]"),
        ("bos_token_id", json!(100), "special token 100"),
        ("rope_scaling", json!({"rope_type": "ntk"}), "rope_scaling.rope_type = \"ntk\""),
        ("rope_scaling", json!({"type": "longrope"}), "rope_scaling.short_factor is missing"),
        ("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor is missing"),
        ("rope_parameters", json!(7), "rope_parameters = 7 is not an object"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor = 0.5"),
        ("quantization_config", json!({"bits": 4}), "quantization_config"),
    ];
    for (key, value, expected) in faults {
        let message = config_of(with(key, value)).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("tiny.json") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn places_that_state_rope_twice_must_agree() {
    let both = |parameters: Value, scaling: Value, theta: Value| {
        let mut json = with("rope_parameters", parameters);
        (json["rope_scaling"], json["rope_theta"]) = (scaling, theta);
        config_of(json).map_err(|e| e.to_string())
    };
    let linear = |factor: f64| json!({"rope_type": "linear", "factor": factor});
    let of = |factor: f64, theta: f64| json!({"rope_type": "linear", "factor": factor, "rope_theta": theta});
    let expected = (5e5, Some(RopeScaling::Linear { factor: 2.0 }));
    for scaling in [linear(2.0), json!(null), json!({}), json!({"type": "linear", "factor": 2.0, "rope_theta": 5e5})] {
        for theta in [json!(5e5), json!(null)] {
            let config = both(of(2.0, 5e5), scaling.clone(), theta).unwrap();
            assert_eq!((config.rope_theta, config.rope_scaling), expected);
        }
    }
    let disagree = "rope_parameters and rope_scaling disagree; keep the one that is meant";
    assert!(both(of(2.0, 5e5), linear(4.0), json!(null)).unwrap_err().ends_with(disagree));
    assert!(both(json!({"rope_theta": 5e5}), linear(4.0), json!(null)).unwrap_err().ends_with(disagree));
    let thetas = both(of(2.0, 5e5), json!(null), json!(1e4)).unwrap_err();
    let expected = "rope_theta = 10000 and rope_parameters.rope_theta = 500000 disagree; keep the one that is meant";
    assert!(thetas.ends_with(expected), "{thetas}");
    let thetas = both(of(2.0, 5e5), of(2.0, 3e5), json!(null)).unwrap_err();
    let expected = "rope_parameters.rope_theta = 500000 and rope_scaling.rope_theta = 300000 disagree";
    assert!(thetas.contains(expected), "{thetas}");
    let types = both(json!(null), json!({"type": "yarn", "rope_type": "linear", "factor": 2.0}), json!(null));
    assert!(types.unwrap_err().contains("rope_scaling.type = \"yarn\" and rope_type disagree"));
    let layers = both(json!({"full_attention": {"rope_theta": 1e6}}), json!(null), json!(null)).unwrap_err();
    assert!(
        layers.contains("rope_parameters.full_attention = {\"rope_theta\":1000000.0} is not supported"),
        "{layers}"
    );
}

#[test]
fn weights_that_are_not_finite_are_not_written() {
    for fault in [f32::INFINITY, f32::NAN] {
        let mut weights = weights_of(&tiny());
        weights[3].1[5] = fault;
        let folder = tempfile::tempdir().unwrap();
        let error = write_into(folder.path(), &tiny(), weights, &tokenizer(), Dtype::F16).unwrap_err().to_string();
        assert!(error.contains(&format!("weight layers.0.self_attn.q_proj.weight holds {fault} at [1, 1]")), "{error}");
    }
}
