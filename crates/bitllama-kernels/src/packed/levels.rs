//! Codes out of a table ([`Scheme::table`](bitllama_core::Scheme::table)) in products with 8-bit activations.
//!
//! A level is written in fixed point as `(256 * high + low) / UNIT` with two signed bytes, so its products with
//! activations are whole numbers as those of other schemes are, and sums of them are exact and the same on every
//! instruction set. The levels themselves are off by at most [`ERROR`] of the largest one: 2^-16.9, a hundredth of what
//! rounding the activations to 8 bits costs. Products with f32 activations take the levels as they are.

use bitllama_core::levels::NF4;
use bitllama_core::panel::PANEL_ROWS;

use super::fields::{Fields, Nf4};
use super::sums::{self, Quads};
use crate::simd::Simd;

/// The fixed-point form of 1: among the whole numbers that two signed bytes allow, the one that brings the levels of
/// `nf4` the closest to whole numbers.
const UNIT: i32 = 31_908;

/// Upper bound of the difference between a level and its fixed-point form, in units of the scale.
pub const ERROR: f32 = 7.9e-6;

/// The bytes of each level by field, each with 128 added, which makes it unsigned.
struct Digits {
    high: [u8; 16],
    low: [u8; 16],
}

const DIGITS: Digits = {
    let mut digits = Digits { high: [0; 16], low: [0; 16] };
    let mut field = 0;
    while field < 16 {
        let number = fixed_point(NF4.levels[field]);
        let low = (number + 128).rem_euclid(256) - 128;
        digits.high[field] = ((number - low) / 256 + 128) as u8;
        digits.low[field] = (low + 128) as u8;
        field += 1;
    }
    digits
};

/// The nearest whole number to `level * UNIT`.
const fn fixed_point(level: f32) -> i32 {
    let number = level as f64 * UNIT as f64;
    (if number < 0.0 { number - 0.5 } else { number + 0.5 }) as i32
}

/// The sums of levels times activations of some blocks of a panel, for each token, of which `x_sums` are the sums of the
/// activations.
#[inline(always)]
pub(super) fn code_sums<S: Simd, const N: usize, const WIDTH: usize>(
    s: S,
    bytes: &[u8],
    x: Quads<WIDTH>,
    x_sums: &[i32; N],
) -> [S::Floats; N] {
    // The number that was added to the digits, less the one that the instructions take away.
    let mut start = [s.splat_int(0); N];
    for token in 0..N {
        start[token] = s.splat_int((S::BYTE_BIAS - 128) * x_sums[token]);
    }
    // As many sums as there are registers for.
    let [high, low] = if 2 * N <= S::SUMS {
        digit_sums::<S, N, WIDTH, 2>(s, [&DIGITS.high, &DIGITS.low], bytes, x, start)
    } else {
        let [high] = digit_sums::<S, N, WIDTH, 1>(s, [&DIGITS.high], bytes, x, start);
        let [low] = digit_sums::<S, N, WIDTH, 1>(s, [&DIGITS.low], bytes, x, start);
        [high, low]
    };
    let unit = s.splat(1.0 / UNIT as f32);
    let mut codes = [s.splat(0.0); N];
    for token in 0..N {
        codes[token] = match bytes.len() <= MAX_JOINED_BYTES {
            true => s.to_floats(s.add_ints(s.shift_ints_left(high[token], 8), low[token])),
            false => s.mul_add_once(s.to_floats(high[token]), s.splat(256.0), s.to_floats(low[token])),
        };
        codes[token] = s.mul(codes[token], unit);
    }
    codes
}

/// Bytes of the blocks whose sums of whole levels fit into 32 bits: those of 512 columns.
const MAX_JOINED_BYTES: usize = 512 / 2 * PANEL_ROWS;
const _: () = assert!(512 * 127 * UNIT as i64 <= i32::MAX as i64);

/// `start` plus the sums of `D` digits of the levels times activations. Fields lie in blocks as those of `int4` do.
#[inline(always)]
fn digit_sums<S: Simd, const N: usize, const WIDTH: usize, const D: usize>(
    s: S,
    digits: [&[u8; 16]; D],
    mut bytes: &[u8],
    mut x: Quads<WIDTH>,
    start: [S::Ints; N],
) -> [[S::Ints; N]; D] {
    let mut tables = [s.table(digits[0]); D];
    for digit in 1..D {
        tables[digit] = s.table(digits[digit]);
    }
    let mut sums = [start; D];
    while let (Some(block), Some(x)) = (bytes.split_off(..Nf4::BYTES), x.split_off(Nf4::QUADS)) {
        sums::ask_ahead::<S, N>(s, block);
        let fields = Nf4::unpack(s, block);
        for quad in 0..Nf4::QUADS {
            let mut digits = [fields[quad]; D];
            for digit in 0..D {
                digits[digit] = s.lookup(tables[digit], fields[quad]);
            }
            let x = x.of::<N>(quad);
            for token in 0..N {
                let x = s.splat_quad(x[token]);
                for digit in 0..D {
                    sums[digit][token] = s.dot_bytes(sums[digit][token], digits[digit], x);
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_point_is_as_close_as_said() {
        let mut largest = 0.0f64;
        for (field, level) in NF4.levels.into_iter().enumerate() {
            let [high, low] = [DIGITS.high[field], DIGITS.low[field]].map(|digit| f64::from(digit) - 128.0);
            largest = largest.max(((256.0 * high + low) / f64::from(UNIT) - f64::from(level)).abs());
        }
        assert!(largest < f64::from(ERROR) && largest > 0.98 * f64::from(ERROR), "{largest}");
        let of = |unit: i32| {
            let off =
                |level: f32| ((f64::from(level) * f64::from(unit)).round() / f64::from(unit) - f64::from(level)).abs();
            NF4.levels.into_iter().map(off).fold(0.0, f64::max)
        };
        assert!((10_000..=32_639).all(|unit| of(unit) >= largest));
    }
}
