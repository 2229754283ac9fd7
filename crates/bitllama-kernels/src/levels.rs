//! Codes out of a table ([`Scheme::table`](bitllama_core::Scheme::table)) in products with 8-bit activations.
//!
//! A level is written in fixed point as `(256 * high + low) / UNIT` with two signed bytes, so its products with
//! activations are whole numbers as those of other schemes are, and sums of them are exact and the same on every
//! instruction set. The levels themselves are off by at most [`ERROR`] of the largest one: 2^-16.9, a hundredth of what
//! rounding the activations to 8 bits costs. Products with f32 activations take the levels as they are.

use bitllama_core::nf4;
use bitllama_core::panel::VECTOR_BYTES;

use crate::simd::Simd;

/// What stands for 1 in fixed point: of all whole numbers that two signed bytes allow, the one that brings the levels of
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
        let number = fixed_point(nf4::LEVELS[field]);
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
/// activations. `values` are the activations of all blocks, four columns of each token after the other.
///
/// # Safety
/// As for [`crate::integer::integer_panels`].
#[inline(always)]
pub(crate) unsafe fn code_sums<S: Simd, const N: usize>(
    panel: *const u8,
    values: *const i8,
    blocks: (usize, usize),
    x_sums: [i32; N],
) -> [S::Floats; N] {
    unsafe {
        // As many sums as there are registers for, and with few tokens enough that one does not wait for another.
        let (high, low) = if 4 * N <= S::SUMS {
            let [high, low] = digit_sums::<S, N, 2, 2>([&DIGITS.high, &DIGITS.low], panel, values, blocks);
            (high, low)
        } else if 2 * N <= S::SUMS {
            let [high, low] = digit_sums::<S, N, 2, 1>([&DIGITS.high, &DIGITS.low], panel, values, blocks);
            (high, low)
        } else {
            let [high] = digit_sums::<S, N, 1, 1>([&DIGITS.high], panel, values, blocks);
            let [low] = digit_sums::<S, N, 1, 1>([&DIGITS.low], panel, values, blocks);
            (high, low)
        };
        let mut codes = [S::splat(0.0); N];
        for (token, codes) in codes.iter_mut().enumerate() {
            // What was added to the digits, less what the instructions have taken away.
            let bias = S::int_splat((S::BYTE_BIAS - 128) * x_sums[token]);
            let high = S::to_floats(S::int_add(high[token], bias));
            let low = S::to_floats(S::int_add(low[token], bias));
            *codes = S::mul(S::add(S::mul(high, S::splat(256.0)), low), S::splat(1.0 / UNIT as f32));
        }
        codes
    }
}

/// The sums of `D` digits of the levels times activations, in `C` (one or two) sums each. Fields lie in blocks as those
/// of `int4` do.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn digit_sums<S: Simd, const N: usize, const D: usize, const C: usize>(
    digits: [&[u8; 16]; D],
    panel: *const u8,
    values: *const i8,
    (first, end): (usize, usize),
) -> [[S::Ints; N]; D] {
    unsafe {
        let mut tables = [S::table(digits[0]); D];
        for digit in 1..D {
            tables[digit] = S::table(digits[digit]);
        }
        let mut sums = [[[S::int_splat(0); N]; D]; C];
        for block in first..end {
            let v = S::load(panel.add(block * VECTOR_BYTES));
            S::prefetch(panel.wrapping_add(block * VECTOR_BYTES + PREFETCH));
            let x = values.add(2 * block * N * 4);
            add_quad::<S, N, D>(&tables, S::and(v, 15), x, &mut sums[0]);
            add_quad::<S, N, D>(&tables, S::and(S::shift_right::<4>(v), 15), x.add(4 * N), &mut sums[C - 1]);
        }
        let mut total = sums[0];
        if C == 2 {
            for digit in 0..D {
                for token in 0..N {
                    total[digit][token] = S::int_add(total[digit][token], sums[1][digit][token]);
                }
            }
        }
        total
    }
}

/// Adds the products of a quad of columns. Without closures: they would not have the instruction set of their function.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
unsafe fn add_quad<S: Simd, const N: usize, const D: usize>(
    tables: &[S::Bytes; D],
    fields: S::Bytes,
    values: *const i8,
    sums: &mut [[S::Ints; N]; D],
) {
    unsafe {
        let mut digits = [fields; D];
        for digit in 0..D {
            digits[digit] = S::lookup(tables[digit], fields);
        }
        for token in 0..N {
            let x = S::broadcast(values.add(4 * token));
            for digit in 0..D {
                sums[digit][token] = S::dot_bytes(sums[digit][token], digits[digit], x);
            }
        }
    }
}

/// Bytes ahead of the block at work that are asked for.
const PREFETCH: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_point_is_as_close_as_said() {
        let mut largest = 0.0f64;
        for (field, level) in nf4::LEVELS.into_iter().enumerate() {
            let [high, low] = [DIGITS.high[field], DIGITS.low[field]].map(|digit| f64::from(digit) - 128.0);
            largest = largest.max(((256.0 * high + low) / f64::from(UNIT) - f64::from(level)).abs());
        }
        assert!(largest < f64::from(ERROR) && largest > 0.98 * f64::from(ERROR), "{largest}");
        let of = |unit: i32| {
            let off =
                |level: f32| ((f64::from(level) * f64::from(unit)).round() / f64::from(unit) - f64::from(level)).abs();
            nf4::LEVELS.into_iter().map(off).fold(0.0, f64::max)
        };
        assert!((10_000..=32_639).all(|unit| of(unit) >= largest));
    }
}
