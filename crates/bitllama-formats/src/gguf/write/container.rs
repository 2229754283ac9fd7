//! The container: header, metadata and list of tensors as bytes.

use super::super::{Array, TensorType, Value};

/// Alignment of tensor data, the default of `general.alignment`.
pub(super) const ALIGNMENT: usize = 32;

/// Version of the format.
const VERSION: u32 = 3;

/// A tensor in the list.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    pub name: String,
    /// Row-major: `[rows, columns]`.
    pub shape: Vec<usize>,
    pub kind: TensorType,
}

impl Tensor {
    /// Bytes of the data.
    pub fn bytes(&self) -> usize {
        self.kind.bytes(&self.shape).unwrap_or_default()
    }
}

/// Everything in front of the data of the first tensor. Its length does not depend on the types of the tensors, so it can be
/// written once more when these are known.
pub(super) fn header(metadata: &[(String, Value)], tensors: &[Tensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        typed(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        // The file lists dimensions from the innermost out.
        tensor.shape.iter().rev().for_each(|size| out.extend((*size as u64).to_le_bytes()));
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT) as u64;
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A value behind the number of its type (`enum gguf_type`). Widths are those that llama.cpp reads: 32 bits where that is enough.
fn typed(out: &mut Vec<u8>, value: &Value) {
    let (kind, bytes): (u32, Vec<u8>) = match value {
        Value::Unsigned(number) => match u32::try_from(*number) {
            Ok(number) => (4, number.to_le_bytes().into()),
            Err(_) => (10, number.to_le_bytes().into()),
        },
        Value::Signed(number) => match i32::try_from(*number) {
            Ok(number) => (5, number.to_le_bytes().into()),
            Err(_) => (11, number.to_le_bytes().into()),
        },
        Value::Float(number) => (6, (*number as f32).to_le_bytes().into()),
        Value::Bool(flag) => (7, vec![u8::from(*flag)]),
        Value::String(string) => {
            let mut bytes = Vec::new();
            text(&mut bytes, string);
            (8, bytes)
        }
        Value::Array(array) => (9, items(array)),
    };
    out.extend(kind.to_le_bytes());
    out.extend(bytes);
}

/// Type, length and items of an array.
fn items(array: &Array) -> Vec<u8> {
    let head = |kind: u32, len: usize| [&kind.to_le_bytes()[..], &(len as u64).to_le_bytes()].concat();
    match array {
        Array::Integers(numbers) => {
            let mut out = head(5, numbers.len());
            numbers.iter().for_each(|number| out.extend((*number as i32).to_le_bytes()));
            out
        }
        Array::Floats(numbers) => {
            let mut out = head(6, numbers.len());
            numbers.iter().for_each(|number| out.extend((*number as f32).to_le_bytes()));
            out
        }
        Array::Bools(flags) => {
            let mut out = head(7, flags.len());
            out.extend(flags.iter().map(|flag| u8::from(*flag)));
            out
        }
        Array::Strings(texts) => {
            let mut out = head(8, texts.len());
            texts.iter().for_each(|item| text(&mut out, item));
            out
        }
    }
}
