//! Keys and values of one layer of one sequence, stored the way that [`attention`](crate::attention) reads them.
//!
//! A key-value head's positions lie together: a query reads them from the first to the last. Values are rows, one after
//! another. Keys are interleaved in blocks of [`LANES`] positions, `[block, head_dim, LANES]`, so that a vector holds
//! one element of that many keys and their scores come out side by side, without sums across a vector.

use std::fmt;
use std::str::FromStr;

use bitllama_core::Activation;
use bitllama_core::activation::steps;
use bitllama_core::scales::LARGEST_F16;
use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::activations::{largest_magnitude, nearest};
use crate::aligned::Aligned;
use crate::operators::lanes::{LANES, Nibbles, nibble_place};

/// How the numbers of keys and values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KvKind {
    /// 32-bit floats, as computed.
    #[default]
    F32,
    /// IEEE 754 half precision. From the first number beyond 65504 on, the keys, or the values, of that head are kept as
    /// computed.
    F16,
    /// Codes -127 ..= 127 with one `f32` scale for each position and head: [`Activation::Int8`].
    Int8,
    /// Codes -7 ..= 7, two in a byte, with such a scale: [`Activation::Int4`].
    Int4,
}

impl From<Activation> for KvKind {
    /// The kind that stores what was rounded so in training; signs, which no model is trained with, as 4 bits.
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Int8 => KvKind::Int8,
            Activation::Int4 | Activation::Sign => KvKind::Int4,
        }
    }
}

impl KvKind {
    /// Every kind, from the most bytes down.
    pub const ALL: [KvKind; 4] = [KvKind::F32, KvKind::F16, KvKind::Int8, KvKind::Int4];

    /// The name that `--kv` and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            KvKind::F32 => "f32",
            KvKind::F16 => "f16",
            KvKind::Int8 => "int8",
            KvKind::Int4 => "int4",
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
    /// `f16` numbers up to a position, and from there on `f32` ones: the number of that position was beyond the range of `f16`.
    Wide(Aligned<f32>, usize),
    /// Codes, and the scale of each position.
    Int8(Aligned<i8>, Aligned<f32>),
    /// The same, a vector of codes in a number.
    Int4(Aligned<Nibbles>, Aligned<f32>),
}

/// One head's keys or values, for reading.
#[derive(Clone, Copy)]
pub(crate) enum Stored<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    /// Codes, and the scale of each position.
    Int8(&'a [i8], &'a [f32]),
    /// Vectors of codes, and the scale of each position.
    Int4(&'a [Nibbles], &'a [f32]),
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
                let position = first + token;
                head.keys.set(position, &keys[start..][..head_dim], key_offset(head_dim, position), LANES);
                head.values.set(position, &values[start..][..head_dim], position * stride, 1);
            }
        }
    }

    /// Forgets all positions from `len` on, and keeps the memory. Does nothing if there are not so many.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            for head in &mut self.heads {
                head.keys.truncate(len);
                head.values.truncate(len);
            }
        }
    }

    /// Forgets all positions, and keeps the memory.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The key of a position as stored, into `out` (`[head_dim]`).
    ///
    /// # Panics
    /// If there is no such head or position, or `out` is longer than a head.
    pub fn key_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        assert!(position < self.len && out.len() <= self.head_dim, "no such position, or too long a head");
        self.heads[kv_head].keys.get(position, key_offset(self.head_dim, position), LANES, out);
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
fn key_offset(head_dim: usize, position: usize) -> usize {
    position / LANES * LANES * head_dim + position % LANES
}

impl Numbers {
    fn new(kind: KvKind) -> Self {
        match kind {
            KvKind::F32 => Self::F32(Aligned::new()),
            KvKind::F16 => Self::F16(Aligned::new()),
            KvKind::Int8 => Self::Int8(Aligned::new(), Aligned::new()),
            KvKind::Int4 => Self::Int4(Aligned::new(), Aligned::new()),
        }
    }

    /// Grows to `positions` of `elements` each; never shrinks.
    fn resize(&mut self, positions: usize, elements: usize) {
        match self {
            Self::F32(data) | Self::Wide(data, _) => data.grow(positions * elements),
            Self::F16(data) => data.grow(positions * elements),
            Self::Int8(codes, scales) => {
                codes.grow(positions * elements);
                scales.grow(positions);
            }
            // Whole vectors: positions are whole blocks of lanes.
            Self::Int4(codes, scales) => {
                codes.grow(positions * elements / LANES);
                scales.grow(positions);
            }
        }
    }

