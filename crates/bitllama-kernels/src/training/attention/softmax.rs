//! The softmax of a tile and its gradient. Scores are `[keys, queries]`: a vector is sixteen tokens of one head, with one
//! maximum and one sum for each lane.

use std::ops::Range;

use crate::isa::Isa;
use crate::operators::{exp_lanes, tanh_lanes};
use crate::simd::{LANES, Simd, for_isa};

use super::pack::{Tokens, vector, vector_mut};

/// Below every score: what a hidden one is lowered by, and the maximum of none. Finite, so that no difference of two is
/// no number.
const HIDDEN: f32 = 1e30;

/// What the [`LANES`] tokens of a group see.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    /// The positions that some token sees.
    some: (usize, usize),
    /// The positions that all tokens see.
    all: (usize, usize),
    /// Each token's own position, the last that it sees; less than 0 for a token that the group lacks.
    last: [f32; LANES],
    /// Minus the first position that each sees.
    minus_first: [f32; LANES],
}

impl Sight {
    /// Of a group without tokens.
    pub const NONE: Sight =
        Sight { some: (usize::MAX, 0), all: (0, 0), last: [-1.0; LANES], minus_first: [0.0; LANES] };

    /// Of a group of a block's tokens; `first` has the first position that each token of the batch sees.
    pub fn new(tokens: &Tokens, group: usize, first: &[u32]) -> Self {
        let start = group * LANES;
        let count = LANES.min(tokens.len - start);
        let first = &first[tokens.row + start..][..count];
        let position = tokens.position + start;
        let mut sight = Self::NONE;
        for (lane, first) in first.iter().enumerate() {
            sight.last[lane] = (position + lane) as f32;
            sight.minus_first[lane] = -(*first as f32);
            sight.some.0 = sight.some.0.min(*first as usize);
            sight.all.0 = sight.all.0.max(*first as usize);
        }
        sight.some.1 = position + count;
        sight.all.1 = if count == LANES { position + 1 } else { 0 };
        sight
    }

    /// The first position that some token sees.
    pub fn first(&self) -> usize {
        self.some.0
    }

    /// Which of the `len` keys from the position `start` on some token sees, with a few before them, so that products
    /// begin at whole blocks.
    pub fn keys(&self, start: usize, len: usize) -> Range<usize> {
        let (first, end) = (self.some.0.max(start), self.some.1.min(start + len));
        if first < end { (first - start) / 8 * 8..end - start } else { 0..0 }
    }

    fn hides(&self, first: usize, count: usize) -> bool {
        first < self.all.0 || first + count > self.all.1
    }
}

/// Scores of a group of tokens: `vectors` of each key, `stride` numbers from a key to the next. The first key's position
/// is `position`.
pub(super) struct Scores<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    pub vectors: usize,
    pub position: usize,
    pub keys: usize,
}

/// A group's softmax over the tiles seen so far ("online softmax", Milakov and Gimelshein 2018,
/// <https://arxiv.org/abs/1805.02867>), and the sums of values weighted by it.
pub(super) struct Running<'a> {
    /// The largest score of each query, and the sum of `exp(score - max)`.
    pub max: &'a mut [f32],
    pub sum: &'a mut [f32],
    /// `[queries, width]`
    pub acc: &'a mut [f32],
    pub width: usize,
}

impl Running<'_> {
    /// Nothing seen.
    pub fn clear(&mut self) {
        self.max.fill(-HIDDEN);
        self.sum.fill(0.0);
        self.acc.fill(0.0);
    }
}

/// Makes each score `x` into `cap * tanh(x / cap)`.
pub(super) fn bind(isa: Isa, scores: &mut Scores, cap: f32) {
    for_isa!(isa, bind_group(scores: &mut Scores, cap: f32))
}

#[inline(always)]
fn bind_group<S: Simd>(s: S, scores: &mut Scores, cap: f32) {
    let (cap, inverse) = (s.splat(cap), s.splat(1.0 / cap));
    for key in 0..scores.keys {
        for x in scores.data[key * scores.stride..][..scores.vectors * LANES].as_chunks_mut::<LANES>().0 {
            s.store(s.mul(tanh_lanes(s, s.mul(s.load(x), inverse)), cap), x);
        }
    }
}

/// Makes scores into weights relative to the new maximum. Where it rises, the sums so far shrink to it.
pub(super) fn weigh(isa: Isa, scores: Scores, sight: &Sight, running: Running) {
    if sight.hides(scores.position, scores.keys) {
        for_isa!(isa, weigh_hidden(scores: Scores, sight: &Sight, running: Running))
    } else {
        for_isa!(isa, weigh_seen(scores: Scores, sight: &Sight, running: Running))
    }
}

#[inline(always)]
fn weigh_hidden<S: Simd>(s: S, scores: Scores, sight: &Sight, running: Running) {
    weigh_group::<S, true>(s, scores, sight, running)
}

#[inline(always)]
fn weigh_seen<S: Simd>(s: S, scores: Scores, sight: &Sight, running: Running) {
    weigh_group::<S, false>(s, scores, sight, running)
}

