//! Directories whose matrices are packed, opened as students: what a `quantization_config` states, and the matrices of the formats
//! that [`super::packed`] writes, whoever wrote them.
//!
//! A module is packed if its packed tensors are there; types, shapes and the config must agree. What could be read in two ways
//! is refused.

mod compressed_tensors;
mod gptq;
#[cfg(test)]
mod tests;

use bitllama_core::panel::COLUMN_UNIT;
use bitllama_core::scales::PackedScales;
use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_core::{ActivationPlan, ModelConfig, PackedMatrix, Scheme, excerpt};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;

use super::bitnet;
use super::mapped::Raw;

/// How a `config.json` says that matrices are packed.
#[derive(Debug, Clone)]
pub(super) enum Quantization {
    Bitnet(bitnet::Stated),
    CompressedTensors(compressed_tensors::Stated),
    Gptq(gptq::Stated),
}

impl Quantization {
    /// The packing that a config states, if it states one.
    ///
    /// # Errors
    /// A method that is not read, in one line without the file.
    pub fn stated(config: &Value) -> Result<Option<Self>, String> {
        let stated = |key: &str| config.get(key).filter(|value| !value.is_null());
        if stated("quantization").is_some() {
            return Err(
                "quantization: weights that MLX packed are not supported; use the model in full precision".into()
            );
        }
        let Some(stated) = stated("quantization_config") else { return Ok(None) };
        let found = match stated.get("quant_method").and_then(Value::as_str) {
            Some("bitnet") => Self::Bitnet(bitnet::stated(stated)?),
            Some("compressed-tensors") => Self::CompressedTensors(compressed_tensors::Stated::of(stated)?),
            Some("gptq") => Self::Gptq(gptq::Stated::of(stated)?),
            other => {
                let method = excerpt(other.unwrap_or("(absent)"));
                return Err(format!(
                    "quantization_config.quant_method = {method} is not supported; use the model in full precision"
                ));
            }
        };
        Ok(Some(found))
    }

    /// How a BitNet is packed.
    pub fn bitnet(&self) -> Option<&bitnet::Stated> {
        match self {
            Self::Bitnet(stated) => Some(stated),
            _ => None,
        }
    }

    /// How readers round the inputs of matrices.
    pub fn activations(&self, config: &ModelConfig) -> ActivationPlan {
        self.bitnet().map(|stated| bitnet::activations(config, stated)).unwrap_or_default()
    }

    /// The packed tensors of a weight; `None` for one in full precision.
    ///
    /// # Errors
    /// Tensors that do not fit the config, in one line without the file.
    pub fn parts<'a>(&self, module: &Module<'_, 'a>) -> Result<Option<Parts<'a>>, String> {
        let parts = match self {
            Self::Bitnet(_) => return Ok(None),
            Self::CompressedTensors(stated) => stated.parts(module)?,
            Self::Gptq(stated) => stated.parts(module)?,
        };
        if parts.is_some() {
            module.refuse_bias()?;
        }
        Ok(parts)
    }
}

/// The module of a weight in a file.
pub(super) struct Module<'m, 'a> {
    /// Path, such as `model.layers.0.mlp.up_proj`.
    pub name: String,
    /// `[rows, columns]` of its matrix.
    pub shape: [usize; 2],
    /// Rows of the weight in it.
    pub rows: std::ops::Range<usize>,
    /// Whether the model has a bias there.
    pub has_bias: bool,
    /// A tensor by the end of its name.
    pub tensor: &'m dyn Fn(&str) -> Option<Raw<'a>>,
}

