//! I-quants: groups of four or eight values are entries of a [table](super::grids), with signs apart; or values are levels
//! of a table of 16. Scales of 32 or 16 values are small whole numbers times a number of the block.

use super::basic::{half, half_bits, nibbles};
use super::codes::Constants;
use super::grids::{IQ1_S, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::k_quants::BLOCK;

/// How far the values of [`iq1_s`] and [`iq1_m`] lie beside -1, 0 and 1.
const DELTA: f32 = 0.125;

#[inline(always)]
fn word16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

#[inline(always)]
fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Seven signs and one that makes their number even.
#[inline(always)]
fn even(signs: u32) -> u32 {
    let seven = signs & 127;
    seven | (seven.count_ones() & 1) << 7
}

/// `d` times the entry, with the sign of value `i` in bit `i`.
#[inline(always)]
fn signed<const N: usize>(d: f32, entry: &[u8; N], signs: u32, out: &mut [f32]) {
    for (i, (value, magnitude)) in out.iter_mut().zip(entry).enumerate() {
        *value = f32::from_bits((d * f32::from(*magnitude)).to_bits() ^ signs >> i << 31);
    }
}

/// Entries of 8 values from a table of 256; even signs and a scale of 32 values in a word.
#[inline(always)]
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let entries = &block[2 + 8 * part..][..4];
        let word = word32(block, 6 + 8 * part);
        let d = d * (0.5 + (word >> 28) as f32) * 0.25;
        for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            signed(d, &IQ2_XXS[usize::from(entries[group])], even(word >> (7 * group)), out);
        }
    }
}

/// Entries of 8 values from a table of 512, with even signs; scales of 16 values in 4 bits.
#[inline(always)]
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let word = word16(block, 2 + 2 * group);
        let d = d * (0.5 + f32::from(block[66 + group / 4] >> (group / 2 % 2 * 4) & 15)) * 0.25;
        signed(d, &IQ2_XS[word & 511], even(word as u32 >> 9), out);
    }
}

/// Entries of 8 values from a table of 1024, with eight signs; scales of 16 values in 4 bits.
#[inline(always)]
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    let (entries, signs, high, scales) = (&block[2..34], &block[34..66], &block[66..74], &block[74..82]);
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let d = d * (0.5 + f32::from(scales[group / 4] >> (group / 2 % 2 * 4) & 15)) * 0.25;
        let entry = usize::from(entries[group]) | usize::from(high[group / 4] >> (group % 4 * 2) & 3) << 8;
        signed(d, &IQ2_S[entry], signs[group].into(), out);
    }
}

/// Entries of 4 values from a table of 256; even signs of 8 values and a scale of 32 in a word.
#[inline(always)]
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let entries = &block[2 + 8 * part..][..8];
        let word = word32(block, 66 + 4 * part);
        let d = d * (0.5 + (word >> 28) as f32) * 0.5;
        for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let signs = even(word >> (7 * group));
            let (first, second) = out.split_at_mut(4);
            signed(d, &IQ3_XXS[usize::from(entries[2 * group])], signs, first);
            signed(d, &IQ3_XXS[usize::from(entries[2 * group + 1])], signs >> 4, second);
        }
    }
}

/// Entries of 4 values from a table of 512, with signs; odd scales of 32 values in 4 bits.
#[inline(always)]
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    let (entries, high, signs, scales) = (&block[2..66], &block[66..74], &block[74..106], &block[106..110]);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let d = d * f32::from(1 + 2 * (scales[part / 2] >> (part % 2 * 4) & 15));
        for (quad, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let entry = usize::from(entries[8 * part + quad]) | usize::from(high[part] >> quad & 1) << 8;
            let signs = signs[4 * part + quad / 2] >> (quad % 2 * 4);
            signed(d, &IQ3_S[entry], signs.into(), out);
        }
    }
}

/// `d` times the entry beside its place.
#[inline(always)]
fn beside(d: f32, entry: &[u8; 8], delta: f32, out: &mut [f32; 8]) {
    for i in 0..8 {
        out[i] = d * (f32::from(entry[i] as i8) + delta);
    }
}

/// Entries of 8 ternary values from a table of 2048; odd scale and one sign of [`DELTA`] for 32 values.
#[inline(always)]
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; BLOCK]) {
    let d = half(block, 0);
    for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let word = word16(block, 34 + 2 * part);
        let d = d * (2 * (word >> 12 & 7) + 1) as f32;
        let delta = if word & 0x8000 == 0 { DELTA } else { -DELTA };
        for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let entry = usize::from(block[2 + 4 * part + group]) | (word >> (3 * group) & 7) << 8;
            beside(d, &IQ1_S[entry], delta, out);
        }
    }
}

/// As [`iq1_s`], but with an odd scale for 16 values and a sign of [`DELTA`] for 8. The block's number is in the upper four
/// bits of four words, whose other bits are scales.
#[inline(always)]
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; BLOCK]) {
    let (entries, high) = (&block[..32], &block[32..48]);
    let words: [usize; 4] = std::array::from_fn(|i| word16(block, 48 + 2 * i));
    let bits = words.iter().enumerate().fold(0, |bits, (i, word)| bits | (word >> 12) << (4 * i));
    let d = ::half::f16::from_bits(bits as u16).to_f32();
    for (group, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let scale = words[group / 8] >> (group / 2 % 4 * 3) & 7;
        let nibble = usize::from(high[group / 2] >> (group % 2 * 4) & 15);
        let delta = if nibble & 8 == 0 { DELTA } else { -DELTA };
        let entry = usize::from(entries[group]) | (nibble & 7) << 8;
        beside(d * (2 * scale + 1) as f32, &IQ1_S[entry], delta, out);
    }
}

/// 32 levels of a table of 16 with a scale.
#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], fields: &mut [u8; 32]) -> Constants {
    nibbles(&block[2..], fields);
    Constants::scale(half_bits(block, 0))
}

/// Levels of a table of 16; scales of 32 values in 6 bits.
#[inline(always)]
pub(super) fn iq4_xs(block: &[u8; 136], fields: &mut [u8; BLOCK]) -> Constants {
    let high = word16(block, 2);
    let mut constants = Constants::scale(half_bits(block, 0));
    for (part, fields) in fields.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        nibbles(&block[8 + 16 * part..][..16], fields);
        let low = usize::from(block[4 + part / 2] >> (part % 2 * 4) & 15);
        constants.steps[part] = (low | (high >> (2 * part) & 3) << 4) as i8 - 32;
    }
    constants
}
