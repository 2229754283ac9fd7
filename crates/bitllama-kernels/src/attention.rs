//! Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>).
//!
//! A task takes one key-value head, some tokens of one sequence and a range of its positions. The queries of the group
//! share what is read of the head: one token's in decoding, many tokens' in a prompt. It goes over its positions in
//! tiles, as in FlashAttention (Dao et al. 2022, <https://arxiv.org/abs/2205.14135>), so no more scores than those of a
//! tile exist at a time. Where a long past is split over tasks, the one that ends last joins their results.
//!
//! Tiles begin at multiples of their length, each is summed up for itself, and the sums are joined in the order of positions. So a
//! token's result is the same to the bit however its sequence was cut into passes: alone, in a chunk of a prompt, or after positions
//! that came from another sequence's cache.
//!
//! With a window, a task begins at the first position that one of its tokens sees, and each row leaves out what it does
//! not see: the cost is that of the window.
//!
//! Results depend neither on the number of threads nor on the other sequences, nor on what [`LayerKv`] still stores of positions
//! before a window.

mod tile;

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::aligned::Aligned;
use crate::isa::Isa;
use crate::kv::{LayerKv, PAGE, Stored, value_stride};
use crate::operators::{exp_lanes, soft_cap_all};
use crate::pool::Pool;
use crate::simd::{LANES, Simd, for_isa};
use tile::{Running, TILE, Vector, add_values, scores, weigh};

/// Rows (a row is a token's query of one head) of a task, at most, unless one group has more.
const ROWS: usize = 64;

/// Rows up to which a task counts as decoding: reading keys and values is then what takes the time.
const DECODE_ROWS: usize = 16;

/// Tiles of a task, where positions are split: in decoding, and in a prompt.
const TILES: [usize; 2] = [1, 4];

/// Parts that the positions of a sequence are cut into, at most.
const PARTS: usize = 64;

/// Tasks of a sequence from which on its positions are not split: there is work for all threads.
const ENOUGH: usize = 16;

/// Multiplications below which other threads are not worth their start.
const SERIAL: usize = 1 << 17;

/// How queries and keys make scores, and which of them count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scoring {
    /// Factor of the product of a query and a key.
    pub scale: f32,
    /// Scaled scores become `cap * tanh(score / cap)`, for a positive `cap` (Gemma Team 2024,
    /// <https://arxiv.org/abs/2408.00118>, section 2).
    pub cap: Option<f32>,
    /// Positions that a token sees at most, its own included: from `p - window + 1` on at position `p` (Beltagy et al.
    /// 2020, <https://arxiv.org/abs/2004.05150>, as Mistral 7B has it). At least 1.
    pub window: Option<usize>,
}

impl Scoring {
    /// Scores scaled by `1 / sqrt(head_dim)`, without a cap, over all positions.
    pub fn new(head_dim: usize) -> Self {
        Self { scale: 1.0 / (head_dim as f32).sqrt(), cap: None, window: None }
    }
}

/// One sequence of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Keys and values of the positions that its tokens see, those of the tokens in the batch included, as the last ones.
    pub kv: &'a LayerKv,
    /// Its tokens in the batch.
    pub n: usize,
}

/// Attention of the queries `q` (`[n, heads, head_dim]`, rotated) over the keys and values of their sequences, into
/// `out` (`[n, heads, head_dim]`). The tokens of the first sequence come first, and so on; `n` is all of them. Each
/// sees its own position and those before, as far as `scoring` lets it.
///
/// # Panics
/// If shapes disagree, a sequence has fewer positions than tokens, positions that a token sees are no longer stored, the
/// window is 0, or the processor lacks `isa`.
pub fn attention(
    pool: &Pool,
    isa: Isa,
    q: &[f32],
    heads: usize,
    scoring: &Scoring,
    sequences: &[Sequence],
    out: &mut [f32],
) {
    assert_eq!(q.len(), out.len(), "q and out differ in length");
    assert_ne!(scoring.window, Some(0), "a window that no token is in");
    let mut plan = Plan::default();
    let mut token = 0;
    for sequence in sequences {
        plan.add(sequence, heads, scoring, token);
        token += sequence.n;
    }
    let Some(first) = sequences.first() else { return assert!(q.is_empty(), "queries of no sequence") };
    assert!(sequences.iter().all(|s| s.kv.head_dim() == first.kv.head_dim()), "sequences of different models");
    assert_eq!(q.len(), token * heads * first.kv.head_dim(), "q is not {token} rows of {heads} heads");

    let mut partials = PARTIALS.take();
    partials.grow(plan.partials);
    let (out, parts) = (Shared::new(out), Shared::new(partials.as_mut_slice()));
    let batch = Batch { q, heads, scoring: *scoring, splits: &plan.splits, out, partials: parts };
    let run = |index: usize| {
        let (batch, task) = (&batch, &plan.tasks[index]);
        SCRATCH.with_borrow_mut(|scratch| {
            for_isa!(isa, run_task(batch: &Batch, task: &Task, scratch: &mut Scratch));
        });
    };
    if plan.work < SERIAL {
        (0..plan.tasks.len()).for_each(run);
    } else {
        pool.for_each(plan.tasks.len(), run);
    }
    PARTIALS.set(partials);
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    static PARTIALS: RefCell<Aligned<f32>> = RefCell::default();
}

