//! The decoder as a graph: the same steps as the runtime's `forward.rs`, in ONNX's operators and those that ONNX Runtime has beside
//! them. `B` sequences of `S` new tokens follow `P` cached positions; `T = P + S`.
//!
//! | value | shape |
//! |---|---|
//! | `input_ids` | `[B, S]` |
//! | `attention_mask`: 1 for a token, 0 for padding | `[B, T]` |
//! | `past_key_values.N.key`, `.value` | `[B, num_key_value_heads, P, head_dim]` |
//! | `logits` | `[B, S, vocab_size]` |
//! | `present.N.key`, `.value` | `[B, num_key_value_heads, T, head_dim]` |
//!
//! Shorter sequences of a batch are filled up on the right, as ONNX Runtime GenAI does; `GroupQueryAttention` counts tokens from the left.

use std::collections::HashMap;

use bitllama_core::weights::{BLOCK_SUB_NORMS, EMBEDDING, FINAL_NORM, HEAD, QK_NORMS};
use bitllama_core::{HiddenAct, ModelConfig, QkNorm, Rope};

use super::graph::Attribute::{Float, Int, Ints, Text};
use super::graph::{Attribute, Graph, Size};
use super::proto::{DataType, GraphProto};
use super::weights::{Codes, Held};

/// Input with the new tokens.
pub(super) const TOKENS: &str = "input_ids";
/// Input that says which positions are tokens.
pub(super) const MASK: &str = "attention_mask";
/// Output.
pub(super) const LOGITS: &str = "logits";

/// Name of the input with the keys or values of a layer so far.
pub(super) fn past(layer: impl std::fmt::Display, part: &str) -> String {
    format!("past_key_values.{layer}.{part}")
}

/// Name of the output with the keys or values of a layer, the new ones included.
pub(super) fn present(layer: impl std::fmt::Display, part: &str) -> String {
    format!("present.{layer}.{part}")
}

/// A graph that is being made for a model.
pub(super) struct Decoder<'a> {
    pub graph: Graph,
    pub config: &'a ModelConfig,
    weights: &'a HashMap<String, Held>,
    /// Whether only operators of ONNX itself are used.
    pub opset_only: bool,
    /// Cosines and sines by rotary embedding, each `[positions, rotary_dim / 2]`.
    pub tables: Vec<(Rope, [String; 2])>,
    /// Values that several nodes read, by what they are.
    shared: HashMap<String, String>,
}

/// The graph of a model whose weights are `weights`, by name, and whether it has other operators than ONNX's own.
pub(super) fn graph(config: &ModelConfig, weights: &HashMap<String, Held>, opset_only: bool) -> (GraphProto, bool) {
    let (graph, tables, shared) = (Graph::default(), Vec::new(), HashMap::new());
    let mut decoder = Decoder { graph, config, weights, opset_only, tables, shared };
    decoder.declare();
    let mut x = decoder.embedding();
    let mut y = None;
    for layer in 0..config.num_hidden_layers {
        let attended;
        (x, attended) = decoder.attend(layer, x, y);
        let fed;
        (x, fed) = decoder.feed(layer, x, attended);
        y = Some(fed);
    }
    decoder.logits(x, y);
    let has_contrib = decoder.graph.has_contrib();
    (decoder.graph.finish(&config.arch.family.to_string()), has_contrib)
}

