//! Ternary blocks, the 4-bit floats of OCP's MX and NVIDIA, and the blocks of one and two bits with a scale.

use super::basic::{half_bits, spread};
use super::codes::Constants;
use super::k_quants::{BLOCK, two_bits};

/// Ternary values, five to a byte: the digits of `byte * 243 / 256` in base 3, the first one in front. Scale at the end.
#[inline(always)]
pub(super) fn tq1_0(block: &[u8; 54], fields: &mut [u8; BLOCK]) -> Constants {
    let (first, rest) = fields.split_at_mut(160);
    let (second, third) = rest.split_at_mut(80);
    // Runs of 32, 16 and 4 bytes: the first digits of all bytes of a run come first.
    digits::<32>(&block[..32], first);
    digits::<16>(&block[32..48], second);
    digits::<4>(&block[48..52], third);
    Constants::scale(half_bits(block, 52))
}

/// As many digits of `N` bytes as fill `fields`.
#[inline(always)]
fn digits<const N: usize>(bytes: &[u8], fields: &mut [u8]) {
    for (fields, power) in fields.as_chunks_mut::<N>().0.iter_mut().zip([1u8, 3, 9, 27, 81]) {
        for i in 0..N {
            fields[i] = ((u16::from(bytes[i].wrapping_mul(power)) * 3) >> 8) as u8;
        }
    }
}

/// Ternary values in 2 bits each, those of one shift of 32 bytes in a row; scale at the end.
#[inline(always)]
pub(super) fn tq2_0(block: &[u8; 66], fields: &mut [u8; BLOCK]) -> Constants {
    two_bits(&block[..64], fields);
    Constants::scale(half_bits(block, 64))
}

/// The values of a float of 4 bits (E2M1), doubled, so that they are whole.
const FP4: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// Floats of 4 bits with a power of two for 32 of them (OCP Microscaling Formats 1.0, MXFP4).
#[inline(always)]
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let d = half_of_e8m0(block[0]);
    for i in 0..16 {
        out[i] = FP4[usize::from(block[1 + i] & 15)] * d;
        out[16 + i] = FP4[usize::from(block[1 + i] >> 4)] * d;
    }
}

/// Half of `2^(e - 127)`; the first two are subnormal.
#[inline(always)]
fn half_of_e8m0(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Floats of 4 bits with a float of 8 bits (E4M3) for 16 of them.
#[inline(always)]
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let d = half_of_ue4m3(block[part]);
        let codes = &block[4 + 8 * part..][..8];
        for i in 0..8 {
            out[i] = FP4[usize::from(codes[i] & 15)] * d;
            out[8 + i] = FP4[usize::from(codes[i] >> 4)] * d;
        }
    }
}

/// Half of a float of 4 exponent and 3 mantissa bits without a sign; the one that is not a number counts as 0, as in
/// llama.cpp.
#[inline(always)]
fn half_of_ue4m3(bits: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 3 & 15), f32::from(bits & 7));
    match (bits, exponent) {
        (0x7f, _) => 0.0,
        (_, 0) => mantissa / 1024.0,
        // 2^(exponent - 7 - 1), by its bits.
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((exponent + 127 - 8) << 23),
    }
}

/// Signs with a scale for 128 of them.
#[inline(always)]
pub(super) fn q1_0(block: &[u8; 18], fields: &mut [u8; 128]) -> Constants {
    for (byte, fields) in block[2..].iter().zip(fields.as_chunks_mut::<8>().0) {
        *fields = spread(*byte).to_le_bytes();
    }
    Constants::scale(half_bits(block, 0))
}

/// 2 bits with a scale for 64 of them; values -1 to 2.
#[inline(always)]
pub(super) fn q2_0(block: &[u8; 18], fields: &mut [u8; 64]) -> Constants {
    for (byte, fields) in block[2..].iter().zip(fields.as_chunks_mut::<4>().0) {
        let byte = u32::from(*byte);
        *fields = ((byte | byte << 6 | byte << 12 | byte << 18) & 0x0303_0303).to_le_bytes();
    }
    Constants::scale(half_bits(block, 0))
}
