//! Files that are written open again, here by our own reader, with the weights that went in.

use bitllama_core::families;
use bitllama_core::rounding::Scales;
use bitllama_core::weights::specs;
use bitllama_core::{DenseMatrix, Granularity, Quantizer, RopeScaling, RoundedMatrix, ScaleFormat, Scheme};
use tokenizers::Tokenizer;

use super::super::testing;
use super::*;

fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 256,
        intermediate_size: 512,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 64,
        ..testing::tiny_config()
    }
}

fn tokenizer() -> Tokenizer {
    let (_folder, path) = testing::tiny().file();
    super::super::open(&path).unwrap().tokenizer
}

fn values(spec: &WeightSpec) -> Vec<f32> {
    let seed = spec.name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let noise = |i: u32| (i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..spec.len() as u32).map(noise).collect()
}

/// Matrices in `quantizer`, vectors in f32.
fn model(config: &ModelConfig, quantizer: Option<Quantizer>) -> Vec<(WeightSpec, StoredWeight)> {
    let stored = |spec: WeightSpec| {
        let weight = match (quantizer, &spec.shape[..]) {
            (Some(quantizer), &[rows, columns]) => {
                RoundedMatrix::quantize(&quantizer, [rows, columns], values(&spec), None).unwrap().into()
            }
            _ => StoredWeight::Full(values(&spec)),
        };
        (spec, weight)
    };
    specs(config).into_iter().map(stored).collect()
}

fn written(
    config: &ModelConfig,
    weights: &[(WeightSpec, StoredWeight)],
    options: &Options,
) -> Result<(tempfile::TempDir, Vec<Written>)> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer();
    let path = folder.path().join("model.gguf");
    let tensors = write(&path, config, weights.iter().cloned().map(Ok), &tokenizer, options)?;
    Ok((folder, tensors))
}

/// Writes a model and holds every weight that is read back against the one that went in, to the bit.
fn round_trip(config: &ModelConfig, quantizer: Option<Quantizer>) -> Vec<Written> {
    let weights = model(config, quantizer);
    let (folder, tensors) = written(config, &weights, &Options { exact: true, ..Options::default() }).unwrap();
    let back = super::super::open(&folder.path().join("model.gguf")).unwrap();
    assert_eq!(metadata::difference(config, &back.config), None);
    for (spec, weight) in weights {
        assert!(back.weights.read(&spec).unwrap() == weight.into_values(), "{} {quantizer:?}", spec.name);
    }
    tensors
}

fn grid(scheme: Scheme, columns: usize) -> Quantizer {
    Quantizer::from(scheme).with_granularity(Granularity::Group(columns)).with_scales(ScaleFormat::F16)
}

#[test]
fn every_grid_takes_the_smallest_type_that_holds_it() {
    use BlockFormat::*;
    for (quantizer, expected) in [
        (grid(Scheme::Binary, 128), Q1_0),
        (grid(Scheme::Binary, 64), Q2_0),
        (grid(Scheme::Binary, 32), Q4_0),
        (grid(Scheme::Ternary, 256), TQ2_0),
        (grid(Scheme::Ternary, 64), Q2_0),
        (grid(Scheme::Seq2, 32), Q4_0),
        (grid(Scheme::Int2, 64), Q2_0),
        (grid(Scheme::Int2, 32), Q4_0),
        (grid(Scheme::Int3, 128), Q4_0),
        (grid(Scheme::Int4, 32), Q4_0),
        (grid(Scheme::Int4, 64), Q4_0),
        (grid(Scheme::Iq4, 32), IQ4_NL),
        (grid(Scheme::Int5, 32), Q5_0),
        (grid(Scheme::Int6, 32), Q8_0),
        (grid(Scheme::Int8, 32), Q8_0),
        // Distances from a zero point need a sign.
        (grid(Scheme::Int2, 32).with_zero_point(), Q4_0),
        (grid(Scheme::Int4, 32).with_zero_point(), Q5_0),
        (grid(Scheme::Int4, 32).with_granularity(Granularity::Row), Q4_0),
        (grid(Scheme::Ternary, 32).with_granularity(Granularity::Tensor), TQ2_0),
    ] {
        let tensors = round_trip(&config(), Some(quantizer));
        let matrices = tensors.iter().filter(|tensor| !tensor.tensor.contains("norm"));
        for tensor in matrices {
            assert_eq!((format_of(tensor), tensor.error), (expected, 0.0), "{quantizer} {}", tensor.tensor);
        }
    }
}

fn format_of(tensor: &Written) -> BlockFormat {
    BlockFormat::named(&tensor.dtype.to_ascii_lowercase()).unwrap()
}

#[test]
fn every_target_of_a_plan_becomes_its_type() {
    let types =
        bitllama_core::targets::ALL.iter().filter(|target| target.name.starts_with("gguf:") && target.mix.is_none());
    for target in types {
        let preferred = TensorType::named(target.name.strip_prefix("gguf:").unwrap());
        let weights = model(&config(), Some(target.quantizers[0]));
        let options = Options { exact: true, preferred, ..Options::default() };
        let (_folder, tensors) = written(&config(), &weights, &options).unwrap();
        let embedding = tensors.iter().find(|tensor| tensor.tensor == "token_embd.weight").unwrap();
        assert_eq!(TensorType::named(&embedding.dtype), preferred, "{}", target.name);
        // What fits other columns has a type as well.
        for quantizer in target.quantizers {
            round_trip(&config(), Some(*quantizer));
        }
    }
}

