//! How the fields of each scheme come out of a block of a panel.

use bitllama_core::nf4;
use bitllama_core::panel::VECTOR_BYTES;

use crate::simd::{BYTES, Simd};

/// How the fields of a scheme come out of a block.
pub(crate) trait Fields {
    /// Quads of columns of a block.
    const QUADS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// The largest field.
    const LARGEST: u32;
    /// Bits of a field, where those of a quad lie in one vector.
    const BITS: u32;
    /// Whether codes come out of a table, see [`levels`](super::levels).
    const TABLE: bool = false;
    /// The fields of each quad, each in its byte. Elements beyond [`Fields::QUADS`] mean nothing.
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8];
    /// The field of one column of a block.
    #[inline(always)]
    fn column<S: Simd>(s: S, block: &[u8], column: usize) -> S::Ints {
        let shift = 8 * (column % 4) as u32 + Self::BITS * (column / 4) as u32;
        s.lane_field(vector(s, block, 0), shift, Self::LARGEST as i32)
    }
    /// The value of a field before [`Scheme::line`](bitllama_core::Scheme::line) makes it a code; with a table, the code.
    #[inline(always)]
    fn to_floats<S: Simd>(s: S, field: S::Ints) -> S::Floats {
        s.to_floats(field)
    }
}

pub(crate) struct Bits1;
pub(crate) struct Bits2;
pub(crate) struct Bits3;
pub(crate) struct Bits4;
pub(crate) struct Bits8;
pub(crate) struct Nf4;

/// Calls a kernel `$kernel::<_, F>` with the [`Fields`] of a scheme.
macro_rules! by_scheme {
    ($scheme:expr, $kernel:ident($($argument:expr),*)) => {
        match $scheme {
            Scheme::Binary => $kernel::<_, Bits1>($($argument),*),
            Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => $kernel::<_, Bits2>($($argument),*),
            Scheme::Int3 => $kernel::<_, Bits3>($($argument),*),
            Scheme::Int4 => $kernel::<_, Bits4>($($argument),*),
            Scheme::Nf4 => $kernel::<_, Nf4>($($argument),*),
            Scheme::Int8 => $kernel::<_, Bits8>($($argument),*),
        }
    };
}
pub(crate) use by_scheme;

/// A vector of a block.
///
/// # Panics
/// If the block has no such vector; where it has a constant length, that is known when the code is compiled.
#[inline(always)]
pub(crate) fn vector<S: Simd>(s: S, block: &[u8], index: usize) -> S::Bytes {
    match block[index * VECTOR_BYTES..].first_chunk::<BYTES>() {
        Some(bytes) => s.load_bytes(bytes),
        None => unreachable!("a block consists of whole vectors"),
    }
}

impl Fields for Bits1 {
    const QUADS: usize = 8;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 1;
    const BITS: u32 = 1;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let v = vector(s, block, 0);
        [
            s.and(v, 1),
            s.and(s.shift_right::<1>(v), 1),
            s.and(s.shift_right::<2>(v), 1),
            s.and(s.shift_right::<3>(v), 1),
            s.and(s.shift_right::<4>(v), 1),
            s.and(s.shift_right::<5>(v), 1),
            s.and(s.shift_right::<6>(v), 1),
            s.and(s.shift_right::<7>(v), 1),
        ]
    }
}

impl Fields for Bits2 {
    const QUADS: usize = 4;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 3;
    const BITS: u32 = 2;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let v = vector(s, block, 0);
        let fields = [
            s.and(v, 3),
            s.and(s.shift_right::<2>(v), 3),
            s.and(s.shift_right::<4>(v), 3),
            s.and(s.shift_right::<6>(v), 3),
        ];
        [fields[0], fields[1], fields[2], fields[3], v, v, v, v]
    }
}

impl Fields for Bits3 {
    const QUADS: usize = 8;
    const BYTES: usize = 3 * VECTOR_BYTES;
    const LARGEST: u32 = 7;
    const BITS: u32 = 3;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let (a, b, high) = (vector(s, block, 0), vector(s, block, 1), vector(s, block, 2));
        [
            s.or(s.and(a, 3), s.and(s.shift_left::<2>(high), 4)),
            s.or(s.and(s.shift_right::<2>(a), 3), s.and(s.shift_left::<1>(high), 4)),
            s.or(s.and(s.shift_right::<4>(a), 3), s.and(high, 4)),
            s.or(s.and(s.shift_right::<6>(a), 3), s.and(s.shift_right::<1>(high), 4)),
            s.or(s.and(b, 3), s.and(s.shift_right::<2>(high), 4)),
            s.or(s.and(s.shift_right::<2>(b), 3), s.and(s.shift_right::<3>(high), 4)),
            s.or(s.and(s.shift_right::<4>(b), 3), s.and(s.shift_right::<4>(high), 4)),
            s.or(s.and(s.shift_right::<6>(b), 3), s.and(s.shift_right::<5>(high), 4)),
        ]
    }
    #[inline(always)]
    fn column<S: Simd>(s: S, block: &[u8], column: usize) -> S::Ints {
        let (byte, quad) = (8 * (column % 4) as u32, (column / 4) as u32);
        let low = s.lane_field(vector(s, block, quad as usize / 4), byte + 2 * (quad % 4), 3);
        let high = s.lane_field(vector(s, block, 2), byte + quad, 1);
        s.add_ints(low, s.shift_ints_left(high, 2))
    }
}

impl Fields for Bits4 {
    const QUADS: usize = 2;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 15;
    const BITS: u32 = 4;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let v = vector(s, block, 0);
        [s.and(v, 15), s.and(s.shift_right::<4>(v), 15), v, v, v, v, v, v]
    }
}

impl Fields for Bits8 {
    const QUADS: usize = 1;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 255;
    const BITS: u32 = 8;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        [vector(s, block, 0); 8]
    }
}

impl Fields for Nf4 {
    const QUADS: usize = Bits4::QUADS;
    const BYTES: usize = Bits4::BYTES;
    const LARGEST: u32 = Bits4::LARGEST;
    const BITS: u32 = Bits4::BITS;
    const TABLE: bool = true;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        Bits4::unpack(s, block)
    }
    #[inline(always)]
    fn to_floats<S: Simd>(s: S, field: S::Ints) -> S::Floats {
        s.lookup_floats(&nf4::LEVELS, field)
    }
}
