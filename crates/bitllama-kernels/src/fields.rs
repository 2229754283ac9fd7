//! How the fields of each scheme come out of a block of a panel.

use bitllama_core::nf4;
use bitllama_core::panel::VECTOR_BYTES;

use crate::simd::Simd;

/// How the fields of a scheme come out of a block.
pub(crate) trait Fields {
    /// Quads of columns of a block.
    const QUADS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    /// The largest field.
    const LARGEST: u32;
    /// Shift of a row's lane that brings the lowest bit of byte 0 of each quad down, and its vector: see `panel`.
    const BITS: u32;
    /// Whether codes come out of a table, see [`crate::levels`].
    const TABLE: bool = false;
    /// The fields of each quad, each in its byte. `block` points to the rows of the register in vector 0.
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8];
    /// The field of one column of a block.
    #[inline(always)]
    unsafe fn column<S: Simd>(block: *const u8, column: usize) -> S::Ints {
        let shift = 8 * (column % 4) as u32 + Self::BITS * (column / 4) as u32;
        unsafe { S::lane_field(S::load(block), shift, Self::LARGEST as i32) }
    }
    /// What a field is worth before [`Scheme::line`](bitllama_core::Scheme::line) makes it a code; with a table, the code.
    #[inline(always)]
    unsafe fn to_floats<S: Simd>(field: S::Ints) -> S::Floats {
        unsafe { S::to_floats(field) }
    }
}

pub(crate) struct Bits1;
pub(crate) struct Bits2;
pub(crate) struct Bits3;
pub(crate) struct Bits4;
pub(crate) struct Bits8;
pub(crate) struct Nf4;

/// Calls a kernel `$kernel::<$simd, F>` with the [`Fields`] of a scheme.
macro_rules! by_scheme {
    ($scheme:expr, $kernel:ident::<$simd:ident>($($argument:expr),*)) => {
        match $scheme {
            Scheme::Binary => $kernel::<$simd, Bits1>($($argument),*),
            Scheme::Ternary | Scheme::Seq2 | Scheme::Int2 => $kernel::<$simd, Bits2>($($argument),*),
            Scheme::Int3 => $kernel::<$simd, Bits3>($($argument),*),
            Scheme::Int4 => $kernel::<$simd, Bits4>($($argument),*),
            Scheme::Nf4 => $kernel::<$simd, Nf4>($($argument),*),
            Scheme::Int8 => $kernel::<$simd, Bits8>($($argument),*),
        }
    };
}
pub(crate) use by_scheme;

impl Fields for Bits1 {
    const QUADS: usize = 8;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 1;
    const BITS: u32 = 1;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let v = S::load(block);
            [
                S::and(v, 1),
                S::and(S::shift_right::<1>(v), 1),
                S::and(S::shift_right::<2>(v), 1),
                S::and(S::shift_right::<3>(v), 1),
                S::and(S::shift_right::<4>(v), 1),
                S::and(S::shift_right::<5>(v), 1),
                S::and(S::shift_right::<6>(v), 1),
                S::and(S::shift_right::<7>(v), 1),
            ]
        }
    }
}

impl Fields for Bits2 {
    const QUADS: usize = 4;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 3;
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let v = S::load(block);
            let fields = [
                S::and(v, 3),
                S::and(S::shift_right::<2>(v), 3),
                S::and(S::shift_right::<4>(v), 3),
                S::and(S::shift_right::<6>(v), 3),
            ];
            [fields[0], fields[1], fields[2], fields[3], v, v, v, v]
        }
    }
}

impl Fields for Bits3 {
    const QUADS: usize = 8;
    const BYTES: usize = 3 * VECTOR_BYTES;
    const LARGEST: u32 = 7;
    const BITS: u32 = 3;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let (a, b) = (S::load(block), S::load(block.add(VECTOR_BYTES)));
            let high = S::load(block.add(2 * VECTOR_BYTES));
            [
                S::or(S::and(a, 3), S::and(S::shift_left::<2>(high), 4)),
                S::or(S::and(S::shift_right::<2>(a), 3), S::and(S::shift_left::<1>(high), 4)),
                S::or(S::and(S::shift_right::<4>(a), 3), S::and(high, 4)),
                S::or(S::and(S::shift_right::<6>(a), 3), S::and(S::shift_right::<1>(high), 4)),
                S::or(S::and(b, 3), S::and(S::shift_right::<2>(high), 4)),
                S::or(S::and(S::shift_right::<2>(b), 3), S::and(S::shift_right::<3>(high), 4)),
                S::or(S::and(S::shift_right::<4>(b), 3), S::and(S::shift_right::<4>(high), 4)),
                S::or(S::and(S::shift_right::<6>(b), 3), S::and(S::shift_right::<5>(high), 4)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn column<S: Simd>(block: *const u8, column: usize) -> S::Ints {
        let (byte, quad) = (8 * (column % 4) as u32, (column / 4) as u32);
        unsafe {
            let low = S::load(block.add(quad as usize / 4 * VECTOR_BYTES));
            let high = S::load(block.add(2 * VECTOR_BYTES));
            let low = S::lane_field(low, byte + 2 * (quad % 4), 3);
            let high = S::lane_field(high, byte + quad, 1);
            S::int_add(low, S::int_mul(high, S::int_splat(4)))
        }
    }
}

impl Fields for Bits4 {
    const QUADS: usize = 2;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 15;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let v = S::load(block);
            [S::and(v, 15), S::and(S::shift_right::<4>(v), 15), v, v, v, v, v, v]
        }
    }
}

impl Fields for Bits8 {
    const QUADS: usize = 1;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 255;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe { [S::load(block); 8] }
    }
}

impl Fields for Nf4 {
    const QUADS: usize = Bits4::QUADS;
    const BYTES: usize = Bits4::BYTES;
    const LARGEST: u32 = Bits4::LARGEST;
    const BITS: u32 = Bits4::BITS;
    const TABLE: bool = true;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe { Bits4::unpack::<S>(block) }
    }
    #[inline(always)]
    unsafe fn to_floats<S: Simd>(field: S::Ints) -> S::Floats {
        unsafe { S::lookup_floats(&nf4::LEVELS, field) }
    }
}
