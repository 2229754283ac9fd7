//! Heads of some tokens out of the rows of a batch and back. The products want the heads of a block side by side,
//! rotated, with their elements padded to whole vectors, and often transposed; the rows of a batch have every head of a
//! token between a token and the next.
//!
//! A block's rows are sixteen tokens of its first head, the same tokens of the next head and so on, then the next sixteen
//! tokens: a vector across rows is sixteen tokens of one head, which see nearly the same keys.

use crate::attention::Shared;
use crate::isa::Isa;
use crate::operators::{dots_ahead, turned};
use crate::simd::{LANES, Simd, for_isa};

/// Which part of the rows of a batch: some heads next to each other.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// Numbers in a row of the batch, and where the first head begins.
    pub width: usize,
    pub column: usize,
    pub heads: usize,
    pub head_dim: usize,
}

/// Some tokens of a sequence.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    /// The first one's row in the batch, and its position in its sequence.
    pub row: usize,
    pub position: usize,
    pub len: usize,
}

impl Tokens {
    /// Groups of [`LANES`] tokens.
    pub fn groups(&self) -> usize {
        self.len.div_ceil(LANES)
    }
}

/// The angles of the rotary embedding, `[seq, pairs]`, for the first `2 * pairs` elements of a head.
#[derive(Clone, Copy)]
pub(super) struct Angles<'a> {
    pub pairs: usize,
    pub cos: &'a [f32],
    pub sin: &'a [f32],
}

/// Packed heads go to `rows` (`[groups * heads * LANES, head_dim]`, each row padded with zeros to whole vectors) and to
/// `transposed` (`[head_dim, stride]`, padded likewise). Tokens that a group lacks are zeros.
pub(super) struct Packed<'a> {
    pub rows: &'a mut [f32],
    pub transposed: Option<(&'a mut [f32], usize)>,
}

/// Packs the heads at `place` of `tokens`, turned by `angles` if given, times `scale` then.
pub(super) fn pack(isa: Isa, data: &[f32], place: Place, tokens: Tokens, turn: Option<(Angles, f32)>, to: Packed) {
    for_isa!(
        isa,
        pack_heads(data: &[f32], place: Place, tokens: Tokens, turn: Option<(Angles, f32)>, to: Packed)
    )
}

#[inline(always)]
fn pack_heads<S: Simd>(s: S, data: &[f32], place: Place, tokens: Tokens, turn: Option<(Angles, f32)>, to: Packed) {
    let Packed { rows, mut transposed } = to;
    let head_dim = place.head_dim;
    let padded = head_dim.next_multiple_of(LANES);
    for group in 0..tokens.groups() {
        for head in 0..place.heads {
            let first = (group * place.heads + head) * LANES;
            let block = &mut rows[first * padded..][..LANES * padded];
            for (lane, out) in block.chunks_exact_mut(padded).enumerate() {
                let token = group * LANES + lane;
                if token >= tokens.len {
                    out.fill(0.0);
                    continue;
                }
                let x = &data[(tokens.row + token) * place.width + place.column + head * head_dim..][..head_dim];
                let (out, padding) = out.split_at_mut(head_dim);
                match turn {
                    Some((angles, scale)) => turn_head(s, x, angles, tokens.position + token, scale, out),
                    None => copy(s, x, out),
                }
                padding.fill(0.0);
            }
            let Some((transposed, stride)) = &mut transposed else { continue };
            for d in (0..padded).step_by(LANES) {
                let mut v = [s.splat(0.0); LANES];
                for lane in 0..LANES {
                    v[lane] = s.load(vector(&block[lane * padded + d..]));
                }
                // By index: an iterator over the array would move it through memory.
                let v = s.transpose(v);
                for i in 0..LANES {
                    s.store(v[i], vector_mut(&mut transposed[(d + i) * *stride + first..]));
                }
            }
        }
    }
}

#[inline(always)]
fn copy<S: Simd>(s: S, x: &[f32], out: &mut [f32]) {
    let ((x, x_rest), (out, out_rest)) = (x.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
    for (x, out) in x.iter().zip(out) {
        s.store(s.load(x), out);
    }
    out_rest.copy_from_slice(x_rest);
}

/// One head, turned and scaled.
#[inline(always)]
fn turn_head<S: Simd>(s: S, x: &[f32], angles: Angles, position: usize, scale: f32, out: &mut [f32]) {
    let half = angles.pairs;
    let (cos, sin) = (&angles.cos[position * half..][..half], &angles.sin[position * half..][..half]);
    let ((a, b), (out_a, out_b)) = (x.split_at(half), out.split_at_mut(half));
    let ((b, rest), (out_b, out_rest)) = (b.split_at(half), out_b.split_at_mut(half));
    let scale = s.splat(scale);
    for start in (0..half).step_by(LANES) {
        let range = start..half.min(start + LANES);
        let (a, b) = turned(
            s,
            load(s, &a[range.clone()]),
            load(s, &b[range.clone()]),
            load(s, &cos[range.clone()]),
            load(s, &sin[range.clone()]),
        );
        store(s, s.mul(a, scale), &mut out_a[range.clone()]);
        store(s, s.mul(b, scale), &mut out_b[range.clone()]);
    }
    for start in (0..rest.len()).step_by(LANES) {
        let range = start..rest.len().min(start + LANES);
        store(s, s.mul(load(s, &rest[range.clone()]), scale), &mut out_rest[range]);
    }
}

/// What is done with packed rows on their way back.
#[derive(Clone, Copy)]
pub(super) struct Unpack<'a> {
    /// Whether they are added to what is there, or written over it.
    pub add: bool,
    /// What each row is multiplied with first; one number is for all.
    pub scale: &'a [f32],
    /// What the sum is then turned back by.
    pub back: Option<Angles<'a>>,
}

