//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>) with rotary embedding, forward
//! and backward, for training.
//!
//! As in FlashAttention (Dao et al. 2022, <https://arxiv.org/abs/2205.14135>; Dao 2023, <https://arxiv.org/abs/2307.08691>)
//! scores exist for a tile at a time only: a general tensor library writes, reads and keeps all of them, and computes
//! those above the diagonal too. The forward pass keeps one number for each query, the logarithm of the sum of its
//! weights, from which the backward pass computes the weights again. Rotation is done on the way into a tile and undone
//! on the way out, so it costs no pass of its own.
//!
//! How the work is cut depends on the shape only, and every sum has one order: results are the same to the bit for every
//! number of threads. In the backward pass a tile adds to the gradients of its keys and of its queries. Tiles run in
//! waves, the diagonal first, then the one below it: no two tiles of a wave share keys or queries, so nothing has to be
//! computed twice, kept apart or added atomically.

mod backward;
mod forward;
mod pack;
mod softmax;
#[cfg(test)]
mod tests;
mod tile;

use std::cell::RefCell;
use std::ops::Range;

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::simd::LANES;
use pack::{Angles, Packed, Place, Tokens, pack};
use softmax::Sight;
use tile::{Layout, Left, Out, Right, Size, multiply};

/// The sizes of an attention, and what its scores are multiplied with and bound by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values; as many heads of queries share each.
    pub kv_heads: usize,
    /// Elements of a head; multiples of 16 are fastest.
    pub head_dim: usize,
    /// The first elements of a head, an even number of them, that the rotary embedding turns; the others stay as they are.
    pub rotary_dim: usize,
    /// Factor of the products of queries and keys.
    pub scale: f32,
    /// Soft cap of a scaled score `x`, which becomes `cap * tanh(x / cap)` (Gemma 2,
    /// <https://arxiv.org/abs/2408.00118>).
    pub cap: Option<f32>,
}

impl Shape {
    /// Heads that are turned as wholes, scores times `1 / sqrt(head_dim)` without a cap, of `batch`, `seq`, `heads`, `kv_heads` and
    /// `head_dim`.
    pub fn new([batch, seq, heads, kv_heads, head_dim]: [usize; 5]) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { batch, seq, heads, kv_heads, head_dim, rotary_dim: head_dim, scale, cap: None }
    }

    /// Numbers in a row of queries, keys and values.
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn check(&self, qkv: &[f32], cos: &[f32], sin: &[f32], first: &[u32]) {
        let Shape { batch, seq, heads, kv_heads, head_dim, rotary_dim, scale, cap } = *self;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads in {kv_heads} groups");
        let turned = rotary_dim.is_multiple_of(2) && rotary_dim <= head_dim;
        assert!(head_dim > 0 && turned, "{rotary_dim} of {head_dim} elements of a head cannot be turned");
        assert!(scale.is_finite() && cap.is_none_or(|cap| cap > 0.0), "scores times {scale} up to {cap:?}");
        assert!(seq < 1 << 24, "{seq} positions");
        assert_eq!(qkv.len(), batch * seq * self.width(), "qkv is not of this shape");
        let angles = seq * rotary_dim / 2;
        assert!(cos.len() >= angles && sin.len() >= angles, "the angles end early");
        assert_eq!(first.len(), batch * seq, "first is not of this shape");
        let sees_itself = |(token, first): (usize, &u32)| *first as usize <= token % seq;
        assert!(first.iter().enumerate().all(sees_itself), "a token does not see itself");
    }

    fn check_results(&self, out: &[f32], log_sum_exp: &[f32]) {
        let queries = self.batch * self.seq * self.heads;
        assert_eq!(out.len(), queries * self.head_dim, "out is not of this shape");
        assert_eq!(log_sum_exp.len(), queries, "log_sum_exp is not of this shape");
    }
}

