//! K-quants: blocks of 256 values in parts of 16 or 32, whose scales and minima are small whole numbers times a number of the
//! block.

use super::basic::half;

/// Values of a block.
pub(super) const BLOCK: usize = 256;

/// 2 bits; scale and minimum of 16 values in 4 bits each.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; BLOCK]) {
    let (scales, codes) = (&block[..16], two_bits(&block[16..80]));
    let (d, min) = (half(block, 80), half(block, 82));
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (dl, ml) = (d * f32::from(scales[part] & 15), min * f32::from(scales[part] >> 4));
        for i in 0..16 {
            out[i] = dl * f32::from(codes[16 * part + i]) - ml;
        }
    }
}

/// 3 bits, the third apart; scales of 16 values in 6 bits.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; BLOCK]) {
    let (high, mut codes, scales) = (&block[..32], two_bits(&block[32..96]), &block[96..108]);
    let d = half(block, 108);
    // Bit `n` of byte `i` belongs to value `32 n + i`.
    for (n, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for i in 0..32 {
            codes[i] |= (high[i] >> n & 1) << 2;
        }
    }
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = if part < 8 { scales[part] & 15 } else { scales[part - 8] >> 4 };
        let scale = low | (scales[8 + part % 4] >> (part / 4 * 2) & 3) << 4;
        let dl = d * f32::from(scale as i8 - 32);
        for i in 0..16 {
            out[i] = dl * f32::from(codes[16 * part + i] as i8 - 4);
        }
    }
}

/// Codes of two bits: 32 bytes hold 128 of them, those of one place in a row.
#[inline(always)]
fn two_bits(bytes: &[u8]) -> [u8; BLOCK] {
    let mut codes = [0; BLOCK];
    for (bytes, codes) in bytes.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<128>().0) {
        for i in 0..32 {
            codes[i] = bytes[i] & 3;
            codes[32 + i] = bytes[i] >> 2 & 3;
            codes[64 + i] = bytes[i] >> 4 & 3;
            codes[96 + i] = bytes[i] >> 6;
        }
    }
    codes
}

/// 4 bits; scale and minimum of 32 values in 6 bits each.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; BLOCK]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, minima) = scales_and_minima(&block[4..16]);
    let (codes, _) = block[16..].as_chunks::<32>();
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let codes = &codes[pair];
        let (d1, m1) = (d * f32::from(scales[2 * pair]), min * f32::from(minima[2 * pair]));
        let (d2, m2) = (d * f32::from(scales[2 * pair + 1]), min * f32::from(minima[2 * pair + 1]));
        for i in 0..32 {
            out[i] = d1 * f32::from(codes[i] & 15) - m1;
            out[32 + i] = d2 * f32::from(codes[i] >> 4) - m2;
        }
    }
}

/// 5 bits, the fifth apart; scale and minimum of 32 values in 6 bits each.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; BLOCK]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, minima) = scales_and_minima(&block[4..16]);
    let high = &block[16..48];
    let (codes, _) = block[48..].as_chunks::<32>();
    for (pair, out) in out.as_chunks_mut::<64>().0.iter_mut().enumerate() {
        let codes = &codes[pair];
        let (d1, m1) = (d * f32::from(scales[2 * pair]), min * f32::from(minima[2 * pair]));
        let (d2, m2) = (d * f32::from(scales[2 * pair + 1]), min * f32::from(minima[2 * pair + 1]));
        for i in 0..32 {
            let fifth = high[i] >> (2 * pair);
            out[i] = d1 * f32::from(codes[i] & 15 | (fifth & 1) << 4) - m1;
            out[32 + i] = d2 * f32::from(codes[i] >> 4 | (fifth & 2) << 3) - m2;
        }
    }
}

/// The eight scales and eight minima of 6 bits that twelve bytes hold: the upper two bits of the last four of each lie above
/// the first four's.
#[inline(always)]
fn scales_and_minima(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut minima) = ([0; 8], [0; 8]);
    for i in 0..4 {
        (scales[i], minima[i]) = (bytes[i] & 63, bytes[4 + i] & 63);
        scales[4 + i] = bytes[8 + i] & 15 | bytes[i] >> 6 << 4;
        minima[4 + i] = bytes[8 + i] >> 4 | bytes[4 + i] >> 6 << 4;
    }
    (scales, minima)
}

/// 6 bits, the upper two apart; scales of 16 values in 8 bits.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; BLOCK]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    let mut codes = [0; BLOCK];
    for (index, codes) in codes.as_chunks_mut::<128>().0.iter_mut().enumerate() {
        // Four runs of 32 values: the lower nibbles of 64 bytes, then the upper ones, with two bits of each of 32 bytes.
        let (low, high) = (&low[64 * index..][..64], &high[32 * index..][..32]);
        for i in 0..32 {
            codes[i] = low[i] & 15 | (high[i] & 3) << 4;
            codes[32 + i] = low[32 + i] & 15 | (high[i] >> 2 & 3) << 4;
            codes[64 + i] = low[i] >> 4 | (high[i] >> 4 & 3) << 4;
            codes[96 + i] = low[32 + i] >> 4 | high[i] >> 6 << 4;
        }
    }
    for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let dl = d * f32::from(scales[part] as i8);
        for i in 0..16 {
            out[i] = dl * f32::from(codes[16 * part + i] as i8 - 32);
        }
    }
}

/// 8 bits, scale in single precision; sums of the codes of 16 values follow, which nothing here needs.
#[inline(always)]
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; BLOCK]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for i in 0..BLOCK {
        out[i] = d * f32::from(block[4 + i] as i8);
    }
}
