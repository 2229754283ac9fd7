//! Ternary matrices with one scale, as `integrations/bitnet.py` of `transformers` reads those of BitNet (`AutoBitLinear`, `offline`):
//! `weight` `[rows / 4, columns]` of bytes, whose bits `2 * part` and up are the codes plus 1 of the row in that quarter of all rows;
//! `weight_scale`, a factor. [`crate::hf`] opens such a directory as a student.

use std::path::Path;

use bitllama_core::weights::Kind;
use bitllama_core::{Activation, ActivationPlan, PackedMatrix};
use safetensors::tensor::Dtype as StoredDtype;
use serde_json::{Value, json};

use super::super::Dtype;
use super::super::bitnet::ROWS_PER_BYTE;
use super::super::write::stored;
use super::codes::Codes;
use super::floats::Floats;
use super::{Encoded, Form, Module, error_of};
use crate::notes;

/// The end of the name of a scale.
pub(super) const SCALE: &str = "weight_scale";

pub(super) fn encode(matrices: &[PackedMatrix], scale_type: Option<Dtype>) -> Result<Encoded, String> {
    let codes = Codes::of(matrices)?;
    let ([rows, columns], scale) = ([codes.rows, codes.columns], codes.scales.first().copied().unwrap_or_default());
    if matrices.len() > 1 {
        return Err("several matrices share the tensor, which has one scale".into());
    }
    if !rows.is_multiple_of(ROWS_PER_BYTE) {
        return Err(format!("{rows} rows are no multiple of {ROWS_PER_BYTE}"));
    }
    if codes.scales.iter().any(|other| *other != scale) {
        return Err("the matrix has several scales; use ternary with granularity = \"tensor\"".into());
    }
    let code = |row: usize, column: usize| {
        let place = row * codes.groups() + column / codes.group_size;
        i32::from(codes.row(row)[column]) - codes.zeros[place]
    };
    if (0..rows).any(|row| (0..columns).any(|column| code(row, column).abs() > 1)) {
        return Err("its codes are not ternary".into());
    }
    let floats = Floats::new(&[scale], scale_type).ok_or("has a scale that is too large for its type")?;
    let rounded = floats.values(&[scale])[0];
    let error = error_of(matrices, |row, out| {
        out.iter_mut().enumerate().for_each(|(column, out)| *out = code(row, column) as f32 * rounded);
    });
    let part_rows = rows / ROWS_PER_BYTE;
    let byte = |row: usize, column: usize| {
        let part = |part: usize| (code(row + part * part_rows, column) + 1) << (2 * part);
        (0..ROWS_PER_BYTE).map(part).sum::<i32>() as u8
    };
    let bytes = (0..part_rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let bytes = bytes.map(|(row, column)| byte(row, column)).collect();
    let parts = vec![
        ("weight", StoredDtype::U8, vec![part_rows, columns], bytes),
        (SCALE, stored(floats.dtype), vec![1], floats.bytes),
    ];
    let form = Form { bits: 2, group_size: None, symmetric: true };
    let loss = (error > 0.0).then(|| format!("the scale is rounded to {}", floats.dtype.torch_name()));
    Ok(Encoded { form, name: "ternary".into(), parts, kept: floats.kept, error, loss })
}

pub(super) fn config(modules: &[Module]) -> Value {
    let full = modules.iter().filter(|module| module.form.is_none() && module.kind != Kind::Embedding);
    json!({
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "offline",
        "modules_to_not_convert": full.map(|module| module.name.as_str()).collect::<Vec<_>>(),
    })
}

/// Tells how readers round the inputs of packed matrices, unless the student's are rounded so.
pub(super) fn tell_rounding(path: &Path, modules: &[Module], activations: &ActivationPlan) {
    let packed = modules.iter().filter(|module| module.form.is_some());
    let name = |module: &Module| format!("{}.weight", module.name.trim_start_matches("model."));
    if packed.map(name).any(|name| activations.inputs.get(&name) != Some(&Activation::Int8)) {
        let remark = "readers of bitnet round the inputs of ternary matrices to 8 bits a token; the student was trained otherwise \
                      ([activations] \"layers.*\" = \"int8\" trains it so)";
        notes::tell(path, remark);
    }
}
