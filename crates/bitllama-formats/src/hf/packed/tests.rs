//! Directories hold the weights that went into them, to the bit: by readers that are written here from the definition of each
//! format, one bit after the other, by what the config says.

use std::collections::HashMap;
use std::path::PathBuf;

use bitllama_core::families::of_model_type;
use bitllama_core::names::hf_place;
use bitllama_core::weights::{EMBEDDING, specs};
use bitllama_core::{Granularity, Quantizer, Scheme};
use half::{bf16, f16};
use safetensors::SafeTensors;
use serde_json::json;
use tokenizers::Tokenizer;

use super::*;
use crate::exports;

const LAST: &str = "layers.1.mlp.down_proj.weight";

/// Columns of 96 and 160, which groups of 32 divide, and with `odd` also of 100, which none does.
pub(in crate::hf) fn config(odd: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 12,
        hidden_size: 96,
        intermediate_size: if odd { 100 } else { 160 },
        num_hidden_layers: 2,
        num_attention_heads: 3,
        num_key_value_heads: 1,
        head_dim: 32,
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
    let model = json!({"type": "BPE", "vocab": {"a": 0, "<s>": 1, "</s>": 2}, "merges": []});
    Tokenizer::from_bytes(json!({"version": "1.0", "model": model, "added_tokens": []}).to_string()).unwrap()
}

fn values(spec: &WeightSpec) -> Vec<f32> {
    let seed = spec.name.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let noise = |i: u32| (i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..spec.len() as u32).map(noise).collect()
}

pub(in crate::hf) type Weights = Vec<(WeightSpec, StoredWeight)>;

/// Matrices as `quantizer` says, if it fits them; vectors in f32.
pub(in crate::hf) fn model(config: &ModelConfig, quantizer: impl Fn(&WeightSpec) -> Option<Quantizer>) -> Weights {
    let stored = |spec: WeightSpec| {
        let quantizer = quantizer(&spec).filter(|quantizer| {
            !spec.kind.is_vector() && quantizer.check_shape([spec.shape[0], spec.shape[1]]).is_ok()
        });
        let weight = match quantizer {
            Some(quantizer) => {
                let shape = [spec.shape[0], spec.shape[1]];
                StoredWeight::Packed(PackedMatrix::quantize(&quantizer, shape, values(&spec)).unwrap())
            }
            None => StoredWeight::Full(values(&spec)),
        };
        (spec, weight)
    };
    specs(config).into_iter().map(stored).collect()
}

pub(in crate::hf) fn grid(scheme: Scheme, columns: usize) -> Quantizer {
    Quantizer::from(scheme).with_granularity(Granularity::Group(columns)).with_scales(ScaleFormat::F16)
}

pub(in crate::hf) const EXACT: Options = Options { dtype: None, exact: true };

pub(in crate::hf) struct Folder {
    _root: tempfile::TempDir,
    pub path: PathBuf,
    pub config: Value,
    pub bytes: Vec<u8>,
    written: Vec<Written>,
}

pub(in crate::hf) fn written(
    config: &ModelConfig,
    weights: &Weights,
    format: PackedFormat,
    options: Options,
) -> Result<Folder> {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    let tokenizer = tokenizer();
    let given = weights.iter().cloned().map(Ok);
    let written = write(&path, config, &ActivationPlan::default(), given, &tokenizer, (format, options))?;
    let config = crate::json::read(&path.join(CONFIG)).unwrap();
    let bytes = std::fs::read(path.join(WEIGHTS)).unwrap();
    Ok(Folder { _root: root, path, config, bytes, written })
}

/// The `bits` bits from position `first` on of a row of words, the lowest first.
fn field(bytes: &[u8], first: usize, bits: usize) -> u32 {
    (0..bits).map(|bit| u32::from(bytes[(first + bit) / 8] >> ((first + bit) % 8) & 1) << bit).sum()
}

