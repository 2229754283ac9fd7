//! Keys and values of one layer of one sequence, stored the way that [`attention`](crate::attention) reads them.
//!
//! A key-value head's positions lie together: a query reads them from the first to the last. Values are rows, one after
//! another. Keys are interleaved in blocks of [`LANES`] positions, `[block, head_dim, LANES]`, so that a vector holds
//! one element of that many keys and their scores come out side by side, without sums across a vector.
//!
//! Positions lie in pages of [`PAGE`], the tiles of attention. A clone of a sequence shares its pages; whoever appends to a shared one
//! copies that page first. So texts that begin the same way can have their beginning in memory once. A layer with a window drops pages
//! that no new token sees.

mod numbers;

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bitllama_core::Activation;

use crate::simd::LANES;
use numbers::Numbers;
pub(crate) use numbers::Stored;

/// Positions of a page. Page `i` has the positions from `i * PAGE` on.
pub const PAGE: usize = 256;

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

/// Keys and values of one layer of one sequence. The memory of its first page grows by doubling, further pages come whole; with a
/// window, it is that of the window, two pages more, and what is appended at once. A clone shares all pages.
#[derive(Debug, Clone)]
pub struct LayerKv {
    kind: KvKind,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    /// The first position that is stored, a multiple of [`PAGE`].
    first: usize,
    /// Positions so far.
    len: usize,
    /// Position whose visible past is not dropped.
    held: Option<usize>,
    /// From the page of `first` on; the last ones may be empty.
    pages: VecDeque<Arc<Page>>,
}

/// Keys and values of [`PAGE`] positions, a pair for each key-value head.
#[derive(Debug, Clone)]
struct Page {
    heads: Vec<Head>,
    /// Positions that there is memory for.
    room: usize,
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
        Self { kind, kv_heads, head_dim, window, first: 0, len: 0, held: None, pages: VecDeque::new() }
    }

    /// How the numbers are stored.
    pub fn kind(&self) -> KvKind {
        self.kind
    }

    /// Positions that a token sees at most; all where there is none.
    pub fn window(&self) -> Option<usize> {
        self.window
    }

    /// The first position that is still stored, a multiple of [`PAGE`]; 0 without a window.
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
        self.kv_heads
    }

    /// Elements of a head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Bytes of memory held, those for positions to come and those of shared pages included.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(|page| page.bytes()).sum()
    }

    /// Its share of the bytes held: those of a page are divided among the sequences that share it, so that the shares of all sequences
    /// are the memory of all.
    pub fn share_of_bytes(&self) -> f64 {
        self.pages.iter().map(|page| page.bytes() as f64 / Arc::strong_count(page) as f64).sum()
    }

    /// Whether the next position lies in a page that other sequences share, which is copied then.
    pub fn copies_next(&self) -> bool {
        let page = self.pages.get((self.len - self.first) / PAGE);
        page.is_some_and(|page| Arc::strong_count(page) > 1)
    }

    /// Takes memory for `positions` in all, which spares the copies of growth up to there. With a window, it takes no more
    /// than what is stored in decoding.
    pub fn reserve(&mut self, positions: usize) {
        let most = self.window.map_or(usize::MAX, |window| self.first.saturating_add(most_stored(window)));
        let until = positions.min(most);
        for start in (self.len / PAGE * PAGE..until).step_by(PAGE) {
            let head_dim = self.head_dim;
            self.page_mut(start).reserve((until - start).min(PAGE), head_dim);
        }
    }

    /// The page that has `position`, a new one if it is the next, for itself alone.
    fn page_mut(&mut self, position: usize) -> &mut Page {
        let index = (position - self.first) / PAGE;
        if index == self.pages.len() {
            self.pages.push_back(Arc::new(Page::new(self.kind, self.kv_heads)));
        }
        Arc::make_mut(&mut self.pages[index])
    }

    /// Appends positions: `keys` (rotated) and `values` are `[n, kv_heads, head_dim]`. With a window, what neither these
    /// positions, nor later ones, nor a held one see may be dropped before.
    ///
    /// # Panics
    /// If the two differ in length or are no whole number of rows.
    pub fn append(&mut self, keys: &[f32], values: &[f32]) {
        let (head_dim, stride) = (self.head_dim, value_stride(self.head_dim));
        let row = self.kv_heads * head_dim;
        assert!(keys.len() == values.len() && keys.len().is_multiple_of(row), "keys and values are no rows of heads");
        self.drop_unseen();
        let until = self.len + keys.len() / row;
        let mut rows = keys.chunks_exact(row).zip(values.chunks_exact(row));
        while self.len < until {
            let start = self.len / PAGE * PAGE;
            let places = self.len - start..(until - start).min(PAGE);
            self.len = start + places.end;
            let page = self.page_mut(start);
            page.grow(places.end, head_dim, start == 0);
            for (place, (keys, values)) in places.zip(rows.by_ref()) {
                let rows = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
                for (head, (key, value)) in page.heads.iter_mut().zip(rows) {
                    head.keys.set(place, key, key_offset(head_dim, place), LANES);
                    head.values.set(place, value, place * stride, 1);
                }
            }
        }
    }

    /// The first position that a token at `position` sees.
    fn seen_from(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Drops pages that neither the next token nor the held one sees.
    fn drop_unseen(&mut self) {
        let next = self.held.map_or(self.len, |held| held.min(self.len));
        let seen = self.seen_from(next);
        while self.first + PAGE <= seen && self.pages.pop_front().is_some() {
            self.first += PAGE;
        }
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

    /// Forgets all positions from `len` on. Does nothing if there are not so many. A held position after `len` is held no more.
    ///
    /// # Panics
    /// If what the token at position `len` sees is dropped ([`LayerKv::can_truncate`]).
    pub fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.assert_stored(len);
        self.len = len;
        self.first = self.first.min(len / PAGE * PAGE);
        self.held = self.held.filter(|held| *held <= len);
        let pages = (len - self.first).div_ceil(PAGE);
        self.pages.truncate(pages);
        let places = len - self.first - pages.saturating_sub(1) * PAGE;
        if let Some(page) = self.pages.back_mut().filter(|page| page.is_wider_than_needed(places)) {
            Arc::make_mut(page).truncate(places);
        }
    }

    /// Forgets all positions.
    pub fn clear(&mut self) {
        self.truncate(0);
    }

    /// The key of a position as stored, into `out` (`[head_dim]`).
    ///
    /// # Panics
    /// If there is no such head or position, the position is dropped, or `out` is longer than a head.
    pub fn key_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        let (page, place) = self.place(position, out);
        page.heads[kv_head].keys.get(place, key_offset(self.head_dim, place), LANES, out);
    }

    /// The value of a position as stored, into `out` (`[head_dim]`).
    ///
    /// # Panics
    /// As [`LayerKv::key_into`].
    pub fn value_into(&self, kv_head: usize, position: usize, out: &mut [f32]) {
        let (page, place) = self.place(position, out);
        page.heads[kv_head].values.get(place, place * value_stride(self.head_dim), 1, out);
    }

    /// The page of a position, and its place there.
    fn place(&self, position: usize, out: &[f32]) -> (&Page, usize) {
        assert!((self.first..self.len).contains(&position), "position {position} is not stored");
        assert!(out.len() <= self.head_dim, "too long a head");
        (&self.pages[(position - self.first) / PAGE], position % PAGE)
    }

    /// The keys of the page that has `position`: `[blocks, head_dim, LANES]`, whole blocks at least to the end of the last position.
    pub(crate) fn keys(&self, kv_head: usize, position: usize) -> Stored<'_> {
        self.pages[(position - self.first) / PAGE].heads[kv_head].keys.as_stored()
    }

    /// The values of the page that has `position`: `[positions, value_stride(head_dim)]`, whole blocks of [`LANES`] positions at least
    /// to the last one.
    pub(crate) fn values(&self, kv_head: usize, position: usize) -> Stored<'_> {
        self.pages[(position - self.first) / PAGE].heads[kv_head].values.as_stored()
    }
}