#[test]
fn trained_scales_of_both_signs_survive() {
    let config = config();
    let quantizer = grid(Scheme::Int2, 64);
    let mut weights = model(&config, None);
    for (spec, weight) in weights.iter_mut().filter(|(spec, _)| !spec.kind.is_vector()) {
        let shape = [spec.shape[0], spec.shape[1]];
        let scales =
            (0..shape[0] * shape[1] / 64).map(|i| (i % 7) as f32 * 0.125 - 0.5).map(|s| if s == 0.0 { 1.0 } else { s });
        let scales = Scales { scales: DenseMatrix { data: scales.collect(), columns: 1 }, offsets: None };
        *weight =
            StoredWeight::Packed(PackedMatrix::quantize_by(&quantizer, shape, values(spec), Some(scales)).unwrap());
    }
    let (folder, _) = written(&config, &weights, &Options { exact: true, ..Options::default() }).unwrap();
    let back = super::super::open(&folder.path().join("model.gguf")).unwrap();
    for (spec, weight) in weights {
        assert!(back.weights.read(&spec).unwrap() == weight.into_values(), "{}", spec.name);
    }
}

#[test]
fn losses_are_told_and_refused_where_none_is_allowed() {
    let quantizer = grid(Scheme::Int4, 32).with_scales(ScaleFormat::F32);
    let weights = model(&config(), Some(quantizer));
    let (_folder, tensors) = written(&config(), &weights, &Options::default()).unwrap();
    let lossy = tensors.iter().find(|tensor| tensor.tensor == "blk.0.ffn_up.weight").unwrap();
    assert!(lossy.error > 1e-5 && lossy.error < 1e-3, "{}", lossy.error);
    assert!(lossy.remark.as_ref().unwrap().contains("scale_dtype = \"f16\""));
    let error = written(&config(), &weights, &Options { exact: true, ..Options::default() }).unwrap_err().to_string();
    assert!(error.contains("token_embd.weight would not be exact in Q4_0"), "{error}");
    // Levels that no type has stay exact in floating point, and say so.
    let tensors = round_trip(&config(), Some(grid(Scheme::Nf4, 32)));
    let nf4 = tensors.iter().find(|tensor| tensor.tensor == "blk.0.ffn_up.weight").unwrap();
    assert_eq!((format_of(nf4), nf4.remark.as_deref()), (BlockFormat::F32, Some("no type has the levels of nf4")));
}

#[test]
fn ternary_matrices_with_one_scale_are_written_for_bitnet_cpp() {
    let options = Options { preferred: Some(TensorType::I2S), exact: true, ..Options::default() };
    let of = |quantizer: Quantizer| {
        let weights = model(&config(), Some(quantizer));
        let (folder, tensors) = written(&config(), &weights, &options).unwrap();
        let back = super::super::open(&folder.path().join("model.gguf")).unwrap();
        assert!(back.weights.quantized());
        for (spec, weight) in weights {
            let found = back.weights.stored(&spec).unwrap().into_values();
            assert!(found == weight.into_values() && found == back.weights.read(&spec).unwrap(), "{}", spec.name);
        }
        tensors.into_iter().find(|tensor| tensor.tensor == "blk.0.attn_q.weight").unwrap()
    };
    let found = of(Quantizer::from(Scheme::Ternary).with_granularity(Granularity::Tensor));
    assert_eq!((&*found.dtype, found.bytes), ("I2_S", 256 * 256 / 4 + 32));
    // Several scales have no place in it.
    assert_eq!(of(grid(Scheme::Ternary, 256)).dtype, "TQ2_0");
}

#[test]
fn weights_in_full_precision_take_the_smallest_type_that_keeps_them() {
    let config = config();
    let mut weights = model(&config, None);
    let round = |weights: &mut [(WeightSpec, StoredWeight)], name: &str, round: fn(f32) -> f32| {
        let (spec, weight) = weights.iter_mut().find(|(spec, _)| spec.name.contains(name)).unwrap();
        *weight = StoredWeight::Full(values(spec).into_iter().map(round).collect());
    };
    round(&mut weights, "up_proj", |value| half::bf16::from_f32(value).to_f32());
    round(&mut weights, "down_proj", |value| half::f16::from_f32(value).to_f32());
    let formats = |options: &Options| {
        let (_folder, tensors) = written(&config, &weights, options).unwrap();
        ["ffn_up", "ffn_down", "ffn_gate"].map(|part| {
            let name = format!("blk.0.{part}.weight");
            let tensor = tensors.iter().find(|tensor| tensor.tensor == name).unwrap();
            (format_of(tensor), tensor.error == 0.0)
        })
    };
    use BlockFormat::*;
    assert_eq!(formats(&Options::default()), [(Bf16, true), (F16, true), (F32, true)]);
    let half = Options { full: Some(F16), ..Options::default() };
    assert_eq!(formats(&half).map(|(format, _)| format), [F16; 3]);
    assert!(!formats(&half)[2].1);
}

