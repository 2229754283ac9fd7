//! GPTQ's layout of both versions; [`super::super::packed`] says where its numbers lie.

use bitllama_core::excerpt;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::{Module, Order, Parts, checked_group, matches, refuse_other};

/// The content of a `quantization_config` of GPTQ.
#[derive(Debug, Clone)]
pub(in super::super) struct Stated {
    form: Form,
    /// Zeros are stored less so many.
    less: i32,
    /// Rules of modules that differ, the first that matches counts: `None` for full precision.
    dynamic: Vec<(String, Option<Form>)>,
}

#[derive(Debug, Clone, Copy)]
struct Form {
    bits: usize,
    /// `None` for one a row.
    group_size: Option<usize>,
}

impl Form {
    /// The form of a JSON object, with the fields of `base` where it has none.
    fn of(stated: &Value, base: Option<Form>) -> Result<Self, String> {
        let wrong = |key: &str| {
            let found = stated.get(key).map_or("(absent)".into(), Value::to_string);
            format!("quantization_config.{key} = {} is not supported", excerpt(&found))
        };
        let bits = match (stated.get("bits"), base) {
            (None, Some(base)) => base.bits,
            (bits, _) => {
                let bits = bits.and_then(Value::as_u64).filter(|bits| [2, 3, 4, 8].contains(bits));
                bits.ok_or_else(|| wrong("bits"))? as usize
            }
        };
        let group_size = match (stated.get("group_size"), base) {
            (None, Some(base)) => base.group_size,
            (size, _) => match size.and_then(Value::as_i64) {
                Some(-1) => None,
                Some(size) if size > 0 => Some(size as usize),
                _ => return Err(wrong("group_size")),
            },
        };
        Ok(Self { bits, group_size })
    }
}

impl Stated {
    /// # Errors
    /// A setting that is not read, in one line without the file.
    pub(super) fn of(stated: &Value) -> Result<Self, String> {
        refuse_other(stated, "pack_dtype", &[json!("int32")])?;
        refuse_other(stated, "is_marlin_format", &[json!(false)])?;
        refuse_other(stated, "lm_head", &[json!(false)])?;
        refuse_other(stated, "checkpoint_format", &[json!("gptq"), json!("gptq_v2")])?;
        let version = stated.get("checkpoint_format").or_else(|| stated.get("format"));
        let less = if version.and_then(Value::as_str) == Some("gptq_v2") { 0 } else { 1 };
        let form = Form::of(stated, None)?;
        let mut dynamic = Vec::new();
        for (pattern, rule) in stated.get("dynamic").and_then(Value::as_object).into_iter().flatten() {
            let own = match pattern.strip_prefix("-:") {
                Some(pattern) => (pattern.to_string(), None),
                None => {
                    let pattern = pattern.strip_prefix("+:").unwrap_or(pattern);
                    (pattern.to_string(), Some(Form::of(rule, Some(form))?))
                }
            };
            matches(&own.0, "")?;
            dynamic.push(own);
        }
        Ok(Self { form, less, dynamic })
    }

    pub(super) fn parts<'a>(&self, module: &Module<'_, 'a>) -> Result<Option<Parts<'a>>, String> {
        if !module.is_packed("qweight")? {
            return Ok(None);
        }
        let mut form = Some(self.form);
        for (pattern, other) in &self.dynamic {
            if matches(pattern, &module.name)? {
                form = *other;
                break;
            }
        }
        let name = &module.name;
        let Form { bits, group_size } =
            form.ok_or_else(|| format!("quantization_config.dynamic leaves {name} unpacked, which has a qweight"))?;
        let [rows, columns] = module.shape;
        let group_size = checked_group(name, group_size.unwrap_or(columns), columns)?;
        if !(columns * bits).is_multiple_of(32) || !(rows * bits).is_multiple_of(32) {
            return Err(format!("{name}: {rows} x {columns} in {bits} bits are no whole words"));
        }
        let groups = columns / group_size;
        if let Some(places) = (module.tensor)("g_idx") {
            let places = (places.dtype == Dtype::I32 && places.shape == [columns]).then_some(places);
            let in_order = |places: &super::Raw<'_>| {
                (0..columns).all(|column| places.word(column) as usize == column / group_size)
            };
            if !places.is_some_and(|places| in_order(&places)) {
                return Err(format!(
                    "{name}.g_idx has columns that are not in the order of their groups (desc_act), which is not supported"
                ));
            }
        }
        Ok(Some(Parts {
            bits,
            group_size,
            columns,
            all_rows: rows,
            rows: module.rows.clone(),
            packed: module.required("qweight", &[Dtype::I32], &[columns * bits / 32, rows])?,
            scales: module.scales("scales", &[groups, rows])?,
            zeros: Some(module.required("qzeros", &[Dtype::I32], &[groups, rows * bits / 32])?),
            order: Order::ByColumns { less: self.less },
        }))
    }
}
