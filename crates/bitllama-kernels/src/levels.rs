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

/// The sums of levels times activations of some blocks of a panel, for each token, of which `x_sum` is the sum of the
/// activations. `values` are the activations of all blocks, four columns of each token after the other.
///
/// # Safety
/// As for [`crate::integer::integer_panels`].
#[inline(always)]
pub(crate) unsafe fn code_sums<S: Simd, const N: usize>(
    panel: *const u8,
    values: *const i8,
    blocks: (usize, usize),
    x_sum: impl Fn(usize) -> i32,
) -> [S::Floats; N] {
    unsafe {
        let (high, low) = match 2 * N <= S::SUMS {
            true => {
                let [high, low] = digit_sums::<S, N, 2>([&DIGITS.high, &DIGITS.low], panel, values, blocks);
                (high, low)
            }
            // Two sums a token are more than there are registers.
            false => {
                let [high] = digit_sums::<S, N, 1>([&DIGITS.high], panel, values, blocks);
                let [low] = digit_sums::<S, N, 1>([&DIGITS.low], panel, values, blocks);
                (high, low)
            }
        };
        let mut codes = [S::splat(0.0); N];
        for (token, codes) in codes.iter_mut().enumerate() {
            // What was added to the digits, less what the instructions have taken away.
            let bias = S::int_splat((S::BYTE_BIAS - 128) * x_sum(token));
            let [high, low] = [high, low].map(|sums| S::to_floats(S::int_add(sums[token], bias)));
            *codes = S::mul(S::add(S::mul(high, S::splat(256.0)), low), S::splat(1.0 / UNIT as f32));
        }
        codes
    }
}

/// The sums of some digits of the levels times activations. Fields lie in blocks as those of `int4` do.
#[inline(always)]
unsafe fn digit_sums<S: Simd, const N: usize, const D: usize>(
    digits: [&[u8; 16]; D],
    panel: *const u8,
    values: *const i8,
    (first, end): (usize, usize),
) -> [[S::Ints; N]; D] {
    unsafe {
        let digits = digits.map(|digits| S::table(digits));
        // With few tokens, the two quads of a block have sums of their own.
        let chains = (S::SUMS / (N * D)).clamp(1, 2);
        let mut sums = [[[S::int_splat(0); N]; D]; 2];
        for block in first..end {
            let v = S::load(panel.add(block * VECTOR_BYTES));
            S::prefetch(panel.wrapping_add(block * VECTOR_BYTES + PREFETCH));
            for (quad, fields) in [S::and(v, 15), S::and(S::shift_right::<4>(v), 15)].into_iter().enumerate() {
                let digits = digits.map(|digits| S::lookup(digits, fields));
                for token in 0..N {
                    let x = S::broadcast(values.add(((2 * block + quad) * N + token) * 4));
                    for (digit, sums) in digits.into_iter().zip(&mut sums[quad % chains]) {
                        sums[token] = S::dot_bytes(sums[token], digit, x);
                    }
                }
            }
        }
        let [mut total, other] = sums;
        if chains == 2 {
            for (total, other) in total.iter_mut().zip(other) {
                total.iter_mut().zip(other).for_each(|(total, other)| *total = S::int_add(*total, other));
            }
        }
        total
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
