//! `manifest.json`: every field of version 2, and what that version left out.

use std::collections::BTreeMap;

use bitllama_core::panel::{PANEL_ROWS, VECTOR_BYTES};
use bitllama_core::scales::DOUBLE_BLOCK;
use bitllama_core::size::StoredSize;
use bitllama_core::weights::{Kind, specs};
use bitllama_core::{
    Activation, ActivationPlan, Architecture, HiddenAct, ModelConfig, PackedMatrix, RopeScaling, ScaleFormat, Scheme,
};
use serde_json::{Map, Value, json};

use super::forms::{Cells, FULL, Form, GGML, MEAN, STEPS};
use super::{Layout, WEIGHTS_FILE, WeightInfo};

/// Newest version of `manifest.json` that is read. A model that differs from a Llama has it, so that older programs, which would
/// compute it as one, refuse it.
pub(super) const FORMAT_VERSION: u32 = 3;

/// Version of the manifest of a Llama. Readers of the older tools take ours because we only add to theirs.
const LLAMA_VERSION: u32 = 2;

/// Of the entry of a matrix: how its inputs were rounded in training. In `quantization`: that of all matrices of the
/// blocks, `mixed` where they differ. Inputs that were not rounded are [`NOT_ROUNDED`].
pub(super) const ACTIVATION: &str = "activation_dtype";
/// Key of the type of a matrix in blocks of ggml, by ggml's name, in its entry.
pub(super) const GGML_TYPE: &str = "ggml_type";
/// In `quantization`: how keys and values were.
pub(super) const KV_CACHE: &str = "kv_cache_dtype";
/// The name for what is in full precision.
pub(super) const NOT_ROUNDED: &str = "float32";

/// The entry of a low-bit matrix that stands under `name`.
///
/// `npz_key`, `packed_format`, `code_min` and `code_step` say everything about the codes:
/// `weight = (code_min + code_step * field) * scale`, or `(field - zero_point) * scale` where there are zero points, or
/// `code_table[field] * scale`.
/// With `group_size`, scales and zero points are `[out, groups]`, one for so many columns; without, `[out]`. With
/// `npz_scale_steps_key` the `i`th scale, row after row, is `scales[i] * steps[i // scale_block] + mean`.
pub(super) fn packed_entry(
    name: &str,
    config: &ModelConfig,
    layout: Layout,
    form: &Form,
    matrix: &PackedMatrix,
) -> Value {
    let scheme = matrix.scheme();
    let mut entry = json!({
        "scheme": scheme.name(),
        "npz_key": format!("{name}{}", form.suffix),
        "shape": [matrix.rows(), matrix.columns()],
        "bit_width": form.bit_width(),
        "packed_format": form.packed_format(),
        "npz_scales_key": format!("{name}{}", form.scales),
        "scale_axis": { "index": 0, "name": "out_features" },
        "scale_dtype": dtype_name(written_format(layout, matrix)),
    });
    let mut set = |key: &str, value: Value| entry[key] = value;
    match (scheme.table(), scheme.line()) {
        (Some(table), _) => set("code_table", json!(table.levels)),
        (None, (low, step)) => {
            set("code_min", json!(low));
            set("code_step", json!(step));
        }
    }
    if matrix.groups() > 1 {
        set("group_size", json!(matrix.group_size()));
    }
    if written_format(layout, matrix) == ScaleFormat::Double {
        set("npz_scale_steps_key", json!(format!("{name}{}{STEPS}", form.scales)));
        set("npz_scale_mean_key", json!(format!("{name}{}{MEAN}", form.scales)));
        set("scale_block", json!(DOUBLE_BLOCK));
    }
    let has_zero_points = form.cells == Cells::Fields || matrix.zero_points().is_some();
    if let Some(suffix) = form.zero_point.filter(|_| has_zero_points) {
        set("npz_zero_point_key", json!(format!("{name}{suffix}")));
    }
    let integers = !matches!(scheme, Scheme::Binary | Scheme::Ternary) || form.copy().is_some();
    if integers {
        let sharing = if matrix.groups() > 1 { "pergroup" } else { "perrow" };
        let kind = format!("{sharing}_{}", if scheme.table().is_some() { scheme.name() } else { "int" });
        set(
            "quantization",
            json!({ "type": kind, "bits": form.bit_width(), "symmetric": matrix.zero_points().is_none() }),
        );
    }
    if name.contains(".self_attn.") {
        set("NHEADS", json!(config.num_attention_heads));
        set("num_attention_heads", json!(config.num_attention_heads));
    }
    if layout == Layout::V2 {
        for (field, file) in loose_files(name, form) {
            set(field, json!(file));
        }
    }
    entry
}