/// The same of words that stand `stride` words apart.
fn strided(bytes: &[u8], offset: usize, stride: usize, first: usize, bits: usize) -> u32 {
    let bit = |at: usize| bytes[(offset + at / 32 * stride) * 4 + at % 32 / 8] >> (at % 8) & 1;
    (0..bits).map(|i| u32::from(bit(first + i)) << i).sum()
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = tensors.tensor(name).unwrap();
    assert_eq!(tensor.data().as_ptr() as usize % tensor.dtype().bitsize().div_ceil(8), 0, "{name} is not aligned");
    let bytes = tensor.data();
    match tensor.dtype() {
        StoredDtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        StoredDtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        StoredDtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => panic!("{name} is of type {other:?}"),
    }
}

/// Bits, columns of a group (`None` for one a row) and whether there are zero points: what a config says about a module.
type Said = Option<(usize, Option<usize>, bool)>;

fn said(format: PackedFormat, config: &Value, module: &str) -> Said {
    let holds = |list: &Value, name: &str| list.as_array().unwrap().iter().any(|item| item == name);
    let quantization = &config["quantization_config"];
    match format {
        PackedFormat::CompressedTensors => {
            assert_eq!(
                (&quantization["quant_method"], &quantization["format"]),
                (&json!("compressed-tensors"), &json!("pack-quantized"))
            );
            if holds(&quantization["ignore"], module) {
                return None;
            }
            let is_linear = module.contains("_proj");
            let groups = quantization["config_groups"].as_object().unwrap().values();
            let mut fit = groups
                .filter(|group| holds(&group["targets"], module) || is_linear && holds(&group["targets"], "Linear"));
            let weights = &fit.next()?["weights"];
            assert!(fit.next().is_none(), "{module} is in two groups");
            let size = weights["group_size"].as_u64().map(|size| size as usize);
            assert_eq!(weights["strategy"], if size.is_some() { "group" } else { "channel" });
            Some((weights["num_bits"].as_u64().unwrap() as usize, size, !weights["symmetric"].as_bool().unwrap()))
        }
        PackedFormat::Gptq | PackedFormat::GptqV2 => {
            let version = if format == PackedFormat::Gptq { "gptq" } else { "gptq_v2" };
            assert_eq!(
                (&quantization["quant_method"], &quantization["checkpoint_format"]),
                (&json!("gptq"), &json!(version))
            );
            if !module.contains("layers.") {
                return None;
            }
            let mut form = quantization;
            for (pattern, rule) in quantization["dynamic"].as_object().into_iter().flatten() {
                let (sign, pattern) = pattern.split_once(':').unwrap();
                if names(pattern).iter().any(|name| name == module) {
                    form = if sign == "-" { &Value::Null } else { rule };
                }
            }
            let packed = quantization["modules_in_block_to_quantize"].as_array().map(|list| holds(&list[0], module));
            assert_eq!(packed.unwrap_or(true), !form.is_null(), "{module}");
            let size = form["group_size"].as_i64()?;
            let size = (size > 0).then_some(size as usize);
            Some((form["bits"].as_u64().unwrap() as usize, size, !form["sym"].as_bool().unwrap()))
        }
        PackedFormat::Mlx => {
            let all = &config["quantization"];
            let of = all.get(module).unwrap_or(all);
            Some((of["bits"].as_u64().unwrap() as usize, of["group_size"].as_u64().map(|size| size as usize), true))
        }
        PackedFormat::Bitnet => None,
    }
}

/// The names that a pattern of `dynamic` is for.
fn names(pattern: &str) -> Vec<String> {
    let plain = pattern.strip_prefix('^').unwrap().strip_suffix('$').unwrap().replace("\\.", ".");
    match plain.split_once("(?:") {
        None => vec![plain],
        Some((parent, rest)) => {
            rest.strip_suffix(')').unwrap().split('|').map(|name| format!("{parent}{name}")).collect()
        }
    }
}

