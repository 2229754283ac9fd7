//! How the fields of each scheme come out of a block of a panel.

use bitllama_core::blocks::IQ4;
use bitllama_core::levels::NF4;
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
    /// Whether a block is one vector whose fields can be multiplied where they stand in their bytes.
    const IN_PLACE: bool = false;
    /// Whether codes are levels out of a table, see [`levels`](super::levels).
    const LEVELS: bool = false;
    /// Whether fields have all eight bits, so that products take [`Simd::BYTE_BIAS`] off them.
    const WIDE: bool = false;
    /// Whether codes may be twice the fields.
    const DOUBLED: bool = false;
    /// Whether groups may have minimums in half precision.
    const MINIMUMS: bool = false;
    /// Quads of a group whose scale is nested ([`super::nested`]), 0 where no format has such.
    const NESTED: usize = 0;
    /// Whether single columns are found faster in unpacked fields.
    const UNPACKED_COLUMNS: bool = false;
    /// The fields of each quad, each in its byte. Elements beyond [`Fields::QUADS`] mean nothing.
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8];
    /// The field of one column of a block.
    #[inline(always)]
    fn column<S: Simd>(s: S, block: &[u8], column: usize) -> S::Ints {
        let shift = 8 * (column % 4) as u32 + Self::BITS * (column / 4) as u32;
        s.lane_field(vector(s, block, 0), shift, Self::LARGEST as i32)
    }
    /// The value of a field before the weight's line makes it a code.
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

pub(crate) struct Bits5;
pub(crate) struct Bits6;
pub(crate) struct Iq4;

/// Calls a kernel `$kernel::<_, F>` with the [`Fields`] of a weight.
macro_rules! by_fields {
    ($weight:expr, $kernel:ident($($argument:expr),*)) => {{
        use $crate::packed::fields::*;
        use $crate::weight::FieldKind;
        match $weight.kind() {
            FieldKind::Bits1 => $kernel::<_, Bits1>($($argument),*),
            FieldKind::Bits2 => $kernel::<_, Bits2>($($argument),*),
            FieldKind::Bits3 => $kernel::<_, Bits3>($($argument),*),
            FieldKind::Bits4 => $kernel::<_, Bits4>($($argument),*),
            FieldKind::Bits5 => $kernel::<_, Bits5>($($argument),*),
            FieldKind::Bits6 => $kernel::<_, Bits6>($($argument),*),
            FieldKind::Bits8 => $kernel::<_, Bits8>($($argument),*),
            FieldKind::Nf4 => $kernel::<_, Nf4>($($argument),*),
            FieldKind::Iq4 => $kernel::<_, Iq4>($($argument),*),
        }
    }};
}
pub(crate) use by_fields;

/// Columns of the groups of these fields whose scales are nested, 0 where no format has such.
pub(crate) fn nested_columns<T, F: Fields>(_: T) -> usize {
    4 * F::NESTED
}

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
    const IN_PLACE: bool = true;
    const DOUBLED: bool = true;
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
    const IN_PLACE: bool = true;
    const DOUBLED: bool = true;
    const NESTED: usize = 4;
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
    const UNPACKED_COLUMNS: bool = true;
    const NESTED: usize = 4;
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
    const IN_PLACE: bool = true;
    const MINIMUMS: bool = true;
    const NESTED: usize = 8;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let v = vector(s, block, 0);
        [s.and(v, 15), s.and(s.shift_right::<4>(v), 15), v, v, v, v, v, v]
    }
}

/// The field of a column of a block whose low four bits lie as those of [`Bits4`], and the others, `bits` of them, in vectors
/// behind.
#[inline(always)]
fn column_of_two<S: Simd>(s: S, block: &[u8], column: usize, bits: u32) -> S::Ints {
    let (byte, quad) = (8 * (column % 4) as u32, column / 4);
    let low = s.lane_field(vector(s, block, quad / 2), byte + 4 * (quad as u32 % 2), 15);
    let per_vector = 8 / bits as usize;
    let high = vector(s, block, 4 + quad / per_vector);
    let high = s.lane_field(high, byte + bits * (quad % per_vector) as u32, (1 << bits) - 1);
    s.add_ints(low, s.shift_ints_left(high, 4))
}

