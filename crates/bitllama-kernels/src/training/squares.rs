//! The sum of squares of many numbers, on all threads: what the norm of gradients is made of.

use rayon::prelude::*;

use super::PART;
use crate::isa::Isa;
use crate::operators;

/// The sum of `x^2`: of parts in f32, of their sums in f64.
pub fn sum_of_squares(isa: Isa, x: &[f32]) -> f64 {
    let parts: Vec<f32> = x.par_chunks(PART).map(|part| operators::dot(isa, part, part)).collect();
    parts.into_iter().map(f64::from).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_all_parts() {
        let x: Vec<f32> = (0..3 * PART + 5).map(|i| (i % 3) as f32).collect();
        let expected: f64 = x.iter().map(|x| f64::from(x * x)).sum();
        for isa in Isa::available() {
            assert_eq!(sum_of_squares(isa, &x), expected);
        }
        assert_eq!(sum_of_squares(Isa::best(), &[]), 0.0);
    }
}
