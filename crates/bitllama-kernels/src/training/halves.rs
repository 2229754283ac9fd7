//! Numbers of 16 bits made `f32`, on all threads, and back.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::PART;
use super::buffer::written;

/// Of bf16, exactly.
pub fn from_bf16(numbers: &[bf16]) -> Vec<f32> {
    written(numbers.len(), |out| {
        out.par_chunks_mut(PART).zip(numbers.par_chunks(PART)).for_each(|(out, numbers)| {
            for (out, number) in out.iter_mut().zip(numbers) {
                *out = f32::from_bits((number.to_bits() as u32) << 16);
            }
        });
    })
}

/// Of f16, exactly.
pub fn from_f16(numbers: &[f16]) -> Vec<f32> {
    written(numbers.len(), |out| {
        out.par_chunks_mut(PART).zip(numbers.par_chunks(PART)).for_each(|(out, numbers)| {
            numbers.convert_to_f32_slice(out);
        });
    })
}

/// `f32` numbers as bf16, if that loses nothing.
pub fn exact_bf16(numbers: &[f32]) -> Option<Vec<bf16>> {
    let exact = numbers.par_iter().all(|x| x.to_bits() & 0xffff == 0);
    exact.then(|| numbers.iter().map(|x| bf16::from_bits((x.to_bits() >> 16) as u16)).collect())
}

/// `f32` numbers as f16, if that loses nothing.
pub fn exact_f16(numbers: &[f32]) -> Option<Vec<f16>> {
    let halves: Vec<f16> = numbers.par_iter().map(|x| f16::from_f32(*x)).collect();
    let exact = halves.par_iter().zip(numbers).all(|(half, x)| half.to_f32().to_bits() == x.to_bits());
    exact.then_some(halves)
}

/// `f32` numbers rounded to f16, unless one is beyond its range.
pub fn rounded_f16(numbers: &[f32]) -> Option<Vec<f16>> {
    let halves: Vec<f16> = numbers.par_iter().map(|x| f16::from_f32(*x)).collect();
    halves.par_iter().all(|half| half.is_finite()).then_some(halves)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_bits_are_used_where_they_hold_the_number() {
        let all: Vec<f32> = (0..3 * PART + 7).map(|i| (i as f32 - 5000.0) / 64.0).collect();
        let some: Vec<f32> = all.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
        assert!(exact_bf16(&all).is_none() && exact_f16(&all).is_none());
        assert_eq!(from_bf16(&exact_bf16(&some).unwrap()), some);
        let some: Vec<f32> = all.iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        assert!(exact_bf16(&some).is_none());
        assert_eq!(from_f16(&exact_f16(&some).unwrap()), some);
        let large = [1e30, -0.0, 0.0];
        assert!(exact_f16(&large).is_none() && exact_f16(&large[1..]).is_some());
        assert!(rounded_f16(&large).is_none());
        let rounded = from_f16(&rounded_f16(&all).unwrap());
        assert!(all.iter().zip(rounded).all(|(x, half)| (x - half).abs() <= x.abs() / 2048.0));
    }
}