impl<'a> Module<'_, 'a> {
    /// A tensor that must be there, of one of the types and in the shape that the config means.
    fn required(&self, part: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<Raw<'a>, String> {
        let name = &self.name;
        let found = (self.tensor)(part).ok_or_else(|| format!("has no tensor {name}.{part}"))?;
        if !dtypes.contains(&found.dtype) || found.shape != shape {
            let is = format!("{:?} of {:?}", found.shape, found.dtype);
            return Err(format!(
                "tensor {name}.{part} is {}, expected {shape:?} of {} by quantization_config",
                excerpt(&is),
                dtypes.iter().map(|dtype| format!("{dtype:?}")).collect::<Vec<_>>().join(" or ")
            ));
        }
        Ok(found)
    }

    /// Scales, which may have any floating-point type.
    fn scales(&self, part: &str, shape: &[usize]) -> Result<Raw<'a>, String> {
        self.required(part, &[Dtype::F16, Dtype::BF16, Dtype::F32], shape)
    }

    /// Whether the module is packed: has `packed`, and no plain weight.
    fn is_packed(&self, packed: &str) -> Result<bool, String> {
        match ((self.tensor)(packed).is_some(), (self.tensor)("weight").is_some()) {
            (true, true) => Err(format!("has both {0}.weight and {0}.{packed}", self.name)),
            (is_packed, _) => Ok(is_packed),
        }
    }

    /// Refuses a bias that the model would not add.
    fn refuse_bias(&self) -> Result<(), String> {
        let bias = (self.tensor)("bias").filter(|_| !self.has_bias);
        match bias.is_some_and(|bias| bias.bytes.iter().any(|byte| *byte != 0)) {
            true => Err(format!("has a bias {}.bias, and the model by its config none", self.name)),
            false => Ok(()),
        }
    }
}

/// The modules that a config packs.
pub(super) fn packs(spec: &WeightSpec) -> bool {
    spec.kind == Kind::Linear
}

/// Packed tensors of a module, whose types and shapes were checked.
pub(super) struct Parts<'a> {
    bits: usize,
    /// Columns that share a scale.
    group_size: usize,
    columns: usize,
    /// Rows of the tensors.
    all_rows: usize,
    /// Rows of the weight.
    rows: std::ops::Range<usize>,
    packed: Raw<'a>,
    scales: Raw<'a>,
    /// Without them, every zero is in the middle of the fields.
    zeros: Option<Raw<'a>>,
    order: Order,
}

/// Places of fields, scales and zero points in their tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// Fields along rows, one row behind the other; scales `[rows, groups]`, or one for all; zero points `[words, groups]`.
    ByRows,
    /// Fields along words that are `rows` apart; scales `[groups, rows]`; zero points `[groups, words]`, less so many.
    ByColumns { less: i32 },
}

impl Parts<'_> {
    /// Bytes of the weight in the file.
    pub fn bytes(&self) -> u64 {
        let all = [Some(&self.packed), Some(&self.scales), self.zeros.as_ref()];
        let all: usize = all.into_iter().flatten().map(|raw| raw.bytes.len()).sum();
        (all * self.rows.len() / self.all_rows.max(1)) as u64
    }

    /// The matrix of the weight.
    ///
    /// # Errors
    /// Numbers that are none, in one line without the file.
    pub fn matrix(&self) -> Result<PackedMatrix, String> {
        let scheme = scheme(self.bits)?;
        let groups = self.columns / self.group_size;
        let places = self.rows.clone().flat_map(|row| (0..groups).map(move |group| (row, group)));
        let scales = self.scales(places.clone().map(|(row, group)| self.scale_place(row, group, groups)))?;
        let middle = 1 << (self.bits - 1);
        let zeros = places.map(|(row, group)| self.zero(row, group, groups)).collect::<Result<Vec<i32>, String>>()?;
        let zeros = zeros.iter().any(|zero| *zero != middle).then_some(zeros);
        let row_words = (self.columns * self.bits).div_ceil(32);
        let fields = |row: usize, out: &mut [u8]| {
            let row = self.rows.start + row;
            for (column, field) in out.iter_mut().enumerate() {
                let place = |word: usize| match self.order {
                    Order::ByRows => row * row_words + word,
                    Order::ByColumns { .. } => word * self.all_rows + row,
                };
                *field = field_at(|word| self.packed.word(place(word)), column, self.bits) as u8;
            }
            Ok::<_, bitllama_core::Error>(())
        };
        PackedMatrix::from_fields(scheme, [self.rows.len(), self.columns], scales, zeros, fields)
            .map_err(|e| e.to_string())
    }

    fn scale_place(&self, row: usize, group: usize, groups: usize) -> usize {
        match self.order {
            Order::ByRows if self.scales.shape == [1] => 0,
            Order::ByRows => row * groups + group,
            Order::ByColumns { .. } => group * self.all_rows + row,
        }
    }

    /// Numbers of the scales at the `places`, in the type that they have.
    fn scales(&self, places: impl Iterator<Item = usize>) -> Result<PackedScales, String> {
        let values: Vec<f32> = places.map(|place| self.scales.number(place)).collect();
        match self.scales.dtype {
            Dtype::F16 => PackedScales::f16(&values).map_err(|e| e.to_string()),
            _ => Ok(values.into()),
        }
    }

    fn zero(&self, row: usize, group: usize, groups: usize) -> Result<i32, String> {
        let middle = 1 << (self.bits - 1);
        let Some(zeros) = &self.zeros else { return Ok(middle) };
        let words = (self.all_rows * self.bits).div_ceil(32);
        match self.order {
            // As older versions have them.
            Order::ByRows if zeros.dtype == Dtype::I8 => {
                Ok(i32::from(zeros.bytes[row * groups + group] as i8) + middle)
            }
            Order::ByRows => Ok(field_at(|word| zeros.word(word * groups + group), row, self.bits) as i32),
            Order::ByColumns { less } => {
                let zero = field_at(|word| zeros.word(group * words + word), row, self.bits) as i32 + less;
                if zero >> self.bits != 0 {
                    let row = row - self.rows.start;
                    return Err(format!(
                        "the zero point of row {row}, group {group} is stored as {}, which readers take for 0 or for {zero}",
                        zero - less
                    ));
                }
                Ok(zero)
            }
        }
    }
}

