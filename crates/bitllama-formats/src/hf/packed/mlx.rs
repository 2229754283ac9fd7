//! MLX's affine quantization (`mlx.core.quantize`), as mlx-lm reads it: `weight` `[rows, words]`, fields of a row from the lowest bit
//! up without gaps; `scales` and `biases` `[rows, groups]`. A weight is `field * scale + bias`, so codes -1 and 1 are the fields 0 and
//! 1 of twice the scale, and every zero point is a bias. Embeddings and heads are packed too.

use bitllama_core::PackedMatrix;
use safetensors::tensor::Dtype as StoredDtype;
use serde_json::{Value, json};

use super::super::Dtype;
use super::super::write::stored;
use super::codes::{Codes, gcd, words};
use super::compressed_tensors::bytes;
use super::floats::Floats;
use super::{Encoded, Form, Module, error_of, most_common};

/// Widths of fields.
const WIDTHS: [usize; 6] = [2, 3, 4, 5, 6, 8];
/// The largest and the smallest group.
const GROUPS: [usize; 2] = [128, 32];

pub(super) fn encode(matrices: &[PackedMatrix], scale_type: Option<Dtype>) -> Result<Encoded, String> {
    let codes = Codes::of(matrices)?;
    let size = gcd(codes.group_size, GROUPS[0]);
    if size < GROUPS[1] {
        return Err(format!("rows of {} columns are no whole groups of 32", codes.columns));
    }
    let codes = codes.regrouped(size);
    let bits = codes.plain_width(WIDTHS).ok_or("the codes fit no width of the format")?;
    let scales: Vec<f32> = codes.scales.iter().map(|scale| f32::from(codes.step) * scale).collect();
    let biases: Vec<f32> = codes.zeros.iter().zip(&codes.scales).map(|(zero, scale)| -*zero as f32 * scale).collect();
    // Both have one type.
    let count = scales.len();
    let both = [scales, biases].concat();
    let floats = Floats::new(&both, scale_type).ok_or("has a scale that is too large for its type")?;
    let (rounded_scales, rounded_biases) = floats.values(&both).split_at(count);
    let (rows, groups) = (codes.rows, codes.groups());
    let error = error_of(matrices, |row, out| {
        let fields = codes.row(row).chunks_exact(size).zip(out.chunks_exact_mut(size));
        for (group, (fields, out)) in fields.enumerate() {
            let place = row * groups + group;
            for (field, out) in fields.iter().zip(out) {
                *out = f32::from(field / codes.step) * rounded_scales[place] + rounded_biases[place];
            }
        }
    });
    let loss = (error > 0.0).then(|| match floats.dtype {
        Dtype::F32 => "a sum with the bias rounds; use scale_dtype = \"f16\"".to_string(),
        other => format!("scales and biases are rounded to {}", other.torch_name()),
    });
    let packed: Vec<u32> =
        (0..rows).flat_map(|row| words(codes.row(row).iter().map(|field| field / codes.step), bits)).collect();
    let (dtype, kept) = (stored(floats.dtype), floats.kept);
    let (scales, biases) = floats.bytes.split_at(count * floats.dtype.size());
    let parts = vec![
        ("weight", StoredDtype::U32, vec![rows, packed.len() / rows], bytes(&packed)),
        ("scales", dtype, vec![rows, groups], scales.to_vec()),
        ("biases", dtype, vec![rows, groups], biases.to_vec()),
    ];
    let form = Form { bits, group_size: Some(size), symmetric: false };
    Ok(Encoded { form, name: format!("affine{bits} g{size}").into(), parts, kept, error, loss })
}

pub(super) fn config(modules: &[Module]) -> Value {
    let described = |form: Form| json!({ "group_size": form.group_size, "bits": form.bits });
    let form = most_common(modules).unwrap_or(Form { bits: 4, group_size: Some(GROUPS[0]), symmetric: false });
    let mut config = described(form);
    config["mode"] = json!("affine");
    for module in modules {
        if let Some(other) = module.form.filter(|other| *other != form) {
            config[&module.name] = described(other);
        }
    }
    config
}