/// The entry of a matrix in blocks of ggml that stands under `name`. `packed_format` names the type, whose blocks are those of
/// `ggml-common.h`; rows follow each other.
pub(super) fn ggml_entry(name: &str, ggml_type: &str, shape: [usize; 2]) -> Value {
    json!({
        "scheme": ggml_type,
        "npz_key": format!("{name}{GGML}"),
        "shape": shape,
        "packed_format": format!("ggml({ggml_type})"),
        (GGML_TYPE): ggml_type,
    })
}

/// How the scales of `matrix` are stored: the older tools know f32 only.
pub(super) fn written_format(layout: Layout, matrix: &PackedMatrix) -> ScaleFormat {
    match layout {
        Layout::Packed => matrix.packed_scales().format(),
        Layout::V2 => ScaleFormat::F32,
    }
}

fn dtype_name(format: ScaleFormat) -> &'static str {
    match format {
        ScaleFormat::F32 => "float32",
        ScaleFormat::F16 => "float16",
        // Nested scales stand in blocks of ggml, whose entries have no type of scales.
        ScaleFormat::Double | ScaleFormat::Nested(_) => "int8",
    }
}

/// The files beside a version 2 manifest that hold a low-bit matrix once more: manifest field and file name.
pub(super) fn loose_files(name: &str, form: &Form) -> Vec<(&'static str, String)> {
    let file = |suffix: &str, extension: &str| format!("{name}{suffix}.{extension}");
    let npy = |suffix: &str| file(suffix, "npy");
    match form.scheme {
        Scheme::Binary => vec![
            ("packed", file(form.suffix, "bin")),
            ("scales", npy(form.scales)),
            ("scales_txt", file(form.scales, "txt")),
        ],
        Scheme::Ternary if form.cells == Cells::Codes => {
            let own =
                [("ternary", npy(form.suffix)), ("scales", npy(form.scales)), ("scales_txt", file(form.scales, "txt"))];
            own.into_iter().chain(form.copy().map(|copy| loose_files(name, &copy)).into_iter().flatten()).collect()
        }
        _ => vec![
            ("q", npy(form.suffix)),
            ("q_scales", npy(form.scales)),
            ("q_scales_txt", file(form.scales, "txt")),
            ("q_zero_point", npy(form.zero_point.unwrap_or("_zero_point"))),
        ],
    }
}

/// The entry of a weight in f32. A shape of one dimension is left out for the older tools, which take every shape for that of
/// a matrix.
pub(super) fn full_entry(name: &str, layout: Layout, shape: &[usize]) -> Value {
    let mut entry = json!({
        "scheme": "f32",
        "npz_key": format!("{name}{FULL}"),
        "dtype": "fp32",
    });
    if layout == Layout::Packed || shape.len() > 1 {
        entry["shape"] = json!(shape);
    }
    if layout == Layout::V2 {
        entry["fp32"] = json!(format!("{name}{FULL}.npy"));
    }
    entry
}

/// The whole manifest. `entries` are those of all weights under their names, `infos` what they are.
pub(super) fn manifest(
    config: &ModelConfig,
    layout: Layout,
    entries: Map<String, Value>,
    infos: &[WeightInfo],
    activations: &ActivationPlan,
    provenance: Value,
) -> Value {
    let manifest = json!({
        "format_version": if config.arch.computes_as(&Architecture::LLAMA) { LLAMA_VERSION } else { FORMAT_VERSION },
        "layout": match layout { Layout::Packed => "packed", Layout::V2 => "v2" },
        "created_by": concat!("bitllama-train ", env!("CARGO_PKG_VERSION")),
        "model": {
            "primary_family": config.arch.family,
            "families": [config.arch.family],
            "source_npz": WEIGHTS_FILE,
            "notes": "",
        },
        "architecture": architecture(config),
        "model_config": config,
        "quantization": quantization(config, layout, infos, activations),
        "provenance": provenance,
        "weights": entries.clone(),
    });
    match manifest {
        // Older loaders look for a weight at the root. No weight's name is also a field's: names have dots.
        Value::Object(root) => Value::Object(root.into_iter().chain(entries).collect()),
        other => other,
    }
}