/// A tensor `[rows, columns]` by the definition of the format.
fn read(folder: &Folder, format: PackedFormat, name: &str, [rows, columns]: [usize; 2]) -> (Said, Vec<f32>) {
    let tensors = SafeTensors::deserialize(&folder.bytes).unwrap();
    let module = module_of(name);
    let has = |part: &str| tensors.tensor(&format!("{module}.{part}")).is_ok();
    let raw = |part: &str, dtype: StoredDtype, shape: &[usize]| {
        let tensor = tensors.tensor(&format!("{module}.{part}")).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, shape), "{module}.{part}");
        tensor.data().to_vec()
    };
    let numbers = |part: &str| floats(&tensors, &format!("{module}.{part}"));
    let every = |value: &dyn Fn(usize, usize) -> f32| {
        (0..rows * columns).map(|at| value(at / columns, at % columns)).collect::<Vec<f32>>()
    };
    let is_packed = has("weight_packed") || has("qweight") || has("scales");
    if name.contains("norm") {
        return (None, floats(&tensors, name));
    }
    let said = said(format, &folder.config, module);
    if format != PackedFormat::Mlx {
        assert_eq!(said.is_some(), is_packed, "{module}");
    }
    let Some((bits, size, has_zeros)) = said.filter(|_| is_packed) else { return (None, floats(&tensors, name)) };
    let groups = columns / size.unwrap_or(columns);
    let group = |column: usize| column / size.unwrap_or(columns);
    let middle = f64::from(1u32 << (bits - 1));
    let values = match format {
        PackedFormat::CompressedTensors => {
            let words = (columns * bits).div_ceil(32);
            let packed = raw("weight_packed", StoredDtype::I32, &[rows, words]);
            let shape = raw("weight_shape", StoredDtype::I64, &[2]);
            assert_eq!(shape, [rows, columns].map(|size| (size as u64).to_le_bytes()).concat());
            let scales = numbers("weight_scale");
            assert_eq!(scales.len(), rows * groups);
            let zero_words = (rows * bits).div_ceil(32);
            let zeros = has_zeros.then(|| raw("weight_zero_point", StoredDtype::I32, &[zero_words, groups]));
            assert_eq!(has("weight_zero_point"), has_zeros);
            every(&|row, column| {
                let group = group(column);
                let zero =
                    zeros.as_ref().map_or(middle, |zeros| strided(zeros, group, groups, row * bits, bits).into());
                let field = f64::from(field(&packed[row * words * 4..], column * bits, bits));
                (field - zero) as f32 * scales[row * groups + group]
            })
        }
        PackedFormat::Gptq | PackedFormat::GptqV2 => {
            let packed = raw("qweight", StoredDtype::I32, &[columns * bits / 32, rows]);
            let zeros = raw("qzeros", StoredDtype::I32, &[groups, rows * bits / 32]);
            let places = raw("g_idx", StoredDtype::I32, &[columns]);
            let scales = numbers("scales");
            let less = if format == PackedFormat::Gptq { 1.0 } else { 0.0 };
            every(&|row, column| {
                let place = u32::from_le_bytes(places[column * 4..][..4].try_into().unwrap()) as usize;
                assert_eq!(place, group(column));
                let zero = f64::from(field(&zeros[place * rows * bits / 8..], row * bits, bits)) + less;
                assert!(has_zeros || zero == middle, "{module}: {zero} of a symmetric matrix");
                let field = f64::from(strided(&packed, row, rows, column * bits, bits));
                (field - zero) as f32 * scales[place * rows + row]
            })
        }
        _ => {
            let packed = raw("weight", StoredDtype::U32, &[rows, columns * bits / 32]);
            let (scales, biases) = (numbers("scales"), numbers("biases"));
            every(&|row, column| {
                let place = row * groups + group(column);
                field(&packed[row * columns * bits / 8..], column * bits, bits) as f32 * scales[place] + biases[place]
            })
        }
    };
    (said, values)
}

/// Holds every tensor of a folder against the weights that went in, and gives what the config says of each.
fn check(config: &ModelConfig, weights: &Weights, folder: &Folder, format: PackedFormat) -> HashMap<String, Said> {
    let mut found = HashMap::new();
    for (spec, weight) in weights {
        let place = hf_place(config, spec);
        let shape = [place.shape[0], place.shape.get(1).copied().unwrap_or(1)];
        let (said, values) = read(folder, format, &name_of(&place.tensor), shape);
        let values = &values[place.offset()..][..spec.len()];
        assert!(values == exports::values(weight), "{format:?} {}: {said:?}", spec.name);
        found.insert(spec.name.clone(), said);
    }
    if format != PackedFormat::Mlx {
        opens(weights, folder, &found);
    }
    found
}