/// What one call computes, cut into tasks.
#[derive(Default)]
struct Plan<'a> {
    tasks: Vec<Task<'a>>,
    splits: Vec<Split>,
    /// Elements of the partial results of all splits.
    partials: usize,
    /// Multiplications of all tasks.
    work: usize,
}

struct Task<'a> {
    kv: &'a LayerKv,
    kv_head: usize,
    /// The first token in the batch, and how many.
    token: usize,
    tokens: usize,
    /// Positions up to the first token's own; the next one has one more.
    visible: usize,
    /// Positions to go over, from a multiple of [`LANES`].
    start: usize,
    end: usize,
    /// The split that this is a part of, and its first tile there.
    split: Option<(usize, usize)>,
}

/// Tasks that differ in their positions only.
struct Split {
    tiles: usize,
    /// Tasks that are not done.
    left: AtomicUsize,
    /// Start of the sums of tiles: `[tiles, rows, value_stride + LANES]`.
    partials: usize,
}

impl<'a> Plan<'a> {
    /// Adds the tasks of a sequence whose first token in the batch is `token`.
    fn add(&mut self, &Sequence { kv, n }: &Sequence<'a>, heads: usize, scoring: &Scoring, token: usize) {
        assert!(n <= kv.len(), "{n} tokens of a sequence of {} positions", kv.len());
        assert!(heads.is_multiple_of(kv.kv_heads()), "{heads} heads in {} groups", kv.kv_heads());
        let (group, past) = (heads / kv.kv_heads(), kv.len() - n);
        let blocks = n.div_ceil((ROWS / group).max(1));
        // The last tokens see most: their tasks come first, and the short ones fill up the threads at the end.
        for block in (0..blocks).rev() {
            let (first, last) = (n * block / blocks, n * (block + 1) / blocks);
            // The first position that one of them sees, and the first vector with it.
            let seen = scoring.window.map_or(0, |window| (past + first + 1).saturating_sub(window));
            let begin = seen / LANES * LANES;
            assert!(kv.first() <= begin, "position {seen} is seen, but those before {} are dropped", kv.first());
            let (rows, end) = ((last - first) * group, past + last);
            let (first_tile, tiles) = (begin / TILE, end.div_ceil(TILE) - begin / TILE);
            let decoding = rows <= DECODE_ROWS;
            let per_task = match decoding || blocks * kv.kv_heads() < ENOUGH {
                true => TILES[usize::from(!decoding)].max(tiles.div_ceil(PARTS)),
                false => tiles,
            };
            let parts = tiles.div_ceil(per_task);
            for kv_head in 0..kv.kv_heads() {
                let split = self.splits.len();
                for tile in (0..tiles).step_by(per_task) {
                    let from = (first_tile + tile) * TILE;
                    self.tasks.push(Task {
                        kv,
                        kv_head,
                        token: token + first,
                        tokens: last - first,
                        visible: past + first + 1,
                        start: from.max(begin),
                        end: end.min(from + per_task * TILE),
                        split: (parts > 1).then_some((split, tile)),
                    });
                }
                if parts > 1 {
                    self.splits.push(Split { tiles, left: AtomicUsize::new(parts), partials: self.partials });
                    self.partials += tiles * rows * partial_stride(kv.head_dim());
                }
                self.work += 2 * rows * (end - begin) * kv.head_dim();
            }
        }
    }
}

