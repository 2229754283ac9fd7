//! Folders that are written, read back, and held against what went in.

mod back;

use std::collections::HashSet;
use std::fs;

use bitllama_core::weights::{EMBEDDING, HEAD};
use bitllama_core::{Architecture, Granularity, PackedMatrix, Quantizer, RopeScaling, ScaleFormat, Scheme, families};
use half::bf16;
use tokenizers::Tokenizer;
use tokenizers::models::wordlevel::WordLevel;

use super::*;
use back::{Back, write_back};

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 48,
        hidden_size: 128,
        intermediate_size: 192,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 32,
        max_position_embeddings: 64,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: false,
        sub_norm: false,
        arch: Architecture::LLAMA,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
        end_token_ids: vec![],
    }
}

fn tokenizer() -> Tokenizer {
    let vocab = (0..48).map(|id| (format!("t{id}"), id)).collect();
    Tokenizer::new(WordLevel::builder().vocab(vocab).unk_token("t0".into()).build().unwrap())
}

fn options(opset_only: bool) -> Options {
    Options { opset_only, dtype: hf::Dtype::F32, exact: true, provenance: Json::Null }
}

fn values(spec: &WeightSpec) -> Vec<f32> {
    let seed = spec.name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let noise = |i: u32| (i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..spec.len() as u32).map(noise).collect()
}

/// Matrices in `quantizer`, vectors in f32.
fn weights(config: &ModelConfig, quantizer: Option<Quantizer>) -> Vec<(WeightSpec, StoredWeight)> {
    let stored = |spec: WeightSpec| {
        let weight = match (quantizer, &spec.shape[..]) {
            (Some(quantizer), &[rows, columns]) => {
                StoredWeight::Packed(PackedMatrix::quantize(&quantizer, [rows, columns], values(&spec)).unwrap())
            }
            _ => StoredWeight::Full(values(&spec)),
        };
        (spec, weight)
    };
    specs(config).into_iter().map(stored).collect()
}

fn same_weights(back: &Back, weights: &[(WeightSpec, StoredWeight)], about: &str) {
    for (spec, weight) in weights {
        assert!(back.weight(spec) == weight.clone().into_values(), "{} {about}", spec.name);
    }
}

#[test]
fn every_scheme_is_in_the_file_to_the_bit() {
    let config = config();
    for scheme in Scheme::ALL {
        for granularity in [Granularity::Row, Granularity::Tensor, Granularity::Group(32), Granularity::Group(64)] {
            for scales in [ScaleFormat::F32, ScaleFormat::F16, ScaleFormat::Double] {
                let plain = Quantizer::from(scheme).with_granularity(granularity).with_scales(scales);
                let shifted = scheme.has_zero_points().then(|| plain.with_zero_point());
                for quantizer in [Some(plain), shifted].into_iter().flatten().filter(|found| found.check().is_ok()) {
                    let weights = weights(&config, Some(quantizer));
                    for opset_only in [false, true] {
                        let back = write_back(&config, &weights, &options(opset_only)).unwrap();
                        same_weights(&back, &weights, &format!("{quantizer} {opset_only}"));
                    }
                }
            }
        }
    }
}

/// The type of `q_proj` and that of the embedding.
fn types(back: &Back) -> [&str; 2] {
    ["layers.0.self_attn.q_proj.weight", EMBEDDING]
        .map(|name| &*back.written.iter().find(|written| written.tensor == name).unwrap().dtype)
}