#[test]
fn configs_of_every_family_read_back_or_are_refused() {
    for family in families::ALL {
        let mut config = config();
        config.arch = family.arch();
        config.arch.rotary_dim = None;
        config.sub_norm = family.model_type == "bitnet";
        let weights = model(&config, Some(grid(Scheme::Int4, 32)));
        let result = written(&config, &weights, &Options { exact: true, ..Options::default() });
        match family.model_type {
            "llama" | "mistral" | "qwen2" | "qwen3" | "phi3" | "olmo2" => {
                let (folder, _) = result.unwrap_or_else(|e| panic!("{}: {e}", family.model_type));
                let back = super::super::open(&folder.path().join("model.gguf")).unwrap();
                for (spec, weight) in weights {
                    assert!(back.weights.read(&spec).unwrap() == weight.into_values(), "{}", spec.name);
                }
            }
            // Defaults of these are no model that a file could say.
            _ => {
                if let Err(error) = result {
                    assert!(error.to_string().contains("GGUF"), "{}: {error}", family.model_type);
                }
            }
        }
    }
}

#[test]
fn scalings_of_rotary_frequencies_survive() {
    let llama3 = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let long = RopeScaling::LongRope {
        short_factor: vec![1.25; 32],
        long_factor: vec![4.5; 32],
        original_max_position_embeddings: 32,
        attention_factor: 1.5,
    };
    for scaling in [llama3, RopeScaling::Linear { factor: 4.0 }, long] {
        let config = ModelConfig { rope_scaling: Some(scaling), ..config() };
        round_trip(&config, None);
    }
    // Another low_freq_factor is no Llama 3 that divisors could say.
    let odd = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 2.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    };
    let config = ModelConfig { rope_scaling: Some(odd), ..config() };
    let error = written(&config, &model(&config, None), &Options::default()).unwrap_err().to_string();
    assert!(error.contains("rope_scaling = ") && error.contains("cannot say"), "{error}");
}

#[test]
fn missing_and_foreign_weights_are_refused_and_leave_no_file() {
    let config = config();
    let weights = model(&config, None);
    let (folder, tokenizer) = (tempfile::tempdir().unwrap(), tokenizer());
    let path = folder.path().join("model.gguf");
    let error = |weights: Vec<(WeightSpec, StoredWeight)>| {
        let error = write(&path, &config, weights.into_iter().map(Ok), &tokenizer, &Options::default()).unwrap_err();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        error.to_string()
    };
    let missing = error(weights[..weights.len() - 1].to_vec());
    assert!(missing.contains("the weights of output_norm.weight were not given"), "{missing}");
    let mut swapped = weights.clone();
    swapped.swap(0, 1);
    assert!(error(swapped).contains("embed_tokens.weight [12, 256] expected"));
    let mut broken = weights;
    let StoredWeight::Full(values) = &mut broken[3].1 else { panic!() };
    values[5] = f32::NAN;
    assert!(error(broken).contains("NaN"));
}

#[test]
fn blocks_of_a_file_are_copied() {
    // Every type that is read, those without whole codes among them; blocks of zeros are zeros in all of them.
    let config = config();
    for format in BlockFormat::ALL.into_iter().filter(|format| format.block_len() > 1 && *format != BlockFormat::Q8_K) {
        let mut weights = model(&config, None);
        for (spec, weight) in weights.iter_mut().filter(|(spec, _)| !spec.kind.is_vector()) {
            let shape = [spec.shape[0], spec.shape[1]];
            let row_bytes = shape[1] / format.block_len() * format.block_bytes();
            let mut bytes = vec![0; shape[0] * row_bytes];
            // A byte of the codes of each row tells rows apart.
            bytes.chunks_exact_mut(row_bytes).enumerate().for_each(|(row, bytes)| bytes[7] = row as u8 & 0x3f);
            let rows = crate::stored::TypedRows::new(bytes.into(), format, shape).unwrap();
            *weight = StoredWeight::Rows(std::sync::Arc::new(rows));
        }
        let (folder, tensors) = written(&config, &weights, &Options { exact: true, ..Options::default() }).unwrap();
        let matrices = tensors.iter().filter(|tensor| !tensor.tensor.contains("norm"));
        assert!(
            matrices.clone().count() > 0 && matrices.clone().all(|tensor| format_of(tensor) == format),
            "{tensors:?}"
        );
        let back = super::super::open(&folder.path().join("model.gguf")).unwrap();
        for (spec, weight) in weights {
            let (StoredWeight::Rows(weight), StoredWeight::Rows(found)) = (weight, back.weights.stored(&spec).unwrap())
            else {
                continue;
            };
            for row in 0..spec.shape[0] {
                assert_eq!(found.stored_row(row), weight.stored_row(row), "{} {}", spec.name, format.name());
            }
        }
    }
}
