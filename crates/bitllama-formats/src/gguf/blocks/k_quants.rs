//! K-quants: blocks of 256 values in parts of 16 or 32, whose scales and minima are small whole numbers times a number of the
//! block.

use std::array;

use super::basic::{add_bits, half_bits, take_bits};
use super::codes::Constants;

/// Values of a block.
pub(super) const BLOCK: usize = 256;

/// 2 bits; scale and minimum of 16 values in 4 bits each.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], fields: &mut [u8; BLOCK]) -> Constants {
    two_bits(&block[16..80], fields);
    Constants {
        scale: half_bits(block, 80),
        minimum: half_bits(block, 82),
        steps: array::from_fn(|part| (block[part] & 15) as i8),
        minimum_steps: array::from_fn(|part| (block[part] >> 4) as i8),
    }
}

/// 3 bits, the third apart; scales of 16 values in 6 bits.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], fields: &mut [u8; BLOCK]) -> Constants {
    let (high, scales) = (&block[..32], &block[96..108]);
    two_bits(&block[32..96], fields);
    // Bit `n` of byte `i` belongs to value `32 n + i`.
    for (n, fields) in fields.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        add_bits(high, n, 1, fields, 2);
    }
    let mut constants = Constants::scale(half_bits(block, 108));
    for part in 0..16 {
        let low = if part < 8 { scales[part] & 15 } else { scales[part - 8] >> 4 };
        let scale = low | (scales[8 + part % 4] >> (part / 4 * 2) & 3) << 4;
        constants.steps[part] = scale as i8 - 32;
    }
    constants
}

/// Fields of two bits: 32 bytes hold 128 of them, those of one place in a row.
#[inline(always)]
pub(super) fn two_bits(bytes: &[u8], fields: &mut [u8; BLOCK]) {
    for (bytes, fields) in bytes.as_chunks::<32>().0.iter().zip(fields.as_chunks_mut::<128>().0) {
        for (place, fields) in fields.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            take_bits(bytes, 2 * place, 3, fields);
        }
    }
}

/// 4 bits; scale and minimum of 32 values in 6 bits each.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], fields: &mut [u8; BLOCK]) -> Constants {
    nibbles(&block[16..], fields);
    scales_and_minima(block)
}

/// 5 bits, the fifth apart; scale and minimum of 32 values in 6 bits each.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], fields: &mut [u8; BLOCK]) -> Constants {
    nibbles(&block[48..], fields);
    let high = &block[16..48];
    // Bit `n` of byte `i` belongs to value `32 n + i`.
    for (n, fields) in fields.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        add_bits(high, n, 1, fields, 4);
    }
    scales_and_minima(block)
}

/// Fields of four bits: 32 bytes hold 64 of them, the lower nibbles in front.
#[inline(always)]
fn nibbles(bytes: &[u8], fields: &mut [u8; BLOCK]) {
    for (bytes, fields) in bytes.as_chunks::<32>().0.iter().zip(fields.as_chunks_mut::<64>().0) {
        take_bits(bytes, 0, 15, &mut fields[..32]);
        take_bits(bytes, 4, 15, &mut fields[32..]);
    }
}

/// The constants of Q4_K and Q5_K. Twelve bytes hold eight scales and eight minima of 6 bits: the upper two bits of the last four
/// of each lie above the first four's.
#[inline(always)]
fn scales_and_minima<const N: usize>(block: &[u8; N]) -> Constants {
    let bytes = &block[4..16];
    let mut constants = Constants { scale: half_bits(block, 0), minimum: half_bits(block, 2), ..Constants::default() };
    let (scales, minima) = (&mut constants.steps, &mut constants.minimum_steps);
    for i in 0..4 {
        (scales[i], minima[i]) = ((bytes[i] & 63) as i8, (bytes[4 + i] & 63) as i8);
        scales[4 + i] = (bytes[8 + i] & 15 | bytes[i] >> 6 << 4) as i8;
        minima[4 + i] = (bytes[8 + i] >> 4 | bytes[4 + i] >> 6 << 4) as i8;
    }
    constants
}

/// 6 bits, the upper two apart; scales of 16 values in 8 bits.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], fields: &mut [u8; BLOCK]) -> Constants {
    let (low, high) = (&block[..128], &block[128..192]);
    for (index, fields) in fields.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        // Four runs of 32 values: the lower nibbles of 64 bytes, then the upper ones, with two bits of each of 32 bytes.
        let (low, high) = (&low[64 * index..][..64], &high[32 * index..][..32]);
        take_bits(low, 0, 15, &mut fields[..64]);
        take_bits(low, 4, 15, &mut fields[64..]);
        for (run, fields) in fields.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            add_bits(high, 2 * run, 3, fields, 4);
        }
    }
    Constants { steps: array::from_fn(|part| block[192 + part] as i8), ..Constants::scale(half_bits(block, 208)) }
}

/// 8 bits, scale in single precision; sums of the codes of 16 values follow, which nothing here needs.
#[inline(always)]
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; BLOCK]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for i in 0..BLOCK {
        out[i] = d * f32::from(block[4 + i] as i8);
    }
}