#[test]
fn codes_take_the_fewest_bits_that_operators_have() {
    use Scheme::*;
    let config = config();
    let grid = |scheme| Quantizer::from(scheme).with_granularity(Granularity::Group(64)).with_scales(ScaleFormat::F16);
    for (quantizer, nbits, linear) in [
        (grid(Binary), "NBITS2", "INT4"),
        (grid(Ternary), "NBITS2", "INT4"),
        (grid(Int2), "NBITS2", "INT4"),
        (grid(Int2).with_zero_point(), "NBITS2", "UINT4"),
        (grid(Seq2), "NBITS4", "INT4"),
        (grid(Int3), "NBITS4", "INT4"),
        (grid(Int4), "NBITS4", "INT4"),
        (grid(Int4).with_zero_point(), "NBITS4", "UINT4"),
        (grid(Int5), "NBITS8", "INT8"),
        (grid(Int6), "NBITS8", "INT8"),
        (grid(Int8), "NBITS8", "INT8"),
        (grid(Int8).with_zero_point(), "NBITS8", "UINT8"),
        (grid(Nf4), "FLOAT", "FLOAT"),
    ] {
        let weights = weights(&config, Some(quantizer));
        let back = write_back(&config, &weights, &options(false)).unwrap();
        assert_eq!(types(&back), [nbits, nbits], "{quantizer}");
        let remark = back.written[0].remark.as_deref();
        assert_eq!(remark.is_some(), quantizer.scheme == Nf4, "{remark:?}");
        let back = write_back(&config, &weights, &options(true)).unwrap();
        let embedding =
            if linear == "FLOAT" { "FLOAT" } else { ["INT8", "UINT8"][usize::from(linear.starts_with('U'))] };
        assert_eq!(types(&back), [linear, embedding], "{quantizer}");
    }
}

#[test]
fn zero_points_outside_the_codes_take_more_bits() {
    let config = config();
    for (points, expected) in [([0, 3], "NBITS2"), ([-2, 5], "NBITS4"), ([-100, 100], "NBITS8")] {
        let mut weights = weights(&config, None);
        for (spec, weight) in weights.iter_mut().filter(|(spec, _)| !spec.kind.is_vector()) {
            let [rows, columns] = [spec.shape[0], spec.shape[1]];
            let scales: Vec<f32> = (0..rows).map(|row| 0.5 - row as f32).collect();
            let points = (0..rows).map(|row| points[row % 2]).collect();
            let matrix = PackedMatrix::from_fields(Scheme::Int2, [rows, columns], scales, Some(points), |row, out| {
                out.iter_mut().enumerate().for_each(|(column, field)| *field = ((row * 7 + column) % 4) as u8);
                Ok::<_, bitllama_core::Error>(())
            });
            *weight = StoredWeight::Packed(matrix.unwrap());
        }
        for opset_only in [false, true] {
            let back = write_back(&config, &weights, &options(opset_only)).unwrap();
            same_weights(&back, &weights, expected);
            assert!(opset_only || types(&back) == [expected; 2], "{:?}", types(&back));
        }
    }
    let wide = PackedMatrix::from_fields(Scheme::Int8, [1, 32], vec![1.0], Some(vec![i32::MAX]), |_, out| {
        out.fill(1);
        Ok::<_, bitllama_core::Error>(())
    });
    assert!(codes::nbits(&wide.unwrap()).unwrap_err().contains("more than 8 bits"));
}

#[test]
fn rows_that_are_no_whole_blocks_are_filled_up_or_become_numbers() {
    let config =
        ModelConfig { hidden_size: 20, intermediate_size: 36, num_attention_heads: 2, head_dim: 10, ..config() };
    let quantizer = Quantizer::from(Scheme::Int4).with_granularity(Granularity::Row);
    let weights = weights(&config, Some(quantizer));
    let back = write_back(&config, &weights, &options(false)).unwrap();
    same_weights(&back, &weights, "padded");
    assert_eq!(types(&back), ["NBITS4", "FLOAT"]);
    let remark = back.written[0].remark.as_deref().unwrap();
    assert_eq!(remark, "rows of 20 columns are no whole blocks of 16; it is written as numbers");
    same_weights(&write_back(&config, &weights, &options(true)).unwrap(), &weights, "opset only");
}

#[test]
fn a_tied_head_is_the_embedding_and_no_copy() {
    let config = ModelConfig { tie_word_embeddings: true, ..config() };
    for quantizer in [None, Some(Quantizer::from(Scheme::Int8).with_granularity(Granularity::Group(32)))] {
        let weights = weights(&config, quantizer);
        assert!(!weights.iter().any(|(spec, _)| spec.name == HEAD));
        for opset_only in [false, true] {
            let back = write_back(&config, &weights, &options(opset_only)).unwrap();
            same_weights(&back, &weights, "tied");
            let bytes: usize = back.written.iter().map(|written| written.bytes).sum();
            let padding = 4096 * 3 * back.written.len();
            assert!(back.data.len() <= bytes + padding, "{} bytes of {bytes}", back.data.len());
            let logits = back.graph.node.last().unwrap();
            assert!(logits.op_type.starts_with("MatMul"), "{}", logits.op_type);
        }
    }
}