    fn reserve(&mut self, positions: usize, elements: usize) {
        match self {
            Self::F32(data) | Self::Wide(data, _) => data.reserve(positions * elements),
            Self::F16(data) => data.reserve(positions * elements),
            Self::Int8(codes, scales) => {
                codes.reserve(positions * elements);
                scales.reserve(positions);
            }
            Self::Int4(codes, scales) => {
                codes.reserve(positions * elements / LANES);
                scales.reserve(positions);
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::F32(data) | Self::Wide(data, _) => data.bytes(),
            Self::F16(data) => data.bytes(),
            Self::Int8(codes, scales) => codes.bytes() + scales.bytes(),
            Self::Int4(codes, scales) => codes.bytes() + scales.bytes(),
        }
    }

    /// Stores `row` as `position`, from `offset` on, one element every `step`.
    fn set(&mut self, position: usize, row: &[f32], offset: usize, step: usize) {
        let mut beyond = false;
        match self {
            Self::F32(data) | Self::Wide(data, _) => scatter(row, &mut data.as_mut_slice()[offset..], step),
            Self::F16(data) => {
                let mut halves = [f16::ZERO; CHUNK];
                for (index, row) in row.chunks(CHUNK).enumerate() {
                    let halves = &mut halves[..row.len()];
                    halves.convert_from_f32_slice(row);
                    if halves.iter().any(|half| !half.is_finite()) {
                        beyond = true;
                        break;
                    }
                    scatter(halves, &mut data.as_mut_slice()[offset + index * CHUNK * step..], step);
                }
            }
            Self::Int8(data, scales) => {
                let [inverse, scale] = steps(largest_finite(row), Activation::Int8.largest_code());
                scales.as_mut_slice()[position] = scale;
                let mut codes = [0; CHUNK];
                for (index, row) in row.chunks(CHUNK).enumerate() {
                    let codes = &mut codes[..row.len()];
                    for (code, x) in codes.iter_mut().zip(row) {
                        *code = nearest(*x * inverse);
                    }
                    scatter(codes, &mut data.as_mut_slice()[offset + index * CHUNK * step..], step);
                }
            }
            Self::Int4(data, scales) => {
                let [inverse, scale] = steps(largest_finite(row), Activation::Int4.largest_code());
                scales.as_mut_slice()[position] = scale;
                let data = data.as_mut_slice();
                for (i, x) in row.iter().enumerate() {
                    let at = offset + i * step;
                    let (byte, shift) = nibble_place(at % LANES);
                    let byte = &mut data[at / LANES].0[byte];
                    *byte = *byte & !(0xf << shift) | (nearest(*x * inverse) as u8 & 0xf) << shift;
                }
            }
        }
        if let (true, Self::F16(data)) = (beyond, &*self) {
            *self = Self::Wide(widened(data), position);
            self.set(position, row, offset, step);
        }
    }

    /// Forgets the positions from `len` on: what they asked for is asked for no more.
    fn truncate(&mut self, len: usize) {
        if let Self::Wide(data, from) = self
            && len <= *from
        {
            *self = Self::F16(narrowed(data));
        }
    }

    /// Reads what [`Numbers::set`] stored at `offset`.
    fn get(&self, position: usize, offset: usize, step: usize, out: &mut [f32]) {
        for (i, out) in out.iter_mut().enumerate() {
            let at = offset + i * step;
            *out = match self {
                Self::F32(data) | Self::Wide(data, _) => data.as_slice()[at],
                Self::F16(data) => data.as_slice()[at].to_f32(),
                Self::Int8(codes, scales) => f32::from(codes.as_slice()[at]) * scales.as_slice()[position],
                Self::Int4(codes, scales) => {
                    codes.as_slice()[at / LANES].code(at % LANES) * scales.as_slice()[position]
                }
            };
        }
    }

    fn as_stored(&self) -> Stored<'_> {
        match self {
            Self::F32(data) | Self::Wide(data, _) => Stored::F32(data.as_slice()),
            Self::F16(data) => Stored::F16(data.as_slice()),
            Self::Int8(codes, scales) => Stored::Int8(codes.as_slice(), scales.as_slice()),
            Self::Int4(codes, scales) => Stored::Int4(codes.as_slice(), scales.as_slice()),
        }
    }
}

/// Elements converted at a time, in a buffer on the stack.
const CHUNK: usize = 128;

/// The largest magnitude of a row; no number where one of the row is infinite or no number, which codes cannot tell.
fn largest_finite(row: &[f32]) -> f32 {
    if row.iter().all(|x| x.is_finite()) { largest_magnitude(row) } else { f32::NAN }
}

fn widened(halves: &Aligned<f16>) -> Aligned<f32> {
    let mut wide = Aligned::new();
    wide.grow(halves.as_slice().len());
    wide.as_mut_slice().iter_mut().zip(halves.as_slice()).for_each(|(wide, half)| *wide = half.to_f32());
    wide
}

