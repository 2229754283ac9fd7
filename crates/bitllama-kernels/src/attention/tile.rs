//! The two products of attention and the softmax between them, for some rows of queries and one tile of positions.
//!
//! Both products hold a block of results in registers, a few rows by a few vectors, while they run over the head or
//! over the positions. A vector of keys or values is read once for all rows of the block.

use std::ops::Range;

use half::f16;

use crate::operators::exp_lanes;
use crate::simd::{LANES, Nibbles, Simd};

/// Positions of a tile, which one softmax step takes: a page.
pub(super) const TILE: usize = crate::kv::PAGE;

/// How far ahead of their use keys (in blocks) and values (in positions) are asked for, as measured.
const BLOCKS_AHEAD: usize = 4;
const POSITIONS_AHEAD: usize = 32;

/// [`LANES`] stored numbers.
pub(super) trait Vector: Copy {
    fn load<S: Simd>(&self, s: S) -> S::Floats;
}

impl Vector for [f32; LANES] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::Floats {
        s.load(self)
    }
}

impl Vector for [f16; LANES] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::Floats {
        s.load_f16(self)
    }
}

impl Vector for [i8; LANES] {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::Floats {
        s.load_i8(self)
    }
}

impl Vector for Nibbles {
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::Floats {
        s.load_i4(self)
    }
}

/// Calls `$function::<S, E, R>` for `R == $rows`, which is between 1 and `S::ROWS`.
macro_rules! for_rows {
    ($rows:expr, $function:ident($($argument:expr),*)) => {
        for_rows!(@ $rows, $function($($argument),*), [1 2 3 4 5 6 7 8])
    };
    (@ $rows:expr, $function:ident $arguments:tt, [$($r:literal)*]) => {
        match $rows {
            $($r if $r <= S::ROWS => for_rows!(@call $function, $r, $arguments),)*
            rows => unreachable!("no block has {rows} rows"),
        }
    };
    (@call $function:ident, $r:literal, ($($argument:expr),*)) => {
        $function::<S, E, $r>($($argument),*)
    };
}

/// Scores of `rows` queries and some `blocks` of [`LANES`] positions of a tile into `out` (`[rows, TILE]`). `q` is
/// `[head_dim, rows]`, `k` is `[blocks or more, head_dim]` vectors, each of [`LANES`] positions, and `scales` has a
/// factor for each position.
#[inline(always)]
pub(super) fn scores<S: Simd, E: Vector>(
    s: S,
    rows: usize,
    q: &[f32],
    k: &[E],
    scales: Option<&[f32]>,
    blocks: Range<usize>,
    out: &mut [f32],
) {
    for_rows!(rows, scores_of_rows(s, q, k, scales, blocks, out))
}

#[inline(always)]
fn scores_of_rows<S: Simd, E: Vector, const R: usize>(
    s: S,
    q: &[f32],
    k: &[E],
    scales: Option<&[f32]>,
    blocks: Range<usize>,
    out: &mut [f32],
) {
    let q = q.as_chunks::<R>().0;
    let (out, _) = out.as_chunks_mut::<TILE>();
    let out: &mut [[f32; TILE]; R] = out.try_into().expect("a row of scores for each query");
    let scales = scales.map(|scales| scales.as_chunks::<LANES>().0);
    let Range { start: mut block, end: blocks } = blocks;
    while R * 4 <= S::BLOCK && block + 4 <= blocks {
        scores_block::<S, E, R, 4>(s, q, k, scales, block, out);
        block += 4;
    }
    while R * 2 <= S::BLOCK && block + 2 <= blocks {
        scores_block::<S, E, R, 2>(s, q, k, scales, block, out);
        block += 2;
    }
    while block < blocks {
        scores_block::<S, E, R, 1>(s, q, k, scales, block, out);
        block += 1;
    }
}

