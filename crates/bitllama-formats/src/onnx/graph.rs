//! A graph under construction: nodes in the order of computation, constants, inputs and outputs.

use std::collections::HashSet;

use super::proto::{
    AttributeProto, DataType, Dimension, DimensionProto, EXTERNAL, GraphProto, NodeProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use super::{CONTRIB, DATA};

/// Operators that ONNX Runtime has beside those of ONNX.
const CONTRIB_OPERATORS: [&str; 4] =
    ["MatMulNBits", "GatherBlockQuantized", "GroupQueryAttention", "SkipSimplifiedLayerNormalization"];

/// The value of an attribute.
#[derive(Debug, Clone, Copy)]
pub(super) enum Attribute<'a> {
    Float(f32),
    Int(i64),
    Ints(&'a [i64]),
    Text(&'a str),
}

/// Data of a tensor in the file beside the graph.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct External {
    /// Name, which is the constant's.
    pub name: String,
    pub dtype: DataType,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

#[derive(Debug, Default)]
pub(super) struct Graph {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    names: HashSet<String>,
    inputs: Vec<ValueInfoProto>,
    outputs: Vec<ValueInfoProto>,
    /// Part of the model that nodes are named after.
    scope: String,
}

impl Graph {
    /// Names the nodes that follow after a part of the model.
    pub fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// Adds a node with one output, and gives that one's name. Inputs that are left out are empty.
    pub fn node(&mut self, operator: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        let output = format!("{}/{operator}_{}", self.scope, self.nodes.len());
        self.node_into(operator, inputs, std::slice::from_ref(&output), attributes);
        output
    }

    /// Adds a node whose outputs have the given names; empty ones are left out.
    pub fn node_into(&mut self, operator: &str, inputs: &[&str], outputs: &[String], attributes: &[(&str, Attribute)]) {
        let domain = if CONTRIB_OPERATORS.contains(&operator) { CONTRIB } else { "" };
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|name| name.to_string()).collect(),
            output: outputs.to_vec(),
            name: format!("{}/{operator}_{}", self.scope, self.nodes.len()),
            op_type: operator.into(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, *value)).collect(),
            domain: domain.into(),
        });
    }

    /// Gives the output of the last node, which no other node reads yet, another name.
    pub fn name_last(&mut self, name: &str) {
        if let Some(output) = self.nodes.last_mut().and_then(|node| node.output.first_mut()) {
            *output = name.into();
        }
    }

    /// A vector of numbers, or one number where `shape` is empty. A name that is known already is the same constant.
    pub fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, DataType::Float, shape, bytes)
    }

    /// One number.
    pub fn float(&mut self, value: f32) -> String {
        self.floats(&format!("constants/f32/{value:e}"), &[], &[value])
    }

    /// Whole numbers.
    pub fn ints(&mut self, values: &[i64]) -> String {
        let name = values.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(&format!("constants/i64/[{name}]"), DataType::Int64, &[values.len()], bytes)
    }

    /// One whole number.
    pub fn int(&mut self, value: i64) -> String {
        self.constant(&format!("constants/i64/{value}"), DataType::Int64, &[], value.to_le_bytes().into())
    }

    fn constant(&mut self, name: &str, dtype: DataType, shape: &[usize], bytes: Vec<u8>) -> String {
        if self.names.insert(name.into()) {
            self.constants.push(TensorProto {
                dims: shape.iter().map(|size| *size as i64).collect(),
                data_type: dtype as i32,
                name: name.into(),
                raw_data: Some(bytes),
                ..TensorProto::default()
            });
        }
        name.into()
    }

    /// A constant whose data is in the file beside the graph.
    pub fn external(&mut self, data: &External) -> String {
        if self.names.insert(data.name.clone()) {
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value };
            self.constants.push(TensorProto {
                dims: data.shape.iter().map(|size| *size as i64).collect(),
                data_type: data.dtype as i32,
                name: data.name.clone(),
                external_data: vec![
                    entry("location", DATA.into()),
                    entry("offset", data.offset.to_string()),
                    entry("length", data.length.to_string()),
                ],
                data_location: Some(EXTERNAL),
                ..TensorProto::default()
            });
        }
        data.name.clone()
    }

    /// Declares an input. Sizes are numbers or names of sizes that are known when the model runs.
    pub fn input(&mut self, name: &str, dtype: DataType, shape: &[Size]) {
        self.inputs.push(value_info(name, dtype, shape));
    }

    /// Declares an output.
    pub fn output(&mut self, name: &str, dtype: DataType, shape: &[Size]) {
        self.outputs.push(value_info(name, dtype, shape));
    }

    /// Whether a node is none of ONNX's own.
    pub fn has_contrib(&self) -> bool {
        self.nodes.iter().any(|node| node.domain == CONTRIB)
    }

    pub fn finish(self, name: &str) -> GraphProto {
        GraphProto {
            node: self.nodes,
            name: name.into(),
            initializer: self.constants,
            input: self.inputs,
            output: self.outputs,
        }
    }
}

/// A size of an input or output.
#[derive(Debug, Clone, Copy)]
pub(super) enum Size {
    Fixed(usize),
    Named(&'static str),
}

fn value_info(name: &str, dtype: DataType, shape: &[Size]) -> ValueInfoProto {
    let dimension = |size: &Size| DimensionProto {
        value: Some(match size {
            Size::Fixed(size) => Dimension::Value(*size as i64),
            Size::Named(name) => Dimension::Param(name.to_string()),
        }),
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dimension).collect() };
    let tensor_type = TensorTypeProto { elem_type: dtype as i32, shape: Some(shape) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

fn attribute(name: &str, value: Attribute) -> AttributeProto {
    let named = AttributeProto { name: name.into(), ..AttributeProto::default() };
    match value {
        Attribute::Float(value) => AttributeProto { f: Some(value), r#type: 1, ..named },
        Attribute::Int(value) => AttributeProto { i: Some(value), r#type: 2, ..named },
        Attribute::Text(text) => AttributeProto { s: Some(text.as_bytes().to_vec()), r#type: 3, ..named },
        Attribute::Ints(values) => AttributeProto { ints: values.to_vec(), r#type: 7, ..named },
    }
}
