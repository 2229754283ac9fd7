//! Weights that are infinite or not a number: no reader hands them out and no writer takes them.

/// The first value that is infinite or NaN with its place in `shape`, as an error says it after the weight's name; `None`
/// where all are finite.
pub(crate) fn fault(shape: &[usize], values: &[f32]) -> Option<String> {
    fault_from(0, shape, values)
}

/// [`fault`] of the part of a weight that begins at position `first`.
pub(crate) fn fault_from(first: usize, shape: &[usize], values: &[f32]) -> Option<String> {
    // Without an early exit the compiler makes vector instructions of it.
    let spoilt = |chunk: &[f32]| chunk.iter().fold(false, |spoilt, value| spoilt | !value.is_finite());
    let chunk = values.chunks(CHUNK).position(spoilt)? * CHUNK;
    let at = chunk + values[chunk..].iter().position(|value| !value.is_finite())?;
    Some(format!("holds {} at {:?}; every value must be finite", values[at], place(shape, first + at)))
}

/// Values between two looks.
const CHUNK: usize = 4096;

/// The indices of the value at position `at`, row-major.
fn place(shape: &[usize], at: usize) -> Vec<usize> {
    let mut rest = at;
    let mut indices: Vec<usize> =
        shape.iter().rev().map(|size| (rest % size.max(&1), rest /= size.max(&1)).0).collect();
    indices.reverse();
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_value_that_is_not_finite_is_placed() {
        let mut values = vec![f32::MAX; 3 * 5000];
        values[0] = -f32::MIN_POSITIVE / 4.0;
        assert_eq!(fault(&[3, 5000], &values), None);
        values[14_999] = f32::NAN;
        assert!(fault(&[3, 5000], &values).unwrap().starts_with("holds NaN at [2, 4999];"));
        values[5007] = f32::NEG_INFINITY;
        assert!(fault(&[3, 5000], &values).unwrap().starts_with("holds -inf at [1, 7];"));
        assert!(fault(&[15_000], &values).unwrap().contains("at [5007]"));
        assert!(fault_from(5000, &[3, 5000], &values[5000..]).unwrap().contains("at [1, 7]"));
        assert_eq!(fault(&[0], &[]), None);
    }
}
