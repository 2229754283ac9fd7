//! Every product against dequantized weights multiplied in f64.

use bitllama_core::{DenseMatrix, PackedMatrix, Scheme, quantize};
use bitllama_kernels::{matmul, matmul_full};
use proptest::prelude::*;

/// Numbers between -1 and 1 that look random and depend on `seed` alone.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn packed(scheme: Scheme, rows: usize, columns: usize, seed: u64) -> PackedMatrix {
    let q = quantize(scheme, DenseMatrix { data: noise(rows * columns, seed), columns });
    PackedMatrix::pack(scheme, &q.codes, q.scales.data).unwrap()
}

/// Panics unless `out` is `x * weight^T` up to the rounding of an f32 sum of that length.
fn assert_product(weight: &[f32], columns: usize, x: &[f32], out: &[f32]) {
    let rows = weight.len() / columns;
    for (t, x) in x.chunks_exact(columns).enumerate() {
        for (r, w) in weight.chunks_exact(columns).enumerate() {
            let terms = x.iter().zip(w).map(|(x, w)| *x as f64 * *w as f64);
            let (exact, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
            let bound = f32::EPSILON as f64 * (2.0 + columns as f64).sqrt() * 4.0 * size + 1e-30;
            let got = out[t * rows + r] as f64;
            assert!((got - exact).abs() <= bound, "token {t}, row {r}: {got} instead of {exact} ± {bound}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn packed_products_are_those_of_the_dequantized_weights(
        rows in 1usize..150, columns in 1usize..200, n in 0usize..9, seed in any::<u64>(), which in 0usize..6
    ) {
        let weight = packed(Scheme::ALL[which], rows, columns, seed);
        let x = noise(n * columns, seed ^ 1);
        let mut out = vec![f32::NAN; n * rows];
        matmul(&weight, &x, &mut out);
        assert_product(&weight.dequantize().data, columns, &x, &out);
    }

    #[test]
    fn full_precision_products(
        rows in 1usize..150, columns in 1usize..200, n in 0usize..9, seed in any::<u64>()
    ) {
        let (weight, x) = (noise(rows * columns, seed), noise(n * columns, seed ^ 1));
        let mut out = vec![f32::NAN; n * rows];
        matmul_full(&weight, columns, &x, &mut out);
        assert_product(&weight, columns, &x, &out);
    }
}

#[test]
fn a_layer_of_ordinary_size_in_every_scheme() {
    for scheme in Scheme::ALL {
        let weight = packed(scheme, 200, 1536, 7);
        let dequantized = weight.dequantize().data;
        for n in [1, 2, 64] {
            let x = noise(n * 1536, 8);
            let mut out = vec![f32::NAN; n * 200];
            matmul(&weight, &x, &mut out);
            assert_product(&dequantized, 1536, &x, &out);
        }
    }
}

#[test]
fn zero_points_are_obeyed() {
    let fields: Vec<u8> = (0..40).map(|i| (i * 37 % 256) as u8).collect();
    let weight = PackedMatrix::new(Scheme::Int8, [2, 20], fields.into(), vec![0.5, 0.25], Some(vec![100, 7])).unwrap();
    for n in [1, 3] {
        let x = noise(n * 20, 3);
        let mut out = vec![f32::NAN; n * 2];
        matmul(&weight, &x, &mut out);
        assert_product(&weight.dequantize().data, 20, &x, &out);
    }
}

#[test]
#[should_panic(expected = "out is not 2 rows of 3")]
fn a_wrong_output_is_refused() {
    matmul_full(&[0.0; 12], 4, &[0.0; 8], &mut [0.0; 5]);
}