/// Holds what our own reader makes of a folder against the weights that went in.
fn opens(weights: &Weights, folder: &Folder, said: &HashMap<String, Said>) {
    let back = crate::hf::open(&folder.path).unwrap();
    assert_eq!(back.role, crate::model::Role::Student);
    for (spec, weight) in weights {
        let found = back.weights.stored(spec).unwrap();
        assert!(exports::values(&found) == exports::values(weight), "{}", spec.name);
        assert!(back.weights.read(spec).unwrap() == exports::values(weight), "{}", spec.name);
        assert_eq!(matches!(found, StoredWeight::Packed(_)), said[&spec.name].is_some(), "{}", spec.name);
    }
    let parts: u64 = folder.written.iter().map(|written| written.bytes as u64).sum();
    // Places of columns and shapes say nothing that is not in the config.
    assert!(back.weights.stored_bytes() <= parts && back.weights.stored_bytes() * 2 > parts);
}

fn round_trip(
    config: &ModelConfig,
    format: PackedFormat,
    quantizer: impl Fn(&WeightSpec) -> Option<Quantizer>,
) -> HashMap<String, Said> {
    let weights = model(config, quantizer);
    let folder = written(config, &weights, format, EXACT).unwrap();
    assert!(folder.written.iter().all(|written| written.error == 0.0));
    check(config, &weights, &folder, format)
}

#[test]
fn every_scheme_takes_the_fewest_bits_that_hold_it() {
    use PackedFormat::*;
    // Bits in compressed-tensors, GPTQ and MLX.
    for (scheme, expected) in [
        (Scheme::Binary, [2, 2, 2]),
        (Scheme::Ternary, [2, 2, 2]),
        (Scheme::Seq2, [3, 3, 2]),
        (Scheme::Int2, [2, 2, 2]),
        (Scheme::Int3, [3, 3, 3]),
        (Scheme::Int4, [4, 4, 4]),
        (Scheme::Int5, [5, 8, 5]),
        (Scheme::Int6, [6, 8, 6]),
        (Scheme::Int8, [8, 8, 8]),
    ] {
        for granularity in [Granularity::Group(32), Granularity::Group(96), Granularity::Row, Granularity::Tensor] {
            for (format, bits) in [CompressedTensors, Gptq, GptqV2, Mlx].into_iter().zip([
                expected[0],
                expected[1],
                expected[1],
                expected[2],
            ]) {
                let quantizer = grid(scheme, 32).with_granularity(granularity);
                let said = round_trip(&config(false), format, |_| Some(quantizer));
                let of = |name: &str| said[name];
                // One group of 96 columns is a whole row.
                let a_row = granularity != Granularity::Group(32) && format != Mlx;
                let size = (!a_row).then_some(32);
                assert_eq!(
                    of("layers.0.mlp.up_proj.weight"),
                    Some((bits, size, format == Mlx)),
                    "{scheme} {granularity:?} {format:?}"
                );
                assert_eq!(of(EMBEDDING).is_some(), format == Mlx, "{scheme} {format:?}");
            }
        }
    }
}

