//! Products of codes: exact, and only of what is ternary.

use bitllama_core::activation::{Activation, steps};

use super::*;

/// Rows of 8-bit codes times scales, one row of zeros among them.
fn activations(m: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut x = numbers(m * k, seed);
    x.chunks_mut(k).nth(1).into_iter().flatten().for_each(|x| *x = 0.0);
    for row in x.chunks_mut(k) {
        let largest = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let [codes, units] = steps(largest, Activation::Int8.largest_code());
        row.iter_mut().for_each(|x| *x = (*x * codes).round_ties_even() * units);
    }
    x
}

/// Columns of -1, 0 and 1, times a scale each; the second of zeros, and without zeros at all if `binary`.
fn weights(k: usize, n: usize, binary: bool, seed: u64) -> Vec<f32> {
    let scales: Vec<f32> = numbers(n, seed).iter().map(|x| x.abs() + 0.01).collect();
    let code = |x: f32| if binary { x.signum() } else { (1.4 * x).round() };
    let signs = numbers(k * n, seed + 1);
    let weight = |(at, x): (usize, &f32)| if at % n == 1 && !binary { 0.0 } else { code(*x) * scales[at % n] };
    signs.iter().enumerate().map(weight).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_are_those_of_the_numbers(m in 1usize..70, k in 1usize..700, n in 1usize..140, binary: bool, seed in 0u64..1000) {
        let (a, b, stride) = (activations(m, k, seed), weights(k, n, binary, seed + 7), n + seed as usize % 3);
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            let mut out = vec![0.25; m * stride];
            prop_assert!(gemm_codes(isa, [m, k, n], &a, &b, &mut out, stride));
            for i in 0..m {
                for j in 0..n {
                    let terms = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[x * n + j]));
                    let (expected, size) = terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()));
                    let error = (f64::from(out[i * stride + j]) - expected).abs();
                    // Codes are exact; the numbers of the factors and the scales are `f32`.
                    prop_assert!(error <= 4e-7 * size, "{isa} [{i}, {j}] is off by {error} of {size}");
                }
                prop_assert!(out[i * stride + n..][..stride - n].iter().all(|x| *x == 0.25));
            }
            let first = first.get_or_insert_with(|| out.clone());
            prop_assert!(*first == out, "{isa}: not as on other instruction sets");
        }
    }
}

#[test]
fn several_blocks_of_each_side() {
    for [m, k, n] in [[2030, 40, 3], [3, 3200, 800], [9, 7, 1600]] {
        let (a, b) = (activations(m, k, 1), weights(k, n, false, 2));
        let (mut out, mut exact) = (vec![0.0; m * n], vec![0.0; m * n]);
        assert!(gemm_codes(Isa::best(), [m, k, n], &a, &b, &mut out, n));
        let [a, b] = [View::row_major(&a[..], [m, k]), View::row_major(&b[..], [k, n])];
        gemm(Isa::best(), Precision::F32, a, b, &mut exact, n, false);
        assert!(out.iter().zip(&exact).all(|(x, y)| (x - y).abs() <= 1e-4));
    }
}

#[test]
fn what_is_not_ternary_is_left_alone() {
    let (m, k, n) = (5, 300, 200);
    let (a, b) = (activations(m, k, 3), weights(k, n, false, 4));
    for (at, x) in [(0, 0.5), (k * n - 1, f32::NAN), (n * 7 + 150, f32::INFINITY), (k * n - 1, 1e-30)] {
        for isa in Isa::available() {
            let (mut b, mut out) = (b.clone(), vec![0.25; m * n]);
            b[at] = x;
            assert!(!gemm_codes(isa, [m, k, n], &a, &b, &mut out, n), "{isa}: {x} passes for ternary");
            assert!(out.iter().all(|x| *x == 0.25));
        }
    }
}
