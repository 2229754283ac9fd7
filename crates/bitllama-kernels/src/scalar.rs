//! The portable kernels: plain loops that the compiler vectorizes for whatever it builds for.
//!
//! Accumulation is in `f32` with [`LANES`] independent sums, which both lets the loop vectorize (float addition may
//! not be reordered otherwise) and keeps the rounding error near that of a pairwise sum.

use bitllama_core::PackedMatrix;

/// Independent accumulators of [`dot`].
pub const LANES: usize = 16;

/// The sum of `a[i] * b[i]` over the shorter of the two.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// `y[i] += a * x[i]` over the shorter of the two.
pub fn add_scaled(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += a * x;
    }
}

/// Products of the packed rows from `first` on with one activation row `x` (`[in_features]`), one for each element of
/// `out`. Codes are summed as they are, and the row's scale multiplies the sum once. `codes` is scratch space.
pub fn packed_rows(weight: &PackedMatrix, first: usize, x: &[f32], codes: &mut Vec<f32>, out: &mut [f32]) {
    codes.resize(weight.columns(), 0.0);
    for (row, y) in (first..).zip(out) {
        weight.codes_into(row, codes);
        *y = weight.scales()[row] * dot(codes, x);
    }
}

/// Products of `f32` rows (`[out.len(), in_features]`) with one activation row `x` (`[in_features]`).
pub fn full_rows(rows: &[f32], x: &[f32], out: &mut [f32]) {
    for (row, y) in rows.chunks_exact(x.len()).zip(out) {
        *y = dot(row, x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_counts_whole_lanes_and_the_rest() {
        for len in [0, 1, LANES - 1, LANES, LANES + 1, 3 * LANES + 5] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let sum: usize = (0..len).map(|i| i * i).sum();
            assert_eq!(dot(&a, &a), sum as f32, "{len}");
        }
    }

    #[test]
    fn add_scaled_adds() {
        let mut y = [1.0, 2.0];
        add_scaled(2.0, &[10.0, 20.0], &mut y);
        assert_eq!(y, [21.0, 42.0]);
    }
}