/// Number `index` of those that are packed from the lowest bit of word 0 up.
fn field_at(word: impl Fn(usize) -> u32, index: usize, bits: usize) -> u32 {
    let (first, shift) = (index * bits / 32, index * bits % 32);
    let low = u64::from(word(first)) >> shift;
    let high = if shift + bits > 32 { u64::from(word(first + 1)) << (32 - shift) } else { 0 };
    (low | high) as u32 & ((1 << bits) - 1)
}

impl Raw<'_> {
    /// The 32-bit word at `place`.
    fn word(&self, place: usize) -> u32 {
        self.bytes.as_chunks().0.get(place).map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// All numbers of a floating-point tensor.
    pub(in crate::hf) fn numbers(&self) -> Vec<f32> {
        (0..self.shape.iter().product()).map(|place| self.number(place)).collect()
    }

    /// The number at `place` of a floating-point tensor.
    fn number(&self, place: usize) -> f32 {
        let half = || self.bytes.as_chunks().0.get(place).copied().unwrap_or_default();
        match self.dtype {
            Dtype::F16 => f16::from_le_bytes(half()).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes(half()).to_f32(),
            _ => f32::from_bits(self.word(place)),
        }
    }
}

/// The scheme of whole numbers of so many bits.
fn scheme(bits: usize) -> Result<Scheme, String> {
    let all = [Scheme::Int2, Scheme::Int3, Scheme::Int4, Scheme::Int5, Scheme::Int6, Scheme::Int8];
    let found = all.into_iter().find(|scheme| scheme.code_bits() as usize == bits);
    found.ok_or_else(|| format!("quantization_config: {bits} bits are not supported; 2, 3, 4, 5, 6 and 8 are"))
}

/// A group of columns that a matrix can have here.
fn checked_group(name: &str, group_size: usize, columns: usize) -> Result<usize, String> {
    let fits = group_size == columns
        || group_size > 0 && columns.is_multiple_of(group_size) && group_size.is_multiple_of(COLUMN_UNIT);
    match fits {
        true => Ok(group_size),
        false => Err(format!(
            "{name}: {columns} columns in groups of {group_size} are not supported; whole groups of a multiple of 32 are"
        )),
    }
}

/// A field of `quantization_config` that must be absent, null or one of the `neutral` values.
fn refuse_other(stated: &Value, key: &str, neutral: &[Value]) -> Result<(), String> {
    match stated.get(key).filter(|value| !value.is_null() && !neutral.contains(value)) {
        None => Ok(()),
        Some(value) => Err(format!("quantization_config.{key} = {} is not supported", excerpt(&value.to_string()))),
    }
}

/// Whether a regular expression matches a name from its beginning on, as Python's `re.match` does.
fn matches(pattern: &str, name: &str) -> Result<bool, String> {
    let expression = regex::Regex::new(&format!("^(?:{pattern})"));
    let expression =
        expression.map_err(|_| format!("quantization_config: the pattern {} cannot be read", excerpt(pattern)))?;
    Ok(expression.is_match(name))
}

/// Whether the module of a weight has a bias by the config.
pub(super) fn has_bias(config: &ModelConfig, spec: &WeightSpec) -> bool {
    let part = spec.name.strip_prefix("layers.").and_then(|name| name.split_once('.'));
    part.and_then(|(_, part)| part.strip_suffix(".weight")).is_some_and(|part| config.arch.has_bias(part))
}
