//! Writing of GGUF files: a model with its tokenizer in one file that llama.cpp opens.
//!
//! | file | subject |
//! |---|---|
//! | `container.rs` | header, metadata and list of tensors as bytes |
//! | `metadata.rs` | the config |
//! | `tokenizer.rs` | the tokenizer and its chat template |
//! | `tensors.rs` | the type that holds a matrix, and its bytes |
//!
//! A packed matrix takes the type of the fewest bits that holds its codes and groups, so that the file is the model to the bit;
//! other weights take the smallest floating-point type that keeps every number. What was written is read back before the file
//! gets its name: a config or tokenizer that the file cannot say is refused.

mod container;
mod metadata;
mod tensors;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

use bitllama_core::names::{Place, gguf_place};
use bitllama_core::weights::{self, WeightSpec};
use bitllama_core::{ModelConfig, PackedMatrix};
use serde_json::Value as Json;

use super::{BlockFormat, TensorType, Value, i2_s};
use crate::exports::{self, Written};
use crate::{Error, Result, StoredWeight, TokenizerFiles, atomic};
use container::{ALIGNMENT, Tensor};
use tensors::Encoded;

/// The metadata key of every file that this program writes: its version.
pub const OURS: &str = "bitllama.version";

/// Choices of a file.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Type of packed matrices where it holds them without loss, in place of the one of the fewest bits.
    pub preferred: Option<TensorType>,
    /// Type of matrices in full precision: F32, F16 or BF16. By default the smallest that keeps every number.
    pub full: Option<BlockFormat>,
    /// Refuses a matrix that the file cannot hold to the bit.
    pub exact: bool,
    /// `general.name`.
    pub name: String,
    /// Origin of the model, under `bitllama.provenance`.
    pub provenance: Json,
}

/// Writes a model into the file `path`, whole or not at all, and gives its tensors. `weights` yields every weight of `config`, in
/// the order of [`bitllama_core::weights::specs`].
///
/// # Errors
/// Those of `weights`; [`Error::Io`] if the disk refuses; [`Error::Invalid`] for a model or tokenizer that GGUF has no form for, a
/// weight that is missing, not finite or of another shape, and one that is not kept to the bit where `options` ask for that.
pub fn write<'a>(
    path: &Path,
    config: &ModelConfig,
    weights: impl Iterator<Item = Result<(WeightSpec, StoredWeight)>>,
    tokenizer: impl Into<TokenizerFiles<'a>>,
    options: &Options,
) -> Result<Vec<Written>> {
    let invalid = |reason: String| Error::invalid(path, reason);
    let files = tokenizer.into();
    let family = metadata::family(config).map_err(invalid)?;
    let mut keys = general(options, family.architecture);
    keys.extend(metadata::metadata(config, family));
    keys.extend(tokenizer::metadata(files.tokenizer, files.companions, config).map_err(invalid)?);
    let rope = metadata::rope_tensors(config);
    let order = order(config).map_err(invalid)?;
    let plain =
        |name: &str, shape: &[usize]| Tensor { name: name.into(), shape: shape.into(), kind: BlockFormat::F32.into() };
    let of_rope = rope.iter().map(|(name, factors)| plain(name, &[factors.len()]));
    let of_weights = order.iter().map(|place| plain(&place.tensor, &place.shape));
    let mut tensors: Vec<Tensor> = of_rope.chain(of_weights).collect();
    let mut written: Vec<Written> = Vec::with_capacity(tensors.len());
    let mut kinds: Vec<TensorType> = Vec::with_capacity(tensors.len());
    let fill = |file: &mut BufWriter<File>| -> Result<()> {
        let io = |e: io::Error| Error::io(path)(e);
        // The types of tensors are found on the way; the header has the same length whatever they are.
        file.write_all(&vec![0; container::header(&keys, &tensors).len()]).map_err(io)?;
        for (name, factors) in &rope {
            let encoded = tensors::floats(factors, BlockFormat::F32);
            let encoded = encoded.ok_or_else(|| invalid(format!("{name} has a divisor that is not finite")))?;
            put(file, &encoded).map_err(io)?;
            kinds.push(encoded.kind);
            written.push(entry(name, &encoded, None));
        }
        let mut parts: HashMap<String, Vec<(WeightSpec, StoredWeight)>> = HashMap::new();
        let mut next = order.iter();
        for (expected, weight) in weights::specs(config).into_iter().zip(weights) {
            let (spec, weight) = exports::checked(path, &expected, weight?)?;
            let Some(place) = gguf_place(config, &spec) else { continue };
            let of_tensor = parts.entry(place.tensor.clone()).or_default();
            of_tensor.push((spec, weight));
            if of_tensor.iter().map(|(spec, _)| spec.shape[0]).sum::<usize>() < place.shape[0] {
                continue;
            }
            debug_assert_eq!(next.next(), Some(&place));
            let parts = parts.remove(&place.tensor).unwrap_or_default();
            let (encoded, remark) = encode(config, family.paired_rows, &parts, options);
            let encoded =
                encoded.ok_or_else(|| invalid(format!("{} has a number too large for its type", place.tensor)))?;
            kinds.push(encoded.kind);
            let found = entry(&place.tensor, &encoded, remark);
            if options.exact {
                exports::refuse_loss(path, &found)?;
            }
            put(file, &encoded).map_err(io)?;
            written.push(found);
        }
        if let Some(missing) = tensors.get(written.len()) {
            return Err(invalid(format!("the weights of {} were not given", missing.name)));
        }
        tensors.iter_mut().zip(&kinds).for_each(|(tensor, kind)| tensor.kind = *kind);
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        file.write_all(&container::header(&keys, &tensors)).map_err(io)
    };
    atomic::write_file_checked(path, fill, |temporary| check(path, temporary, config, &files))?;
    Ok(written)
}

