//! Weights on their way into the file beside the graph, one at a time, and what the graph has to know of each.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use bitllama_core::PackedMatrix;
use bitllama_core::weights::{Kind, WeightSpec};
use half::{bf16, f16};

use super::codes::{self, Grid, Order};
use super::graph::External;
use super::proto::DataType;
use crate::StoredWeight;
use crate::exports::{self, Loss, Written};
use crate::hf::Dtype;

/// Alignment of tensors in the file: a page, so that readers can map them into memory.
const ALIGNMENT: u64 = 4096;
/// Numbers that are made bytes in one go.
const RUN: usize = 1 << 14;

/// A weight as the graph finds it.
#[derive(Debug, Clone)]
pub(super) enum Held {
    /// A norm or a bias.
    Vector(Vec<f32>),
    /// A matrix of numbers: `[in_features, out_features]`, or the rows of an embedding.
    Numbers(External),
    /// A matrix of codes.
    Codes(Codes),
}

/// Codes of a matrix `[rows, columns]`, their scales and zero points.
#[derive(Debug, Clone)]
pub(super) struct Codes {
    pub codes: External,
    pub scales: External,
    pub zero_points: Option<External>,
    pub grid: Grid,
    pub rows: usize,
    pub columns: usize,
}

/// The file of tensors.
pub(super) struct Data<'a> {
    pub file: &'a mut BufWriter<File>,
    position: u64,
}

impl<'a> Data<'a> {
    pub fn new(file: &'a mut BufWriter<File>) -> Self {
        Self { file, position: 0 }
    }

    /// Writes a tensor whose bytes come in parts.
    fn put(
        &mut self,
        name: String,
        dtype: DataType,
        shape: &[usize],
        parts: impl Iterator<Item = Vec<u8>>,
    ) -> io::Result<External> {
        let offset = self.position.next_multiple_of(ALIGNMENT);
        self.file.write_all(&[0; ALIGNMENT as usize][..(offset - self.position) as usize])?;
        let mut length = 0;
        for part in parts {
            self.file.write_all(&part)?;
            length += part.len() as u64;
        }
        self.position = offset + length;
        Ok(External { name, dtype, shape: shape.to_vec(), offset, length })
    }
}

/// Choices that concern weights.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choices {
    /// Whether only operators of ONNX itself read them.
    pub opset_only: bool,
    /// Type of matrices of numbers.
    pub dtype: Dtype,
}

/// Writes a weight. The error of the inner result says why its type cannot hold it.
pub(super) fn put(
    data: &mut Data,
    spec: &WeightSpec,
    weight: StoredWeight,
    choices: Choices,
) -> io::Result<Result<(Held, Written), String>> {
    let entry = |dtype: &'static str, bytes: u64, error: f64, remark: Option<String>| Written {
        tensor: spec.name.clone(),
        dtype: dtype.into(),
        bytes: bytes as usize,
        error,
        remark,
    };
    if spec.kind.is_vector() {
        let values = weight.into_values();
        let written = entry("FLOAT", 4 * values.len() as u64, 0.0, None);
        return Ok(Ok((Held::Vector(values), written)));
    }
    let mut remark = None;
    match &weight {
        StoredWeight::Packed(matrix) => match grid_of(matrix, spec.kind, choices.opset_only) {
            Ok(grid) => {
                let held = put_codes(data, spec, matrix, grid, choices.opset_only)?;
                let written = entry(type_name(grid, choices.opset_only), held.bytes(), 0.0, None);
                return Ok(Ok((Held::Codes(held), written)));
            }
            Err(reason) => remark = Some(format!("{reason}; it is written as numbers")),
        },
        StoredWeight::Rows(rows) if rows.bytes() < 2 * rows.rows() * rows.columns() => {
            remark = Some(
                "blocks of a GGUF are written as the numbers that they stand for; `quantize` rounds them anew".into(),
            );
        }
        _ => {}
    }
    let (dtype, type_name) = match choices.dtype {
        Dtype::F32 => (DataType::Float, "FLOAT"),
        Dtype::F16 => (DataType::Float16, "FLOAT16"),
        Dtype::Bf16 => (DataType::Bfloat16, "BFLOAT16"),
    };
    let (mut values, mut shape) = (exports::values(&weight), spec.shape.clone());
    drop(weight);
    let mut loss = Loss::default();
    for values in values.chunks(RUN) {
        let found = rounded(values, choices.dtype);
        if found.iter().any(|value| !value.is_finite()) {
            return Ok(Err(format!("{} has a number too large for {type_name}", spec.name)));
        }
        loss.add(values, &found);
    }
    if spec.kind != Kind::Embedding {
        values = codes::transposed(&values, shape[1]);
        shape.reverse();
    }
    let parts = values.chunks(RUN).map(|values| bytes(values, choices.dtype));
    let tensor = data.put(spec.name.clone(), dtype, &shape, parts)?;
    let error = loss.relative();
    let remark = remark.or((error > 0.0).then(|| format!("numbers are rounded to {type_name}")));
    let written = entry(type_name, tensor.length, error, remark);
    Ok(Ok((Held::Numbers(tensor), written)))
}