/// Elements of one row's sums of a tile: weighted values, then the largest score and the sum of weights.
fn partial_stride(head_dim: usize) -> usize {
    value_stride(head_dim) + LANES
}

/// What all tasks share.
struct Batch<'a> {
    q: &'a [f32],
    heads: usize,
    scoring: Scoring,
    splits: &'a [Split],
    out: Shared<'a>,
    partials: Shared<'a>,
}

/// A slice whose parts different tasks write.
pub(crate) struct Shared<'a> {
    start: *mut f32,
    len: usize,
    slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: who takes a part out of it vouches for that part.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: std::marker::PhantomData }
    }

    /// # Safety
    /// While the part is in use, no other thread may use any of it.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [f32] {
        assert!(start <= self.len && len <= self.len - start, "a part past the end");
        // SAFETY: the part is within the slice, by the assertion, and the caller has it for itself.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// What a thread needs for a task, kept for the next one.
#[derive(Default)]
struct Scratch {
    /// Scaled queries, for each register block `[head_dim, rows]`.
    q: Aligned<f32>,
    /// `[rows, TILE]`.
    scores: Aligned<f32>,
    /// Weighted sums of the values of a tile, `[rows, value_stride]`.
    acc: Aligned<f32>,
    running: Vec<Running>,
    /// Sums of the tiles so far, `[rows, value_stride + LANES]`.
    total: Aligned<f32>,
    /// Keys and values of a tile in `f32`.
    keys: Aligned<f32>,
    values: Aligned<f32>,
}

#[inline(always)]
fn run_task<S: Simd>(s: S, batch: &Batch, task: &Task, scratch: &mut Scratch) {
    let head_dim = task.kv.head_dim();
    let group = batch.heads / task.kv.kv_heads();
    let (rows, stride) = (task.tokens * group, value_stride(head_dim));
    let partial_stride = partial_stride(head_dim);
    let len = rows * partial_stride;
    scratch.prepare(rows, head_dim);
    pack_queries::<S>(batch, task, group, scratch);
    let (mut start, mut tile) = (task.start, 0);
    while start < task.end {
        scratch.begin_tile(rows, stride);
        run_tile(s, task, &batch.scoring, group, start, scratch);
        let Scratch { acc, running, total, .. } = scratch;
        let sums = acc.as_slice()[..rows * stride].chunks_exact(stride).zip(&*running);
        match task.split {
            Some((split, first)) => {
                let at = batch.splits[split].partials + (first + tile) * len;
                // SAFETY: the sums of this tile belong to this task until it is done.
                let partials = unsafe { batch.partials.part(at, len) };
                partials.chunks_exact_mut(partial_stride).zip(sums).for_each(|(out, sums)| put_sums(s, sums, out));
            }
            None => {
                let total = total.as_mut_slice()[..len].chunks_exact_mut(partial_stride);
                for (total, sums) in total.zip(sums) {
                    match tile {
                        0 => put_sums(s, sums, total),
                        _ => {
                            let (acc, running) = sums;
                            add_sums(s, total, acc, running.max, s.sum(s.load(&running.sum)));
                        }
                    }
                }
            }
        }
        start = tile_end(task, start);
        tile += 1;
    }

    // The rows of one token lie together in `out`.
    let out_of = |token: usize| {
        let start = ((task.token + token) * batch.heads + task.kv_head * group) * head_dim;
        // SAFETY: the outputs of these tokens and this head belong to this task, or to the last task of its split; no
        // two slices of one call are alive at a time.
        unsafe { batch.out.part(start, group * head_dim) }
    };
    let total = &mut scratch.total.as_mut_slice()[..len];
    if let Some((split, _)) = task.split {
        let split = &batch.splits[split];
        if split.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // SAFETY: all tasks of the split are done, which the counter has told this one.
        let partials = unsafe { batch.partials.part(split.partials, split.tiles * len) };
        let (first, others) = partials.split_at(len);
        total.copy_from_slice(first);
        for tile in others.chunks_exact(len) {
            for (total, part) in total.chunks_exact_mut(partial_stride).zip(tile.chunks_exact(partial_stride)) {
                add_sums(s, total, &part[..stride], part[stride], part[stride + 1]);
            }
        }
    }
    for (row, total) in total.chunks_exact(partial_stride).enumerate() {
        let out = &mut out_of(row / group)[row % group * head_dim..][..head_dim];
        let inverse = 1.0 / total[stride + 1];
        out.iter_mut().zip(total).for_each(|(out, sum)| *out = sum * inverse);
    }
}

