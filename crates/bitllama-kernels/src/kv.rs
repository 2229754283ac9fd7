//! Keys and values of one layer of one sequence, stored the way that [`attention`](crate::attention) reads them.
//!
//! A key-value head's positions lie together: a query reads them from the first to the last. Values are rows, one after
//! another. Keys are interleaved in blocks of [`LANES`] positions, `[block, head_dim, LANES]`, so that a vector holds
//! one element of that many keys and their scores come out side by side, without sums across a vector.

use std::fmt;
use std::str::FromStr;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::operators::lanes::LANES;

/// How the numbers of keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvKind {
    /// 32-bit floats, as computed.
    #[default]
    F32,
    /// IEEE 754 half precision; numbers beyond 65504 become infinite.
    F16,
    /// Codes -127 ..= 127 with one `f32` scale for each position and head: the largest magnitude over 127.
    Int8,
}

impl KvKind {
    /// Every kind, from the most bytes down.
    pub const ALL: [KvKind; 3] = [KvKind::F32, KvKind::F16, KvKind::Int8];

    /// The name that `--kv` and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            KvKind::F32 => "f32",
            KvKind::F16 => "f16",
            KvKind::Int8 => "int8",
        }
    }
}

impl fmt::Display for KvKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KvKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|kind| format!("`{kind}`")).join(", ");
            format!("unknown kind of keys and values `{name}`, expected one of {names}")
        })
    }
}

/// Keys and values of one layer of one sequence. Memory grows by doubling, whatever is appended at a time.
#[derive(Debug, Clone)]
pub struct LayerKv {
    kind: KvKind,
    head_dim: usize,
    len: usize,
    /// One for each key-value head.
    heads: Vec<Head>,
}

/// Keys and values of one head.
#[derive(Debug, Clone)]
struct Head {
    keys: Numbers,
    values: Numbers,
}

/// What one head's keys, or its values, are stored as.
#[derive(Debug, Clone)]
enum Numbers {
    F32(Aligned<f32>),
    F16(Aligned<f16>),
    /// Codes, and the scale of each position.
    Int8(Aligned<i8>, Aligned<f32>),
}

/// One head's keys or values, for reading.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// Codes, and the scale of each position.
    Int8(&'a [i8], &'a [f32]),
}

impl LayerKv {
    /// Nothing yet, for `kv_heads` heads of `head_dim` elements.
    pub fn new(kind: KvKind, kv_heads: usize, head_dim: usize) -> Self {
        let head = Head { keys: Numbers::new(kind), values: Numbers::new(kind) };
        Self { kind, head_dim, len: 0, heads: vec![head; kv_heads] }
    }

    /// How the numbers are stored.
    pub fn kind(&self) -> KvKind {
        self.kind
    }

