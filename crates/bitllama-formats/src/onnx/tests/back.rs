//! A folder read back: every matrix computed again from the bytes in the file, by the definitions of the operators that read it.

use std::fs;

use bitllama_core::ModelConfig;
use bitllama_core::weights::{EMBEDDING, Kind, WeightSpec};
use half::{bf16, f16};
use prost::Message;
use serde_json::Value as Json;

use super::super::proto::{DataType, EXTERNAL, GraphProto, ModelProto, NodeProto, TensorProto};
use super::super::{DATA, GENAI_CONFIG, GRAPH, Options, codes, write};
use super::tokenizer;
use crate::exports::Written;
use crate::{Result, StoredWeight};

/// A folder that was written, with its graph and data.
pub(super) struct Back {
    pub folder: tempfile::TempDir,
    pub model: ModelProto,
    pub graph: GraphProto,
    pub data: Vec<u8>,
    pub genai: Json,
    pub written: Vec<Written>,
}

pub(super) fn write_back(
    config: &ModelConfig,
    weights: &[(WeightSpec, StoredWeight)],
    options: &Options,
) -> Result<Back> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("onnx");
    let written = write(&path, config, weights.iter().cloned().map(Ok), &tokenizer(), options)?;
    let model = ModelProto::decode(&fs::read(path.join(GRAPH)).unwrap()[..]).unwrap();
    let genai = serde_json::from_slice(&fs::read(path.join(GENAI_CONFIG)).unwrap()).unwrap();
    let (graph, data) = (model.graph.clone().unwrap(), fs::read(path.join(DATA)).unwrap());
    Ok(Back { folder, model, graph, data, genai, written })
}