/// Attention of every token over those before it and itself.
///
/// `qkv` is `[batch * seq, (heads + 2 * kv_heads) * head_dim]`: a token's queries, keys and values side by side, before
/// the rotation. `cos` and `sin` are `[seq, rotary_dim / 2]` or longer, as [`rope::tables`](bitllama_core::rope::tables)
/// makes them, a factor on both included; element `i` turns with element `i + rotary_dim / 2`. `first` (`[batch * seq]`) is
/// the first position of its sequence that a token sees: that at which its document or its window begins. Keys that no
/// token of a block sees cost nothing.
///
/// `out` is `[batch * seq, heads * head_dim]`, `log_sum_exp` (`[batch, heads, seq]`) the logarithm of the sum of `exp` of
/// each query's scores, scaled and capped, for [`backward`]. Both are written over.
///
/// # Panics
/// If a length is not that of the shape, the shape has no whole groups of heads, an odd `rotary_dim` or one beyond
/// `head_dim`, a token does not see itself, or the processor lacks `isa`.
#[allow(clippy::too_many_arguments)]
pub fn forward(
    isa: Isa,
    shape: &Shape,
    qkv: &[f32],
    cos: &[f32],
    sin: &[f32],
    first: &[u32],
    out: &mut [f32],
    log_sum_exp: &mut [f32],
) {
    shape.check(qkv, cos, sin, first);
    shape.check_results(out, log_sum_exp);
    forward::run(
        &Plan::new(isa, shape, qkv, Angles { cos, sin, pairs: shape.rotary_dim / 2 }, first),
        out,
        log_sum_exp,
    );
}

/// The gradient of [`forward`]: `d_qkv` (as `qkv`, before the rotation, written over) from `d_out` (as `out`), with the
/// `out` and `log_sum_exp` that `forward` made of the other arguments.
///
/// # Panics
/// As [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn backward(
    isa: Isa,
    shape: &Shape,
    qkv: &[f32],
    cos: &[f32],
    sin: &[f32],
    first: &[u32],
    out: &[f32],
    log_sum_exp: &[f32],
    d_out: &[f32],
    d_qkv: &mut [f32],
) {
    shape.check(qkv, cos, sin, first);
    shape.check_results(out, log_sum_exp);
    assert_eq!(out.len(), d_out.len(), "out and d_out differ in length");
    assert_eq!(qkv.len(), d_qkv.len(), "qkv and d_qkv differ in length");
    let plan = Plan::new(isa, shape, qkv, Angles { cos, sin, pairs: shape.rotary_dim / 2 }, first);
    backward::run(&plan, &backward::Known { out, log_sum_exp, d_out }, d_qkv);
}

/// Tokens of a block, at most and at least, and the queries that they may have at most, unless that makes them too few.
const TOKENS: usize = 64;
const FEWEST_TOKENS: usize = 32;
const QUERIES: usize = 256;

/// Tasks that suffice for any number of threads: blocks are not made smaller to have more.
const TASKS: usize = 24;

/// An attention, and how it is cut.
struct Plan<'a> {
    isa: Isa,
    shape: &'a Shape,
    qkv: &'a [f32],
    angles: Angles<'a>,
    first: &'a [u32],
    /// Tokens of a block, a multiple of [`LANES`].
    tokens: usize,
}

/// One key-value head of one sequence, and the heads of queries that share it.
#[derive(Clone, Copy)]
struct Group {
    batch: usize,
    head: usize,
}

impl<'a> Plan<'a> {
    fn new(isa: Isa, shape: &'a Shape, qkv: &'a [f32], angles: Angles<'a>, first: &'a [u32]) -> Self {
        let mut plan = Self { isa, shape, qkv, angles, first, tokens: TOKENS };
        let fits = |plan: &Self| plan.queries() <= QUERIES && plan.groups() * plan.blocks() >= TASKS;
        while plan.tokens > FEWEST_TOKENS && !fits(&plan) {
            plan.tokens /= 2;
        }
        plan
    }

