//! One pass of a [`Decoder`]: tokens to logits, for one sequence or several at once.
//!
//! A batch is a list of rows, one a token, sequence after sequence. Every product, norm and SwiGLU sees rows only, so
//! the weights are read once for all sequences; attention alone knows which row belongs to which.

use bitllama_core::ModelConfig;
use bitllama_kernels::attention::{Sequence as Attended, attention};
use bitllama_kernels::operators::{self, Rotary};
use bitllama_kernels::{Input, Matrix, Pool, products};

use crate::Result;
use crate::evaluate::check_tokens;
use crate::kv_cache::KvCache;
use crate::model::{Decoder, Layer, Linear, LogitsOf, Rotation};

/// Rows that a thread normalizes or gates at a time: one is done sooner than a thread starts.
const ROWS_A_TASK: usize = 4;

/// New tokens of a sequence, and the cache of those before.
pub struct Sequence<'a> {
    /// Tokens that follow the positions in `cache`.
    pub tokens: &'a [u32],
    /// Positions seen so far.
    pub cache: &'a mut KvCache,
    /// Logits to return of its tokens.
    pub logits: LogitsOf,
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
        self.forward_batch(&mut [Sequence { tokens, cache, logits }])
    }

    /// [`Decoder::forward`] of several sequences in one pass over the weights. Returns the logits asked for of each
    /// sequence, one after the other.
    ///
    /// # Errors
    /// As [`Decoder::forward`]; no cache has changed then.
    ///
    /// # Panics
    /// If a cache was made for a model of another shape.
    pub fn forward_batch(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<f32>> {
        let ModelConfig { hidden_size, vocab_size, .. } = self.config;
        let tokens = || sequences.iter().flat_map(|sequence| sequence.tokens);
        check_tokens(tokens(), vocab_size)?;
        for Sequence { tokens, cache, .. } in sequences.iter() {
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
        if self.config.arch.embedding_scale != 1.0 {
            operators::scale(self.settings.isa, &mut work.x, self.config.arch.embedding_scale as f32);
        }
        work.rotate(&self.rotations, sequences);
        work.y.clear();
        for (index, layer) in self.layers.iter().enumerate() {
            self.attend(index, layer, &mut work, sequences);
            self.feed(layer, &mut work);
        }
        for Sequence { tokens, cache, .. } in sequences.iter_mut() {
            cache.advance(tokens.len());
        }
        let out = self.logits_of(&mut work, sequences);
        if let Ok(mut kept) = self.workspaces.lock() {
            kept.push(work);
        }
        Ok(out)
    }

    /// The attention of a block. The residual stream is `x + y` before and after, where `y` is what the last part gave and is added
    /// together with the next norm.
    fn attend(&self, index: usize, layer: &Layer, work: &mut Workspace, sequences: &mut [Sequence<'_>]) {
        let ModelConfig { num_attention_heads: heads, num_key_value_heads: kv_heads, head_dim, .. } = self.config;
        let (isa, pool) = (self.settings.isa, self.pool());
        let Workspace { x, y, normed, q, k, v, tables, input, .. } = work;
        let rows = x.len() / self.config.hidden_size;
        q.resize(rows * heads * head_dim, 0.0);
        k.resize(rows * kv_heads * head_dim, 0.0);
        v.resize(rows * kv_heads * head_dim, 0.0);

        self.enter(x, y, layer.attention_in.as_deref(), normed);
        let Layer { q_proj, k_proj, v_proj, .. } = layer;
        input.set(pool, normed, self.config.hidden_size, &[&q_proj.weight, &k_proj.weight, &v_proj.weight]);
        products(pool, input, &mut [(&q_proj.weight, q), (&k_proj.weight, k), (&v_proj.weight, v)]);
        for (linear, out) in [(q_proj, &mut *q), (k_proj, &mut *k), (v_proj, &mut *v)] {
            self.add_bias(linear, out);
        }
        if let Some([q_norm, k_norm]) = &layer.qk_norms {
            self.norm_in_place(q_norm, q);
            self.norm_in_place(k_norm, k);
        }
        if let Some((cos, sin)) = layer.rotation.map(|rotation| &tables[rotation]) {
            // Row `i` of the tables belongs to row `i` of the batch.
            let rotary = Rotary { rotary_dim: self.config.rotary_dim(), cos, sin };
            operators::rotate(isa, q, heads, head_dim, 0, rotary);
            operators::rotate(isa, k, kv_heads, head_dim, 0, rotary);
        }
        let mut first = 0;
        for Sequence { tokens, cache, .. } in sequences.iter_mut() {
            let rows = first * kv_heads * head_dim..(first + tokens.len()) * kv_heads * head_dim;
            cache.layers[index].append(&k[rows.clone()], &v[rows]);
            first += tokens.len();
        }
        let attended: Vec<Attended> = sequences
            .iter()
            .map(|Sequence { tokens, cache, .. }| Attended { kv: &cache.layers[index], n: tokens.len() })
            .collect();
        normed.resize(q.len(), 0.0);
        attention(pool, isa, q, heads, &layer.scoring, &attended, normed);
        if let Some(weight) = &layer.attn_sub_norm {
            self.norm_in_place(weight, normed);
        }
        self.product(input, pool, normed, &layer.o_proj.weight, y);
        self.add_bias(&layer.o_proj, y);
        if let Some(weight) = &layer.attention_out {
            self.norm_in_place(weight, y);
        }
    }

    /// The feed-forward layer of a block, with the residual stream as in [`Decoder::attend`].
    fn feed(&self, layer: &Layer, work: &mut Workspace) {
        let (isa, pool, width) = (self.settings.isa, self.pool(), self.config.intermediate_size);
        let Workspace { x, y, normed, q: gate, up, input, .. } = work;
        let rows = x.len() / self.config.hidden_size;
        self.enter(x, y, layer.mlp_in.as_deref(), normed);
        let Layer { gate_proj, up_proj, down_proj, .. } = layer;
        input.set(pool, normed, self.config.hidden_size, &[&gate_proj.weight, &up_proj.weight]);
        gate.resize(rows * width, 0.0);
        up.resize(rows * width, 0.0);
        products(pool, input, &mut [(&gate_proj.weight, gate), (&up_proj.weight, up)]);
        self.add_bias(gate_proj, gate);
        self.add_bias(up_proj, up);
        let (act, chunk) = (self.config.arch.hidden_act, if rows == 1 { width } else { ROWS_A_TASK * width });
        pool.for_each_chunk(gate, chunk, |task, gate| {
            operators::gated(isa, act, gate, &up[task * chunk..][..gate.len()]);
        });
        if let Some(weight) = &layer.ffn_sub_norm {
            self.norm_in_place(weight, gate);
        }
        self.product(input, pool, gate, &down_proj.weight, y);
        self.add_bias(down_proj, y);
        if let Some(weight) = &layer.mlp_out {
            self.norm_in_place(weight, y);
        }
    }

    /// The RMSNorm of the rows of `x`, in place.
    fn norm_in_place(&self, weight: &[f32], x: &mut [f32]) {
        let (isa, eps) = (self.settings.isa, self.config.rms_norm_eps as f32);
        // Rows may be heads: as many numbers as a few rows of the residual stream have are a task.
        let rows = (ROWS_A_TASK * self.config.hidden_size).div_ceil(weight.len());
        self.pool().for_each_chunk(x, rows * weight.len(), |_, x| operators::rms_norm_in_place(isa, x, weight, eps));
    }

    /// Adds the bias of a linear layer, if it has one, to its outputs.
    fn add_bias(&self, linear: &Linear, out: &mut [f32]) {
        if let Some(bias) = &linear.bias {
            operators::add_bias(self.settings.isa, out, bias);
        }
    }

    /// `y = x * weight^T`.
    fn product(&self, input: &mut Input, pool: &Pool, x: &[f32], weight: &Matrix, y: &mut Vec<f32>) {
        y.resize(x.len() / weight.columns() * weight.rows(), 0.0);
        input.set(pool, x, weight.columns(), &[weight]);
        products(pool, input, &mut [(weight, y)]);
    }

    /// `x += y` (where there is a `y`), and the RMSNorm of that, or itself where there is no norm, into `out`.
    fn enter(&self, x: &mut [f32], y: &[f32], weight: Option<&[f32]>, out: &mut Vec<f32>) {
        let (isa, eps, width) = (self.settings.isa, self.config.rms_norm_eps as f32, self.config.hidden_size);
        let factor = self.config.arch.residual_scale as f32;
        out.resize(x.len(), 0.0);
        let Some(weight) = weight else {
            if !y.is_empty() {
                operators::add_scaled(isa, factor, y, x);
            }
            return out.copy_from_slice(x);
        };
        if y.is_empty() {
            return operators::rms_norm(isa, x, weight, eps, out);
        }
        let mut rows: Vec<_> = x.chunks_exact_mut(width).zip(out.chunks_exact_mut(width)).collect();
        self.pool().for_each_chunk(&mut rows, ROWS_A_TASK, |task, rows| {
            for (row, (x, out)) in (task * ROWS_A_TASK..).zip(rows) {
                operators::add_rms_norm(isa, x, factor, &y[row * width..][..width], weight, eps, out);
            }
        });
    }

    /// Final norm and head of the rows asked for.
    fn logits_of(&self, work: &mut Workspace, sequences: &[Sequence<'_>]) -> Vec<f32> {
        let width = self.config.hidden_size;
        self.enter(&mut work.x, &work.y, Some(&self.norm), &mut work.normed);
        let (mut first, mut scored) = (0, Vec::new());
        for Sequence { tokens, logits, .. } in sequences {
            let from = match logits {
                LogitsOf::All => 0,
                LogitsOf::From(from) => tokens.len().min(*from),
                LogitsOf::Last => tokens.len().saturating_sub(1),
            };
            scored.extend_from_slice(&work.normed[(first + from) * width..(first + tokens.len()) * width]);
            first += tokens.len();
        }
        let mut out = Vec::new();
        self.product(&mut work.input, self.pool(), &scored, self.head(), &mut out);
        let (isa, arch) = (self.settings.isa, &self.config.arch);
        if arch.logits_scale != 1.0 || arch.logits_cap.is_some() {
            self.pool().for_each_chunk(&mut out, self.config.vocab_size.div_ceil(ROWS_A_TASK), |_, logits| {
                operators::scale(isa, logits, arch.logits_scale as f32);
                if let Some(cap) = arch.logits_cap {
                    operators::soft_cap(isa, logits, cap as f32);
                }
            });
        }
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
    /// Cosines and sines of every rotary embedding, each `[rows, rotary_dim / 2]`.
    tables: Vec<(Vec<f32>, Vec<f32>)>,
    input: Input,
}

impl Workspace {
    fn new(decoder: &Decoder) -> Self {
        let [x, y, normed, q, k, v, up] = [const { Vec::new() }; 7];
        let input = Input::new(decoder.settings.isa, decoder.settings.precision);
        let input = if decoder.settings.activations_as_trained { input.trained() } else { input };
        Self { x, y, normed, q, k, v, up, tables: Vec::new(), input }
    }

    /// Rotary angles of every row of the batch.
    fn rotate(&mut self, rotations: &[Rotation], sequences: &[Sequence<'_>]) {
        self.tables.resize(rotations.len(), Default::default());
        for (Rotation { short, long }, (cos, sin)) in rotations.iter().zip(&mut self.tables) {
            cos.clear();
            sin.clear();
            for Sequence { tokens, cache, .. } in sequences {
                let frequencies = if cache.is_long() { long } else { short };
                for position in cache.len()..cache.len() + tokens.len() {
                    frequencies.push(position, cos, sin);
                }
            }
        }
    }
}