#[test]
fn zero_points_are_kept_and_those_that_a_width_lacks_take_a_wider_one() {
    use PackedFormat::*;
    for scheme in [Scheme::Int2, Scheme::Int3, Scheme::Int4, Scheme::Int8] {
        for size in [32, 96] {
            for format in [CompressedTensors, GptqV2, Mlx] {
                let bits = scheme.code_bits() as usize;
                let said = round_trip(&config(false), format, |_| Some(grid(scheme, size).with_zero_point()));
                let found = said["layers.0.mlp.gate_proj.weight"].unwrap();
                assert_eq!((found.0, found.2), (bits, true), "{scheme} {size} {format:?}");
            }
        }
    }
    // By hand: zero points of 0, which the first version of GPTQ lacks, and some beyond the fields.
    let config = config(false);
    let with_zeros = |point: fn(usize) -> i32| {
        let mut weights = model(&config, |_| Some(grid(Scheme::Int4, 32)));
        for (spec, weight) in weights.iter_mut().filter(|(spec, _)| spec.kind == Kind::Linear) {
            let [rows, columns] = [spec.shape[0], spec.shape[1]];
            let groups = rows * columns / 32;
            let (scales, points) = (vec![0.5; groups], (0..groups).map(point).collect());
            let fields = |row: usize, out: &mut [u8]| {
                out.iter_mut().enumerate().for_each(|(column, field)| *field = ((row * 7 + column * 5) % 16) as u8);
                Ok::<_, bitllama_core::Error>(())
            };
            let matrix = PackedMatrix::from_fields(Scheme::Int4, [rows, columns], scales, Some(points), fields);
            *weight = StoredWeight::Packed(matrix.unwrap());
        }
        weights
    };
    let bits = |format, point: fn(usize) -> i32| {
        let weights = with_zeros(point);
        let folder = written(&config, &weights, format, EXACT).unwrap();
        let said = check(&config, &weights, &folder, format);
        let remark = folder.written.iter().find(|written| written.tensor.ends_with(LAST)).unwrap().remark.clone();
        (said[LAST].map(|(bits, _, has_zeros)| (bits, has_zeros)), remark)
    };
    // Of 8 bits the middle is far enough from both ends.
    for (format, expected) in [(Gptq, 8), (GptqV2, 4), (CompressedTensors, 4), (Mlx, 4)] {
        let (found, remark) = bits(format, |group| (group % 16) as i32);
        assert_eq!(found, Some((expected, expected == 4)), "{format:?}");
        assert_eq!(remark.is_some(), expected > 4, "{remark:?}");
    }
    assert_eq!(bits(CompressedTensors, |group| group as i32 % 40 - 10).0, Some((5, true)));
    assert_eq!(bits(CompressedTensors, |group| group as i32 % 40).0, Some((6, true)));
    assert_eq!(bits(Gptq, |group| group as i32 % 40 - 10).0, Some((8, false)));
    assert_eq!(bits(Gptq, |group| group as i32 % 200).0, Some((8, true)));
    assert_eq!(bits(Mlx, |group| 1000 - group as i32).0, Some((4, true)));
    // Points in the middle are none.
    assert_eq!(bits(Gptq, |_| 8).0, Some((4, false)));
    let far = with_zeros(|group| if group == 1 { -300 } else { 3 });
    let error = written(&config, &far, GptqV2, EXACT).err().unwrap().to_string();
    assert!(error.contains("zero points from -300 to 3 fit no width"), "{error}");
}

#[test]
fn matrices_of_odd_shapes_are_packed_where_a_format_can() {
    use PackedFormat::*;
    let rows = |scheme| grid(scheme, 32).with_granularity(Granularity::Row);
    for scheme in [Scheme::Int3, Scheme::Int4, Scheme::Int8] {
        for format in [CompressedTensors, Gptq, GptqV2, Mlx] {
            let said = round_trip(&config(true), format, |_| Some(rows(scheme)));
            let (up, down) = (said["layers.0.mlp.up_proj.weight"], said["layers.0.mlp.down_proj.weight"]);
            assert_eq!(down.is_some(), format == CompressedTensors, "{scheme} {format:?}");
            // Zeros of 100 rows are whole words in 8 bits.
            let bits = if matches!(format, Gptq | GptqV2) { 8 } else { scheme.code_bits() as usize };
            assert_eq!(up.map(|(bits, ..)| bits), Some(bits), "{scheme} {format:?}");
        }
    }
}