impl Back {
    fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.graph.initializer.iter().find(|tensor| tensor.name == name)
    }

    /// Type, sizes and bytes of a constant.
    pub(super) fn constant(&self, name: &str) -> (i32, Vec<usize>, &[u8]) {
        let tensor = self.tensor(name).unwrap_or_else(|| panic!("{name} is no constant"));
        let shape = tensor.dims.iter().map(|size| *size as usize).collect();
        let bytes = match &tensor.raw_data {
            Some(bytes) => bytes,
            None => {
                assert_eq!(tensor.data_location, Some(EXTERNAL));
                let number = |key: &str| {
                    let entry = tensor.external_data.iter().find(|entry| entry.key == key).unwrap();
                    entry.value.parse::<usize>().unwrap()
                };
                assert!(number("offset").is_multiple_of(4096), "{name} begins within a page");
                &self.data[number("offset")..][..number("length")]
            }
        };
        (tensor.data_type, shape, bytes)
    }

    fn producer(&self, value: &str) -> Option<&NodeProto> {
        self.graph.node.iter().find(|node| node.output.iter().any(|output| output == value))
    }

    /// Numbers of a constant, or of the cast of one.
    pub(super) fn numbers(&self, value: &str) -> (Vec<usize>, Vec<f32>) {
        if let Some(cast) = self.producer(value) {
            assert_eq!((&cast.op_type[..], integer(cast, "to")), ("Cast", Some(1)));
            return self.numbers(&cast.input[0]);
        }
        let (dtype, shape, bytes) = self.constant(value);
        let numbers = match dtype {
            1 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            10 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f32()).collect(),
            other => panic!("{value} has the type {other}"),
        };
        (shape, numbers)
    }

    /// The node that reads the codes of a weight, with the input at which it does.
    fn reader(&self, constant: &str) -> &NodeProto {
        self.graph.node.iter().find(|node| node.input.iter().any(|input| input == constant)).unwrap()
    }

    /// A weight as its operator sees it, `[rows, columns]`.
    pub(super) fn weight(&self, spec: &WeightSpec) -> Vec<f32> {
        if self.tensor(&spec.name).is_some() {
            let (shape, numbers) = self.numbers(&spec.name);
            let as_it_is = shape == spec.shape;
            let transposed = spec.kind != Kind::Embedding && !spec.kind.is_vector();
            assert!(transposed || as_it_is, "{} {shape:?}", spec.name);
            return if transposed { codes::transposed(&numbers, shape[1]) } else { numbers };
        }
        let codes = format!("{}.codes", spec.name);
        match spec.name.as_str() {
            EMBEDDING if self.tensor(&format!("{codes}.rows")).is_some() => {
                let node = self.reader(&format!("{codes}.rows"));
                assert_eq!(node.op_type, "GatherBlockQuantized");
                self.nbits(node, &node.input[0], &node.input[2], node.input.get(3), spec)
            }
            EMBEDDING => self.gathered(&codes, spec),
            _ => {
                let node = self.reader(&codes);
                match node.op_type.as_str() {
                    "MatMulNBits" => {
                        let [rows, columns] = [spec.shape[0], spec.shape[1]].map(|size| Some(size as i64));
                        assert_eq!([integer(node, "N"), integer(node, "K")], [rows, columns]);
                        self.nbits(node, &node.input[1], &node.input[2], node.input.get(3), spec)
                    }
                    "DequantizeLinear" => self.linear(node, spec),
                    other => panic!("{other} reads {codes}"),
                }
            }
        }
    }

    /// Codes of `MatMulNBits` and `GatherBlockQuantized`.
    fn nbits(
        &self,
        node: &NodeProto,
        codes: &str,
        scales: &str,
        points: Option<&String>,
        spec: &WeightSpec,
    ) -> Vec<f32> {
        let [rows, columns] = [spec.shape[0], spec.shape[1]];
        let (bits, block) = (integer(node, "bits").unwrap() as usize, integer(node, "block_size").unwrap() as usize);
        let blocks = columns.div_ceil(block);
        let (dtype, _, bytes) = self.constant(codes);
        assert_eq!((dtype, bytes.len()), (DataType::Uint8 as i32, rows * blocks * block * bits / 8));
        let (shape, scales) = self.numbers(scales);
        assert_eq!(shape, [rows, blocks]);
        let points = points.map(|points| self.constant(points).2);
        let points_a_row = (blocks * bits).div_ceil(8);
        let element = |row: usize, column: usize| {
            let code = field(&bytes[row * blocks * block * bits / 8..], column, bits);
            let point = points.map_or(1 << (bits - 1), |points| {
                assert_eq!(points.len(), rows * points_a_row);
                field(&points[row * points_a_row..], column / block, bits)
            });
            (code - point) as f32 * scales[row * blocks + column / block]
        };
        (0..rows * columns).map(|i| element(i / columns, i % columns)).collect()
    }

    /// Codes of `DequantizeLinear`, columns first.
    fn linear(&self, node: &NodeProto, spec: &WeightSpec) -> Vec<f32> {
        let [rows, columns] = [spec.shape[0], spec.shape[1]];
        let (dtype, shape, bytes) = self.constant(&node.input[0]);
        assert_eq!(shape, [columns, rows]);
        let (shape, scales) = self.numbers(&node.input[1]);
        let block = integer(node, "block_size").map_or(columns, |block| block as usize);
        let expected = if block == columns { vec![rows] } else { vec![columns / block, rows] };
        assert_eq!((shape, integer(node, "axis")), (expected, Some(i64::from(block == columns))));
        let points = node.input.get(2).map(|points| self.constant(points));
        let element = |row: usize, column: usize| {
            let at = column / block * rows + row;
            let point = points.as_ref().map_or(0, |(of, _, points)| whole(*of, points, at));
            (whole(dtype, bytes, column * rows + row) - point) as f32 * scales[at]
        };
        (0..rows * columns).map(|i| element(i / columns, i % columns)).collect()
    }

    /// An embedding whose rows are looked up and then dequantized.
    fn gathered(&self, codes: &str, spec: &WeightSpec) -> Vec<f32> {
        let of = |part: &str| format!("{}.{part}", spec.name);
        let lookup = self.graph.node.iter().find(|node| node.op_type == "Gather" && node.input[0] == codes).unwrap();
        let node = self.reader(&lookup.output[0]);
        assert_eq!((&node.op_type[..], integer(node, "axis")), ("DequantizeLinear", Some(-1)));
        let block = integer(node, "block_size").unwrap() as usize;
        let (dtype, _, bytes) = self.constant(codes);
        let (_, scales) = self.numbers(&of("scales"));
        let points = self.tensor(&of("zero_points")).map(|_| self.constant(&of("zero_points")));
        let element = |i: usize| {
            let point = points.as_ref().map_or(0, |(of, _, points)| whole(*of, points, i / block));
            (whole(dtype, bytes, i) - point) as f32 * scales[i / block]
        };
        (0..spec.len()).map(element).collect()
    }
}

fn integer(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|attribute| attribute.name == name).and_then(|attribute| attribute.i)
}

/// A field of so many bits, the first in the lowest bits.
fn field(bytes: &[u8], index: usize, bits: usize) -> i32 {
    i32::from(bytes[index * bits / 8] >> (index * bits % 8)) & ((1 << bits) - 1)
}

/// An element of a tensor of whole numbers.
fn whole(dtype: i32, bytes: &[u8], index: usize) -> i32 {
    match dtype {
        2 => i32::from(bytes[index]),
        3 => i32::from(bytes[index] as i8),
        21 => field(bytes, index, 4),
        22 => (field(bytes, index, 4) ^ 8) - 8,
        other => panic!("the type {other} is no whole number"),
    }
}
