//! One pass of a [`Decoder`]: tokens to logits, for one sequence or several at once.
//!
//! A batch is a list of rows, one a token, sequence after sequence. Every product, norm and SwiGLU sees rows only, so
//! the weights are read once for all sequences; attention alone knows which row belongs to which.

use bitllama_core::{HiddenAct, ModelConfig};
use bitllama_kernels::attention::{Scoring, Sequence as Attended, attention};
use bitllama_kernels::operators::Rotary;
use bitllama_kernels::{Input, Matrix, Pool, operators, products};

use crate::Result;
use crate::evaluate::check_tokens;
use crate::kv_cache::KvCache;
use crate::model::{Decoder, Layer, LogitsOf};

/// Rows that a thread normalizes or gates at a time: one is done sooner than a thread starts.
const ROWS_A_TASK: usize = 4;

/// New tokens of a sequence, and the cache of those before.
pub struct Sequence<'a> {
    /// Tokens that follow the positions in `cache`.
    pub tokens: &'a [u32],
    /// Positions seen so far.
    pub cache: &'a mut KvCache,
}

impl Decoder {
    /// Runs `tokens`, which follow the positions in `cache`, as one batch, and appends them to `cache`. Returns the
    /// logits asked for, `[positions, vocab_size]`, row-major.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary, [`Error::Context`] if the tokens do not fit into the model's
    /// context; `cache` is as before then.
    ///
    /// # Panics
    /// If `cache` was made for a model of another shape.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache, logits: LogitsOf) -> Result<Vec<f32>> {
        self.forward_batch(&mut [Sequence { tokens, cache }], logits)
    }

    /// [`Decoder::forward`] of several sequences in one pass over the weights. Returns the logits asked for of each
    /// sequence, one after the other.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; no cache has changed then.
    ///
    /// # Panics
    /// If a cache was made for a model of another shape.
    pub fn forward_batch(&self, sequences: &mut [Sequence<'_>], logits: LogitsOf) -> Result<Vec<f32>> {
        let ModelConfig { hidden_size, vocab_size, .. } = self.config;
        let tokens = || sequences.iter().flat_map(|sequence| sequence.tokens);
        check_tokens(tokens(), vocab_size)?;
        for Sequence { tokens, cache } in sequences.iter() {
            assert_eq!(cache.layers.len(), self.layers.len(), "the cache was made for another model");
            cache.check_room(tokens.len())?;
        }
        let rows = tokens().count();
        if rows == 0 {
            return Ok(Vec::new());
        }
        let kept = self.workspaces.lock().ok().and_then(|mut kept| kept.pop());
        let mut work = kept.unwrap_or_else(|| Workspace::new(self));
        work.x.resize(rows * hidden_size, 0.0);
        for (row, token) in work.x.chunks_exact_mut(hidden_size).zip(tokens()) {
            self.embedding.row_into(*token as usize, row);
        }
        work.rotary(&self.inverse_frequencies, sequences);
        work.y.clear();
        for (index, layer) in self.layers.iter().enumerate() {
            self.block(index, layer, &mut work, sequences);
        }
        for Sequence { tokens, cache } in sequences.iter_mut() {
            cache.advance(tokens.len());
        }
        let out = self.logits_of(&mut work, sequences, logits);
        if let Ok(mut kept) = self.workspaces.lock() {
            kept.push(work);
        }
        Ok(out)
    }

    /// Adds a block's contributions to the residual stream: `x + y` before and after, where `y` is what the last part
    /// gave and is added together with the next norm.
    fn block(&self, index: usize, layer: &Layer, work: &mut Workspace, sequences: &mut [Sequence<'_>]) {
        let ModelConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = self.config;
        let (isa, pool) = (self.settings.isa, self.pool());
        let Workspace { x, y, normed, q, k, v, up, cos, sin, input } = work;
        let rows = x.len() / self.config.hidden_size;
        q.resize(rows * heads * head_dim, 0.0);
        k.resize(rows * kv_heads * head_dim, 0.0);
        v.resize(rows * kv_heads * head_dim, 0.0);

        self.add_norm(x, y, &layer.input_layernorm, normed);
        let Layer { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = layer;
        input.set(pool, normed, self.config.hidden_size, &[q_proj, k_proj, v_proj]);
        products(pool, input, &mut [(q_proj, q), (k_proj, k), (v_proj, v)]);
        // Row `i` of the tables belongs to row `i` of the batch.
        let rotary = Rotary { rotary_dim: head_dim, cos, sin };
        operators::rotate(isa, q, heads, head_dim, 0, rotary);
        operators::rotate(isa, k, kv_heads, head_dim, 0, rotary);
        let mut first = 0;
        for Sequence { tokens, cache } in sequences.iter_mut() {
            let rows = first * kv_heads * head_dim..(first + tokens.len()) * kv_heads * head_dim;
            cache.layers[index].append(&k[rows.clone()], &v[rows]);
            first += tokens.len();
        }
        let attended: Vec<Attended> = sequences
            .iter()
            .map(|Sequence { tokens, cache }| Attended { kv: &cache.layers[index], n: tokens.len() })
            .collect();
        normed.resize(q.len(), 0.0);
        attention(pool, isa, q, heads, &Scoring::new(head_dim), &attended, normed);
        if let Some(weight) = &layer.attn_sub_norm {
            // The queries are done with.
            self.sub_norm(normed, weight, q);
            std::mem::swap(normed, q);
        }
        self.product(input, pool, normed, o_proj, y);

        self.add_norm(x, y, &layer.post_attention_layernorm, normed);
        input.set(pool, normed, self.config.hidden_size, &[gate_proj, up_proj]);
        q.resize(rows * self.config.intermediate_size, 0.0);
        up.resize(rows * self.config.intermediate_size, 0.0);
        products(pool, input, &mut [(gate_proj, q), (up_proj, up)]);
        let width = self.config.intermediate_size;
        let chunk = if rows == 1 { width } else { ROWS_A_TASK * width };
        pool.for_each_chunk(q, chunk, |task, gate| {
            operators::gated(isa, HiddenAct::Silu, gate, &up[task * chunk..][..gate.len()]);
        });
        if let Some(weight) = &layer.ffn_sub_norm {
            self.sub_norm(q, weight, up);
            std::mem::swap(q, up);
        }
        self.product(input, pool, q, down_proj, y);
    }

    /// The RMSNorm of the rows of `x` into `out`.
    fn sub_norm(&self, x: &[f32], weight: &[f32], out: &mut Vec<f32>) {
        let (isa, eps) = (self.settings.isa, self.config.rms_norm_eps as f32);
        out.resize(x.len(), 0.0);
        let chunk = ROWS_A_TASK * weight.len();
        self.pool().for_each_chunk(out, chunk, |task, out| {
            operators::rms_norm(isa, &x[task * chunk..][..out.len()], weight, eps, out);
        });
    }

    /// `y = x * weight^T`.
    fn product(&self, input: &mut Input, pool: &Pool, x: &[f32], weight: &Matrix, y: &mut Vec<f32>) {
        y.resize(x.len() / weight.columns() * weight.rows(), 0.0);
        input.set(pool, x, weight.columns(), &[weight]);
        products(pool, input, &mut [(weight, y)]);
    }

    /// `x += y` (where there is a `y`), and the RMSNorm of that into `out`.
    fn add_norm(&self, x: &mut [f32], y: &[f32], weight: &[f32], out: &mut Vec<f32>) {
        let (isa, eps, width) = (self.settings.isa, self.config.rms_norm_eps as f32, self.config.hidden_size);
        out.resize(x.len(), 0.0);
        if y.is_empty() {
            return operators::rms_norm(isa, x, weight, eps, out);
        }
        let mut rows: Vec<_> = x.chunks_exact_mut(width).zip(out.chunks_exact_mut(width)).collect();
        self.pool().for_each_chunk(&mut rows, ROWS_A_TASK, |task, rows| {
            for (row, (x, out)) in (task * ROWS_A_TASK..).zip(rows) {
                operators::add_rms_norm(isa, x, 1.0, &y[row * width..][..width], weight, eps, out);
            }
        });
    }

    /// Final norm and head of the rows asked for.
    fn logits_of(&self, work: &mut Workspace, sequences: &[Sequence<'_>], logits: LogitsOf) -> Vec<f32> {
        let width = self.config.hidden_size;
        self.add_norm(&mut work.x, &work.y, &self.norm, &mut work.normed);
        let (mut first, mut scored) = (0, Vec::new());
        for Sequence { tokens, .. } in sequences {
            let from = match logits {
                LogitsOf::All => 0,
                LogitsOf::From(from) => from.min(tokens.len()),
                LogitsOf::Last => tokens.len().saturating_sub(1),
            };
            scored.extend_from_slice(&work.normed[(first + from) * width..(first + tokens.len()) * width]);
            first += tokens.len();
        }
        let mut out = Vec::new();
        self.product(&mut work.input, self.pool(), &scored, self.head(), &mut out);
        out
    }
}

/// What a pass writes into, kept for the next one.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The residual stream, `[rows, hidden_size]`.
    x: Vec<f32>,
    /// What is to be added to it, `[rows, hidden_size]`; empty before the first block.
    y: Vec<f32>,
    /// What a product reads.
    normed: Vec<f32>,
    /// Queries, `[rows, heads, head_dim]`, and later the gate, `[rows, intermediate_size]`.
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    up: Vec<f32>,
    /// `[rows, head_dim / 2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    input: Input,
}

impl Workspace {
    fn new(decoder: &Decoder) -> Self {
        let [x, y, normed, q, k, v, up, cos, sin] = [const { Vec::new() }; 9];
        let input = Input::new(decoder.settings.isa, decoder.settings.precision);
        let input = if decoder.settings.activations_as_trained { input.trained() } else { input };
        Self { x, y, normed, q, k, v, up, cos, sin, input }
    }

    /// Rotary angles of every row of the batch.
    fn rotary(&mut self, inverse_frequencies: &[f32], sequences: &[Sequence<'_>]) {
        self.cos.clear();
        self.sin.clear();
        for Sequence { tokens, cache } in sequences {
            for position in cache.len()..cache.len() + tokens.len() {
                for frequency in inverse_frequencies {
                    let (sin, cos) = (position as f32 * frequency).sin_cos();
                    self.cos.push(cos);
                    self.sin.push(sin);
                }
            }
        }
    }
}
