//! Block floating point: that results are what the scales promise, and the same everywhere.

use super::*;
use crate::gemm::scaled::{MOST, SPAN};

/// Scales of a lane of a factor `[lanes, k]`, one for each span.
fn scales(factor: &View, lane: usize) -> Vec<f64> {
    let magnitudes: Vec<f32> = (0..factor.columns()).map(|k| get(factor, lane, k).abs()).collect();
    let largest = magnitudes.chunks(SPAN).map(|span| span.iter().copied().fold(0.0, f32::max));
    largest.map(|x| f64::from(x) / f64::from(MOST)).collect()
}

/// The products in double precision and how far results may be from them: each number is at most half a scale away from
/// what it is multiplied as.
pub(super) fn bounds(a: &View, b: &View) -> Vec<[f64; 2]> {
    let (columns, depth) = (b.transposed(), a.columns());
    let a_scales: Vec<_> = (0..a.rows()).map(|lane| scales(a, lane)).collect();
    let b_scales: Vec<_> = (0..columns.rows()).map(|lane| scales(&columns, lane)).collect();
    let bound = |(i, j): (usize, usize)| {
        let (mut product, mut error) = (0.0, 1e-6 * (depth.div_ceil(SPAN) + 1) as f64);
        for k in 0..depth {
            let (x, y) = (f64::from(get(a, i, k)), f64::from(get(b, k, j)));
            let (x_scale, y_scale) = (1.001 * a_scales[i][k / SPAN], 1.001 * b_scales[j][k / SPAN]);
            product += x * y;
            error += (x.abs() * y_scale + y.abs() * x_scale) / 2.0 + x_scale * y_scale / 4.0;
            error += 1e-6 * (x * y).abs();
        }
        [product, error]
    };
    (0..a.rows() * columns.rows()).map(|at| bound((at / columns.rows(), at % columns.rows()))).collect()
}

fn product(isa: Isa, precision: Precision, [m, k, n]: [usize; 3], a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut out = vec![0.5; m * n];
    gemm(isa, precision, View::row_major(a, [m, k]), View::row_major(b, [k, n]), &mut out, n, false);
    out
}

/// On every instruction set; the same.
fn products(shape: [usize; 3], a: &[f32], b: &[f32]) -> Vec<f32> {
    let all = Isa::available().map(|isa| product(isa, Precision::Bfp12, shape, a, b));
    let bits = |x: &[f32]| x.iter().map(|x| if x.is_nan() { None } else { Some(x.to_bits()) }).collect::<Vec<_>>();
    all.reduce(|first, other| {
        assert_eq!(bits(&first), bits(&other));
        first
    })
    .unwrap()
}

#[test]
fn whole_numbers_up_to_the_largest_are_multiplied_exactly() {
    let shape @ [m, k, n] = [19, 700, 50];
    let whole = |len, seed| numbers(len, seed).into_iter().map(|x| (x * 2047.0).round()).collect::<Vec<f32>>();
    let (mut a, mut b) = (whole(m * k, 1), whole(k * n, 2));
    // The scale is 1 where the largest is there, in each span.
    for at in (0..k).step_by(100) {
        a.iter_mut().skip(at).step_by(k).for_each(|x| *x = 2047.0);
        b[at * n..][..n].fill(-2047.0);
    }
    for (i, x) in products(shape, &a, &b).into_iter().enumerate() {
        let spans = (0..k).step_by(SPAN).map(|from| {
            let terms = (from..k.min(from + SPAN)).map(|k_at| a[i / n * k + k_at] as i64 * b[k_at * n + i % n] as i64);
            terms.sum::<i64>() as f32
        });
        assert_eq!(x, spans.fold(0.0, |sum, span| sum + span));
    }
}

#[test]
fn sums_of_the_largest_numbers_do_not_overflow() {
    let shape @ [m, k, n] = [3, 3 * SPAN, 17];
    let x = products(shape, &vec![-7.5; m * k], &vec![3.0; k * n]);
    assert!(x.iter().all(|x| (x / (-22.5 * k as f32) - 1.0).abs() < 1e-6));
}