/// Every value is made before it is read, and once; every output is made.
fn sound(back: &Back, about: &str) {
    let constants = back.graph.initializer.iter().map(|tensor| tensor.name.as_str());
    let inputs = back.graph.input.iter().map(|input| input.name.as_str());
    let mut known = HashSet::new();
    constants.chain(inputs).for_each(|name| assert!(known.insert(name), "{about}: {name} twice"));
    for node in &back.graph.node {
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            assert!(known.contains(&**input), "{about}: {} reads {input} before it is there", node.name);
        }
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            assert!(known.insert(output), "{about}: {output} twice");
        }
    }
    back.graph.output.iter().for_each(|output| assert!(known.contains(&*output.name), "{about}: no {}", output.name));
}

#[test]
fn every_family_becomes_a_sound_graph() {
    for family in families::ALL {
        for head_dim in [32, 8, 12] {
            let mut config = ModelConfig { head_dim, ..config() };
            config.arch = family.arch();
            config.arch.rotary_dim = None;
            config.sub_norm = family.model_type == "bitnet";
            let weights = weights(&config, Some(Scheme::Ternary.into()));
            for opset_only in [false, true] {
                let about = format!("{} {head_dim} {opset_only}", family.model_type);
                let back = write_back(&config, &weights, &options(opset_only)).unwrap();
                sound(&back, &about);
                same_weights(&back, &weights, &about);
                let operators: HashSet<&str> = back.graph.node.iter().map(|node| &*node.op_type).collect();
                let contrib = back.graph.node.iter().any(|node| node.domain == CONTRIB);
                let domains: Vec<&str> = back.model.opset_import.iter().map(|opset| &*opset.domain).collect();
                assert_eq!(domains, if opset_only { vec![""] } else { vec!["", CONTRIB] }, "{about}");
                assert_eq!(contrib, !opset_only, "{about}");
                let grouped = !opset_only && head_dim != 12;
                assert_eq!(operators.contains("GroupQueryAttention"), grouped, "{about}");
                assert_eq!(operators.contains("Attention"), !grouped, "{about}");
                let rotates = operators.contains("RotaryEmbedding");
                assert_eq!(rotates, !(grouped && head_dim == 32), "{about}");
                assert!(!opset_only || !operators.contains("SimplifiedLayerNormalization"), "{about}");
            }
        }
    }
}

#[test]
fn genai_is_told_what_the_graph_has() {
    let mut config = config();
    config.eos_token_ids = vec![2];
    config.end_token_ids = vec![3];
    let back = write_back(&config, &weights(&config, None), &options(false)).unwrap();
    let (model, decoder) = (&back.genai["model"], &back.genai["model"]["decoder"]);
    assert_eq!(model["eos_token_id"], serde_json::json!([2, 3]));
    assert_eq!((&model["pad_token_id"], &model["vocab_size"]), (&2.into(), &config.vocab_size.into()));
    assert_eq!((&decoder["head_size"], &decoder["num_key_value_heads"]), (&32.into(), &2.into()));
    let declared: Vec<&str> = back.graph.input.iter().chain(&back.graph.output).map(|value| &*value.name).collect();
    for names in [&decoder["inputs"], &decoder["outputs"]] {
        for name in names.as_object().unwrap().values() {
            let name = name.as_str().unwrap().replace("%d", "0");
            assert!(declared.contains(&&*name), "{name}");
        }
    }
    assert_eq!(back.genai["search"]["past_present_share_buffer"], true);
    let back = write_back(&config, &weights(&config, None), &options(true)).unwrap();
    assert_eq!(back.genai["search"]["past_present_share_buffer"], false);
}

