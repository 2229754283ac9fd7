//! What numbers become when they are packed: the words of 32 bits that a micro-kernel multiplies.

use half::bf16;

/// A number of a source.
pub(super) trait Number: Copy + Sync {
    fn get(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn get(self) -> f32 {
        self
    }
}

impl Number for bf16 {
    #[inline(always)]
    fn get(self) -> f32 {
        // Not `to_f32`, which is a call on some targets.
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// How numbers become words.
pub(super) trait Encode: Copy + Sync {
    /// Numbers of a word, neighbours in `k`: 1 or 2.
    const PER_WORD: usize;

    /// The word of one number of a lane and of the next; that is anything where [`PER_WORD`](Self::PER_WORD) is 1.
    fn word(self, lane: usize, x: [f32; 2]) -> u32;
}

/// Numbers as they are.
#[derive(Clone, Copy)]
pub(super) struct Exact;

/// Numbers rounded to `bf16`, in `f32`.
#[derive(Clone, Copy)]
pub(super) struct Rounded;

/// Two numbers in `bf16`, the first in the low half.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

impl Encode for Exact {
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn word(self, _: usize, x: [f32; 2]) -> u32 {
        x[0].to_bits()
    }
}

impl Encode for Rounded {
    const PER_WORD: usize = 1;

    #[inline(always)]
    fn word(self, _: usize, x: [f32; 2]) -> u32 {
        rounded(x[0])
    }
}

impl Encode for Pairs {
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn word(self, _: usize, x: [f32; 2]) -> u32 {
        rounded(x[0]) >> 16 | rounded(x[1])
    }
}

/// The bits of the nearest number that is a `bf16`, of two equally near ones the even.
#[inline(always)]
fn rounded(x: f32) -> u32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    (if x.is_nan() { bits | 0x0040_0000 } else { nearest }) & 0xffff_0000
}