/// Scores of `R` queries and `C` blocks of positions from `first` on.
#[inline(always)]
fn scores_block<S: Simd, E: Vector, const R: usize, const C: usize>(
    s: S,
    q: &[[f32; R]],
    k: &[E],
    scales: Option<&[[f32; LANES]]>,
    first: usize,
    out: &mut [[f32; TILE]; R],
) {
    let head_dim = q.len();
    let k = &k[first * head_dim..][..C * head_dim];
    let mut sums = [[s.splat(0.0); C]; R];
    for (d, q) in q.iter().enumerate() {
        let mut keys = [s.splat(0.0); C];
        for (c, keys) in keys.iter_mut().enumerate() {
            // SAFETY: `c < C` and `d < head_dim`, and `k` has `C * head_dim` vectors.
            let vector = unsafe { k.get_unchecked(c * head_dim + d) };
            s.prefetch((&raw const *vector).wrapping_add(BLOCKS_AHEAD * head_dim));
            *keys = vector.load(s);
        }
        for r in 0..R {
            let q = s.splat(q[r]);
            for c in 0..C {
                sums[r][c] = s.mul_add(q, keys[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        let out = &mut out[r].as_chunks_mut::<LANES>().0[first..][..C];
        for c in 0..C {
            let sum = match scales {
                Some(scales) => s.mul(sums[r][c], s.load(&scales[first + c])),
                None => sums[r][c],
            };
            s.store(sum, &mut out[c]);
        }
    }
}

/// Adds to `acc` (`[rows, width]` vectors) the rows of `v` (`[TILE or fewer, width]` vectors) at some `positions`, weighted
/// with `p` (`[rows, TILE]`).
#[inline(always)]
pub(super) fn add_values<S: Simd, E: Vector>(
    s: S,
    rows: usize,
    p: &[f32],
    v: &[E],
    positions: Range<usize>,
    acc: &mut [[f32; LANES]],
) {
    for_rows!(rows, add_values_of_rows(s, p, v, positions, acc))
}

#[inline(always)]
fn add_values_of_rows<S: Simd, E: Vector, const R: usize>(
    s: S,
    p: &[f32],
    v: &[E],
    positions: Range<usize>,
    acc: &mut [[f32; LANES]],
) {
    let p: &[[f32; TILE]; R] = p.as_chunks::<TILE>().0.try_into().expect("a row of weights for each query");
    let width = acc.len() / R;
    let mut column = 0;
    while R * 4 <= S::BLOCK && column + 4 <= width {
        add_values_block::<S, E, R, 4>(s, p, v, positions.clone(), column, acc);
        column += 4;
    }
    while R * 2 <= S::BLOCK && column + 2 <= width {
        add_values_block::<S, E, R, 2>(s, p, v, positions.clone(), column, acc);
        column += 2;
    }
    while column < width {
        add_values_block::<S, E, R, 1>(s, p, v, positions.clone(), column, acc);
        column += 1;
    }
}

/// Adds to `C` vectors of each of `R` rows, from vector `first` on.
#[inline(always)]
fn add_values_block<S: Simd, E: Vector, const R: usize, const C: usize>(
    s: S,
    p: &[[f32; TILE]; R],
    v: &[E],
    positions: Range<usize>,
    first: usize,
    acc: &mut [[f32; LANES]],
) {
    let width = acc.len() / R;
    let Range { start, end } = positions;
    assert!(end <= TILE && end * width <= v.len() && first + C <= width, "values end too early");
    let mut sums = [[s.splat(0.0); C]; R];
    for r in 0..R {
        for c in 0..C {
            sums[r][c] = s.load(&acc[r * width + first + c]);
        }
    }
    for position in start..end {
        let mut values = [s.splat(0.0); C];
        for (c, values) in values.iter_mut().enumerate() {
            // SAFETY: `position < end` and `first + c < width`, and `v` has `end * width` vectors.
            let vector = unsafe { v.get_unchecked(position * width + first + c) };
            s.prefetch((&raw const *vector).wrapping_add(POSITIONS_AHEAD * width));
            *values = vector.load(s);
        }
        for r in 0..R {
            // SAFETY: `position < end <= TILE`.
            let p = s.splat(unsafe { *p[r].get_unchecked(position) });
            for c in 0..C {
                sums[r][c] = s.mul_add(p, values[c], sums[r][c]);
            }
        }
    }
    for r in 0..R {
        for c in 0..C {
            s.store(sums[r][c], &mut acc[r * width + first + c]);
        }
    }
}

/// One query's softmax over the tiles seen so far ("online softmax", Milakov and Gimelshein 2018,
/// <https://arxiv.org/abs/1805.02867>).
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The largest score.
    pub max: f32,
    /// The sum of `exp(score - max)`, in parts.
    pub sum: [f32; LANES],
}

impl Running {
    pub const NONE: Running = Running { max: f32::NEG_INFINITY, sum: [0.0; LANES] };
}

/// Makes the scores (whole vectors) of the positions `seen` into weights relative to the new maximum, times `scales`, and
/// the others into zeros. Where the maximum rises, `acc` and the sum so far shrink to it.
#[inline(always)]
pub(super) fn weigh<S: Simd>(
    s: S,
    scores: &mut [f32],
    seen: Range<usize>,
    scales: Option<&[f32]>,
    running: &mut Running,
    acc: &mut [[f32; LANES]],
) {
    let Range { start, end } = seen;
    if start >= end {
        return scores.fill(0.0);
    }
    let (first, whole) = (start / LANES * LANES, end.next_multiple_of(LANES));
    scores[..first].fill(0.0);
    scores[whole..].fill(0.0);
    scores[first..start].fill(f32::NEG_INFINITY);
    scores[end..whole].fill(f32::NEG_INFINITY);
    let scores = scores[first..whole].as_chunks_mut::<LANES>().0;

    let mut largest = s.splat(running.max);
    for x in scores.iter() {
        largest = s.max(s.load(x), largest);
    }
    let max = s.largest(largest);
    let mut sum = s.load(&running.sum);
    if max > running.max {
        let factor = exp_lanes(s, s.splat(running.max - max));
        sum = s.mul(sum, factor);
        for acc in acc {
            s.store(s.mul(s.load(acc), factor), acc);
        }
        running.max = max;
    }
    let max = s.splat(running.max);
    match scales.map(|scales| scales[first..].as_chunks::<LANES>().0) {
        Some(scales) => {
            for (x, scale) in scores.iter_mut().zip(scales) {
                let p = exp_lanes(s, s.sub(s.load(x), max));
                sum = s.add(sum, p);
                s.store(s.mul(p, s.load(scale)), x);
            }
        }
        None => {
            for x in scores {
                let p = exp_lanes(s, s.sub(s.load(x), max));
                sum = s.add(sum, p);
                s.store(p, x);
            }
        }
    }
    s.store(sum, &mut running.sum);
}
