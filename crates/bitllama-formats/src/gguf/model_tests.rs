use bitllama_core::weights::specs;
use bitllama_core::{RopeScaling, rope};

use super::super::testing::{Writer, tiny, tiny_config};
use super::*;

fn config_of(writer: &Writer) -> Result<ModelConfig> {
    let (_folder, path) = writer.file();
    Ok(super::super::open(&path)?.config)
}

fn error(writer: &Writer) -> String {
    config_of(writer).expect_err("must not open").to_string()
}

#[test]
fn config_and_weights_of_a_tiny_file() {
    let (_folder, path) = tiny().file();
    let model = crate::model::open(&path).unwrap();
    assert_eq!(model.config, tiny_config());
    let mut bytes = 0;
    for spec in specs(&model.config) {
        let values = model.weights.read(&spec).unwrap();
        bytes += values.len() as u64 * 4;
        if !spec.name.contains("q_proj") && !spec.name.contains("k_proj") {
            assert!(values.iter().enumerate().all(|(i, v)| *v == i as f32), "{}", spec.name);
        }
    }
    assert_eq!(model.weights.stored_bytes(), bytes);
}

#[test]
fn rows_of_q_and_k_come_back_in_half_rotation_order() {
    let (_folder, path) = tiny().file();
    let model = super::super::open(&path).unwrap();
    let first_columns = |name: &str| -> Vec<f32> {
        let specs = specs(&model.config);
        let spec = specs.iter().find(|s| s.name.contains(name)).unwrap();
        model.weights.read(spec).unwrap().iter().step_by(8).map(|v| v / 8.0).collect()
    };
    // What was row 2i + h of a head in the file is row h * 2 + i.
    assert_eq!(first_columns("k_proj"), [0.0, 2.0, 1.0, 3.0]);
    assert_eq!(first_columns("q_proj"), [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    assert_eq!(first_columns("v_proj"), [0.0, 1.0, 2.0, 3.0]);
}

#[test]
fn every_format_is_read_as_a_weight() {
    for format in BlockFormat::ALL {
        let mut writer = tiny();
        writer.u32("llama.feed_forward_length", 256);
        writer
            .tensors
            .retain(|(name, ..)| !name.contains("ffn_down") && !name.contains("ffn_up") && !name.contains("gate"));
        writer.tensor("blk.0.ffn_up.weight", &[256, 8], &[0.5; 2048]);
        writer.tensor("blk.0.ffn_gate.weight", &[256, 8], &[0.5; 2048]);
        let bytes = vec![0x3c; 2048 / format.block_len() * format.block_bytes()];
        writer.raw_tensor("blk.0.ffn_down.weight", &[8, 256], format.id(), bytes.clone());
        let (_folder, path) = writer.file();
        let model = super::super::open(&path).unwrap();
        let spec = specs(&model.config).into_iter().find(|s| s.name.contains("down_proj")).unwrap();
        assert_eq!(model.weights.read(&spec).unwrap(), format.dequantize(&bytes), "{}", format.name());
        assert_eq!(model.weights.quantized(), format.block_len() > 1, "{}", format.name());
        match model.weights.stored(&spec).unwrap() {
            StoredWeight::Rows(rows) => {
                assert_eq!((rows.rows(), rows.columns(), rows.bytes()), (8, 256, bytes.len()), "{}", format.name());
                assert_eq!(rows.to_f32(), format.dequantize(&bytes), "{}", format.name());
            }
            stored => assert_eq!((format, stored), (BlockFormat::F32, StoredWeight::Full(format.dequantize(&bytes)))),
        }
    }
}

#[test]
fn rows_that_stay_in_the_file_are_in_half_rotation_order_too() {
    let mut writer = tiny();
    for (name, _, kind, bytes) in &mut writer.tensors {
        if name.contains("attn") && !name.contains("norm") {
            let numbers = BlockFormat::F32.dequantize(bytes);
            *bytes = numbers.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
            *kind = BlockFormat::F16.id();
        }
    }
    let (_folder, path) = writer.file();
    let model = super::super::open(&path).unwrap();
    let attention = specs(&model.config).into_iter().filter(|spec| spec.name.contains("self_attn"));
    for spec in attention {
        let StoredWeight::Rows(rows) = model.weights.stored(&spec).unwrap() else { panic!("{} is read", spec.name) };
        model.weights.release();
        assert_eq!(rows.to_f32(), model.weights.read(&spec).unwrap(), "{}", spec.name);
    }
}

#[test]
fn an_untied_head_and_more_ends_of_text() {
    let mut writer = tiny();
    writer.tensor("output.weight", &[12, 8], &[0.0; 96]).u32("tokenizer.ggml.eot_token_id", 11);
    let config = config_of(&writer).unwrap();
    assert!(!config.tie_word_embeddings);
    assert_eq!((config.eos_token_ids, config.end_token_ids), (vec![1], vec![11]));
    writer.u32("tokenizer.ggml.eot_token_id", 1);
    assert_eq!(config_of(&writer).unwrap().eos_token_ids, [1]);
}

#[test]
fn rope_metadata_are_read() {
    let mut writer = tiny();
    writer.f32("llama.rope.freq_base", 5e5).text("llama.rope.scaling.type", "linear");
    assert!(error(&writer).contains("has no metadata llama.rope.scaling.factor"));
    writer.f32("llama.rope.scaling.factor", 2.5);
    let config = config_of(&writer).unwrap();
    assert_eq!(config.rope_theta, 5e5);
    assert_eq!(config.rope_scaling, Some(RopeScaling::Linear { factor: 2.5 }));
    writer.text("llama.rope.scaling.type", "yarn");
    assert!(matches!(config_of(&writer).unwrap().rope_scaling, Some(RopeScaling::Yarn { factor: 2.5, .. })));
    writer.text("llama.rope.scaling.type", "su");
    assert!(error(&writer).contains("llama.rope.scaling.type = su is not supported; it must be none, linear or yarn"));
    writer.remove("llama.rope.scaling.type");
    assert_eq!(config_of(&writer).unwrap().rope_scaling, Some(RopeScaling::Linear { factor: 2.5 }), "as llama.cpp");
}

#[test]
fn llama_3_scaling_is_recognized_by_its_divisors() {
    // Four pairs, such that divisors of all three kinds occur.
    let mut writer = tiny();
    writer
        .tensors
        .retain(|(name, ..)| !name.contains("attn_q") && !name.contains("attn_k") && !name.contains("attn_v"));
    writer.tensors.retain(|(name, ..)| !name.contains("attn_output"));
    writer.u32("llama.attention.key_length", 8).u32("llama.attention.value_length", 8).f32("llama.rope.freq_base", 5e5);
    writer.tensor("blk.0.attn_q.weight", &[16, 8], &[0.0; 128]).tensor("blk.0.attn_k.weight", &[8, 8], &[0.0; 64]);
    writer.tensor("blk.0.attn_v.weight", &[8, 8], &[0.0; 64]).tensor("blk.0.attn_output.weight", &[8, 16], &[0.0; 128]);
    let plain = config_of(&writer).unwrap();
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let scaled = ModelConfig { rope_scaling: Some(scaling), ..plain.clone() };
    let frequencies = rope::inverse_frequencies(&plain);
    let divisors: Vec<f32> =
        frequencies.iter().zip(rope::inverse_frequencies(&scaled)).map(|(plain, scaled)| plain / scaled).collect();
    assert_eq!((divisors[0], divisors[3].round()), (1.0, 32.0));
    let with = |divisors: &[f32]| {
        let mut writer = writer.clone();
        writer.tensor("rope_freqs.weight", &[4], divisors);
        writer
    };
    assert_eq!(config_of(&with(&divisors)).unwrap(), scaled);
    let other = config_of(&with(&[1.0, 2.0, 3.0, 4.5])).unwrap();
    let (found, plain) = (rope::inverse_frequencies(&other), rope::inverse_frequencies(&plain));
    assert!((plain[3] / found[3] - 4.5).abs() < 1e-5, "other divisors are kept as they are");
}

#[test]
fn what_is_not_supported_is_named() {
    type Spoil = fn(&mut Writer);
    let faults: [(&str, Spoil); 12] = [
        ("general.architecture = gpt2", |w| _ = w.text("general.architecture", "gpt2")),
        ("general.architecture = \"qwen2moe\" is a mixture of experts", |w| {
            _ = w.text("general.architecture", "qwen2moe")
        }),
        ("has no metadata llama.embedding_length", |w| _ = w.remove("llama.embedding_length")),
        ("llama.expert_count", |w| _ = w.u32("llama.expert_count", 8)),
        ("llama.rope.dimension_count = 2", |w| _ = w.u32("llama.rope.dimension_count", 2)),
        ("has no tensor blk.0.attn_k.bias", |w| _ = w.tensor("blk.0.attn_q.bias", &[8], &[0.0; 8])),
        ("tensor blk.0.attn_q_norm.weight is none of a llama model's", |w| {
            _ = w.tensor("blk.0.attn_q_norm.weight", &[4], &[0.0; 4]);
        }),
        ("has no tensor output_norm.weight", |w| w.tensors.retain(|t| t.0 != "output_norm.weight")),
        ("expected [9, 8]", |w| _ = w.u32("llama.feed_forward_length", 9)),
        ("special token 99", |w| _ = w.u32("tokenizer.ggml.eos_token_id", 99)),
        ("tensor blk.0.ffn_up.weight is of ggml type 9 (Q8_1); supported are F32, F16, BF16, Q4_0", |w| {
            w.tensors.iter_mut().find(|t| t.0 == "blk.0.ffn_up.weight").unwrap().2 = 9;
        }),
        ("tensor blk.0.attn_v.weight has a scale of its own, blk.0.attn_v.scale", |w| {
            w.tensor("blk.0.attn_v.scale", &[1], &[2.0]);
        }),
    ];
    for (word, spoil) in faults {
        let mut writer = tiny();
        spoil(&mut writer);
        let message = error(&writer);
        assert!(message.contains(word) && message.contains("model.gguf") && !message.contains('\n'), "{message}");
    }
}

#[test]
fn values_that_are_not_finite_are_refused_in_every_format() {
    for format in BlockFormat::ALL.into_iter().filter(|format| *format != BlockFormat::NvFp4) {
        let mut writer = tiny();
        writer.u32("llama.feed_forward_length", 256);
        let replaced = ["ffn_down", "ffn_up", "ffn_gate"];
        writer.tensors.retain(|(name, ..)| !replaced.iter().any(|part| name.contains(part)));
        writer.tensor("blk.0.ffn_up.weight", &[256, 8], &[0.5; 2048]);
        writer.tensor("blk.0.ffn_gate.weight", &[256, 8], &[0.5; 2048]);
        // All bits set: NaN in every float format, a scale of a block that is NaN in the others, or a power of two that
        // is too large; the scales of NVFP4 are finite whatever they are.
        let mut bytes = vec![0; 2048 / format.block_len() * format.block_bytes()];
        let last = bytes.len() - format.block_bytes();
        bytes[last..].fill(0xff);
        writer.raw_tensor("blk.0.ffn_down.weight", &[8, 256], format.id(), bytes);
        let (_folder, path) = writer.file();
        let model = super::super::open(&path).unwrap();
        let spec = specs(&model.config).into_iter().find(|s| s.name.contains("down_proj")).unwrap();
        let error = model.weights.read(&spec).unwrap_err().to_string();
        assert_eq!(model.weights.stored(&spec).unwrap_err().to_string(), error);
        let column = 256 - format.block_len();
        let value = if format == BlockFormat::MxFp4 { "-inf" } else { "NaN" };
        let expected = format!("layers.0.mlp.down_proj.weight (blk.0.ffn_down.weight) holds {value} at [7, {column}]");
        assert!(error.contains(&expected) && error.contains("model.gguf"), "{}: {error}", format.name());
    }
}