    /// Positions stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Key-value heads.
    pub fn kv_heads(&self) -> usize {
        self.heads.len()
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes of memory held, those for positions to come included.
    pub fn bytes(&self) -> usize {
        self.heads.iter().map(|head| head.keys.bytes() + head.values.bytes()).sum()
    }

    /// Takes memory for `positions` in all, which spares the copies of growth up to there.
    pub fn reserve(&mut self, positions: usize) {
        let positions = positions.next_multiple_of(LANES);
        let (key, value) = (self.head_dim, value_stride(self.head_dim));
        for head in &mut self.heads {
            head.keys.reserve(positions, key);
            head.values.reserve(positions, value);
        }
    }

    /// Appends positions: `keys` (rotated) and `values` are `[n, kv_heads, head_dim]`.
    ///
    /// # Panics
    /// If the two differ in length or are no whole number of rows.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let (head_dim, stride) = (self.head_dim, value_stride(self.head_dim));
        let row = self.heads.len() * head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(row), "keys and values are no rows of heads");
        let (first, n) = (self.len, keys.len() / row);
        self.len += n;
        let positions = self.len.next_multiple_of(LANES);
        for (index, head) in self.heads.iter_mut().enumerate() {
            head.keys.resize(positions, head_dim);
            head.values.resize(positions, stride);
            for token in 0..n {
                let start = token * row + index * head_dim;
                head.keys.set(first + token, &keys[start..][..head_dim], key_offset(head_dim), LANES);
                head.values.set(first + token, &values[start..][..head_dim], |position| position * stride, 1);
            }
        }
    }

    /// Forgets all positions from `len` on, and keeps the memory. Does nothing if there are not so many.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Forgets all positions, and keeps the memory.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// The key of a position as stored, into `out` (`[head_dim]`).
    ///
    /// # Panics
    /// If there is no such head or position, or `out` is longer than a head.
    pub fn key_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        assert!(position < self.len && out.len() <= self.head_dim, "no such position, or too long a head");
        self.heads[kv_head].keys.get(position, key_offset(self.head_dim)(position), LANES, out);
    }

    /// The value of a position as stored, into `out` (`[head_dim]`).
    ///
    /// # Panics
    /// As [`LayerKv::key_into`].
    pub fn value_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        assert!(position < self.len && out.len() <= self.head_dim, "no such position, or too long a head");
        self.heads[kv_head].values.get(position, position * value_stride(self.head_dim), 1, out);
    }

    /// `[blocks, head_dim, LANES]`, whole blocks at least to the end of the last position.
    pub(crate) fn keys(&self, kv_head: usize) -> Stored<'_> {
        self.heads[kv_head].keys.as_stored()
    }

    /// `[positions, value_stride(head_dim)]`, whole blocks of [`LANES`] positions at least to the last one.
    pub(crate) fn values(&self, kv_head: usize) -> Stored<'_> {
        self.heads[kv_head].values.as_stored()
    }
}

/// Elements from one value to the next: whole vectors, with zeros at the end.
pub(crate) fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Where the first element of a position's key is; the others follow at distances of [`LANES`].
fn key_offset(head_dim: usize) -> impl Fn(usize) -> usize {
    move |position| position / LANES * LANES * head_dim + position % LANES
}

impl Numbers {
    fn new(kind: KvKind) -> Self {
        match kind {
            KvKind::F32 => Self::F32(Aligned::new()),
            KvKind::F16 => Self::F16(Aligned::new()),
            KvKind::Int8 => Self::Int8(Aligned::new(), Aligned::new()),
        }
    }

    /// Grows to `positions` of `elements` each; never shrinks.
    fn resize(&mut self, positions: usize, elements: usize) {
        match self {
            Self::F32(data) => data.grow(positions * elements),
            Self::F16(data) => data.grow(positions * elements),
            Self::Int8(codes, scales) => {
                codes.grow(positions * elements);
                scales.grow(positions);
            }
        }
    }

    fn reserve(&mut self, positions: usize, elements: usize) {
        match self {
            Self::F32(data) => data.reserve(positions * elements),
            Self::F16(data) => data.reserve(positions * elements),
            Self::Int8(codes, scales) => {
                codes.reserve(positions * elements);
                scales.reserve(positions);
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(data) => data.bytes(),
            Self::F16(data) => data.bytes(),
            Self::Int8(codes, scales) => codes.bytes() + scales.bytes(),
        }
    }

    /// Stores `row` as `position`, from `offset(position)` on, one element every `step`.
    fn set(&mut self, position: usize, row: &[f32], offset: impl Fn(usize) -> usize, step: usize) {
        let offset = offset(position);
        match self {
            Self::F32(data) => scatter(row, &mut data.as_mut_slice()[offset..], step),
            Self::F16(data) => {
                let mut halves = [f16::ZERO; CHUNK];
                for (index, row) in row.chunks(CHUNK).enumerate() {
                    let halves = &mut halves[..row.len()];
                    halves.convert_from_f32_slice(row);
                    scatter(halves, &mut data.as_mut_slice()[offset + index * CHUNK * step..], step);
                }
            }
            Self::Int8(data, scales) => {
                let largest = largest_magnitude(row);
                let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                scales.as_mut_slice()[position] = largest / 127.0;
                let mut codes = [0; CHUNK];
                for (index, row) in row.chunks(CHUNK).enumerate() {
                    let codes = &mut codes[..row.len()];
                    for (code, x) in codes.iter_mut().zip(row) {
                        *code = nearest(*x * inverse);
                    }
                    scatter(codes, &mut data.as_mut_slice()[offset + index * CHUNK * step..], step);
                }
            }
        }
    }

    /// Reads what [`Numbers::set`] stored at `offset`.
    fn get(&self, position: usize, offset: usize, step: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let at = offset + i * step;
            *out = match self {
                Self::F32(data) => data.as_slice()[at],
                Self::F16(data) => data.as_slice()[at].to_f32(),
                Self::Int8(codes, scales) => f32::from(codes.as_slice()[at]) * scales.as_slice()[position],
            };
        }
    }