/// Metadata that say nothing about the architecture.
fn general(options: &Options, architecture: &str) -> Vec<(String, Value)> {
    let text = |text: &str| Value::String(text.into());
    let mut keys = vec![
        ("general.architecture".into(), text(architecture)),
        ("general.type".into(), text("model")),
        ("general.name".into(), text(&options.name)),
        ("general.quantization_version".into(), Value::Unsigned(2)),
        ("general.alignment".into(), Value::Unsigned(ALIGNMENT as u64)),
        (OURS.into(), text(env!("CARGO_PKG_VERSION"))),
    ];
    if !options.provenance.is_null() {
        keys.push(("bitllama.provenance".into(), text(&options.provenance.to_string())));
    }
    keys
}

/// The tensors of the weights, each at the place of its last part.
fn order(config: &ModelConfig) -> std::result::Result<Vec<Place>, String> {
    let mut places: Vec<Place> = Vec::new();
    for spec in weights::specs(config) {
        let place = gguf_place(config, &spec).ok_or_else(|| format!("{} has no name in GGUF files", spec.name))?;
        if place.first_row + spec.shape[0] == place.shape[0] {
            places.push(place);
        }
    }
    Ok(places)
}

/// The bytes of a tensor that consists of `parts`, and a remark about its type; none if a number is too large.
fn encode(
    config: &ModelConfig,
    paired_rows: bool,
    parts: &[(WeightSpec, StoredWeight)],
    options: &Options,
) -> (Option<Encoded>, Option<String>) {
    let rows = |spec: &WeightSpec| rows_in_file(spec, paired_rows, config.head_dim);
    let packed = |(_, weight): &(WeightSpec, StoredWeight)| match weight {
        StoredWeight::Packed(matrix) => Some(matrix.clone()),
        _ => None,
    };
    let matrices: Option<Vec<PackedMatrix>> = parts.iter().map(packed).collect();
    let mut remark = None;
    if let Some(matrices) = matrices {
        let matrices: Vec<&PackedMatrix> = matrices.iter().collect();
        let preferred = match options.preferred {
            Some(TensorType::I2S) if i2_s::holds(&matrices) => {
                let parts = parts.iter().zip(&matrices).map(|((spec, _), matrix)| ((*matrix).clone(), rows(spec)));
                return (Some(tensors::ternary(parts)), None);
            }
            Some(TensorType::Blocks(format)) => Some(format),
            _ => None,
        };
        if let Some(fit) = tensors::fit(&matrices, preferred) {
            let encoded =
                parts.iter().zip(matrices).map(|((spec, _), matrix)| tensors::packed(matrix, fit, rows(spec)));
            let encoded = tensors::joined(encoded);
            let lossy = encoded.as_ref().is_some_and(|encoded| encoded.error > 0.0);
            return (encoded, lossy.then(|| "scales are rounded to f16; use scale_dtype = \"f16\"".into()));
        }
        remark = matrices.first().map(|matrix| tensors::no_fit(matrix));
    }
    if let Some(format) = tensors::blocks(parts.iter().map(|(_, weight)| weight)) {
        let encoded = parts.iter().map(|(spec, weight)| tensors::copied(weight, format, rows(spec)));
        return (tensors::joined(encoded), None);
    }
    let vector = parts.iter().all(|(spec, _)| spec.kind.is_vector());
    let values: Vec<f32> =
        parts.iter().flat_map(|(spec, weight)| reordered(exports::values(weight), spec, rows(spec))).collect();
    // llama.cpp computes with vectors in single precision only.
    let forced = if vector { Some(BlockFormat::F32) } else { options.full };
    (tensors::floats(&values, tensors::float_format(&values, forced)), remark)
}