impl Decoder<'_> {
    fn declare(&mut self) {
        let (graph, config) = (&mut self.graph, self.config);
        let named = Size::Named;
        graph.input(TOKENS, DataType::Int64, &[named("batch_size"), named("sequence_length")]);
        graph.input(MASK, DataType::Int64, &[named("batch_size"), named("total_sequence_length")]);
        let vocabulary = Size::Fixed(config.vocab_size);
        graph.output(LOGITS, DataType::Float, &[named("batch_size"), named("sequence_length"), vocabulary]);
        let cache = |length: &'static str| {
            let [heads, width] = [config.num_key_value_heads, config.head_dim].map(Size::Fixed);
            [named("batch_size"), heads, named(length), width]
        };
        for layer in 0..config.num_hidden_layers {
            for part in ["key", "value"] {
                graph.input(&past(layer, part), DataType::Float, &cache("past_sequence_length"));
                graph.output(&present(layer, part), DataType::Float, &cache("total_sequence_length"));
            }
        }
    }

    /// Rows of the embedding, `[B, S, hidden_size]`.
    fn embedding(&mut self) -> String {
        self.graph.enter("embed_tokens");
        let rows = match self.weights.get(EMBEDDING) {
            Some(Held::Codes(codes)) => self.embedded_codes(codes),
            Some(Held::Numbers(numbers)) => {
                let constant = self.graph.external(numbers);
                let rows = self.graph.node("Gather", &[&constant, TOKENS], &[]);
                self.widened(rows, numbers.dtype)
            }
            _ => unreachable!("every model has an embedding, which is a matrix"),
        };
        self.scaled(rows, self.config.arch.embedding_scale)
    }

    fn embedded_codes(&mut self, held: &Codes) -> String {
        if self.opset_only {
            // Rows of codes are dequantized, not the whole matrix.
            let mut inputs = Vec::new();
            for part in [Some(&held.codes), Some(&held.scales), held.zero_points.as_ref()].into_iter().flatten() {
                let part = self.graph.external(part);
                inputs.push(self.graph.node("Gather", &[&part, TOKENS], &[]));
            }
            inputs[1] = self.widened(inputs[1].clone(), held.scales.dtype);
            let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
            let attributes = [("axis", Int(-1)), ("block_size", Int(held.grid.block as i64))];
            return self.graph.node("DequantizeLinear", &inputs, &attributes);
        }
        let bits = held.grid.bits as usize;
        // The bytes of the tied head, seen as rows.
        let shape = vec![held.rows, held.columns * bits / 8];
        let name = format!("{}.rows", held.codes.name);
        let codes = self.graph.external(&super::graph::External { name, shape, ..held.codes.clone() });
        let scales = self.scales(held);
        let points = held.zero_points.as_ref().map(|points| self.graph.external(points));
        let inputs: Vec<&str> = [&*codes, TOKENS, &*scales].into_iter().chain(points.as_deref()).collect();
        let attributes = [
            ("bits", Int(bits as i64)),
            ("block_size", Int(held.grid.block as i64)),
            ("gather_axis", Int(0)),
            ("quantize_axis", Int(1)),
        ];
        self.graph.node("GatherBlockQuantized", &inputs, &attributes)
    }

    /// The attention of block `layer`. The residual stream is `x + y` before and after, as in the runtime.
    fn attend(&mut self, layer: usize, x: String, y: Option<String>) -> (String, String) {
        let norms = self.config.arch.norms.names();
        let name = |part: &str| format!("layers.{layer}.{part}");
        self.graph.enter(name("self_attn"));
        let (x, normed) = self.enter(x, y, norms.attention_in.map(name).as_deref());
        let [q, k, v] =
            ["q_proj", "k_proj", "v_proj"].map(|part| self.linear(&normed, &name(&format!("self_attn.{part}"))));
        let (q, k) = match self.config.arch.qk_norm {
            Some(over) => (self.qk_norm(q, &name(QK_NORMS[0]), over), self.qk_norm(k, &name(QK_NORMS[1]), over)),
            None => (q, k),
        };
        let mut attended = self.attention(layer, q, k, v);
        if self.config.sub_norm {
            attended = self.norm(&attended, &name(BLOCK_SUB_NORMS[0]));
        }
        let mut y = self.linear(&attended, &name("self_attn.o_proj"));
        if let Some(norm) = norms.attention_out {
            y = self.norm(&y, &name(norm));
        }
        (x, y)
    }

    /// The feed-forward layer of block `layer`, with the residual stream as in [`Decoder::attend`].
    fn feed(&mut self, layer: usize, x: String, y: String) -> (String, String) {
        let norms = self.config.arch.norms.names();
        let name = |part: &str| format!("layers.{layer}.{part}");
        self.graph.enter(name("mlp"));
        let (x, normed) = self.enter(x, Some(y), norms.mlp_in.map(name).as_deref());
        let gate = self.linear(&normed, &name("mlp.gate_proj"));
        let up = self.linear(&normed, &name("mlp.up_proj"));
        let gate = self.activation(gate);
        let mut gated = self.graph.node("Mul", &[&gate, &up], &[]);
        if self.config.sub_norm {
            gated = self.norm(&gated, &name(BLOCK_SUB_NORMS[1]));
        }
        let mut y = self.linear(&gated, &name("mlp.down_proj"));
        if let Some(norm) = norms.mlp_out {
            y = self.norm(&y, &name(norm));
        }
        (x, y)
    }

    fn activation(&mut self, x: String) -> String {
        match self.config.arch.hidden_act {
            HiddenAct::Silu => {
                let sigmoid = self.graph.node("Sigmoid", &[&x], &[]);
                self.graph.node("Mul", &[&x, &sigmoid], &[])
            }
            HiddenAct::GeluTanh => self.graph.node("Gelu", &[&x], &[("approximate", Text("tanh"))]),
            HiddenAct::Relu2 => {
                let positive = self.graph.node("Relu", &[&x], &[]);
                self.graph.node("Mul", &[&positive, &positive], &[])
            }
        }
    }

    /// `x + residual_scale * y`, and the norm of that, or itself where there is no norm.
    fn enter(&mut self, x: String, y: Option<String>, norm: Option<&str>) -> (String, String) {
        let Some(y) = y else {
            let normed = norm.map_or_else(|| x.clone(), |norm| self.norm(&x, norm));
            return (x, normed);
        };
        let y = self.scaled(y, self.config.arch.residual_scale);
        match norm {
            Some(norm) if !self.opset_only => {
                let weight = self.vector(&format!("{norm}.weight"));
                let outputs = ["normed", "sum"].map(|part| format!("{norm}/{part}"));
                let [normed, sum] = outputs.clone();
                let outputs = [normed.clone(), String::new(), String::new(), sum.clone()];
                let inputs = [&*x, &*y, &*weight];
                self.graph.node_into("SkipSimplifiedLayerNormalization", &inputs, &outputs, &[self.epsilon()]);
                (sum, normed)
            }
            Some(norm) => {
                let sum = self.graph.node("Add", &[&x, &y], &[]);
                let normed = self.norm(&sum, norm);
                (sum, normed)
            }
            None => {
                let sum = self.graph.node("Add", &[&x, &y], &[]);
                (sum.clone(), sum)
            }
        }
    }

    /// Final norm, head, scale and cap.
    fn logits(&mut self, x: String, y: Option<String>) {
        self.graph.enter("lm_head");
        let norm = FINAL_NORM.trim_end_matches(".weight");
        let (_, normed) = self.enter(x, y, Some(norm));
        let head = if self.config.tie_word_embeddings { EMBEDDING } else { HEAD };
        let logits = self.linear(&normed, head.trim_end_matches(".weight"));
        let arch = &self.config.arch;
        let mut logits = self.scaled(logits, arch.logits_scale);
        if let Some(cap) = arch.logits_cap {
            let cap = self.graph.float(cap as f32);
            logits = self.graph.node("Div", &[&logits, &cap], &[]);
            logits = self.graph.node("Tanh", &[&logits], &[]);
            self.graph.node("Mul", &[&logits, &cap], &[]);
        }
        self.graph.name_last(LOGITS);
    }

    /// `x * weight^T + bias` of the linear layer `name`.
    fn linear(&mut self, x: &str, name: &str) -> String {
        let weight = format!("{name}.weight");
        let product = match self.weights.get(&weight) {
            Some(Held::Codes(codes)) => self.product_with_codes(x, codes, weight == EMBEDDING),
            Some(Held::Numbers(numbers)) => {
                let constant = self.graph.external(numbers);
                let mut numbers = self.widened(constant, numbers.dtype);
                if weight == EMBEDDING {
                    numbers = self.graph.node("Transpose", &[&numbers], &[("perm", Ints(&[1, 0]))]);
                }
                self.graph.node("MatMul", &[x, &numbers], &[])
            }
            _ => unreachable!("{weight} is a matrix of every model"),
        };
        match self.weights.contains_key(&format!("{name}.bias")) {
            true => {
                let bias = self.vector(&format!("{name}.bias"));
                self.graph.node("Add", &[&product, &bias], &[])
            }
            false => product,
        }
    }

    fn product_with_codes(&mut self, x: &str, held: &Codes, tied: bool) -> String {
        let codes = self.graph.external(&held.codes);
        let scales = self.scales(held);
        let points = held.zero_points.as_ref().map(|points| self.graph.external(points));
        if self.opset_only {
            let inputs: Vec<&str> = [&*codes, &*scales].into_iter().chain(points.as_deref()).collect();
            // The head that is the embedding has its rows, other matrices have theirs as columns.
            let whole_rows = !tied && held.scales.shape.len() == 1;
            let axis = ("axis", Int(i64::from(tied || whole_rows)));
            let block = ("block_size", Int(held.grid.block as i64));
            let attributes = [axis, block];
            let attributes = if whole_rows { &attributes[..1] } else { &attributes[..] };
            let mut numbers = self.graph.node("DequantizeLinear", &inputs, attributes);
            if tied {
                numbers = self.graph.node("Transpose", &[&numbers], &[("perm", Ints(&[1, 0]))]);
            }
            return self.graph.node("MatMul", &[x, &numbers], &[]);
        }
        let inputs: Vec<&str> = [x, &*codes, &*scales].into_iter().chain(points.as_deref()).collect();
        let attributes = [
            ("K", Int(held.columns as i64)),
            ("N", Int(held.rows as i64)),
            ("bits", Int(i64::from(held.grid.bits))),
            ("block_size", Int(held.grid.block as i64)),
            // Inputs stay in f32.
            ("accuracy_level", Int(1)),
        ];
        self.graph.node("MatMulNBits", &inputs, &attributes)
    }

    /// Scales in f32.
    fn scales(&mut self, held: &Codes) -> String {
        let scales = self.graph.external(&held.scales);
        self.widened(scales, held.scales.dtype)
    }

    /// `value` of type `dtype` in f32; what several nodes read is cast once.
    fn widened(&mut self, value: String, dtype: DataType) -> String {
        if dtype == DataType::Float {
            return value;
        }
        self.shared(format!("{value} in f32"), |decoder| {
            decoder.graph.node("Cast", &[&value], &[("to", Int(DataType::Float as i64))])
        })
    }

    /// A value that several nodes read, by what it is.
    pub(super) fn shared(&mut self, name: String, make: impl FnOnce(&mut Self) -> String) -> String {
        if let Some(known) = self.shared.get(&name) {
            return known.clone();
        }
        let value = make(self);
        self.shared.insert(name, value.clone());
        value
    }

    /// A norm or bias.
    fn vector(&mut self, name: &str) -> String {
        match self.weights.get(name) {
            Some(Held::Vector(values)) => self.graph.floats(name, &[values.len()], values),
            _ => unreachable!("{name} is a vector of every such model"),
        }
    }

    /// The RMSNorm `name` over the last axis.
    fn norm(&mut self, x: &str, name: &str) -> String {
        let weight = self.vector(&format!("{name}.weight"));
        let operator = if self.opset_only { "RMSNormalization" } else { "SimplifiedLayerNormalization" };
        self.graph.node(operator, &[x, &weight], &[("axis", Int(-1)), self.epsilon()])
    }

    fn epsilon(&self) -> (&'static str, Attribute<'static>) {
        ("epsilon", Float(self.config.rms_norm_eps as f32))
    }

    /// The norm of queries or keys, `[B, S, heads * head_dim]`.
    fn qk_norm(&mut self, x: String, name: &str, over: QkNorm) -> String {
        match over {
            QkNorm::Token => self.norm(&x, name),
            QkNorm::Head => {
                // 0 keeps a size, -1 is what remains.
                let apart = self.graph.ints(&[0, 0, -1, self.config.head_dim as i64]);
                let together = self.graph.ints(&[0, 0, -1]);
                let x = self.graph.node("Reshape", &[&x, &apart], &[]);
                let x = self.norm(&x, name);
                self.graph.node("Reshape", &[&x, &together], &[])
            }
        }
    }

    /// `factor * x`.
    fn scaled(&mut self, x: String, factor: f64) -> String {
        if factor == 1.0 {
            return x;
        }
        let factor = self.graph.float(factor as f32);
        self.graph.node("Mul", &[&x, &factor], &[])
    }
}
