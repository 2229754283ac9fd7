//! Published BitNet models, whose matrices are ternary: packed with a scale (`offline`), or to be rounded when they are used
//! (`online`), as `integrations/bitnet.py` of `transformers` reads them. Their inputs are rounded to 8 bits per token.

use bitllama_core::rounding::Quantized;
use bitllama_core::weights::{Kind, WeightSpec, specs};
use bitllama_core::{
    Activation, ActivationPlan, DenseMatrix, Granularity, ModelConfig, PackedMatrix, Quantizer, Scheme,
};
use serde_json::Value;

/// Ternary matrices in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// Four codes to a byte and a scale: of `AutoBitLinear` a factor, of `BitLinear` a divisor of the codes.
    Offline {
        /// Whether the scale is a divisor.
        divides: bool,
    },
    /// Numbers, to be rounded by their mean magnitude.
    Online,
}

/// How the matrices of a config are packed, and which are not.
#[derive(Debug, Clone)]
pub(super) struct Stated {
    packing: Packing,
    /// Modules in full precision, or the ends of their names.
    skipped: Vec<String>,
}

impl Stated {
    /// The packing of a weight; `None` for one in full precision.
    pub fn of(&self, spec: &WeightSpec) -> Option<Packing> {
        let module = format!("model.{}", spec.name.strip_suffix(".weight")?);
        let is = |key: &String| module.ends_with(key.as_str()) || module.starts_with(&format!("{key}."));
        (spec.kind == Kind::Linear && !self.skipped.iter().any(is)).then_some(self.packing)
    }
}

/// Rows of codes to a row of bytes.
pub(super) const ROWS_PER_BYTE: usize = 4;

/// The content of a `quantization_config` of BitNet.
///
/// # Errors
/// A setting that is not read, in one line without the file.
pub(super) fn stated(stated: &Value) -> Result<Stated, String> {
    let text = |key: &str| stated.get(key).and_then(Value::as_str);
    if stated.get("use_rms_norm").and_then(Value::as_bool) == Some(true) {
        return Err("quantization_config.use_rms_norm = true is not supported; it must be false".into());
    }
    let packing = match (text("linear_class").unwrap_or("bitlinear"), text("quantization_mode").unwrap_or("offline")) {
        ("autobitlinear", "online") => Packing::Online,
        ("autobitlinear", "offline") => Packing::Offline { divides: false },
        ("bitlinear", "offline") => Packing::Offline { divides: true },
        (class, mode) => {
            let (class, mode) = (bitllama_core::excerpt(class), bitllama_core::excerpt(mode));
            return Err(format!(
                "quantization_config: linear_class {class} with quantization_mode {mode} is not supported"
            ));
        }
    };
    Ok(Stated { packing, skipped: skipped(stated)? })
}

/// The modules that stay in full precision.
fn skipped(stated: &Value) -> Result<Vec<String>, String> {
    const KEY: &str = "modules_to_not_convert";
    let Some(list) = stated.get(KEY).filter(|value| !value.is_null()) else { return Ok(Vec::new()) };
    let names: Option<Vec<&str>> = list.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    let names = names.ok_or_else(|| format!("quantization_config.{KEY} is not a list of strings"))?;
    // `transformers` takes them for regular expressions, of which names with dots are the usual ones.
    let is_name = |name: &&str| name.chars().all(|char| char.is_ascii_alphanumeric() || "._-".contains(char));
    match names.iter().find(|name| !is_name(name)) {
        Some(pattern) => {
            let pattern = bitllama_core::excerpt(pattern);
            Err(format!("quantization_config.{KEY}: {pattern} is no name of a module; list modules by their names"))
        }
        None => Ok(names.into_iter().map(str::to_string).collect()),
    }
}

/// The shape of the bytes of a packed matrix.
pub(super) fn packed_shape(shape: &[usize]) -> [usize; 2] {
    [shape[0] / ROWS_PER_BYTE, shape[1]]
}

/// The matrix of packed `bytes` with its `scale`.
///
/// # Errors
/// A code that is none, in one line without the file.
pub(super) fn unpack(spec: &WeightSpec, bytes: &[u8], scale: f32, divides: bool) -> Result<PackedMatrix, String> {
    let [rows, columns] = [spec.shape[0], spec.shape[1]];
    let mut codes = Vec::with_capacity(rows * columns);
    for part in 0..ROWS_PER_BYTE {
        codes.extend(bytes.iter().map(|byte| f32::from(byte >> (2 * part) & 3) - 1.0));
    }
    let scale = if divides { 1.0 / scale } else { scale };
    if !scale.is_finite() {
        return Err(format!("{}: the scale is {scale}", spec.name));
    }
    let quantized = Quantized {
        codes: DenseMatrix { data: codes, columns: rows * columns },
        scales: DenseMatrix { data: vec![scale], columns: 1 },
        offsets: None,
        parts: None,
    };
    PackedMatrix::pack(&quantizer(), [rows, columns], quantized).map_err(|e| format!("{}: {e}", spec.name))
}

/// The matrix that numbers are rounded to.
///
/// # Errors
/// A number that is not finite, in one line without the file.
pub(super) fn round(spec: &WeightSpec, values: Vec<f32>) -> Result<PackedMatrix, String> {
    let shape = [spec.shape[0], spec.shape[1]];
    PackedMatrix::quantize(&quantizer(), shape, values).map_err(|e| format!("{}: {e}", spec.name))
}

fn quantizer() -> Quantizer {
    Quantizer::from(Scheme::Ternary).with_granularity(Granularity::Tensor)
}

/// Rounding of the inputs: 8 bits per token for every ternary matrix.
pub(super) fn activations(config: &ModelConfig, stated: &Stated) -> ActivationPlan {
    let matrices = specs(config).into_iter().filter(|spec| stated.of(spec).is_some());
    let inputs = matrices.map(|spec| (spec.name, Activation::Int8)).collect();
    ActivationPlan { inputs, ..ActivationPlan::default() }
}
