//! compressed-tensors' `pack-quantized`, as `compressors/pack_quantized/` of the package (0.20) reads it: `weight_packed`
//! `[rows, words]`, fields of a row from the lowest bit up without gaps; `weight_scale` `[rows, groups]`; `weight_shape`; and with zero
//! points `weight_zero_point` `[words, groups]`, those of a group packed along the rows. A weight is
//! `(field - zero point) * scale`, where a matrix without zero points has them at the middle of the fields.

use bitllama_core::PackedMatrix;
use bitllama_core::weights::Kind;
use safetensors::tensor::Dtype as StoredDtype;
use serde_json::{Value, json};

use super::super::Dtype;
use super::super::write::stored;
use super::codes::{Codes, gcd, transposed_bytes, words};
use super::{Encoded, Form, Module, Scales, form_name, scales};

/// Widths of fields; the package reads all from 1 to 8.
const WIDTHS: [usize; 6] = [2, 3, 4, 5, 6, 8];
/// The largest group that kernels of readers have; larger ones are cut.
const LARGEST_GROUP: usize = 128;

pub(super) fn encode(matrices: &[PackedMatrix], scale_type: Option<Dtype>) -> Result<Encoded, String> {
    let codes = Codes::of(matrices)?;
    let groups = codes.groups();
    let size = if groups == 1 { codes.columns } else { gcd(codes.group_size, LARGEST_GROUP) };
    let codes = codes.regrouped(size);
    let fit = codes.fit(WIDTHS, 0)?;
    let codes = codes.moved(fit, 0);
    let Scales { floats, error, loss } = scales(&codes, matrices, scale_type, |scales| scales)?;
    let form = Form { bits: fit.bits, group_size: (groups > 1).then_some(codes.group_size), symmetric: fit.symmetric };
    let (rows, groups) = (codes.rows, codes.groups());
    let packed: Vec<u32> = (0..rows).flat_map(|row| words(codes.row(row).iter().copied(), fit.bits)).collect();
    let shape: Vec<u8> = [rows, codes.columns].iter().flat_map(|size| (*size as i64).to_le_bytes()).collect();
    let mut parts = vec![
        ("weight_packed", StoredDtype::I32, vec![rows, packed.len() / rows], bytes(&packed)),
        ("weight_scale", stored(floats.dtype), vec![rows, groups], floats.bytes),
        ("weight_shape", StoredDtype::I64, vec![2], shape),
    ];
    if !fit.symmetric {
        let zeros = codes.zero_fields();
        let of_group = |group: usize| (0..rows).map(move |row| row * groups + group);
        let packed: Vec<u32> =
            (0..groups).flat_map(|group| words(of_group(group).map(|place| zeros[place]), fit.bits)).collect();
        let a_group = packed.len() / groups;
        parts.push(("weight_zero_point", StoredDtype::I32, vec![a_group, groups], transposed_bytes(&packed, a_group)));
    }
    Ok(Encoded { form, name: form_name(form), parts, kept: floats.kept, error, loss })
}

pub(super) fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn config(modules: &[Module]) -> Value {
    let mut forms: Vec<Form> = Vec::new();
    for form in modules.iter().filter_map(|module| module.form) {
        if !forms.contains(&form) {
            forms.push(form);
        }
    }
    let names = |form: Option<Form>| {
        let of_form = modules.iter().filter(move |module| module.form == form && module.kind != Kind::Embedding);
        of_form.map(|module| module.name.as_str()).collect::<Vec<_>>()
    };
    let mut groups = serde_json::Map::new();
    for (index, form) in forms.iter().enumerate() {
        // A class stands for all layers that are not ignored.
        let targets = if forms.len() == 1 { vec!["Linear"] } else { names(Some(*form)) };
        let group = json!({
            "format": "pack-quantized",
            "targets": targets,
            "input_activations": null,
            "output_activations": null,
            "weights": {
                "num_bits": form.bits,
                "type": "int",
                "symmetric": form.symmetric,
                "strategy": if form.group_size.is_some() { "group" } else { "channel" },
                "group_size": form.group_size,
                "dynamic": false,
            },
        });
        groups.insert(format!("group_{index}"), group);
    }
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": names(None),
        "kv_cache_scheme": null,
    })
}