/// The end of the tile in which position `start` lies, or that of the task.
fn tile_end(task: &Task, start: usize) -> usize {
    task.end.min(start / TILE * TILE + TILE)
}

/// One row's sums of a tile, as they are kept.
#[inline(always)]
fn put_sums<S: Simd>(s: S, (acc, running): (&[f32], &Running), out: &mut [f32]) {
    let stride = acc.len();
    out[..stride].copy_from_slice(acc);
    out[stride] = running.max;
    out[stride + 1] = s.sum(s.load(&running.sum));
}

/// Adds one row's sums of a tile to those of the tiles before, both relative to the larger maximum.
#[inline(always)]
fn add_sums<S: Simd>(s: S, total: &mut [f32], acc: &[f32], max: f32, sum: f32) {
    let stride = acc.len();
    let (values, rest) = total.split_at_mut(stride);
    let before = rest[0];
    if max == f32::NEG_INFINITY {
        return;
    }
    let largest = before.max(max);
    // A tile that the row does not see has no maximum; its share becomes 0.
    let (old, new) = (exp_lanes(s, s.splat(before - largest)), exp_lanes(s, s.splat(max - largest)));
    for (total, acc) in values.as_chunks_mut::<LANES>().0.iter_mut().zip(acc.as_chunks::<LANES>().0) {
        s.store(s.mul_add(new, s.load(acc), s.mul(old, s.load(total))), total);
    }
    let sums = s.mul_add(new, s.splat(sum), s.mul(old, s.splat(rest[1])));
    (rest[0], rest[1]) = (largest, s.largest(sums));
}

impl Scratch {
    /// Room for a task.
    fn prepare(&mut self, rows: usize, head_dim: usize) {
        let stride = value_stride(head_dim);
        self.q.grow(rows * head_dim);
        self.scores.grow(rows * TILE);
        self.acc.grow(rows * stride);
        self.total.grow(rows * partial_stride(head_dim));
    }

    /// Nothing summed up.
    fn begin_tile(&mut self, rows: usize, stride: usize) {
        self.acc.as_mut_slice()[..rows * stride].fill(0.0);
        self.running.clear();
        self.running.resize(rows, Running::NONE);
    }
}

/// Register blocks of about the same size for `rows`: of each its first row and the row after its last.
fn row_blocks<S: Simd>(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = rows.div_ceil(S::ROWS);
    (0..blocks).map(move |block| (rows * block / blocks, rows * (block + 1) / blocks))
}

#[inline(always)]
fn pack_queries<S: Simd>(batch: &Batch, task: &Task, group: usize, scratch: &mut Scratch) {
    let head_dim = task.kv.head_dim();
    let scale = batch.scoring.scale;
    for (first, last) in row_blocks::<S>(task.tokens * group) {
        let packed = &mut scratch.q.as_mut_slice()[first * head_dim..last * head_dim];
        for row in first..last {
            let head = (task.token + row / group) * batch.heads + task.kv_head * group + row % group;
            let q = &batch.q[head * head_dim..][..head_dim];
            for (packed, q) in packed[row - first..].iter_mut().step_by(last - first).zip(q) {
                *packed = q * scale;
            }
        }
    }
}