/// Rows of a weight in the order of the file: llama.cpp rotates neighbouring rows of a head together, Hugging Face rows `i` and
/// `i + head_dim / 2` (`permute` in `convert_hf_to_gguf.py`).
fn rows_in_file(spec: &WeightSpec, paired_rows: bool, head_dim: usize) -> impl Iterator<Item = usize> + use<> {
    let paired = paired_rows && ["self_attn.q_proj.", "self_attn.k_proj."].iter().any(|part| spec.name.contains(part));
    (0..spec.shape[0]).map(move |place| match paired {
        false => place,
        true => {
            let (head, within) = (place / head_dim, place % head_dim);
            head * head_dim + within % 2 * (head_dim / 2) + within / 2
        }
    })
}

fn reordered(values: Vec<f32>, spec: &WeightSpec, rows: impl Iterator<Item = usize>) -> Vec<f32> {
    let columns = spec.len() / spec.shape[0].max(1);
    rows.flat_map(|row| &values[row * columns..][..columns]).copied().collect()
}

/// Writes the data of a tensor, and zeros up to the next one.
fn put(file: &mut BufWriter<File>, encoded: &Encoded) -> io::Result<()> {
    let bytes = encoded.bytes.len();
    file.write_all(&encoded.bytes)?;
    file.write_all(&[0; ALIGNMENT][..bytes.next_multiple_of(ALIGNMENT) - bytes])
}

fn entry(tensor: &str, encoded: &Encoded, remark: Option<String>) -> Written {
    let Encoded { kind, bytes, error } = encoded;
    Written { tensor: tensor.into(), dtype: kind.name().into(), bytes: bytes.len(), error: *error, remark }
}

/// Opens what was written and compares it with what it is of.
fn check(path: &Path, temporary: &Path, config: &ModelConfig, files: &TokenizerFiles<'_>) -> Result<()> {
    let invalid = |reason: String| Error::invalid(path, reason);
    let back = super::open(temporary).map_err(|e| invalid(format!("what was written cannot be read back: {e}")))?;
    if let Some(difference) = metadata::difference(config, &back.config) {
        return Err(invalid(format!("the model has {difference}")));
    }
    let ends: Vec<u32> = back.config.end_tokens().collect();
    if let Some(lost) = config.end_tokens().find(|id| !ends.contains(id)) {
        let token = files.tokenizer.id_to_token(lost).unwrap_or_default();
        crate::notes::tell(path, &format!("GGUF has no place for {token} ({lost}) as a token that ends a generation"));
    }
    match tokenizer::difference(files.tokenizer, &back.tokenizer) {
        Some(text) => Err(invalid(format!(
            "GGUF metadata cannot say this tokenizer: {} gives other tokens when it is read back",
            crate::tokenizer::quoted(&text)
        ))),
        None => Ok(()),
    }
}
