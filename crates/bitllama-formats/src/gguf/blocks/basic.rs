//! Floats, and the blocks of 32 values with a scale, or a scale and a minimum, in half precision.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::codes::Constants;

/// Values of a block.
const BLOCK: usize = 32;

/// The number in half precision at byte `at`.
#[inline(always)]
pub(super) fn half<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f16::from_bits(half_bits(block, at)).to_f32()
}

/// The bits of the number in half precision at byte `at`.
#[inline(always)]
pub(super) fn half_bits<const N: usize>(block: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([block[at], block[at + 1]])
}

/// Single precision.
#[inline(always)]
pub(super) fn f32(bytes: &[u8; 4], out: &mut [f32; 1]) {
    out[0] = f32::from_le_bytes(*bytes);
}

/// The upper half of an F32.
#[inline(always)]
pub(super) fn bf16(bytes: &[u8; 2], out: &mut [f32; 1]) {
    out[0] = bf16::from_le_bytes(*bytes).to_f32();
}

/// Half precision, for any number of values: the processor converts eight at a time.
pub(super) fn f16(bytes: &[u8], out: &mut [f32]) {
    const RUN: usize = 256;
    let mut halves = [f16::ZERO; RUN];
    for (bytes, out) in bytes.chunks(2 * RUN).zip(out.chunks_mut(RUN)) {
        let halves = &mut halves[..out.len()];
        for (half, bytes) in halves.iter_mut().zip(bytes.as_chunks().0) {
            *half = f16::from_le_bytes(*bytes);
        }
        halves.convert_to_f32_slice(out);
    }
}

/// 4 bits, scale; values -8 to 7.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], fields: &mut [u8; BLOCK]) -> Constants {
    nibbles(&block[2..], fields);
    Constants::scale(half_bits(block, 0))
}

/// 4 bits, scale and number that is added.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], fields: &mut [u8; BLOCK]) -> Constants {
    nibbles(&block[4..], fields);
    Constants { minimum: negative(half_bits(block, 2)), ..Constants::scale(half_bits(block, 0)) }
}

/// 5 bits, scale; values -16 to 15.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], fields: &mut [u8; BLOCK]) -> Constants {
    nibbles(&block[6..], fields);
    fifth_bits(&block[2..6], fields);
    Constants::scale(half_bits(block, 0))
}

/// 5 bits, scale and number that is added.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], fields: &mut [u8; BLOCK]) -> Constants {
    nibbles(&block[8..], fields);
    fifth_bits(&block[4..8], fields);
    Constants { minimum: negative(half_bits(block, 2)), ..Constants::scale(half_bits(block, 0)) }
}

/// 8 bits, scale.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], fields: &mut [u8; BLOCK]) -> Constants {
    // From two's complement to a distance from -128.
    for (codes, fields) in block[2..].as_chunks::<8>().0.iter().zip(fields.as_chunks_mut::<8>().0) {
        *fields = (u64::from_le_bytes(*codes) ^ repeat(0x80)).to_le_bytes();
    }
    Constants::scale(half_bits(block, 0))
}

/// A number in half precision with the other sign.
#[inline(always)]
fn negative(half: u16) -> u16 {
    half ^ 0x8000
}

/// The lower nibbles of 16 bytes, then the upper ones.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8], fields: &mut [u8; BLOCK]) {
    take_bits(bytes, 0, 15, &mut fields[..BLOCK / 2]);
    take_bits(bytes, 4, 15, &mut fields[BLOCK / 2..]);
}

/// Bit `i` of four bytes is the fifth bit of field `i`.
#[inline(always)]
fn fifth_bits(bytes: &[u8], fields: &mut [u8; BLOCK]) {
    for (fields, byte) in fields.as_chunks_mut::<8>().0.iter_mut().zip(bytes) {
        *fields = (u64::from_le_bytes(*fields) | spread(*byte) << 4).to_le_bytes();
    }
}

/// The bits of `mask` of each byte above its `shift` lowest, as fields. Eight bytes are worked on as one number, which is quick
/// whatever vectors the compiler makes of it.
#[inline(always)]
pub(super) fn take_bits(bytes: &[u8], shift: usize, mask: u8, fields: &mut [u8]) {
    for (bytes, fields) in bytes.as_chunks::<8>().0.iter().zip(fields.as_chunks_mut::<8>().0) {
        *fields = (u64::from_le_bytes(*bytes) >> shift & repeat(mask)).to_le_bytes();
    }
}

/// As [`take_bits`], above the `from` lowest bits of the fields, which are there already.
#[inline(always)]
pub(super) fn add_bits(bytes: &[u8], shift: usize, mask: u8, fields: &mut [u8], from: usize) {
    for (bytes, fields) in bytes.as_chunks::<8>().0.iter().zip(fields.as_chunks_mut::<8>().0) {
        let bits = (u64::from_le_bytes(*bytes) >> shift & repeat(mask)) << from;
        *fields = (u64::from_le_bytes(*fields) | bits).to_le_bytes();
    }
}

/// Eight times the same byte.
#[inline(always)]
fn repeat(byte: u8) -> u64 {
    u64::from(byte) * (u64::MAX / 255)
}

/// The bits of a byte in a byte each, the lowest first.
#[inline(always)]
pub(super) fn spread(byte: u8) -> u64 {
    // Byte `i` keeps bit `i` only; what is not 0 reaches the highest bit.
    let apart = repeat(byte) & 0x8040_2010_0804_0201;
    (apart + repeat(0x7f)) >> 7 & repeat(1)
}