impl Fields for Bits5 {
    const QUADS: usize = 8;
    const BYTES: usize = 5 * VECTOR_BYTES;
    const LARGEST: u32 = 31;
    const BITS: u32 = 5;
    const UNPACKED_COLUMNS: bool = true;
    const MINIMUMS: bool = true;
    const NESTED: usize = 8;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let high = vector(s, block, 4);
        let mut fields = [high; 8];
        for pair in 0..4 {
            let v = vector(s, block, pair);
            fields[2 * pair] = s.and(v, 15);
            fields[2 * pair + 1] = s.and(s.shift_right::<4>(v), 15);
        }
        [
            s.or(fields[0], s.and(s.shift_left::<4>(high), 16)),
            s.or(fields[1], s.and(s.shift_left::<3>(high), 16)),
            s.or(fields[2], s.and(s.shift_left::<2>(high), 16)),
            s.or(fields[3], s.and(s.shift_left::<1>(high), 16)),
            s.or(fields[4], s.and(high, 16)),
            s.or(fields[5], s.and(s.shift_right::<1>(high), 16)),
            s.or(fields[6], s.and(s.shift_right::<2>(high), 16)),
            s.or(fields[7], s.and(s.shift_right::<3>(high), 16)),
        ]
    }
    #[inline(always)]
    fn column<S: Simd>(s: S, block: &[u8], column: usize) -> S::Ints {
        column_of_two(s, block, column, 1)
    }
}

impl Fields for Bits6 {
    const QUADS: usize = 8;
    const BYTES: usize = 6 * VECTOR_BYTES;
    const LARGEST: u32 = 63;
    const BITS: u32 = 6;
    const UNPACKED_COLUMNS: bool = true;
    const NESTED: usize = 4;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let mut fields = [vector(s, block, 0); 8];
        for half in 0..2 {
            let high = vector(s, block, 4 + half);
            let (a, b) = (vector(s, block, 2 * half), vector(s, block, 2 * half + 1));
            fields[4 * half] = s.or(s.and(a, 15), s.and(s.shift_left::<4>(high), 48));
            fields[4 * half + 1] = s.or(s.and(s.shift_right::<4>(a), 15), s.and(s.shift_left::<2>(high), 48));
            fields[4 * half + 2] = s.or(s.and(b, 15), s.and(high, 48));
            fields[4 * half + 3] = s.or(s.and(s.shift_right::<4>(b), 15), s.and(s.shift_right::<2>(high), 48));
        }
        fields
    }
    #[inline(always)]
    fn column<S: Simd>(s: S, block: &[u8], column: usize) -> S::Ints {
        column_of_two(s, block, column, 2)
    }
}

impl Fields for Bits8 {
    const QUADS: usize = 1;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 255;
    const BITS: u32 = 8;
    const WIDE: bool = true;
    const IN_PLACE: bool = true;
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
    const LEVELS: bool = true;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        Bits4::unpack(s, block)
    }
    #[inline(always)]
    fn to_floats<S: Simd>(s: S, field: S::Ints) -> S::Floats {
        s.lookup_floats(&NF4.levels, field)
    }
}

/// The codes of [`IQ4`] with 128 added, which makes them bytes without sign.
const IQ4_BYTES: [u8; 16] = {
    let mut bytes = [0; 16];
    let mut at = 0;
    while at < 16 {
        bytes[at] = (IQ4[at] as i16 + 128) as u8;
        at += 1;
    }
    bytes
};

const IQ4_FLOATS: [f32; 16] = {
    let mut floats = [0.0; 16];
    let mut at = 0;
    while at < 16 {
        floats[at] = IQ4_BYTES[at] as f32;
        at += 1;
    }
    floats
};

impl Fields for Iq4 {
    const QUADS: usize = Bits4::QUADS;
    const BYTES: usize = Bits4::BYTES;
    const LARGEST: u32 = Bits4::LARGEST;
    const BITS: u32 = Bits4::BITS;
    const WIDE: bool = true;
    const NESTED: usize = 8;
    #[inline(always)]
    fn unpack<S: Simd>(s: S, block: &[u8]) -> [S::Bytes; 8] {
        let (v, table) = (vector(s, block, 0), s.table(&IQ4_BYTES));
        let [low, high] = [s.and(v, 15), s.and(s.shift_right::<4>(v), 15)];
        [s.lookup(table, low), s.lookup(table, high), v, v, v, v, v, v]
    }
    #[inline(always)]
    fn to_floats<S: Simd>(s: S, field: S::Ints) -> S::Floats {
        s.lookup_floats(&IQ4_FLOATS, field)
    }
}
