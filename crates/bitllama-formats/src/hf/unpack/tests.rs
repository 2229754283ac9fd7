//! Packed directories of other programs that are read, and those that are refused: one tensor or one field of a config
//! changed at a time. That what it writes reads back is tested where it is written.

use std::collections::BTreeMap;

use bitllama_core::{Granularity, Scheme};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::super::packed::tests::{EXACT, Folder, config, grid, model, written};
use super::super::{CONFIG, PackedFormat, WEIGHTS, open, write_json};
use super::*;
use crate::StoredWeight;

const UP: &str = "model.layers.0.mlp.up_proj";

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// A directory of groups of 32 columns, or with one scale a row, changed.
fn changed(format: PackedFormat, rows: bool, change: impl FnOnce(&mut Value, &mut Tensors)) -> Folder {
    let quantizer = grid(Scheme::Int4, 32);
    let quantizer = if rows { quantizer.with_granularity(Granularity::Row) } else { quantizer };
    let folder = written(&config(false), &model(&config(false), |_| Some(quantizer)), format, EXACT).unwrap();
    let mut json = folder.config.clone();
    let mut tensors: Tensors = SafeTensors::deserialize(&folder.bytes)
        .unwrap()
        .iter()
        .map(|(name, view)| (name.to_string(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut json, &mut tensors);
    write_json(&folder.path.join(CONFIG), &json).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.path.join(WEIGHTS), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

/// The first and the last weight of `up_proj` in layer 0.
fn ends(folder: &Folder) -> [f32; 2] {
    let back = open(&folder.path).unwrap();
    let specs = bitllama_core::weights::specs(&back.config);
    let spec = specs.iter().find(|spec| spec.name == "layers.0.mlp.up_proj.weight").unwrap();
    let StoredWeight::Packed(matrix) = back.weights.stored(spec).unwrap() else { panic!("is not packed") };
    let values = matrix.dequantize().data;
    [values[0], *values.last().unwrap()]
}

fn error(format: PackedFormat, change: impl FnOnce(&mut Value, &mut Tensors)) -> String {
    let folder = changed(format, false, change);
    let back = match open(&folder.path) {
        Err(error) => Err(error),
        // What only reading finds.
        Ok(back) => {
            bitllama_core::weights::specs(&back.config).iter().try_for_each(|spec| back.weights.read(spec).map(drop))
        }
    };
    let message = back.expect_err("it must be refused").to_string();
    assert!(!message.contains('\n') && message.contains(".safetensors") || message.contains(CONFIG), "{message}");
    message
}

fn put(tensors: &mut Tensors, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    change(&mut tensors.get_mut(&format!("{UP}.{name}")).unwrap().2);
}

#[test]
fn directories_of_others_are_read() {
    let plain = ends(&changed(PackedFormat::Gptq, false, |_, _| ()));
    // Without columns' groups, with fields that say nothing here, with a bias of zeros.
    let folder = changed(PackedFormat::Gptq, false, |json, tensors| {
        tensors.retain(|name, _| !name.ends_with("g_idx"));
        let stated = &mut json["quantization_config"];
        stated.as_object_mut().unwrap().remove("checkpoint_format");
        (stated["damp_percent"], stated["true_sequential"], stated["is_marlin_format"]) =
            (json!(0.01), json!(true), json!(false));
        tensors.insert(format!("{UP}.bias"), (Dtype::F16, vec![160], vec![0; 320]));
    });
    assert_eq!(ends(&folder), plain);
    // Rules by patterns; scales in other types.
    let folder = changed(PackedFormat::GptqV2, false, |json, tensors| {
        let stated = &mut json["quantization_config"];
        (stated["bits"], stated["group_size"]) = (json!(8), json!(-1));
        stated["dynamic"] = json!({ r".*\.(mlp|self_attn)\..*_proj": { "bits": 4, "group_size": 32 } });
        let (dtype, _, bytes) = tensors.get_mut(&format!("{UP}.scales")).unwrap();
        *bytes = bytes.as_chunks().0.iter().flat_map(|b| f16::from_le_bytes(*b).to_f32().to_le_bytes()).collect();
        *dtype = Dtype::F32;
    });
    assert_eq!(ends(&folder), plain);
    let folder = changed(PackedFormat::CompressedTensors, false, |json, _| {
        let groups = &mut json["quantization_config"]["config_groups"];
        groups["group_0"]["targets"] = json!([r"re:.*up_proj$"]);
        groups["group_1"] = groups["group_0"].clone();
        (groups["group_1"]["targets"], groups["group_1"]["weights"]["num_bits"]) = (json!([UP]), json!(4));
        groups["other"] = groups["group_0"].clone();
        groups["other"]["targets"] = json!(["Linear"]);
    });
    assert_eq!(ends(&folder), plain);
}

#[test]
fn one_scale_for_a_matrix_and_zero_points_of_8_bits_are_read() {
    let scale = |bytes: &[u8]| f16::from_le_bytes(*bytes.first_chunk().unwrap()).to_f32();
    let mut first = 0.0;
    let folder = changed(PackedFormat::CompressedTensors, true, |json, tensors| {
        let weights = &mut json["quantization_config"]["config_groups"]["group_0"]["weights"];
        (weights["strategy"], weights["group_size"]) = (json!("tensor"), json!(null));
        for (_, (_, shape, bytes)) in tensors.iter_mut().filter(|(name, _)| name.ends_with("weight_scale")) {
            bytes.truncate(2);
            *shape = vec![1];
        }
        first = scale(&tensors[&format!("{UP}.weight_scale")].2);
    });
    let [a, b] = ends(&folder);
    assert_eq!([(a / first).fract(), (b / first).fract()], [0.0, 0.0]);
    let plain = ends(&changed(PackedFormat::CompressedTensors, true, |_, _| ()));
    let mut last = 0.0;
    let folder = changed(PackedFormat::CompressedTensors, true, |json, tensors| {
        json["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = json!(false);
        let modules: Vec<String> =
            tensors.keys().filter_map(|name| name.strip_suffix(".weight_packed")).map(String::from).collect();
        for module in modules {
            let rows = tensors[&format!("{module}.weight_packed")].1[0];
            tensors.insert(format!("{module}.weight_zero_point"), (Dtype::I8, vec![rows, 1], vec![3; rows]));
        }
        last = scale(tensors[&format!("{UP}.weight_scale")].2.last_chunk::<2>().unwrap());
    });
    assert_eq!(ends(&folder)[1], (plain[1] / last - 3.0) * last);
}

#[test]
fn faults_of_gptq_are_refused_in_one_line() {
    let config = |key: &str, value: Value| {
        let key = key.to_string();
        error(PackedFormat::Gptq, move |json, _| json["quantization_config"][key] = value)
    };
    for (key, value) in [
        ("bits", json!(5)),
        ("bits", json!("4")),
        ("group_size", json!(0)),
        ("group_size", json!(null)),
        ("checkpoint_format", json!("marlin")),
        ("pack_dtype", json!("int16")),
        ("is_marlin_format", json!(true)),
        ("lm_head", json!(true)),
    ] {
        let message = config(key, value.clone());
        assert!(
            message.ends_with(&format!("config.json: quantization_config.{key} = {value} is not supported")),
            "{message}"
        );
    }
    let message = config("bits", json!(8));
    assert!(
        message.contains("qweight is [12, 96] of I32, expected [24, 96] of I32 by quantization_config"),
        "{message}"
    );
    let message = config("group_size", json!(48));
    assert!(
        message.contains("96 columns in groups of 48 are not supported; whole groups of a multiple of 32 are"),
        "{message}"
    );
    assert!(
        config("quant_method", json!("awq")).contains("quant_method = awq is not supported; use the model in full")
    );
    let message = config("dynamic", json!({ "(": {} }));
    assert!(message.contains("the pattern ( cannot be read"), "{message}");
    let message = config("dynamic", json!({ "-:.*up_proj": {} }));
    assert!(message.contains(&format!("dynamic leaves {UP} unpacked, which has a qweight")), "{message}");
    let tensors = |change: fn(&mut Tensors)| error(PackedFormat::Gptq, |_, tensors| change(tensors));
    let message = tensors(|tensors| put(tensors, "g_idx", |bytes| bytes.swap(0, 4 * 40)));
    assert!(message.contains("g_idx has columns that are not in the order of their groups (desc_act)"), "{message}");
    let message = tensors(|tensors| put(tensors, "qzeros", |bytes| bytes[0] |= 15));
    assert!(message.contains("row 0, group 0 is stored as 15, which readers take for 0 or for 16"), "{message}");
    let message = tensors(|tensors| put(tensors, "scales", |bytes| bytes[..2].copy_from_slice(&[0, 0x7c])));
    assert!(message.contains("layers.0.mlp.up_proj.weight: has a scale that is not finite"), "{message}");
    let message = tensors(|tensors| drop(tensors.remove(&format!("{UP}.qzeros"))));
    assert!(message.contains(&format!("has no tensor {UP}.qzeros")), "{message}");
    let message = tensors(|tensors| {
        let modules: Vec<String> =
            tensors.keys().filter_map(|name| name.strip_suffix(".qweight")).map(String::from).collect();
        for module in modules {
            let (_, shape, bytes) = tensors.remove(&format!("{module}.qweight")).unwrap();
            let plain = (Dtype::F16, vec![shape[1], shape[0] * 8], vec![0; bytes.len() * 4]);
            tensors.insert(format!("{module}.weight"), plain);
        }
    });
    assert!(message.contains("has no packed tensors, although quantization_config states some"), "{message}");
    let message = tensors(|tensors| {
        tensors.insert(format!("{UP}.bias"), (Dtype::F16, vec![160], vec![1; 320]));
    });
    assert!(message.contains(&format!("has a bias {UP}.bias, and the model by its config none")), "{message}");
    let message = tensors(|tensors| {
        tensors.insert(format!("{UP}.weight"), (Dtype::F16, vec![160, 96], vec![0; 160 * 96 * 2]));
    });
    assert!(message.contains(&format!("has both {UP}.weight and {UP}.qweight")), "{message}");
}

#[test]
fn faults_of_compressed_tensors_are_refused_in_one_line() {
    let group = |key: &str, value: Value| {
        let key = key.to_string();
        error(PackedFormat::CompressedTensors, move |json, _| {
            *json["quantization_config"]["config_groups"]["group_0"].pointer_mut(&key).unwrap() = value;
        })
    };
    assert!(
        group("/input_activations", json!({"num_bits": 8}))
            .contains("input_activations are not supported; only weights")
    );
    assert!(
        group("/format", json!("int-quantized")).contains("format = int-quantized is not supported; pack-quantized is")
    );
    assert!(
        group("/targets", json!(["Conv2d"]))
            .contains("has no group for model.layers.0.self_attn.q_proj, which is packed")
    );
    assert!(group("/weights/num_bits", json!(7)).contains("7 bits are not supported"));
    assert!(group("/weights/type", json!("float")).contains("weights.type = \"float\" is not supported"));
    assert!(group("/weights/strategy", json!("block")).contains("weights.strategy = \"block\" is not supported"));
    assert!(group("/weights/num_bits", json!(3)).contains("weight_packed is [96, 12] of I32, expected [96, 9] of I32"));
    assert!(
        group("/weights/symmetric", json!(false))
            .contains("has no tensor model.layers.0.self_attn.q_proj.weight_zero_point")
    );
    let message = error(PackedFormat::CompressedTensors, |json, _| {
        json["quantization_config"]["kv_cache_scheme"] = json!({"num_bits": 8});
    });
    assert!(message.contains("quantization_config.kv_cache_scheme = {\"num_bits\":8} is not supported"), "{message}");
    let message =
        error(PackedFormat::CompressedTensors, |_, tensors| put(tensors, "weight_shape", |bytes| bytes[0] = 7));
    assert!(message.contains("weight_shape is [7, 96], expected [160, 96] by config.json"), "{message}");
    let message = error(PackedFormat::CompressedTensors, |_, tensors| {
        tensors.insert(format!("{UP}.weight_g_idx"), (Dtype::I32, vec![96], vec![0; 4 * 96]));
    });
    assert!(message.contains("weight_g_idx: columns in another order (actorder) are not supported"), "{message}");
}