    fn as_stored(&self) -> Stored<'_> {
        match self {
            Self::F32(data) => Stored::F32(data.as_slice()),
            Self::F16(data) => Stored::F16(data.as_slice()),
            Self::Int8(codes, scales) => Stored::Int8(codes.as_slice(), scales.as_slice()),
        }
    }
}

/// Elements converted at a time, in a buffer on the stack.
const CHUNK: usize = 128;

fn scatter<T: Copy>(row: &[T], out: &mut [T], step: usize) {
    if step == 1 {
        return out[..row.len()].copy_from_slice(row);
    }
    for (out, x) in out.iter_mut().step_by(step).zip(row) {
        *out = *x;
    }
}

/// In 16 lanes, so that it vectorizes.
fn largest_magnitude(row: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if x.abs() > *lane { x.abs() } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(0.0, |largest, x| largest.max(x.abs()))
}

/// The whole number nearest to `x`, which is between -128 and 127: near 1.5 * 2^23 it is in a float's low bits.
fn nearest(x: f32) -> i8 {
    (x + 12_582_912.0).to_bits() as i8
}

/// Numbers that any bits are a value of, and no bits set are zero.
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for f16 {}
impl Plain for i8 {}

/// A vector of numbers that starts at a cache line, as 64-byte loads want.
#[derive(Debug, Clone)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    numbers: std::marker::PhantomData<T>,
}

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: Plain> Default for Aligned<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Plain> Aligned<T> {
    const PER_LINE: usize = size_of::<Line>() / size_of::<T>();

    pub(crate) fn new() -> Self {
        Self { lines: Vec::new(), numbers: std::marker::PhantomData }
    }

    /// Appends zeros until it holds `len` numbers.
    pub(crate) fn grow(&mut self, len: usize) {
        let lines = len.div_ceil(Self::PER_LINE);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
    }

    fn reserve(&mut self, len: usize) {
        let lines = len.div_ceil(Self::PER_LINE);
        self.lines.reserve_exact(lines.saturating_sub(self.lines.len()));
    }

    fn bytes(&self) -> usize {
        self.lines.capacity() * size_of::<Line>()
    }

    /// All numbers, at least as many as it was grown to.
    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: the lines are initialized bytes, aligned for any number, and any bits are a value of a `Plain`
        // number; the length is that of the lines.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * Self::PER_LINE) }
    }

    /// All numbers, at least as many as it was grown to.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`, and the lines are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * Self::PER_LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for kind in KvKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("int4".parse::<KvKind>().unwrap_err().contains("`int8`"));
    }

    #[test]
    fn codes_are_the_nearest() {
        for (x, code) in [(-127.0, -127), (-0.6, -1), (0.4, 0), (0.5, 0), (1.5, 2), (126.6, 127)] {
            assert_eq!(nearest(x), code);
        }
    }
}
