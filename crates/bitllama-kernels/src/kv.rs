//! Keys and values of one layer of one sequence, stored the way that [`attention`](crate::attention) reads them.
//!
//! A key-value head's positions lie together: a query reads them from the first to the last. Values are rows, one after
//! another. Keys are interleaved in blocks of [`LANES`] positions, `[block, head_dim, LANES]`, so that a vector holds
//! one element of that many keys and their scores come out side by side, without sums across a vector.
//!
//! A layer with a window keeps the positions that new tokens can see, and moves them to the front of its memory each time
//! that many others have gathered before them.

mod numbers;

use std::fmt;
use std::str::FromStr;

use bitllama_core::Activation;

use crate::simd::LANES;
use numbers::Numbers;
pub(crate) use numbers::Stored;

/// Positions out of a window that are dropped at a time, at least, unless half a window is more.
const SLACK: usize = 256;

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

/// Keys and values of one layer of one sequence. Memory grows by doubling, whatever is appended at a time; with a window,
/// it is that of the window, half of it or 256 positions more, and what is appended at once.
#[derive(Debug, Clone)]
pub struct LayerKv {
    kind: KvKind,
    head_dim: usize,
    window: Option<usize>,
    /// The first position that is stored, a multiple of [`LANES`].
    first: usize,
    /// Positions so far.
    len: usize,
    /// Position whose visible past is not dropped.
    held: Option<usize>,
    /// One for each key-value head.
    heads: Vec<Head>,
}

/// Keys and values of one head.
#[derive(Debug, Clone)]
struct Head {
    keys: Numbers,
    values: Numbers,
}

impl LayerKv {
    /// Nothing yet, for `kv_heads` heads of `head_dim` elements. All positions are kept.
    pub fn new(kind: KvKind, kv_heads: usize, head_dim: usize) -> Self {
        Self::with_window(kind, kv_heads, head_dim, None)
    }

    /// Nothing yet, for `kv_heads` heads of `head_dim` elements, whose tokens see `window` positions at most, their own
    /// included (see [`Scoring`](crate::attention::Scoring)). Others are dropped in time.
    ///
    /// # Panics
    /// If the window is 0.
    pub fn with_window(kind: KvKind, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Self {
        assert_ne!(window, Some(0), "a window that no token is in");
        let head = Head { keys: Numbers::new(kind), values: Numbers::new(kind) };
        Self { kind, head_dim, window, first: 0, len: 0, held: None, heads: vec![head; kv_heads] }
    }

    /// How the numbers are stored.
    pub fn kind(&self) -> KvKind {
        self.kind
    }

    /// Positions that a token sees at most; all where there is none.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// The first position that is still stored, a multiple of 16; 0 without a window.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Positions appended so far, those that were dropped included: the next one's position.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no positions yet.
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

    /// Takes memory for `positions` in all, which spares the copies of growth up to there. With a window, it takes no more
    /// than what is stored in decoding.
    pub fn reserve(&mut self, positions: usize) {
        let most = self.window.map_or(usize::MAX, most_stored);
        let positions = positions.min(most).next_multiple_of(LANES);
        let (key, value) = (self.head_dim, value_stride(self.head_dim));
        for head in &mut self.heads {
            head.keys.reserve(positions, key);
            head.values.reserve(positions, value);
        }
    }

    /// Appends positions: `keys` (rotated) and `values` are `[n, kv_heads, head_dim]`. With a window, what neither these
    /// positions, nor later ones, nor a held one see may be dropped before.
    ///
    /// # Panics
    /// If the two differ in length or are no whole number of rows.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let (head_dim, stride) = (self.head_dim, value_stride(self.head_dim));
        let row = self.heads.len() * head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(row), "keys and values are no rows of heads");
        self.drop_unseen();
        let (first, n) = (self.len - self.first, keys.len() / row);
        self.len += n;
        let positions = (first + n).next_multiple_of(LANES);
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