/// The same numbers again for those that [`widened`] gave; for others, which are forgotten, the nearest finite ones.
fn narrowed(wide: &Aligned<f32>) -> Aligned<f16> {
    let mut halves = Aligned::new();
    halves.grow(wide.as_slice().len());
    let limit = LARGEST_F16;
    let narrow = |x: &f32| f16::from_f32(x.clamp(-limit, limit));
    halves.as_mut_slice().iter_mut().zip(wide.as_slice()).for_each(|(half, wide)| *half = narrow(wide));
    halves
}

fn scatter<T: Copy>(row: &[T], out: &mut [T], step: usize) {
    if step == 1 {
        return out[..row.len()].copy_from_slice(row);
    }
    for (out, x) in out.iter_mut().step_by(step).zip(row) {
        *out = *x;
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
        assert!("int5".parse::<KvKind>().unwrap_err().contains("`int8`"));
    }

    #[test]
    fn low_bit_numbers_are_those_of_training() {
        let (heads, head_dim, positions) = (2, 23, 37);
        let noise = |i: usize| ((i * 7919 % 1013) as f32 - 506.0) * 0.013;
        let keys: Vec<f32> = (0..positions * heads * head_dim).map(noise).collect();
        let values: Vec<f32> = keys.iter().rev().copied().collect();
        for activation in [Activation::Int8, Activation::Int4] {
            let mut kv = LayerKv::new(activation.into(), heads, head_dim);
            // What was there before must not show through.
            kv.append(&values, &keys);
            kv.clear();
            kv.append(&keys, &values);
            let rounded = |data: &[f32]| {
                let rows = bitllama_core::DenseMatrix { data: data.to_vec(), columns: head_dim };
                bitllama_core::activation::round_rows(activation, rows).dequantize().data
            };
            let (keys, values) = (rounded(&keys), rounded(&values));
            let mut found = vec![0.0; head_dim];
            for (index, (key, value)) in keys.chunks(head_dim).zip(values.chunks(head_dim)).enumerate() {
                kv.key_into(index % heads, index / heads, &mut found);
                assert_eq!(found, key, "{activation}");
                kv.value_into(index % heads, index / heads, &mut found);
                assert_eq!(found, value, "{activation}");
            }
        }
    }

    #[test]
    fn numbers_beyond_f16_are_kept_and_the_others_are_as_before() {
        let (heads, head_dim) = (2, 130);
        let keys = |position: usize, size: f32| -> Vec<f32> {
            (0..heads * head_dim).map(|i| (((i + position) * 7919 % 1013) as f32 - 506.0) * size).collect()
        };
        let all: Vec<Vec<f32>> = (0..20).map(|position| keys(position, 0.013)).collect();
        let mut plain = LayerKv::new(KvKind::F16, heads, head_dim);
        let mut kv = plain.clone();
        let key = |kv: &LayerKv, head: usize, position: usize| {
            let mut found = vec![0.0; head_dim];
            kv.key_into(head, position, &mut found);
            found
        };
        for row in &all {
            kv.append(row, row);
            plain.append(row, row);
        }
        // A key of the second head that is too large, in its second half; values stay in range.
        let mut large = keys(20, 0.013);
        large[head_dim + 129] = -7e5;
        kv.append(&large, &all[0]);
        plain.append(&all[1], &all[0]);
        kv.append(&all[2], &all[2]);
        plain.append(&all[2], &all[2]);
        assert_eq!(key(&kv, 1, 20), large[head_dim..], "kept as computed");
        assert_eq!(key(&kv, 1, 21), all[2][head_dim..], "and those after it");
        for position in 0..20 {
            assert_eq!(key(&kv, 1, position), key(&plain, 1, position), "those before it are halves");
        }
        assert_eq!(key(&kv, 0, 21), key(&plain, 0, 21), "other heads are halves");
        assert!(matches!((kv.keys(1), kv.keys(0), kv.values(1)), (Stored::F32(_), Stored::F16(_), Stored::F16(_))));
        // Forgotten, it is as if it had never been.
        kv.truncate(20);
        plain.truncate(20);
        kv.append(&all[3], &all[3]);
        plain.append(&all[3], &all[3]);
        assert!(matches!(kv.keys(1), Stored::F16(_)));
        for position in 0..21 {
            assert_eq!(key(&kv, 1, position), key(&plain, 1, position));
        }
    }

    #[test]
    fn codes_do_not_hide_what_is_no_number() {
        for kind in KvKind::ALL {
            for broken in [f32::INFINITY, f32::NAN] {
                let mut kv = LayerKv::new(kind, 1, 3);
                kv.append(&[1.0, broken, 2.0], &[3e38, 0.0, 1.0]);
                let mut found = [0.0; 3];
                kv.key_into(0, 0, &mut found);
                assert!(!found[1].is_finite(), "{kind} {broken}: {found:?}");
                kv.value_into(0, 0, &mut found);
                assert!((found[0] / 3e38 - 1.0).abs() < 1e-5, "{kind}: {found:?}");
            }
        }
    }
}
