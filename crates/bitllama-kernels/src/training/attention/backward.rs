//! The backward pass: a task is a block of queries of one group of heads and a block of keys.
//!
//! With `p` the probabilities, `g` the gradient of the output and `r` each query's product of output and gradient:
//! `dv = p^T g`, `dp = g v^T`, `ds = p (dp - r)`, `dq = ds k`, `dk = ds^T q`, the last two times the scale of scores.

use std::cell::RefCell;

use rayon::prelude::*;

use super::pack::{Unpack, dots, pack, unpack};
use super::softmax::{Known as KnownOfGroup, Scores, bind, gradient};
use super::tile::{Layout, Left, Out, Right, Size, multiply};
use super::{Group, KeyTile, Plan, SCRATCH, Scratch, Sights};
use crate::aligned::Aligned;
use crate::attention::Shared;
use crate::simd::LANES;

/// What the forward pass made, and the gradient of its output.
pub(super) struct Known<'a> {
    pub out: &'a [f32],
    pub log_sum_exp: &'a [f32],
    pub d_out: &'a [f32],
}

thread_local! {
    /// Of the thread that calls: `[batch, kv_heads, blocks, queries]` products of output and gradient.
    static DOTS: RefCell<Aligned<f32>> = RefCell::default();
}

pub(super) fn run(plan: &Plan, known: &Known, d_qkv: &mut [f32]) {
    let mut all_dots = DOTS.take();
    all_dots.grow(plan.groups() * plan.blocks() * plan.queries());
    let (d_qkv, shared_dots) = (Shared::new(d_qkv), Shared::new(all_dots.as_mut_slice()));
    let groups = plan.groups();
    let bounds = Bounds::new(plan);
    for wave in 0..bounds.waves() {
        let blocks = plan.blocks() - wave;
        (0..blocks * groups).into_par_iter().with_max_len(1).for_each(|index| {
            let (block, group) = (index / groups, plan.group(index % groups));
            let tile = Tile { group, queries: block + wave, keys: block };
            if tile.keys < bounds.first_keys(tile) {
                return;
            }
            SCRATCH.with_borrow_mut(|scratch| run_tile(plan, known, &bounds, tile, scratch, &shared_dots, &d_qkv));
        });
    }
    DOTS.set(all_dots);
}

/// A block of queries and one of keys.
#[derive(Clone, Copy)]
struct Tile {
    group: Group,
    queries: usize,
    keys: usize,
}

/// Which blocks see which: a block of queries sees the blocks of keys from the first that one of its tokens sees to its own.
struct Bounds {
    blocks: usize,
    /// The first block of keys that each block of queries sees, `[batch, blocks]`.
    first: Vec<usize>,
    /// The last block of queries that sees each block of keys, `[batch, blocks]`.
    last: Vec<usize>,
}

impl Bounds {
    fn new(plan: &Plan) -> Self {
        let (seq, blocks) = (plan.shape.seq, plan.blocks());
        let of_sequence = |first: &[u32]| {
            let least = |first: &[u32]| first.iter().min().map_or(0, |first| *first as usize / plan.tokens);
            first.chunks(plan.tokens).map(least).collect::<Vec<_>>()
        };
        let first: Vec<usize> = plan.first.chunks(seq.max(1)).flat_map(of_sequence).collect();
        let mut last = vec![0; first.len()];
        for (first, last) in first.chunks(blocks.max(1)).zip(last.chunks_mut(blocks.max(1))) {
            for (queries, first) in first.iter().enumerate() {
                last[*first..=queries].fill(queries);
            }
        }
        Self { blocks, first, last }
    }

    /// Waves that have tiles in sight.
    fn waves(&self) -> usize {
        self.first.iter().enumerate().map(|(index, first)| index % self.blocks - first + 1).max().unwrap_or(0)
    }

    fn first_keys(&self, tile: Tile) -> usize {
        self.first[tile.group.batch * self.blocks + tile.queries]
    }

    fn last_queries(&self, tile: Tile) -> usize {
        self.last[tile.group.batch * self.blocks + tile.keys]
    }
}

/// Adds to the gradients of the queries, keys and values of a tile in sight, which no other tile of its wave has. Those of a query
/// are complete with the first block of keys that it sees, those of a key with the last block of queries that see it, and are turned
/// back then.
fn run_tile(
    plan: &Plan,
    known: &Known,
    bounds: &Bounds,
    tile: Tile,
    scratch: &mut Scratch,
    all_dots: &Shared,
    d_qkv: &Shared,
) {
    let Tile { group, .. } = tile;
    let (tokens, key_tokens) = (plan.block(group, tile.queries), plan.block(group, tile.keys));
    let sights = plan.sights(tokens);
    let keys = KeyTile { position: key_tokens.position, len: key_tokens.len };
    let back = |complete: bool| complete.then_some(plan.angles);
    let (queries_back, keys_back) =
        (back(tile.keys == bounds.first_keys(tile)), back(tile.queries == bounds.last_queries(tile)));
    scratch.grow(plan, true);
    pack_tile(plan, known, tile, scratch, all_dots);
    probabilities(plan, &sights, keys, scratch);
    let Scratch { queries, d_out, keys: packed_keys, scores, d_scores, acc, .. } = scratch;
    let acc = &mut acc.as_mut_slice()[..plan.queries() * plan.padded()];
    let add = tile.queries != tile.keys;

    spread(plan, tile, scores.as_slice(), d_out.rows.as_slice(), acc);
    let how = Unpack { add, scale: &[1.0], back: None };
    // SAFETY: no other tile of the wave has these values.
    unsafe { unpack(plan.isa, acc, plan.values_at(group), key_tokens, how, d_qkv) };

    spread(plan, tile, d_scores.as_slice(), queries.rows.as_slice(), acc);
    // The packed queries are scaled already.
    let how = Unpack { add, scale: &[1.0], back: keys_back };
    // SAFETY: no other tile of the wave has these keys.
    unsafe { unpack(plan.isa, acc, plan.keys_at(group), key_tokens, how, d_qkv) };

    // Groups that see none of the keys are left out of the product.
    if sights.runs(&keys).map(|(groups, _)| groups.len()).sum::<usize>() < tokens.groups() {
        acc.fill(0.0);
    }
    plan.gather(&sights, &keys, d_scores.as_slice(), packed_keys.as_slice(), acc, false);
    let how = Unpack { add, scale: &[plan.shape.scale], back: queries_back };
    // SAFETY: no other tile of the wave has these queries.
    unsafe { unpack(plan.isa, acc, plan.queries_at(group), tokens, how, d_qkv) };
}

