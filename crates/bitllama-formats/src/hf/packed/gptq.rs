//! GPTQ's layout, as GPTQModel (`nn_modules/qlinear/`), `transformers` with it and vLLM read it: `qweight` `[words, rows]`, the fields of
//! a row from the lowest bit up without gaps, along the columns of the matrix; `qzeros` `[groups, words]`, packed along the rows;
//! `scales` `[groups, rows]`; `g_idx`, the group of each column. A weight is `(field - zero) * scale`. The first version of the
//! format stores zeros less 1, so it has none of 0.

use bitllama_core::PackedMatrix;
use bitllama_core::weights::{Kind, WeightSpec};
use safetensors::tensor::Dtype as StoredDtype;
use serde_json::{Map, Value, json};

use super::super::Dtype;
use super::super::write::stored;
use super::codes::{Codes, gcd, transposed_bytes, words};
use super::compressed_tensors::bytes;
use super::{Encoded, Form, Module, Scales, form_name, most_common, scales};

/// Widths of fields that all readers have.
const WIDTHS: [usize; 4] = [2, 3, 4, 8];
/// The largest group that every kernel has.
const LARGEST_GROUP: usize = 128;
/// The smallest one, and a multiple of the fields that fill words of any width.
const UNIT: usize = 32;

/// The largest group that divides the columns of every matrix of the blocks: `transformers` reads one size for all. Columns that no
/// group divides do not count.
pub(super) fn common_group_size(specs: &[WeightSpec]) -> usize {
    let matrices = specs.iter().filter(|spec| spec.kind == Kind::Linear).map(|spec| spec.shape[1]);
    matrices.filter(|columns| columns.is_multiple_of(UNIT)).fold(LARGEST_GROUP, gcd)
}

/// `largest_group` is a limit beside the matrix's own; `less` is what is subtracted from zeros: 1 in the first version.
pub(super) fn encode(
    matrices: &[PackedMatrix],
    scale_type: Option<Dtype>,
    largest_group: usize,
    less: u8,
) -> Result<Encoded, String> {
    let codes = Codes::of(matrices)?;
    let (groups, columns, rows) = (codes.groups(), codes.columns, codes.rows);
    if !columns.is_multiple_of(UNIT) {
        return Err(format!("rows of {columns} columns are no whole words of the format"));
    }
    let size = if groups == 1 { columns } else { gcd(codes.group_size, largest_group) };
    let codes = codes.regrouped(size);
    // Zeros of a group are whole words.
    let widths = WIDTHS.into_iter().filter(|bits| (rows * bits).is_multiple_of(32));
    if widths.clone().next().is_none() {
        return Err(format!("zeros of {rows} rows are no whole words of the format"));
    }
    let fit = codes.fit(widths, less.into())?;
    let codes = codes.moved(fit, less.into());
    let (bits, groups) = (fit.bits, codes.groups());
    let by_group = |scales: Vec<f32>| (0..groups).flat_map(|group| column(&scales, groups, group)).collect();
    let Scales { floats, error, loss } = scales(&codes, matrices, Some(scale_type.unwrap_or(Dtype::F16)), by_group)?;
    let form = Form { bits, group_size: (groups > 1).then_some(codes.group_size), symmetric: fit.symmetric };
    let packed: Vec<u32> = (0..rows).flat_map(|row| words(codes.row(row).iter().copied(), bits)).collect();
    let of_row = columns * bits / 32;
    let zeros: Vec<u8> = codes.zero_fields().into_iter().map(|zero| zero - less).collect();
    let packed_zeros: Vec<u32> = (0..groups).flat_map(|group| words(column(&zeros, groups, group), bits)).collect();
    let groups_of_columns: Vec<u32> = (0..columns).map(|column| (column / codes.group_size) as u32).collect();
    let parts = vec![
        ("qweight", StoredDtype::I32, vec![of_row, rows], transposed_bytes(&packed, of_row)),
        ("qzeros", StoredDtype::I32, vec![groups, rows * bits / 32], bytes(&packed_zeros)),
        ("scales", stored(floats.dtype), vec![groups, rows], floats.bytes),
        ("g_idx", StoredDtype::I32, vec![columns], bytes(&groups_of_columns)),
    ];
    Ok(Encoded { form, name: form_name(form), parts, kept: floats.kept, error, loss })
}

/// A column of a matrix with so many of them.
fn column<T: Copy>(values: &[T], columns: usize, column: usize) -> Vec<T> {
    values.iter().skip(column).step_by(columns).copied().collect()
}

/// `dynamic` is what GPTQModel and vLLM read of modules that differ; `modules_in_block_to_quantize` is what `transformers` does.
pub(super) fn config(modules: &[Module], version: &str) -> Value {
    let form = most_common(modules).unwrap_or(Form { bits: 4, group_size: None, symmetric: true });
    let in_blocks = || modules.iter().filter(|module| module.kind == Kind::Linear);
    let mut rules = Map::new();
    for module in in_blocks().filter(|module| module.form != Some(form)) {
        match module.form {
            Some(other) => rules.insert(format!("+:{}", pattern(&module.name)), described(other)),
            None => rules.insert(format!("-:{}", pattern(&module.name)), json!({})),
        };
    }
    let mut config = json!({
        "quant_method": "gptq",
        "checkpoint_format": version,
        "desc_act": false,
        "lm_head": false,
        "pack_dtype": "int32",
        "meta": { "quantizer": [format!("bitllama-train:{}", env!("CARGO_PKG_VERSION"))] },
    });
    for (key, value) in described(form).as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    if !rules.is_empty() {
        config["dynamic"] = Value::Object(rules);
    }
    if in_blocks().any(|module| module.form.is_none()) {
        let packed: Vec<&str> =
            in_blocks().filter(|module| module.form.is_some()).map(|module| module.name.as_str()).collect();
        config["modules_in_block_to_quantize"] = json!([packed]);
    }
    config
}

fn described(form: Form) -> Value {
    let group_size = form.group_size.map_or(json!(-1), |size| json!(size));
    json!({ "bits": form.bits, "group_size": group_size, "sym": form.symmetric })
}

/// A regular expression for a module, and for the layer into which vLLM fuses it.
fn pattern(module: &str) -> String {
    let (parent, name) = module.rsplit_once('.').unwrap_or(("", module));
    let fused = match name {
        "q_proj" | "k_proj" | "v_proj" => Some("qkv_proj"),
        "gate_proj" | "up_proj" => Some("gate_up_proj"),
        _ => None,
    };
    let name = fused.map_or(name.into(), |fused| format!("(?:{name}|{fused})"));
    format!("^{}\\.{name}$", parent.replace('.', "\\."))
}