/// The only activation function of the older tools.
pub(super) const SWIGLU: &str = "swiglu";

fn architecture(config: &ModelConfig) -> Value {
    let variant = match config.num_key_value_heads {
        heads if heads == config.num_attention_heads => "full",
        1 => "mqa",
        _ => "gqa",
    };
    let mut rope = json!({ "base_theta": config.rope_theta, "scale": 1.0 });
    if let Some(RopeScaling::Linear { factor }) = config.rope_scaling {
        rope["scale"] = json!(factor);
    }
    if let (Some(rope), Value::Object(scaling)) = (rope.as_object_mut(), json!(config.rope_scaling)) {
        rope.extend(scaling);
    }
    json!({
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "attention": {
            "variant": variant,
            "num_heads": config.num_attention_heads,
            "kv_groups": config.num_key_value_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "window_size": config.arch.sliding_window,
        },
        "activation": match config.arch.hidden_act {
            HiddenAct::Silu => SWIGLU,
            HiddenAct::GeluTanh => "geglu",
            HiddenAct::Relu2 => "relu2",
        },
        "norm": "rmsnorm",
        "sub_norm": config.sub_norm,
        "rms_norm_eps": config.rms_norm_eps,
        "rope": rope,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_ids": config.eos_token_ids,
    })
}

fn quantization(config: &ModelConfig, layout: Layout, infos: &[WeightInfo], activations: &ActivationPlan) -> Value {
    let name = |activation: Option<Activation>| activation.map_or(NOT_ROUNDED, Activation::name);
    let linear = specs(config).into_iter().filter(|spec| spec.kind == Kind::Linear);
    let mut inputs: Vec<&str> = linear.map(|spec| name(activations.inputs.get(&spec.name).copied())).collect();
    inputs.dedup();
    let mut schemes: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
    for info in infos {
        let name = info.ggml_type.or(info.scheme.map(Scheme::name)).unwrap_or("f32");
        let sum = schemes.entry(name).or_default();
        let parameters: usize = info.shape.iter().product();
        *sum = (sum.0 + 1, sum.1 + parameters, sum.2 + info.bytes);
    }
    let mut dtypes: Vec<&str> = infos.iter().filter_map(|info| info.scales).map(dtype_name).collect();
    dtypes.sort_unstable();
    dtypes.dedup();
    let mut widths: Vec<u32> = infos.iter().filter_map(|info| info.scheme).map(Scheme::code_bits).collect();
    widths.sort_unstable();
    widths.dedup();
    let size = StoredSize {
        parameters: infos.iter().map(|info| info.shape.iter().product::<usize>()).sum(),
        bytes: infos.iter().map(|info| info.bytes).sum(),
    };
    let schemes: Map<String, Value> = schemes
        .into_iter()
        .map(|(name, (weights, parameters, bytes))| {
            (name.into(), json!({ "weights": weights, "parameters": parameters, "bytes": bytes }))
        })
        .collect();
    json!({
        "bit_width": match widths[..] { [one] => json!(one), [] => json!(32), _ => json!("mixed") },
        "supported_bit_widths": [1, 2, 3, 4, 8],
        "schemes": schemes,
        "parameters": size.parameters,
        "bytes": size.bytes,
        "bits_per_weight": size.bits_per_weight(),
        "scale": {
            "type": if infos.iter().any(|info| info.group_size.is_some()) { "per-group" } else { "per-row" },
            "dtype": match dtypes[..] { [one] => one, [] => "float32", _ => "mixed" },
        },
        (ACTIVATION): match inputs[..] { [one] => one, _ => "mixed" },
        (KV_CACHE): name(activations.kv_cache),
        "packing": packing(layout),
    })
}

