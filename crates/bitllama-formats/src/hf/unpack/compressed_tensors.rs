//! compressed-tensors' `pack-quantized`; [`super::super::packed`] says where its numbers lie.

use bitllama_core::excerpt;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Module, Order, Parts, checked_group, matches, refuse_other, scheme};

/// The content of a `quantization_config` of compressed-tensors.
#[derive(Debug, Clone)]
pub(in super::super) struct Stated {
    /// Modules of a form: their names, patterns (`re:`) or classes.
    groups: Vec<(Vec<String>, Form)>,
}

#[derive(Debug, Clone, Copy)]
struct Form {
    bits: usize,
    symmetric: bool,
    scales: Scales,
}

/// The weights that share a scale.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Scales {
    Matrix,
    Row,
    Group(usize),
}

impl Form {
    fn of(weights: &Value) -> Result<Self, String> {
        let key = |key: &str| weights.get(key).filter(|value| !value.is_null());
        let wrong = |name: &str| {
            let found = key(name).map_or("(absent)".into(), Value::to_string);
            format!("quantization_config: weights.{name} = {} is not supported", excerpt(&found))
        };
        if key("type").is_some_and(|kind| kind != "int") {
            return Err(wrong("type"));
        }
        if key("dynamic").is_some_and(|dynamic| dynamic != false) {
            return Err(wrong("dynamic"));
        }
        let bits = key("num_bits").and_then(Value::as_u64).and_then(|bits| usize::try_from(bits).ok());
        let bits = bits.ok_or_else(|| wrong("num_bits"))?;
        scheme(bits)?;
        let symmetric = match key("symmetric") {
            None => true,
            Some(flag) => flag.as_bool().ok_or_else(|| wrong("symmetric"))?,
        };
        let size = key("group_size").and_then(Value::as_i64);
        let scales = match (key("strategy").and_then(Value::as_str), size) {
            (Some("group"), Some(size)) | (None, Some(size)) if size > 0 => Scales::Group(size as usize),
            (Some("channel"), None | Some(-1)) | (None, Some(-1)) => Scales::Row,
            (Some("tensor"), None) => Scales::Matrix,
            _ => return Err(wrong("strategy")),
        };
        Ok(Self { bits, symmetric, scales })
    }
}

impl Stated {
    /// # Errors
    /// A setting that is not read, in one line without the file.
    pub(super) fn of(stated: &Value) -> Result<Self, String> {
        refuse_other(stated, "quantization_status", &[json!("compressed")])?;
        refuse_other(stated, "kv_cache_scheme", &[])?;
        refuse_other(stated, "sparsity_config", &[json!({})])?;
        refuse_other(stated, "transform_config", &[json!({})])?;
        let of_all = stated.get("format").and_then(Value::as_str);
        let groups = stated.get("config_groups").and_then(Value::as_object);
        let groups = groups.ok_or("quantization_config.config_groups is no object")?;
        let mut found = Vec::new();
        for group in groups.values() {
            for key in ["input_activations", "output_activations"] {
                if group.get(key).is_some_and(|value| !value.is_null()) {
                    return Err(format!("quantization_config: {key} are not supported; only weights may be quantized"));
                }
            }
            let format = group.get("format").and_then(Value::as_str).or(of_all).unwrap_or("(absent)");
            if format != "pack-quantized" {
                let format = excerpt(format);
                return Err(format!("quantization_config.format = {format} is not supported; pack-quantized is"));
            }
            let targets: Option<Vec<String>> = group
                .get("targets")
                .and_then(Value::as_array)
                .and_then(|targets| targets.iter().map(|target| target.as_str().map(str::to_string)).collect());
            let targets = targets.ok_or("quantization_config: targets are no list of strings")?;
            for pattern in targets.iter().filter_map(|target| target.strip_prefix("re:")) {
                matches(pattern, "")?;
            }
            found.push((targets, Form::of(group.get("weights").unwrap_or(&Value::Null))?));
        }
        Ok(Self { groups: found })
    }

    /// The form of a module: by its name, then by a pattern, then by its class, as `match_targets` of the package has it.
    fn form(&self, module: &str) -> Result<Option<Form>, String> {
        let by = |is: &dyn Fn(&String) -> Result<bool, String>| {
            for (targets, form) in &self.groups {
                for target in targets {
                    if is(target)? {
                        return Ok(Some(*form));
                    }
                }
            }
            Ok::<_, String>(None)
        };
        let pattern = |target: &String| match target.strip_prefix("re:") {
            Some(pattern) => matches(pattern, module),
            None => Ok(false),
        };
        Ok(match (by(&|target| Ok(target == module))?, by(&pattern)?) {
            (None, None) => by(&|target| Ok(target == "Linear"))?,
            (name, pattern) => name.or(pattern),
        })
    }

    pub(super) fn parts<'a>(&self, module: &Module<'_, 'a>) -> Result<Option<Parts<'a>>, String> {
        if !module.is_packed("weight_packed")? {
            return Ok(None);
        }
        let (name, [rows, columns]) = (&module.name, module.shape);
        let form = self.form(name)?;
        let Form { bits, symmetric, scales } =
            form.ok_or_else(|| format!("quantization_config has no group for {name}, which is packed"))?;
        if (module.tensor)("weight_g_idx").is_some() {
            return Err(format!("{name}.weight_g_idx: columns in another order (actorder) are not supported"));
        }
        let shape = module.required("weight_shape", &[Dtype::I64, Dtype::I32], &[2])?;
        let size = shape.bytes.len() / 2;
        let stored = [0, size].map(|first| {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&shape.bytes[first..first + size]);
            u64::from_le_bytes(bytes)
        });
        if stored != [rows as u64, columns as u64] {
            return Err(format!("{name}.weight_shape is {stored:?}, expected [{rows}, {columns}] by config.json"));
        }
        let group_size = match scales {
            Scales::Group(size) => checked_group(name, size, columns)?,
            _ => columns,
        };
        let groups = columns / group_size;
        let zeros = || {
            let found = (module.tensor)("weight_zero_point");
            match found.is_some_and(|zeros| zeros.dtype == Dtype::I8) {
                true => module.required("weight_zero_point", &[Dtype::I8], &[rows, groups]),
                false => module.required("weight_zero_point", &[Dtype::I32], &[(rows * bits).div_ceil(32), groups]),
            }
        };
        if !symmetric && scales == Scales::Matrix {
            return Err(format!("{name}: one zero point for a matrix is not supported"));
        }
        let scale_shape: &[usize] = if scales == Scales::Matrix { &[1] } else { &[rows, groups] };
        Ok(Some(Parts {
            bits,
            group_size,
            columns,
            all_rows: rows,
            rows: module.rows.clone(),
            packed: module.required("weight_packed", &[Dtype::I32], &[rows, (columns * bits).div_ceil(32)])?,
            scales: module.scales("weight_scale", scale_shape)?,
            zeros: (!symmetric).then(zeros).transpose()?,
            order: Order::ByRows,
        }))
    }
}