    /// The first position that a token at `position` sees.
    fn seen_from(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Drops positions that neither the next token nor the held one sees, once there are enough of them.
    fn drop_unseen(&mut self) {
        let Some(window) = self.window else { return };
        let next = self.held.map_or(self.len, |held| held.min(self.len));
        let first = self.seen_from(next) / LANES * LANES;
        let dropped = first.saturating_sub(self.first);
        if dropped < slack(window) {
            return;
        }
        let stored = (self.len - self.first).next_multiple_of(LANES);
        // A long prompt may have taken much more than decoding needs.
        let room = (2 * most_stored(window)).max(stored - dropped).next_multiple_of(LANES);
        let (key, value) = (self.head_dim, value_stride(self.head_dim));
        for head in &mut self.heads {
            head.keys.drop_before(dropped, stored, key, room);
            head.values.drop_before(dropped, stored, value, room);
        }
        self.first = first;
    }

    /// Keeps what a token at `position` sees until [`LayerKv::release`], so that [`LayerKv::truncate`] can go back to
    /// there: several continuations of one text are read that way. A position held before is held no more.
    ///
    /// # Panics
    /// If some of that is already dropped ([`LayerKv::can_truncate`]).
    pub fn hold(&mut self, position: usize) {
        self.assert_stored(position);
        self.held = Some(position);
    }

    /// Ends a [`LayerKv::hold`].
    pub fn release(&mut self) {
        self.held = None;
    }

    /// Whether all that a token at position `len` sees is still stored, or there is nothing to see: whether
    /// [`LayerKv::truncate`] can go back to there. It can to the length before the last [`LayerKv::append`], to a position
    /// held, to 0, and anywhere without a window.
    pub fn can_truncate(&self, len: usize) -> bool {
        len == 0 || self.first <= self.seen_from(len)
    }

    fn assert_stored(&self, position: usize) {
        assert!(
            self.can_truncate(position),
            "position {position} sees position {}, but those before {} are dropped: hold a position to go back to",
            self.seen_from(position),
            self.first
        );
    }

    /// Forgets all positions from `len` on, and keeps the memory. Does nothing if there are not so many. A held position
    /// after `len` is held no more.
    ///
    /// # Panics
    /// If what the token at position `len` sees is dropped ([`LayerKv::can_truncate`]).
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.assert_stored(len);
            self.len = len;
            self.first = self.first.min(len);
            self.held = self.held.filter(|held| *held <= len);
            for head in &mut self.heads {
                head.keys.truncate(len - self.first);
                head.values.truncate(len - self.first);
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
    /// If there is no such head or position, the position is dropped, or `out` is longer than a head.
    pub fn key_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        let position = self.place(position, out);
        self.heads[kv_head].keys.get(position, key_offset(self.head_dim, position), LANES, out);
    }

    /// The value of a position as stored, into `out` (`[head_dim]`).
    ///
    /// # Panics
    /// As [`LayerKv::key_into`].
    pub fn value_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        let position = self.place(position, out);
        self.heads[kv_head].values.get(position, position * value_stride(self.head_dim), 1, out);
    }

    /// A position, counted from the first one stored.
    fn place(&self, position: usize, out: &[f32]) -> usize {
        assert!((self.first..self.len).contains(&position), "position {position} is not stored");
        assert!(out.len() <= self.head_dim, "too long a head");
        position - self.first
    }

    /// From the first position stored on: `[blocks, head_dim, LANES]`, whole blocks at least to the end of the last position.
    pub(crate) fn keys(&self, kv_head: usize) -> Stored<'_> {
        self.heads[kv_head].keys.as_stored()
    }

    /// From the first position stored on: `[positions, value_stride(head_dim)]`, whole blocks of [`LANES`] positions at least to the last one.
    pub(crate) fn values(&self, kv_head: usize) -> Stored<'_> {
        self.heads[kv_head].values.as_stored()
    }
}

/// Positions out of a window that are dropped at a time, at least: each position is then moved twice at most.
fn slack(window: usize) -> usize {
    (window / 2).max(SLACK).next_multiple_of(LANES)
}

/// Positions stored when tokens come one by one, at most.
fn most_stored(window: usize) -> usize {
    window.saturating_add(slack(window) + LANES)
}

/// Elements from one value to the next: whole vectors, with zeros at the end.
pub(crate) fn value_stride(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Where the first element of a position's key is; the others follow at distances of [`LANES`].
fn key_offset(head_dim: usize, position: usize) -> usize {
    position / LANES * LANES * head_dim + position % LANES
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
