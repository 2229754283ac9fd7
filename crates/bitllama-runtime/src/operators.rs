//! What a decoder computes between its matrix products. Rows are tokens; all arithmetic is f32.

use bitllama_kernels::scalar::{add_scaled, dot};
use rayon::prelude::*;

use crate::kv_cache::LayerCache;

/// Elements that a task handles at least: below, waking a thread costs more than it gains.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// RMSNorm (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>) of each row of `x` (`[n, hidden]`):
/// `x / sqrt(mean(x^2) + eps) * weight`.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    let mut out = x.to_vec();
    for row in out.chunks_exact_mut(weight.len()) {
        let mean_square = dot(row, row) / weight.len() as f32;
        let inverse = 1.0 / (mean_square + eps).sqrt();
        row.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * inverse * w);
    }
    out
}

/// Turns each head of `x` (`[n, heads, head_dim]`) by its position, `first` for the first row: element `i` with element
/// `i + head_dim / 2`. `cos` and `sin` are `[positions, head_dim / 2]`.
pub(crate) fn rotate(x: &mut [f32], heads: usize, head_dim: usize, first: usize, cos: &[f32], sin: &[f32]) {
    let half = head_dim / 2;
    for (position, row) in (first..).zip(x.chunks_exact_mut(heads * head_dim)) {
        let (cos, sin) = (&cos[position * half..][..half], &sin[position * half..][..half]);
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Causal grouped-query attention (Ainslie et al. 2023, <https://arxiv.org/abs/2305.13245>) of the queries `q`
/// (`[n, heads, head_dim]`, rotated) over `cache`, whose last `n` positions are their own. Returns
/// `[n, heads, head_dim]`.
pub(crate) fn attention(q: &[f32], cache: &LayerCache, heads: usize, head_dim: usize) -> Vec<f32> {
    let n = q.len() / (heads * head_dim);
    let group = heads / cache.keys.len();
    let past = cache.keys[0].len() / head_dim - n;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut out = vec![0.0; q.len()];
    // Queries of one head that follow each other read the same keys.
    let tasks = out.par_chunks_exact_mut(head_dim).zip(q.par_chunks_exact(head_dim)).enumerate();
    tasks.for_each_init(Vec::new, |scores, (index, (out, q))| {
        let (token, head) = (index / heads, index % heads);
        let visible = (past + token + 1) * head_dim;
        scores.clear();
        scores.extend(cache.keys[head / group][..visible].chunks_exact(head_dim).map(|k| dot(q, k) * scale));
        softmax(scores);
        for (p, v) in scores.iter().zip(cache.values[head / group].chunks_exact(head_dim)) {
            add_scaled(*p, v, out);
        }
    });
    out
}

/// `silu(gate) * up` into `gate` (SwiGLU, Shazeer 2020, <https://arxiv.org/abs/2002.05202>).
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    gate.par_chunks_mut(PARALLEL_ELEMENTS).zip(up.par_chunks(PARALLEL_ELEMENTS)).for_each(|(gate, up)| {
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    });
}

/// `x += y`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}