impl Page {
    fn new(kind: KvKind, kv_heads: usize) -> Self {
        Self { heads: vec![Head { keys: Numbers::new(kind), values: Numbers::new(kind) }; kv_heads], room: 0 }
    }

    /// Makes `positions` in all usable. Memory comes for the whole page, or `by_doubling`.
    fn grow(&mut self, positions: usize, head_dim: usize, by_doubling: bool) {
        let positions = positions.next_multiple_of(LANES);
        if positions > self.room {
            self.reserve(if by_doubling { positions.next_power_of_two() } else { PAGE }, head_dim);
        }
        for head in &mut self.heads {
            head.keys.resize(positions, head_dim);
            head.values.resize(positions, value_stride(head_dim));
        }
    }

    /// Takes memory for `positions` in all.
    fn reserve(&mut self, positions: usize, head_dim: usize) {
        self.room = self.room.max(positions.next_multiple_of(LANES));
        for head in &mut self.heads {
            head.keys.reserve(self.room, head_dim);
            head.values.reserve(self.room, value_stride(head_dim));
        }
    }

    fn bytes(&self) -> usize {
        self.heads.iter().map(|head| head.keys.bytes() + head.values.bytes()).sum()
    }

    /// Whether [`Page::truncate`] would change how its numbers are kept.
    fn is_wider_than_needed(&self, len: usize) -> bool {
        self.heads.iter().any(|head| head.keys.is_wider_than_needed(len) || head.values.is_wider_than_needed(len))
    }

    fn truncate(&mut self, len: usize) {
        for head in &mut self.heads {
            head.keys.truncate(len);
            head.values.truncate(len);
        }
    }
}

/// Positions stored when tokens come one by one, at most.
pub fn most_stored(window: usize) -> usize {
    window.saturating_add(2 * PAGE)
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
        assert!(matches!(
            (kv.keys(1, 0), kv.keys(0, 0), kv.values(1, 0)),
            (Stored::F32(_), Stored::F16(_), Stored::F16(_))
        ));
        // Forgotten, it is as if it had never been.
        kv.truncate(20);
        plain.truncate(20);
        kv.append(&all[3], &all[3]);
        plain.append(&all[3], &all[3]);
        assert!(matches!(kv.keys(1, 0), Stored::F16(_)));
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
