//! Floats, and the blocks of 32 values with a scale, or a scale and a minimum, in half precision.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Values of a block.
const BLOCK: usize = 32;

/// The number in half precision at byte `at`.
#[inline(always)]
pub(super) fn half<const N: usize>(block: &[u8; N], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
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
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    for i in 0..BLOCK / 2 {
        let byte = block[2 + i];
        out[i] = f32::from((byte & 15) as i8 - 8) * d;
        out[i + BLOCK / 2] = f32::from((byte >> 4) as i8 - 8) * d;
    }
}

/// 4 bits, scale and minimum.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; BLOCK]) {
    let (d, m) = (half(block, 0), half(block, 2));
    for i in 0..BLOCK / 2 {
        let byte = block[4 + i];
        out[i] = f32::from(byte & 15) * d + m;
        out[i + BLOCK / 2] = f32::from(byte >> 4) * d + m;
    }
}

/// 5 bits, scale; values -16 to 15. Bit `i` of the fifth bits belongs to value `i`.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for i in 0..BLOCK / 2 {
        let byte = block[6 + i];
        out[i] = (with_fifth(byte & 15, fifth, i) - 16) as f32 * d;
        out[i + BLOCK / 2] = (with_fifth(byte >> 4, fifth, i + BLOCK / 2) - 16) as f32 * d;
    }
}

/// 5 bits, scale and minimum.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; BLOCK]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let fifth = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for i in 0..BLOCK / 2 {
        let byte = block[8 + i];
        out[i] = with_fifth(byte & 15, fifth, i) as f32 * d + m;
        out[i + BLOCK / 2] = with_fifth(byte >> 4, fifth, i + BLOCK / 2) as f32 * d + m;
    }
}

#[inline(always)]
fn with_fifth(low: u8, fifth: u32, i: usize) -> i32 {
    (u32::from(low) | (fifth >> i & 1) << 4) as i32
}

/// 8 bits, scale.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    for i in 0..BLOCK {
        out[i] = f32::from(block[2 + i] as i8) * d;
    }
}