#[test]
fn plans_that_mix_forms_are_said_module_by_module() {
    let mixed = |spec: &WeightSpec| match spec.name.as_str() {
        name if name.contains("layers.0.mlp.down_proj") => Some(grid(Scheme::Int8, 32)),
        name if name.contains("o_proj") => None,
        name if name.contains("k_proj") => Some(grid(Scheme::Ternary, 96).with_granularity(Granularity::Row)),
        name if name.contains("layers.1.mlp") => Some(grid(Scheme::Nf4, 32)),
        _ => Some(grid(Scheme::Int4, 32)),
    };
    use PackedFormat::*;
    for format in [CompressedTensors, Gptq, GptqV2, Mlx] {
        for tied in [true, false] {
            let config = ModelConfig { tie_word_embeddings: tied, ..config(false) };
            let said = round_trip(&config, format, mixed);
            let of = |name: &str| said[&format!("layers.{name}.weight")].map(|(bits, size, _)| (bits, size));
            assert_eq!(of("0.self_attn.q_proj"), Some((4, Some(32))));
            assert_eq!(of("0.mlp.down_proj"), Some((8, Some(32))));
            assert_eq!(of("1.self_attn.k_proj"), Some((2, (format == Mlx).then_some(32))));
            assert_eq!((of("1.mlp.down_proj"), of("0.self_attn.o_proj")), (None, None));
        }
    }
    let folder = written(&config(false), &model(&config(false), mixed), Gptq, EXACT).unwrap();
    let nf4 = folder.written.iter().find(|written| written.tensor.ends_with(LAST)).unwrap();
    assert_eq!((nf4.dtype.as_ref(), nf4.remark.as_deref()), ("F32", Some("the format has no levels of nf4")));
    let config = &folder.config["quantization_config"];
    assert_eq!((&config["bits"], &config["group_size"], &config["sym"]), (&json!(4), &json!(32), &json!(true)));
}

#[test]
fn tensors_of_several_matrices_take_one_form() {
    let mut config = config(false);
    config.arch = of_model_type("phi3").unwrap().arch();
    let mixed = |spec: &WeightSpec| match spec.name.as_str() {
        name if name.contains("gate_proj") => Some(grid(Scheme::Binary, 96)),
        name if name.contains("v_proj") => Some(grid(Scheme::Int4, 32).with_zero_point()),
        _ => Some(grid(Scheme::Int3, 32)),
    };
    for format in [PackedFormat::CompressedTensors, PackedFormat::GptqV2, PackedFormat::Mlx] {
        let said = round_trip(&config, format, mixed);
        let [gate, up] = ["gate", "up"].map(|name| said[&format!("layers.0.mlp.{name}_proj.weight")].unwrap());
        assert_eq!(gate, up);
        assert_eq!((gate.0, gate.1), (3, Some(32)), "{format:?}");
        assert!(said["layers.0.self_attn.q_proj.weight"].unwrap().0 >= 4);
    }
}

#[test]
fn scales_keep_f32_where_a_format_has_it_and_are_told_or_refused_elsewhere() {
    let quantizer = grid(Scheme::Int4, 32).with_scales(ScaleFormat::F32);
    let weights = model(&config(false), |_| Some(quantizer));
    let folder = written(&config(false), &weights, PackedFormat::CompressedTensors, EXACT).unwrap();
    check(&config(false), &weights, &folder, PackedFormat::CompressedTensors);
    assert_eq!(folder.config["torch_dtype"], "float32");
    let error = written(&config(false), &weights, PackedFormat::Gptq, EXACT).err().unwrap().to_string();
    assert!(error.contains("q_proj.weight would not be exact in int4 g32") && error.contains("scale_dtype"), "{error}");
    let folder = written(&config(false), &weights, PackedFormat::Gptq, Options::default()).unwrap();
    let lossy: Vec<f64> = folder.written.iter().map(|written| written.error).filter(|error| *error > 0.0).collect();
    assert_eq!(lossy.len(), 14);
    assert!(lossy.iter().all(|error| (1e-5..1e-3).contains(error)), "{lossy:?}");
    // What is asked for is what scales are, too: readers would cast them.
    let half = Options { dtype: Some(Dtype::Bf16), exact: false };
    let weights = model(&config(false), |_| Some(grid(Scheme::Int4, 32)));
    for format in [PackedFormat::CompressedTensors, PackedFormat::Gptq, PackedFormat::Mlx] {
        let folder = written(&config(false), &weights, format, half).unwrap();
        assert_eq!(folder.config["torch_dtype"], "bfloat16");
        let tensors = SafeTensors::deserialize(&folder.bytes).unwrap();
        let whole = [StoredDtype::I32, StoredDtype::I64, StoredDtype::U32];
        assert!(
            tensors.iter().all(|(_, tensor)| tensor.dtype() == StoredDtype::BF16 || whole.contains(&tensor.dtype()))
        );
        let up = folder.written.iter().find(|written| written.tensor.contains("up_proj")).unwrap();
        assert!(up.error > 1e-4 && up.remark.as_ref().unwrap().contains("bfloat16"), "{up:?}");
    }
}