/// How codes become bytes. What it says of panels is for programs as much as for people: `tests/python/check_npz.py`
/// unpacks them by it, knowing nothing else.
fn packing(layout: Layout) -> Value {
    if layout == Layout::V2 {
        return json!({
            "1bit": {
                "layout": "row-major",
                "endianness": "msb_first",
                "library": "numpy.packbits",
                "bits_per_chunk": 8,
            },
            "integer": { "layout": "row-major", "endianness": "lsb_first", "rows": "byte-aligned" },
        });
    }
    let schemes: Map<String, Value> = Scheme::ALL
        .into_iter()
        .map(|scheme| {
            let parts: Vec<Value> = parts(scheme)
                .iter()
                .map(|[bits, shift, vectors]| json!({ "bits": bits, "shift": shift, "vectors": vectors }))
                .collect();
            let block = json!({
                "bits": scheme.code_bits(),
                "block_columns": scheme.block_columns(),
                "block_bytes": scheme.block_bytes(),
                "parts": parts,
            });
            (scheme.name().to_string(), block)
        })
        .collect();
    json!({
        "panels16": {
            "array": "uint8 [panels, blocks, block_bytes]",
            "panel_rows": PANEL_ROWS,
            "vector_bytes": VECTOR_BYTES,
            "lane_columns": LANE_COLUMNS,
            "schemes": schemes,
            "description": [
                "Row r lies in panel r // panel_rows, column c in block c // block_columns; below, r and c count \
                 within these.",
                "A block is the vectors of its parts, one after the other, of vector_bytes bytes each. A vector of a \
                 part of b bits holds vc = lane_columns * 8 / b columns.",
                "Of the field (r, c), a part holds b bits: in its vector c // vc, in the byte lane_columns * r + \
                 c % lane_columns, from the bit b * (c % vc // lane_columns) up, bit 0 being the least significant.",
                "The field is the sum of these bits of every part, each shifted left by the part's shift.",
                "Rows and columns of the last panel and block that are beyond the shape are fields of 0.",
            ],
        },
    })
}

/// Columns whose bits lie in neighbouring bytes.
const LANE_COLUMNS: usize = VECTOR_BYTES / PANEL_ROWS;

/// The parts of a block: bits of a field in it, how far they are shifted within the field, and vectors.
fn parts(scheme: Scheme) -> Vec<[usize; 3]> {
    let (low, high) = scheme.field_bits().parts();
    let vectors = |bits: usize| scheme.block_columns() * bits / (8 * LANE_COLUMNS);
    let parts = [[low, 0, vectors(low)], [high, low, vectors(high)]];
    parts.into_iter().filter(|[bits, ..]| *bits > 0).collect()
}

#[cfg(test)]
mod tests {
    use bitllama_core::panel;

    use super::*;

    #[test]
    fn the_description_of_panels_finds_what_the_core_finds() {
        for scheme in Scheme::ALL {
            let columns = 2 * scheme.block_columns();
            let panel: Vec<u8> = (0..scheme.panel_bytes(columns)).map(|i| (i * 167 % 251) as u8).collect();
            for (row, column) in (0..PANEL_ROWS).flat_map(|row| (0..columns).map(move |column| (row, column))) {
                let mut block = &panel[column / scheme.block_columns() * scheme.block_bytes()..];
                let c = column % scheme.block_columns();
                let mut found = 0;
                for [bits, shift, vectors] in parts(scheme) {
                    let vector_columns = LANE_COLUMNS * 8 / bits;
                    assert_eq!(vectors * vector_columns, scheme.block_columns());
                    let byte =
                        block[c / vector_columns * VECTOR_BYTES + LANE_COLUMNS * row + c % LANE_COLUMNS] as usize;
                    let up = bits * (c % vector_columns / LANE_COLUMNS);
                    found += (byte >> up & ((1 << bits) - 1)) << shift;
                    block = &block[vectors * VECTOR_BYTES..];
                }
                assert_eq!(
                    found as u8,
                    panel::field(scheme.field_bits(), &panel, row, column),
                    "{scheme} {row} {column}"
                );
            }
        }
    }
}