    /// Blocks of a sequence.
    fn blocks(&self) -> usize {
        self.shape.seq.div_ceil(self.tokens)
    }

    /// Key-value heads of all sequences.
    fn groups(&self) -> usize {
        self.shape.batch * self.shape.kv_heads
    }

    fn group(&self, index: usize) -> Group {
        Group { batch: index / self.shape.kv_heads, head: index % self.shape.kv_heads }
    }

    /// Heads of queries that share a key.
    fn shared_by(&self) -> usize {
        self.shape.heads / self.shape.kv_heads
    }

    /// Queries of a block.
    fn queries(&self) -> usize {
        self.tokens * self.shared_by()
    }

    /// Elements of a packed head.
    fn padded(&self) -> usize {
        self.shape.head_dim.next_multiple_of(LANES)
    }

    /// Numbers from a row of scores or of transposed queries to the next: a vector more than there are, as rows a power
    /// of two apart would share few places of the first cache.
    fn stride(&self) -> usize {
        self.queries() + LANES
    }

    fn block(&self, group: Group, block: usize) -> Tokens {
        let position = block * self.tokens;
        let len = self.tokens.min(self.shape.seq - position);
        Tokens { row: group.batch * self.shape.seq + position, position, len }
    }

    fn queries_at(&self, group: Group) -> Place {
        Place {
            width: self.shape.width(),
            column: group.head * self.shared_by() * self.shape.head_dim,
            heads: self.shared_by(),
            head_dim: self.shape.head_dim,
        }
    }

    /// Where the heads of a group are in a row of the output.
    fn out_at(&self, group: Group) -> Place {
        Place { width: self.shape.heads * self.shape.head_dim, ..self.queries_at(group) }
    }

    fn keys_at(&self, group: Group) -> Place {
        let column = (self.shape.heads + group.head) * self.shape.head_dim;
        Place { column, heads: 1, ..self.queries_at(group) }
    }

    fn values_at(&self, group: Group) -> Place {
        let keys = self.keys_at(group);
        Place { column: keys.column + self.shape.kv_heads * self.shape.head_dim, ..keys }
    }

    /// What each sixteen tokens of a block see.
    fn sights(&self, tokens: Tokens) -> Sights {
        let mut sights = Sights { all: [Sight::NONE; TOKENS / LANES], count: tokens.groups() };
        for (group, sight) in sights.all[..sights.count].iter_mut().enumerate() {
            *sight = Sight::new(&tokens, group, self.first);
        }
        sights
    }

    fn pack_queries(&self, group: Group, tokens: Tokens, queries: &mut Packing) {
        let turn = Some((self.angles, self.shape.scale));
        pack(self.isa, self.qkv, self.queries_at(group), tokens, turn, queries.with_transposed(self.stride()));
    }

    fn pack_keys(&self, group: Group, tokens: Tokens, keys: &mut Aligned<f32>, values: &mut Aligned<f32>) {
        let (at, turn) = (self.keys_at(group), Some((self.angles, 1.0)));
        pack(self.isa, self.qkv, at, tokens, turn, Packed { rows: keys.as_mut_slice(), transposed: None });
        let at = self.values_at(group);
        pack(self.isa, self.qkv, at, tokens, None, Packed { rows: values.as_mut_slice(), transposed: None });
    }

    /// Products of packed keys or values with transposed queries or gradients, for the pairs in sight: into the rows of
    /// `out` that are in sight, of those only the vectors of a group's tokens.
    fn cross(&self, sights: &Sights, keys: &KeyTile, left: &[f32], right: &[f32], out: &mut [f32]) {
        let (padded, stride) = (self.padded(), self.stride());
        for (groups, seen) in sights.runs(keys) {
            let first = groups.start * self.shared_by() * LANES;
            let size = Size { rows: seen.len(), depth: self.shape.head_dim, vectors: groups.len() * self.shared_by() };
            let left = Left { data: &left[seen.start * padded..], layout: Layout::Rows(padded) };
            let out = Out { data: &mut out[seen.start * stride + first..], stride, add: false };
            multiply(self.isa, left, Right { data: &right[first..], stride }, size, out);
        }
    }