#[inline(always)]
fn weigh_group<S: Simd, const HIDES: bool>(s: S, scores: Scores, sight: &Sight, running: Running) {
    let Scores { data, stride, vectors, position, keys } = scores;
    let one = s.splat(1.0);
    for v in 0..vectors {
        let at = |key: usize| key * stride + v * LANES;
        let before = s.load(vector(&running.max[v * LANES..]));
        let mut max = before;
        for key in 0..keys {
            let to = vector_mut(&mut data[at(key)..]);
            let mut x = s.load(to);
            if HIDES {
                let seen = seen(s, one, sight, position + key);
                x = s.mul_add(s.sub(seen, one), s.splat(HIDDEN), x);
                s.store(x, to);
            }
            max = s.max(x, max);
        }
        let mut sum = s.load(vector(&running.sum[v * LANES..]));
        if s.largest(s.sub(max, before)) > 0.0 {
            let factor = exp_lanes(s, s.sub(before, max));
            sum = s.mul(sum, factor);
            let mut factors = [0.0; LANES];
            s.store(factor, &mut factors);
            let rows = running.acc[v * LANES * running.width..].chunks_exact_mut(running.width);
            for (row, factor) in rows.zip(factors) {
                let factor = s.splat(factor);
                for x in row.as_chunks_mut::<LANES>().0 {
                    s.store(s.mul(s.load(x), factor), x);
                }
            }
            s.store(max, vector_mut(&mut running.max[v * LANES..]));
        }
        for key in 0..keys {
            let to = vector_mut(&mut data[at(key)..]);
            let mut weight = exp_lanes(s, s.sub(s.load(to), max));
            if HIDES {
                weight = seen(s, weight, sight, position + key);
            }
            sum = s.add(sum, weight);
            s.store(weight, to);
        }
        s.store(sum, vector_mut(&mut running.sum[v * LANES..]));
    }
}

/// `v`, but 0 in the lanes of tokens that do not see the position.
#[inline(always)]
fn seen<S: Simd>(s: S, v: S::Floats, sight: &Sight, position: usize) -> S::Floats {
    let position = position as f32;
    s.zero_below(s.zero_below(v, s.load(&sight.last), position), s.load(&sight.minus_first), -position)
}

/// What the gradient needs of each query of a group.
pub(super) struct Known<'a> {
    pub log_sum_exp: &'a [f32],
    /// The product of the output and its gradient.
    pub dots: &'a [f32],
}

/// Makes scores into probabilities, and the gradients of probabilities (same places as the scores') into those of scores; where
/// these are bound by a cap, of scores before [`bind`].
pub(super) fn gradient(isa: Isa, scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known, cap: Option<f32>) {
    if let Some(cap) = cap {
        for_isa!(
            isa,
            gradient_bound(scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known, cap: f32)
        )
    } else if sight.hides(scores.position, scores.keys) {
        for_isa!(isa, gradient_hidden(scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known))
    } else {
        for_isa!(isa, gradient_seen(scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known))
    }
}

#[inline(always)]
fn gradient_hidden<S: Simd>(s: S, scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known) {
    gradient_of_group::<S, true, false>(s, scores, gradients, sight, known, 0.0)
}

#[inline(always)]
fn gradient_seen<S: Simd>(s: S, scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known) {
    gradient_of_group::<S, false, false>(s, scores, gradients, sight, known, 0.0)
}

#[inline(always)]
fn gradient_bound<S: Simd>(s: S, scores: Scores, gradients: &mut [f32], sight: &Sight, known: Known, cap: f32) {
    gradient_of_group::<S, true, true>(s, scores, gradients, sight, known, cap)
}

#[inline(always)]
fn gradient_of_group<S: Simd, const HIDES: bool, const BOUND: bool>(
    s: S,
    scores: Scores,
    gradients: &mut [f32],
    sight: &Sight,
    known: Known,
    cap: f32,
) {
    let inverse = s.splat(1.0 / cap);
    let Scores { data, stride, vectors, position, keys } = scores;
    for v in 0..vectors {
        let log_sum_exp = s.load(vector(&known.log_sum_exp[v * LANES..]));
        let dots = s.load(vector(&known.dots[v * LANES..]));
        for key in 0..keys {
            let at = key * stride + v * LANES;
            let (to, gradient) = (vector_mut(&mut data[at..]), vector_mut(&mut gradients[at..]));
            let score = s.load(to);
            let mut p = exp_lanes(s, s.sub(score, log_sum_exp));
            if HIDES {
                p = seen(s, p, sight, position + key);
            }
            s.store(p, to);
            let mut of_score = s.mul(p, s.sub(s.load(gradient), dots));
            if BOUND {
                let tanh = s.mul(score, inverse);
                of_score = s.mul(of_score, s.sub(s.splat(1.0), s.mul(tanh, tanh)));
            }
            s.store(of_score, gradient);
        }
    }
}