#[test]
fn a_second_rotary_embedding_for_long_sequences_limits_the_context() {
    let scaling = RopeScaling::LongRope {
        short_factor: vec![1.25; 16],
        long_factor: vec![4.5; 16],
        original_max_position_embeddings: 32,
        attention_factor: 1.5,
    };
    let config = ModelConfig { rope_scaling: Some(scaling), max_position_embeddings: 64, ..config() };
    let back = write_back(&config, &weights(&config, None), &options(false)).unwrap();
    assert_eq!(back.genai["model"]["context_length"], 32);
    let (_, _, end) = back.constant("constants/f32/3.2e1");
    assert_eq!(end, 32f32.to_le_bytes());
    let (_, inverse) = back.numbers("rope.0.inverse_frequencies");
    assert_eq!(inverse, config.rope().frequencies(32, 32).inverse);
}

#[test]
fn the_same_model_is_the_same_file() {
    let config = config();
    let weights = weights(&config, Some(Scheme::Int4.into()));
    for opset_only in [false, true] {
        let [first, second] = [(); 2].map(|()| {
            let back = write_back(&config, &weights, &options(opset_only)).unwrap();
            let folder = back.folder.path().join("onnx");
            let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            // The record has the time of each file.
            files.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
            files.sort();
            let read = |path: &std::path::PathBuf| (path.file_name().unwrap().to_owned(), fs::read(path).unwrap());
            files.iter().map(read).collect::<Vec<_>>()
        });
        let names: Vec<_> = first.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        let expected = ["config.json", GENAI_CONFIG, GRAPH, DATA, "tokenizer.json", "tokenizer_config.json"];
        assert_eq!(names, expected);
        assert!(first == second);
    }
}

#[test]
fn numbers_of_sixteen_bits_say_what_they_lose_and_are_refused_where_that_is_nothing() {
    let config = config();
    let plain = weights(&config, None);
    let half = Options { dtype: hf::Dtype::F16, exact: false, ..options(false) };
    let back = write_back(&config, &plain, &half).unwrap();
    let written = back.written.iter().find(|written| written.tensor.contains("q_proj")).unwrap();
    assert_eq!(written.dtype, "FLOAT16");
    assert!(written.error > 1e-5 && written.error < 1e-3, "{}", written.error);
    assert_eq!(written.remark.as_deref(), Some("numbers are rounded to FLOAT16"));
    let error = write_back(&config, &plain, &Options { exact: true, ..half.clone() }).err().unwrap().to_string();
    assert!(error.contains("embed_tokens.weight would not be exact in FLOAT16"), "{error}");

    let mut rounded = plain.clone();
    for (spec, weight) in rounded.iter_mut().filter(|(spec, _)| !spec.kind.is_vector()) {
        *weight = StoredWeight::Full(values(spec).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect());
    }
    let exact = Options { dtype: hf::Dtype::Bf16, ..options(true) };
    same_weights(&write_back(&config, &rounded, &exact).unwrap(), &rounded, "bf16");

    let mut large = plain;
    let StoredWeight::Full(values) = &mut large[0].1 else { panic!() };
    values[3] = 1e5;
    let error = write_back(&config, &large, &half).err().unwrap().to_string();
    assert!(error.contains("embed_tokens.weight has a number too large for FLOAT16"), "{error}");
}

#[test]
fn missing_and_foreign_weights_are_refused_and_leave_no_folder() {
    let config = config();
    let all = weights(&config, None);
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let path = folder.path().join("onnx");
    let error = |weights: &[(WeightSpec, StoredWeight)]| {
        let error = write(&path, &config, weights.iter().cloned().map(Ok), &tokenizer, &options(false)).unwrap_err();
        assert!(!path.exists());
        error.to_string()
    };
    let missing = error(&all[..all.len() - 1]);
    assert!(missing.ends_with("was not given"), "{missing}");
    let mut swapped = all.clone();
    swapped.swap(0, 1);
    assert!(error(&swapped).contains("embed_tokens.weight"));
    let mut broken = all;
    let StoredWeight::Full(values) = &mut broken[3].1 else { panic!() };
    values[5] = f32::INFINITY;
    assert!(error(&broken).contains("inf"));
}