#[test]
fn the_type_of_a_config_keeps_the_numbers_of_all_tensors() {
    let config = config(false);
    let dtype = |round: fn(f32) -> f32, scales: fn(f32) -> f32| {
        let mut weights = model(&config, |spec| (spec.kind == Kind::Linear).then(|| grid(Scheme::Int4, 32)));
        for (spec, weight) in &mut weights {
            match weight {
                StoredWeight::Packed(matrix) => {
                    let rounded = matrix.scales().iter().copied().map(scales).collect::<Vec<f32>>();
                    let shape = [spec.shape[0], spec.shape[1]];
                    let bytes = matrix.bytes().clone();
                    *matrix = PackedMatrix::new(Scheme::Int4, shape, bytes, rounded, None).unwrap();
                }
                _ => *weight = StoredWeight::Full(values(spec).into_iter().map(round).collect()),
            }
        }
        let folder = written(&config, &weights, PackedFormat::CompressedTensors, EXACT).unwrap();
        check(&config, &weights, &folder, PackedFormat::CompressedTensors);
        let (tensors, said) = (SafeTensors::deserialize(&folder.bytes).unwrap(), &folder.config["torch_dtype"]);
        for (name, tensor) in tensors.iter().filter(|(name, _)| !name.contains("weight_")) {
            let expected =
                [(StoredDtype::F16, "float16"), (StoredDtype::BF16, "bfloat16"), (StoredDtype::F32, "float32")];
            assert!(expected.iter().any(|(dtype, name)| tensor.dtype() == *dtype && said == name), "{name}");
            let entry = folder.written.iter().find(|written| written.tensor == name).unwrap();
            assert_eq!(
                (entry.dtype.as_ref(), entry.bytes),
                (format!("{:?}", tensor.dtype()).as_str(), tensor.data().len())
            );
        }
        assert_eq!(
            std::fs::read_dir(&folder.path)
                .unwrap()
                .filter(|entry| { entry.as_ref().unwrap().file_name().to_string_lossy().contains("weights") })
                .count(),
            0
        );
        said.as_str().unwrap().to_string()
    };
    let half: fn(f32) -> f32 = |value| f16::from_f32(value).to_f32();
    let brain: fn(f32) -> f32 = |value| bf16::from_f32(1e-30 * value).to_f32();
    assert_eq!(dtype(half, half), "float16");
    assert_eq!(dtype(brain, brain), "bfloat16");
    assert_eq!(dtype(brain, half), "float32");
    assert_eq!(dtype(|value| value, half), "float32");
    // Numbers that both small types hold decide nothing.
    assert_eq!(dtype(|value| value.signum(), brain), "bfloat16");
}

#[test]
fn gemma_norms_are_written_as_the_file_has_them() {
    let mut config = config(false);
    config.arch = of_model_type("gemma").unwrap().arch();
    let weights = model(&config, |_| Some(grid(Scheme::Int4, 32)));
    let folder = written(&config, &weights, PackedFormat::CompressedTensors, Options::default()).unwrap();
    let tensors = SafeTensors::deserialize(&folder.bytes).unwrap();
    let found = floats(&tensors, "model.norm.weight");
    let (_, weight) = weights.iter().find(|(spec, _)| spec.name == "norm.weight").unwrap();
    let expected: Vec<f32> = exports::values(weight).iter().map(|value| value - 1.0).collect();
    assert_eq!(found, expected);
}