/// Sums up the tile of positions from `start` on.
#[inline(always)]
fn run_tile<S: Simd>(s: S, task: &Task, scoring: &Scoring, group: usize, start: usize, scratch: &mut Scratch) {
    let head_dim = task.kv.head_dim();
    let (rows, stride) = (task.tokens * group, value_stride(head_dim));
    let len = tile_end(task, start) - start;
    // Positions of the tile that a row sees: from the first on, before the last.
    let until = |row: usize| (task.visible + row / group).saturating_sub(start).min(len);
    let from = |row: usize| match scoring.window {
        Some(window) => (task.visible + row / group).saturating_sub(window).saturating_sub(start).min(len),
        None => 0,
    };
    // Numbers that several register blocks read are worth converting first.
    let convert = rows > S::ROWS;
    let whole = len.next_multiple_of(LANES);
    let keys = of_page(task.kv.keys(task.kv_head, start), start % PAGE, whole, head_dim);
    let (keys, key_scales) = converted(s, keys, convert, &mut scratch.keys);
    let values = of_page(task.kv.values(task.kv_head, start), start % PAGE, whole, stride);
    let (values, value_scales) = converted(s, values, convert, &mut scratch.values);

    let q = scratch.q.as_slice();
    for (first, last) in row_blocks::<S>(rows) {
        let out = &mut scratch.scores.as_mut_slice()[first * TILE..last * TILE];
        let (n, q) = (last - first, &q[first * head_dim..last * head_dim]);
        let blocks = from(first) / LANES..until(last - 1).div_ceil(LANES);
        match keys {
            Stored::F32(k) => scores(s, n, q, vectors(k), key_scales, blocks, out),
            Stored::F16(k) => scores(s, n, q, vectors(k), key_scales, blocks, out),
            Stored::Int8(k, _) => scores(s, n, q, vectors(k), key_scales, blocks, out),
            Stored::Int4(k, _) => scores(s, n, q, k, key_scales, blocks, out),
        }
    }
    for (first, last) in row_blocks::<S>(rows) {
        let positions = from(first)..until(last - 1);
        for row in first..last {
            let scores = &mut scratch.scores.as_mut_slice()[row * TILE..][..positions.end.next_multiple_of(LANES)];
            if let Some(cap) = scoring.cap {
                soft_cap_all(s, &mut scores[positions.start / LANES * LANES..], cap);
            }
            let acc = scratch.acc.as_mut_slice()[row * stride..][..stride].as_chunks_mut().0;
            weigh(s, scores, from(row)..until(row), value_scales, &mut scratch.running[row], acc);
        }
        let p = &scratch.scores.as_slice()[first * TILE..last * TILE];
        let acc = scratch.acc.as_mut_slice()[first * stride..last * stride].as_chunks_mut().0;
        match values {
            Stored::F32(v) => add_values(s, last - first, p, vectors(v), positions.clone(), acc),
            Stored::F16(v) => add_values(s, last - first, p, vectors(v), positions.clone(), acc),
            Stored::Int8(v, _) => add_values(s, last - first, p, vectors(v), positions.clone(), acc),
            Stored::Int4(v, _) => add_values(s, last - first, p, v, positions.clone(), acc),
        }
    }
}

/// `len` positions of `elements` each, from place `start` of a page on; both are whole blocks of [`LANES`].
fn of_page(stored: Stored, start: usize, len: usize, elements: usize) -> Stored {
    let range = start * elements..(start + len) * elements;
    match stored {
        Stored::F32(data) => Stored::F32(&data[range]),
        Stored::F16(data) => Stored::F16(&data[range]),
        Stored::Int8(codes, scales) => Stored::Int8(&codes[range], &scales[start..start + len]),
        Stored::Int4(codes, scales) => {
            Stored::Int4(&codes[range.start / LANES..range.end / LANES], &scales[start..start + len])
        }
    }
}

/// The numbers as `f32` if `convert`, and the scales that are still to be multiplied.
#[inline(always)]
fn converted<'a, S: Simd>(
    s: S,
    stored: Stored<'a>,
    convert: bool,
    buffer: &'a mut Aligned<f32>,
) -> (Stored<'a>, Option<&'a [f32]>) {
    match stored {
        Stored::F16(data) if convert => (Stored::F32(widened(s, vectors(data), buffer)), None),
        Stored::Int8(codes, scales) if convert => (Stored::F32(widened(s, vectors(codes), buffer)), Some(scales)),
        Stored::Int4(codes, scales) if convert => (Stored::F32(widened(s, codes, buffer)), Some(scales)),
        Stored::Int8(_, scales) | Stored::Int4(_, scales) => (stored, Some(scales)),
        _ => (stored, None),
    }
}

#[inline(always)]
fn widened<'a, S: Simd, E: Vector>(s: S, data: &[E], buffer: &'a mut Aligned<f32>) -> &'a [f32] {
    let len = data.len() * LANES;
    buffer.grow(len);
    let buffer = &mut buffer.as_mut_slice()[..len];
    for (out, x) in buffer.as_chunks_mut::<LANES>().0.iter_mut().zip(data) {
        s.store(x.load(s), out);
    }
    buffer
}

fn vectors<T>(data: &[T]) -> &[[T; LANES]] {
    data.as_chunks().0
}