    /// Products of scores, transposed, with packed keys or values, for the pairs in sight, into rows of queries.
    fn gather(&self, sights: &Sights, keys: &KeyTile, scores: &[f32], right: &[f32], out: &mut [f32], add: bool) {
        let (padded, stride) = (self.padded(), self.stride());
        for (groups, seen) in sights.runs(keys) {
            let first = groups.start * self.shared_by() * LANES;
            let size =
                Size { rows: groups.len() * self.shared_by() * LANES, depth: seen.len(), vectors: padded / LANES };
            let left = Left { data: &scores[seen.start * stride + first..], layout: Layout::Columns(stride) };
            let right = Right { data: &right[seen.start * padded..], stride: padded };
            multiply(self.isa, left, right, size, Out { data: &mut out[first * padded..], stride: padded, add });
        }
    }
}

/// The keys of a tile.
#[derive(Clone, Copy)]
struct KeyTile {
    position: usize,
    len: usize,
}

/// What each sixteen tokens of a block see.
struct Sights {
    all: [Sight; TOKENS / LANES],
    count: usize,
}

impl Sights {
    fn groups(&self) -> &[Sight] {
        &self.all[..self.count]
    }

    /// The first position that some token sees.
    fn first(&self) -> usize {
        self.groups().iter().map(Sight::first).min().unwrap_or(0)
    }

    /// Runs of groups, with those keys of a tile that they see; groups that see none are left out.
    fn runs(&self, keys: &KeyTile) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let seen = |group: usize| self.all[group].keys(keys.position, keys.len);
        let mut next = 0;
        std::iter::from_fn(move || {
            while next < self.count {
                let (start, keys) = (next, seen(next));
                while next < self.count && seen(next) == keys {
                    next += 1;
                }
                if !keys.is_empty() {
                    return Some((start..next, keys));
                }
            }
            None
        })
    }
}

/// Heads of a block of queries, as rows and transposed.
#[derive(Default)]
struct Packing {
    rows: Aligned<f32>,
    transposed: Aligned<f32>,
}

impl Packing {
    fn grow(&mut self, plan: &Plan) {
        self.rows.grow(plan.queries() * plan.padded());
        self.transposed.grow(plan.padded() * plan.stride());
    }

    fn with_transposed(&mut self, stride: usize) -> Packed<'_> {
        Packed { rows: self.rows.as_mut_slice(), transposed: Some((self.transposed.as_mut_slice(), stride)) }
    }
}

/// What a thread keeps for its tiles.
#[derive(Default)]
struct Scratch {
    queries: Packing,
    d_out: Packing,
    /// `[tokens, padded]`
    keys: Aligned<f32>,
    values: Aligned<f32>,
    /// `[tokens, stride]`
    scores: Aligned<f32>,
    d_scores: Aligned<f32>,
    /// `[queries, padded]`
    acc: Aligned<f32>,
    /// `[queries]`: maximum and sum, or the logarithm of the sum and the product of output and gradient.
    state: [Aligned<f32>; 2],
}

impl Scratch {
    fn grow(&mut self, plan: &Plan, backward: bool) {
        let keys = plan.tokens * plan.padded();
        self.queries.grow(plan);
        self.keys.grow(keys);
        self.values.grow(keys);
        self.scores.grow(plan.tokens * plan.stride());
        self.acc.grow(plan.queries() * plan.padded());
        for state in &mut self.state {
            state.grow(plan.queries());
        }
        if backward {
            self.d_out.grow(plan);
            self.d_scores.grow(plan.tokens * plan.stride());
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}