#[test]
fn what_is_no_number_or_infinite_stays_so_and_in_its_lane() {
    let shape @ [m, k, n] = [33, 600, 65];
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 31, 257, 599] {
            let (mut a, mut b) = (numbers(m * k, 1), numbers(k * n, 2));
            let good = products(shape, &a, &b);
            a[17 * k + at] = bad;
            a[18 * k..19 * k].fill(0.0);
            b[(k - 1 - at) * n + 40] = bad;
            for (i, (x, good)) in products(shape, &a, &b).into_iter().zip(good).enumerate() {
                match (i / n, i % n) {
                    (17, _) | (_, 40) => assert!(x.is_nan(), "{bad} at {at}: {x} at {i}"),
                    (18, _) => assert_eq!(x, 0.0),
                    _ => assert_eq!(x, good),
                }
            }
        }
    }
}

#[test]
fn numbers_of_any_size_are_multiplied() {
    let shape @ [m, k, n] = [16, 64, 48];
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    let plain = products(shape, &a, &b);
    let times = |x: &[f32], by: f32| x.iter().map(|x| x * by).collect::<Vec<f32>>();
    // Powers of two change nothing but the exponent, as long as it fits.
    for [x, y] in [[1e-30f32, 1e25], [1e-12, 1e-12], [1e30, 1e-30], [1e15, 1e15]] {
        let [x, y] = [x, y].map(|x| x.log2().round().exp2());
        assert_eq!(products(shape, &times(&a, x), &times(&b, y)), times(&times(&plain, x), y));
    }
    // The smallest ones keep fewer digits, as no scale is subnormal.
    let tiny = products(shape, &times(&a, (-118f32).exp2()), &times(&b, 100f32.exp2()));
    for (tiny, plain) in tiny.into_iter().zip(&plain) {
        assert!((tiny * 18f32.exp2() - plain).abs() < 0.15, "{tiny} {plain}");
    }
    assert_eq!(products(shape, &times(&a, 0.0), &b), vec![0.0; m * n]);
}

/// Normal numbers, from uniform ones by the method of Box and Muller.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    let uniform = numbers(2 * len, seed);
    let pair = |x: &[f32]| {
        let (radius, angle) = ((-2.0 * (x[0].abs().max(1e-7)).ln()).sqrt(), std::f32::consts::PI * x[1]);
        radius * angle.cos()
    };
    uniform.chunks_exact(2).map(pair).collect()
}

/// The norm of the error over that of the product, in `bf16` and in block floating point.
fn errors(shape: [usize; 3], a: &[f32], b: &[f32]) -> [f64; 2] {
    let [m, k, n] = shape;
    let (a_view, b_view) = (View::row_major(a, [m, k]), View::row_major(b, [k, n]));
    let exact: Vec<f64> = reference(Words::Exact, &a_view, &b_view).into_iter().map(|[x, _]| x).collect();
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    [Precision::Bf16, Precision::Bfp12].map(|precision| {
        let found = product(Isa::best(), precision, shape, a, b);
        norm(&mut found.iter().zip(&exact).map(|(x, exact)| f64::from(*x) - exact)) / norm(&mut exact.iter().copied())
    })
}

#[test]
fn normal_factors_lose_less_than_in_bf16() {
    let shape @ [m, k, n] = [64, 1024, 96];
    let (mut a, b) = (normal(m * k, 1), normal(k * n, 2));
    let [bf16, bfp12] = errors(shape, &a, &b);
    println!("normal: bf16 {bf16:.2e}, block floating point {bfp12:.2e}");
    assert!(bfp12 < 0.3 * bf16, "{bfp12} {bf16}");
    // An outlier takes digits from the numbers that share its scale, but the product is no worse than a little.
    a.iter_mut().step_by(193).for_each(|x| *x = 30.0);
    let [bf16, bfp12] = errors(shape, &a, &b);
    println!("with outliers: bf16 {bf16:.2e}, block floating point {bfp12:.2e}");
    assert!(bfp12 < 1.2 * bf16, "{bfp12} {bf16}");
}