/// The grid in which the operators that read a matrix hold it, or the reason why there is none.
fn grid_of(matrix: &PackedMatrix, kind: Kind, opset_only: bool) -> Result<Grid, String> {
    match (opset_only, kind) {
        (false, Kind::Embedding) => codes::gathered_nbits(matrix),
        (false, _) => codes::nbits(matrix),
        // `Gather` has no elements of four bits.
        (true, Kind::Embedding) => codes::dequantized(matrix, &[8]),
        (true, _) => codes::dequantized(matrix, &[4, 8]),
    }
}

fn type_name(grid: Grid, opset_only: bool) -> &'static str {
    match (opset_only, grid.dtype(), grid.bits) {
        (false, _, 2) => "NBITS2",
        (false, _, 4) => "NBITS4",
        (false, ..) => "NBITS8",
        (true, DataType::Int4, _) => "INT4",
        (true, DataType::Uint4, _) => "UINT4",
        (true, DataType::Int8, _) => "INT8",
        (true, ..) => "UINT8",
    }
}

fn put_codes(
    data: &mut Data,
    spec: &WeightSpec,
    matrix: &PackedMatrix,
    grid: Grid,
    opset_only: bool,
) -> io::Result<Codes> {
    let [rows, columns] = [matrix.rows(), matrix.columns()];
    let blocks = grid.blocks(columns);
    let by_column = opset_only && spec.kind != Kind::Embedding;
    let order = if by_column { Order::Columns } else { Order::Rows };
    let (bytes, dtype, shape, of_scales, of_points) = match (opset_only, by_column) {
        (false, _) => {
            let blob = grid.block * grid.bits as usize / 8;
            let of_points = vec![rows, (blocks * grid.bits as usize).div_ceil(8)];
            (codes::rows(matrix, grid), DataType::Uint8, vec![rows, blocks, blob], vec![rows, blocks], of_points)
        }
        (true, false) => {
            (codes::rows(matrix, grid), grid.dtype(), vec![rows, columns], vec![rows, blocks], vec![rows, blocks])
        }
        (true, true) => {
            // One scale a row is a list of scales, one for each column of the transposed matrix.
            let of_scales = if blocks == 1 { vec![rows] } else { vec![blocks, rows] };
            (codes::columns(matrix, grid), grid.dtype(), vec![columns, rows], of_scales.clone(), of_scales)
        }
    };
    let part = |part: &str| format!("{}.{part}", spec.name);
    let tensor = data.put(part("codes"), dtype, &shape, std::iter::once(bytes))?;
    let (scale_dtype, scales) = codes::scales(matrix, grid, order);
    let scales = data.put(part("scales"), scale_dtype, &of_scales, std::iter::once(scales))?;
    let zero_points = match codes::zero_points(matrix, grid, order) {
        Some(points) => Some(data.put(part("zero_points"), dtype, &of_points, std::iter::once(points))?),
        None => None,
    };
    Ok(Codes { codes: tensor, scales, zero_points, grid, rows, columns })
}

impl Codes {
    /// Bytes of all parts.
    fn bytes(&self) -> u64 {
        self.codes.length + self.scales.length + self.zero_points.as_ref().map_or(0, |points| points.length)
    }
}

fn rounded(values: &[f32], dtype: Dtype) -> Vec<f32> {
    let round: fn(f32) -> f32 = match dtype {
        Dtype::F32 => |value| value,
        Dtype::F16 => |value| f16::from_f32(value).to_f32(),
        Dtype::Bf16 => |value| bf16::from_f32(value).to_f32(),
    };
    values.iter().map(|value| round(*value)).collect()
}

fn bytes(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
    }
}