/// Adds packed `rows` to the heads at `place` of `tokens`.
///
/// # Safety
/// No other thread uses these heads of these tokens meanwhile.
pub(super) unsafe fn unpack(isa: Isa, rows: &[f32], place: Place, tokens: Tokens, how: Unpack, to: &Shared) {
    for_isa!(isa, unpack_heads(rows: &[f32], place: Place, tokens: Tokens, how: Unpack, to: &Shared))
}

/// Its caller's promise is that of [`unpack`].
#[inline(always)]
fn unpack_heads<S: Simd>(s: S, rows: &[f32], place: Place, tokens: Tokens, how: Unpack, to: &Shared) {
    let head_dim = place.head_dim;
    let padded = head_dim.next_multiple_of(LANES);
    for token in 0..tokens.len {
        for head in 0..place.heads {
            let row = (token / LANES * place.heads + head) * LANES + token % LANES;
            let x = &rows[row * padded..][..head_dim];
            let scale = s.splat(if let [scale] = how.scale { *scale } else { how.scale[row] });
            let start = (tokens.row + token) * place.width + place.column + head * head_dim;
            // SAFETY: this head of this token is the caller's alone.
            let out = unsafe { to.part(start, head_dim) };
            for start in (0..head_dim).step_by(LANES) {
                let range = start..head_dim.min(start + LANES);
                let before = if how.add { load(s, &out[range.clone()]) } else { s.splat(0.0) };
                store(s, s.mul_add(load(s, &x[range.clone()]), scale, before), &mut out[range]);
            }
            if let Some(angles) = how.back {
                turn_back(s, out, angles, tokens.position + token);
            }
        }
    }
}

/// The opposite of [`turn_head`] without a scale, in place: by the transposed matrix, whose factor is that of the angles.
#[inline(always)]
fn turn_back<S: Simd>(s: S, x: &mut [f32], angles: Angles, position: usize) {
    let half = angles.pairs;
    let (cos, sin) = (&angles.cos[position * half..][..half], &angles.sin[position * half..][..half]);
    let (a, b) = x[..2 * half].split_at_mut(half);
    for start in (0..half).step_by(LANES) {
        let range = start..half.min(start + LANES);
        let (low, high) = turned(
            s,
            load(s, &a[range.clone()]),
            load(s, &b[range.clone()]),
            load(s, &cos[range.clone()]),
            s.sub(s.splat(0.0), load(s, &sin[range.clone()])),
        );
        store(s, low, &mut a[range.clone()]);
        store(s, high, &mut b[range.clone()]);
    }
}

/// For each packed row of `rows`, its product with the same head of the same token at `place` of `data`; 0 for tokens
/// that a group lacks.
pub(super) fn dots(isa: Isa, rows: &[f32], data: &[f32], place: Place, tokens: Tokens, out: &mut [f32]) {
    for_isa!(isa, dots_of_heads(rows: &[f32], data: &[f32], place: Place, tokens: Tokens, out: &mut [f32]))
}

#[inline(always)]
fn dots_of_heads<S: Simd>(s: S, rows: &[f32], data: &[f32], place: Place, tokens: Tokens, out: &mut [f32]) {
    let head_dim = place.head_dim;
    let padded = head_dim.next_multiple_of(LANES);
    for (row, out) in out[..tokens.groups() * place.heads * LANES].iter_mut().enumerate() {
        let (token, head) = (row / (place.heads * LANES) * LANES + row % LANES, row / LANES % place.heads);
        *out = 0.0;
        if token < tokens.len {
            let x = &data[(tokens.row + token) * place.width + place.column + head * head_dim..][..head_dim];
            [*out] = dots_ahead::<S, 0, 1>(s, x, [&rows[row * padded..][..head_dim]]);
        }
    }
}

#[inline(always)]
fn load<S: Simd>(s: S, x: &[f32]) -> S::Floats {
    match x.as_array() {
        Some(x) => s.load(x),
        None => s.load_some(x),
    }
}

#[inline(always)]
fn store<S: Simd>(s: S, v: S::Floats, out: &mut [f32]) {
    match out.as_mut_array() {
        Some(out) => s.store(v, out),
        None => s.store_some(v, out),
    }
}

/// The first vector of `x`.
#[inline(always)]
pub(super) fn vector(x: &[f32]) -> &[f32; LANES] {
    x.first_chunk().expect("a whole vector")
}

/// The first vector of `x`.
#[inline(always)]
pub(super) fn vector_mut(x: &mut [f32]) -> &mut [f32; LANES] {
    x.first_chunk_mut().expect("a whole vector")
}