/// Packs what a tile reads.
fn pack_tile(plan: &Plan, known: &Known, tile: Tile, scratch: &mut Scratch, all_dots: &Shared) {
    let Tile { group, .. } = tile;
    let (tokens, at) = (plan.block(group, tile.queries), plan.out_at(group));
    plan.pack_queries(group, tokens, &mut scratch.queries);
    plan.pack_keys(group, plan.block(group, tile.keys), &mut scratch.keys, &mut scratch.values);
    pack(plan.isa, known.d_out, at, tokens, None, scratch.d_out.with_transposed(plan.stride()));

    let [log_sum_exp, products] = &mut scratch.state;
    let (log_sum_exp, products) = (log_sum_exp.as_mut_slice(), &mut products.as_mut_slice()[..plan.queries()]);
    for (index, to) in log_sum_exp[..tokens.groups() * at.heads * LANES].chunks_exact_mut(LANES).enumerate() {
        let (start, head) = (index / at.heads * LANES, group.head * at.heads + index % at.heads);
        let len = LANES.min(tokens.len - start);
        let start = (group.batch * plan.shape.heads + head) * plan.shape.seq + tokens.position + start;
        to.fill(0.0);
        to[..len].copy_from_slice(&known.log_sum_exp[start..][..len]);
    }
    let start = (group.batch * plan.shape.kv_heads + group.head) * plan.blocks() + tile.queries;
    // SAFETY: no other tile of the wave has these queries.
    let shared = unsafe { all_dots.part(start * plan.queries(), plan.queries()) };
    if tile.queries == tile.keys {
        dots(plan.isa, scratch.d_out.rows.as_slice(), known.out, at, tokens, shared);
    }
    products.copy_from_slice(shared);
}

/// Probabilities into `scores`, and the gradients of scores into `d_scores`; zeros where a group sees no key.
fn probabilities(plan: &Plan, sights: &Sights, keys: KeyTile, scratch: &mut Scratch) {
    let Scratch { queries, d_out, keys: packed_keys, values, scores, d_scores, state: [log_sum_exp, dots], .. } =
        scratch;
    let (scores, d_scores) = (scores.as_mut_slice(), d_scores.as_mut_slice());
    plan.cross(sights, &keys, packed_keys.as_slice(), queries.transposed.as_slice(), scores);
    plan.cross(sights, &keys, values.as_slice(), d_out.transposed.as_slice(), d_scores);
    let (stride, vectors) = (plan.stride(), plan.shared_by());
    for (index, sight) in sights.groups().iter().enumerate() {
        let seen = sight.keys(keys.position, keys.len);
        let query = index * vectors * LANES;
        for key in (0..keys.len).filter(|key| !seen.contains(key)) {
            let range = key * stride + query..key * stride + query + vectors * LANES;
            scores[range.clone()].fill(0.0);
            d_scores[range].fill(0.0);
        }
        if seen.is_empty() {
            continue;
        }
        let start = seen.start * stride + query;
        let mut scores = Scores {
            data: &mut scores[start..],
            stride,
            vectors,
            position: keys.position + seen.start,
            keys: seen.len(),
        };
        if let Some(cap) = plan.shape.cap {
            bind(plan.isa, &mut scores, cap);
        }
        let known = KnownOfGroup { log_sum_exp: &log_sum_exp.as_slice()[query..], dots: &dots.as_slice()[query..] };
        gradient(plan.isa, scores, &mut d_scores[start..], sight, known, plan.shape.cap);
    }
}

/// Products of scores with rows of queries, into rows of keys. On the diagonal, keys are seen by the tokens of their own
/// group and by those after.
fn spread(plan: &Plan, tile: Tile, scores: &[f32], right: &[f32], out: &mut [f32]) {
    let (padded, stride, group) = (plan.padded(), plan.stride(), plan.shared_by() * LANES);
    let queries = plan.block(tile.group, tile.queries).groups() * group;
    let keys = plan.block(tile.group, tile.keys).len;
    let rows = if tile.queries == tile.keys { LANES } else { keys };
    for (index, start) in (0..keys).step_by(rows).enumerate() {
        let first = index * group;
        let size = Size { rows: rows.min(keys - start), depth: queries - first, vectors: padded / LANES };
        let left = Left { data: &scores[start * stride + first..], layout: Layout::Rows(stride) };
        let right = Right { data: &right[first * padded..], stride: padded };
        multiply(plan.isa, left, right, size, Out { data: &mut out[start * padded..], stride: padded, add: false });
    }
}
