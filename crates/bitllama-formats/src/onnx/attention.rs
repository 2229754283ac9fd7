//! The attention of a layer, rotary embedding and mask included.
//!
//! `GroupQueryAttention` does all of it. It wants heads of a multiple of 8 elements, and rotates where both heads and what is rotated of
//! them are multiples of 16; what it does not do, ONNX's `Attention` and `RotaryEmbedding` (opset 23) do.

use bitllama_core::{ModelConfig, Rope};

use super::decoder::{Decoder, MASK, TOKENS, past, present};
use super::graph::Attribute::{Float, Int};
use super::proto::DataType;

/// Whether `GroupQueryAttention` has heads of the model's size.
pub(super) fn is_grouped(config: &ModelConfig) -> bool {
    config.head_dim.is_multiple_of(8)
}

/// Whether `GroupQueryAttention` rotates heads of the model's size.
fn rotates_grouped(config: &ModelConfig) -> bool {
    config.head_dim.is_multiple_of(16) && config.rotary_dim().is_multiple_of(16)
}

impl Decoder<'_> {
    /// The attention of `layer`, `[B, S, heads * head_dim]`, of queries, keys and values `[B, S, heads * head_dim]`.
    pub(super) fn attention(&mut self, layer: usize, q: String, k: String, v: String) -> String {
        let config = self.config;
        let kind = config.arch.layer(layer);
        let grouped = !self.opset_only && is_grouped(config);
        let rope = config.rope_of(kind);
        let rotated_inside = grouped && rotates_grouped(config);
        let (mut q, mut k, mut tables) = (q, k, None);
        if let Some(rope) = rope {
            let [cos, sin] = self.tables(rope);
            if rotated_inside {
                tables = Some([cos, sin]);
            } else {
                q = self.rotated(&q, config.num_attention_heads, &cos, &sin);
                k = self.rotated(&k, config.num_key_value_heads, &cos, &sin);
            }
        }
        let window = config.window_of(kind);
        let [past_key, past_value] = ["key", "value"].map(|part| past(layer, part));
        let output = format!("layers.{layer}.self_attn/attended");
        let outputs = [output.clone(), present(layer, "key"), present(layer, "value")];
        let [heads, kv_heads] = [config.num_attention_heads, config.num_key_value_heads].map(|count| Int(count as i64));
        let scale = ("scale", Float(config.attention_scale()));
        let cap = ("softcap", Float(config.arch.attention_cap.unwrap_or(0.0) as f32));
        if grouped {
            let (lengths, total) = (self.lengths(), self.total_length());
            let mut inputs = vec![&*q, &*k, &*v, &*past_key, &*past_value, &*lengths, &*total];
            inputs.extend(tables.iter().flatten().map(String::as_str));
            let attributes = [
                ("num_heads", heads),
                ("kv_num_heads", kv_heads),
                scale,
                cap,
                ("local_window_size", Int(window.map_or(-1, |window| window as i64))),
                ("do_rotary", Int(i64::from(tables.is_some()))),
            ];
            self.graph.node_into("GroupQueryAttention", &inputs, &outputs, &attributes);
        } else {
            let mask = self.mask(window);
            let inputs = [&*q, &*k, &*v, &*mask, &*past_key, &*past_value];
            let attributes = [("q_num_heads", heads), ("kv_num_heads", kv_heads), scale, cap];
            self.graph.node_into("Attention", &inputs, &outputs, &attributes);
        }
        output
    }

    /// Queries or keys, turned by the positions of their tokens.
    fn rotated(&mut self, x: &str, heads: usize, cos: &str, sin: &str) -> String {
        let positions = self.positions();
        let rotary_dim = self.config.rotary_dim();
        // 0 stands for all of a head.
        let rotary_dim = if rotary_dim == self.config.head_dim { 0 } else { rotary_dim as i64 };
        let attributes = [("num_heads", Int(heads as i64)), ("rotary_embedding_dim", Int(rotary_dim))];
        self.graph.node("RotaryEmbedding", &[x, cos, sin, &positions], &attributes)
    }

    /// Cosines and sines of every position of the context, `[positions, rotary_dim / 2]`. They are computed from the frequencies, which
    /// ONNX Runtime does once, when it opens the model: as constants they would be larger than the weights of a small model.
    fn tables(&mut self, rope: Rope) -> [String; 2] {
        if let Some((_, tables)) = self.tables.iter().find(|(known, _)| *known == rope) {
            return tables.clone();
        }
        let (graph, positions) = (&mut self.graph, self.config.short_context());
        let frequencies = rope.frequencies(self.config.rotary_dim(), positions);
        let name = format!("rope.{}.inverse_frequencies", self.tables.len());
        let inverse = graph.floats(&name, &[1, frequencies.inverse.len()], &frequencies.inverse);
        let [first, end, step] = [0.0, positions as f32, 1.0].map(|number| graph.float(number));
        let range = graph.node("Range", &[&first, &end, &step], &[]);
        let column = graph.ints(&[-1, 1]);
        let range = graph.node("Reshape", &[&range, &column], &[]);
        let angles = graph.node("Mul", &[&range, &inverse], &[]);
        let tables = ["Cos", "Sin"].map(|operator| {
            let table = graph.node(operator, &[&angles], &[]);
            if frequencies.factor == 1.0 {
                return table;
            }
            let factor = graph.float(frequencies.factor);
            graph.node("Mul", &[&table, &factor], &[])
        });
        self.tables.push((rope, tables.clone()));
        tables
    }

    /// Index of the last token of each sequence, `[B]`, as `GroupQueryAttention` wants it.
    fn lengths(&mut self) -> String {
        self.shared("lengths".into(), |decoder| {
            let graph = &mut decoder.graph;
            let (axis, one) = (graph.ints(&[1]), graph.int(1));
            let tokens = graph.node("ReduceSum", &[MASK, &axis], &[("keepdims", Int(0))]);
            let last = graph.node("Sub", &[&tokens, &one], &[]);
            graph.node("Cast", &[&last], &[("to", Int(DataType::Int32 as i64))])
        })
    }

    /// `T` as a whole number of 32 bits, as `GroupQueryAttention` wants it.
    fn total_length(&mut self) -> String {
        let total = self.total();
        self.shared("total, 32 bits".into(), |decoder| {
            decoder.graph.node("Cast", &[&total], &[("to", Int(DataType::Int32 as i64))])
        })
    }

    /// `T`.
    fn total(&mut self) -> String {
        self.shared("total".into(), |decoder| decoder.second_size(MASK))
    }

    /// The second size of a matrix.
    fn second_size(&mut self, of: &str) -> String {
        let one = self.graph.int(1);
        let shape = self.graph.node("Shape", &[of], &[]);
        self.graph.node("Gather", &[&shape, &one], &[])
    }

    /// `P`.
    fn past_length(&mut self) -> String {
        let total = self.total();
        self.shared("past".into(), |decoder| {
            let new = decoder.second_size(TOKENS);
            decoder.graph.node("Sub", &[&total, &new], &[])
        })
    }

    /// Positions of the new tokens, `[B, S]`: the tokens before each, padding left out.
    fn positions(&mut self) -> String {
        let past = self.past_length();
        self.shared("positions".into(), |decoder| {
            let graph = &mut decoder.graph;
            let [axis, one, zero] = [1, 1, 0].map(|number| graph.int(number));
            let counted = graph.node("CumSum", &[MASK, &axis], &[]);
            let positions = graph.node("Sub", &[&counted, &one], &[]);
            let positions = graph.node("Max", &[&positions, &zero], &[]);
            let (axes, end) = (graph.ints(&[1]), graph.ints(&[i64::MAX]));
            let start = graph.node("Reshape", &[&past, &axes], &[]);
            graph.node("Slice", &[&positions, &start, &end, &axes], &[])
        })
    }

    /// Positions that each new token sees, `[B, 1, S, T]`: tokens no later than itself, and within the window. Padding sees itself, so
    /// that its row is not empty.
    fn mask(&mut self, window: Option<usize>) -> String {
        let (past, total) = (self.past_length(), self.total());
        self.shared(format!("mask of {window:?}"), |decoder| {
            let graph = &mut decoder.graph;
            let [zero, one] = [0, 1].map(|number| graph.int(number));
            let keys = graph.node("Range", &[&zero, &total, &one], &[]);
            let queries = graph.node("Range", &[&past, &total, &one], &[]);
            let column = graph.ints(&[-1, 1]);
            let queries = graph.node("Reshape", &[&queries, &column], &[]);
            let mut sees = graph.node("LessOrEqual", &[&keys, &queries], &[]);
            if let Some(window) = window {
                let window = graph.int(window as i64);
                let first = graph.node("Sub", &[&queries, &window], &[]);
                let within = graph.node("Greater", &[&keys, &first], &[]);
                sees = graph.node("And", &[&sees, &within], &[]);
            }
            let tokens = graph.node("Cast", &[MASK], &[("to", Int(DataType::Bool as i64))]);
            let axes = graph.ints(&[1, 2]);
            let tokens = graph.node("Unsqueeze", &[&tokens, &axes], &[]);
            let sees = graph.node("And", &[&sees, &tokens], &[]);
            let itself = graph.node("Equal", &[&keys, &queries], &[]);
            graph.node("Or", &[&sees, &itself], &[])
        })
    }
}