#[test]
fn bitnet_reads_back_as_the_same_student() {
    let one_scale = grid(Scheme::Ternary, 32).with_granularity(Granularity::Tensor);
    for (scales, odd) in [(ScaleFormat::F16, false), (ScaleFormat::F32, true)] {
        let config = config(odd);
        let quantizer = one_scale.with_scales(scales);
        let weights = model(&config, |spec| match spec.name.as_str() {
            // Not ternary, several scales, full precision.
            "layers.0.self_attn.o_proj.weight" => Some(grid(Scheme::Int4, 32)),
            "layers.1.self_attn.q_proj.weight" => Some(grid(Scheme::Ternary, 32)),
            "layers.1.self_attn.v_proj.weight" => None,
            "layers.0.self_attn.q_proj.weight" => Some(quantizer.with_granularity(Granularity::Tensor)),
            _ => Some(quantizer),
        });
        let folder = written(&config, &weights, PackedFormat::Bitnet, EXACT).unwrap();
        let skipped = &folder.config["quantization_config"]["modules_to_not_convert"];
        let modules = ["0.self_attn.o_proj", "1.self_attn.q_proj", "1.self_attn.v_proj"]
            .map(|name| format!("model.layers.{name}"));
        assert_eq!(*skipped, json!([&modules[..], &["lm_head".to_string()]].concat()));
        let back = crate::hf::open(&folder.path).unwrap();
        assert_eq!(back.config, config);
        let mut ternary = 0;
        for (spec, weight) in weights {
            let found = back.weights.stored(&spec).unwrap();
            assert!(exports::values(&found) == exports::values(&weight), "{}", spec.name);
            if let StoredWeight::Packed(matrix) = found {
                assert_eq!(matrix.scheme(), Scheme::Ternary);
                assert_eq!(back.activations.inputs.get(&spec.name), Some(&bitllama_core::Activation::Int8));
                ternary += 1;
            }
        }
        assert_eq!((ternary, back.activations.inputs.len()), (11, 11));
    }
}

#[test]
fn what_cannot_be_written_leaves_no_folder() {
    let config = config(false);
    let root = tempfile::tempdir().unwrap();
    let error = |weights: Weights, format: PackedFormat| {
        let path = root.path().join("model");
        let given = weights.into_iter().map(Ok);
        let tokenizer = tokenizer();
        let error = write(&path, &config, &ActivationPlan::default(), given, &tokenizer, (format, EXACT)).unwrap_err();
        assert!(!path.exists());
        error.to_string()
    };
    let whole = model(&config, |_| Some(grid(Scheme::Int4, 32)));
    let missing = error(whole[..whole.len() - 1].to_vec(), PackedFormat::Gptq);
    assert!(missing.contains("weight norm.weight was not given"), "{missing}");
    let mut broken = whole.clone();
    let StoredWeight::Full(values) = &mut broken.last_mut().unwrap().1 else { panic!() };
    values[5] = f32::NAN;
    assert!(error(broken, PackedFormat::Mlx).contains("weight norm.weight holds NaN at [5]"));
    let nothing = error(whole, PackedFormat::Bitnet);
    assert!(
        nothing.contains("no matrix of the model can be packed in the format (the matrix has several scales"),
        "{nothing}"
    );
    let plain = error(model(&config, |_| None), PackedFormat::CompressedTensors);
    assert!(plain.contains("no matrix of the model can be packed in the format; use --to hf"), "{plain}");
}

#[test]
fn mlx_and_foreign_packings_are_refused_by_name() {
    let config = config(false);
    let weights = model(&config, |_| Some(grid(Scheme::Int4, 32)));
    let folder = written(&config, &weights, PackedFormat::Mlx, EXACT).unwrap();
    let error = crate::hf::open(&folder.path).err().unwrap().to_string();
    assert!(error.contains("config.json: quantization: weights that MLX packed are not supported"), "{error}");
}
