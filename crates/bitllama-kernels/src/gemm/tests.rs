use super::*;
use half::bf16;
use proptest::prelude::*;

mod bfp12;
mod codes;

/// Numbers that look random, from -1 to 1.
fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

fn get(view: &View, i: usize, j: usize) -> f32 {
    let at = i * view.strides()[0] + j * view.strides()[1];
    match view.elements() {
        Elements::F32(data) => data[at],
        Elements::Bf16(data) => data[at].to_f32(),
    }
}

/// The products of the factors, rounded to `bf16` or not, in double precision, and how far from them results may be.
fn reference(words: Words, a: &View, b: &View) -> Vec<[f64; 2]> {
    if words == Words::Scaled {
        return bfp12::bounds(a, b);
    }
    let factor = |x: f32| f64::from(if words == Words::Exact { x } else { bf16::from_f32(x).to_f32() });
    let at = |i: usize| (i / b.columns(), i % b.columns());
    let product = |(i, j)| (0..a.columns()).map(|k| factor(get(a, i, k)) * factor(get(b, k, j))).sum();
    (0..a.rows() * b.columns()).map(|i| [product(at(i)), 1e-6 * (a.columns() + 1) as f64]).collect()
}

/// What each instruction set can have in its words.
fn kernels() -> impl Iterator<Item = (Isa, Words)> {
    #[cfg(target_arch = "x86_64")]
    let pairs = super::bf16::is_available().then_some((Isa::Avx512, Words::Pairs));
    #[cfg(not(target_arch = "x86_64"))]
    let pairs = None;
    Isa::available()
        .flat_map(|isa| [Words::Exact, Words::Rounded, Words::Scaled].map(|words| (isa, words)))
        .chain(pairs)
}

/// A matrix in one of the layouts that a [`View`] can have, the numbers around it not being its own.
struct Stored {
    numbers: Vec<f32>,
    halves: Vec<bf16>,
    shape: [usize; 2],
    layout: usize,
}

const LAYOUTS: usize = 6;

impl Stored {
    fn new(shape: [usize; 2], layout: usize, seed: u64) -> Self {
        let numbers = numbers(3 * (shape[0] + 4) * (shape[1] + 4), seed);
        let halves = numbers.iter().map(|x| bf16::from_f32(*x)).collect();
        Self { numbers, halves, shape, layout }
    }

    fn view(&self) -> View<'_> {
        let [rows, columns] = self.shape;
        let strides = match self.layout / 2 {
            0 => [columns + 3, 1],
            1 => [1, rows + 2],
            _ => [2 * columns + 1, 2],
        };
        match self.layout % 2 {
            0 => View::strided(&self.numbers[..], self.shape, strides),
            _ => View::strided(&self.halves[..], self.shape, strides),
        }
    }
}

fn check(m: usize, k: usize, n: usize, layouts: [usize; 2], accumulate: bool, seed: u64) {
    let (a, b) = (Stored::new([m, k], layouts[0], seed), Stored::new([k, n], layouts[1], seed + 1));
    let (a, b) = (a.view(), b.view());
    let stride = n + seed as usize % 3;
    let before = numbers(m * stride, seed + 2);
    let mut scaled = None;
    for (isa, words) in kernels() {
        let mut out = before.clone();
        let factors = [a, b.transposed()].map(Factor::Numbers);
        blocks::run(isa, words, factors[0], factors[1], &mut out, stride, accumulate);
        for (i, [expected, tolerance]) in reference(words, &a, &b).into_iter().enumerate() {
            let at = i / n * stride + i % n;
            let expected = expected + f64::from(if accumulate { before[at] } else { 0.0 });
            let error = (f64::from(out[at]) - expected).abs();
            assert!(error <= tolerance, "{isa} {words:?} {m} {k} {n} {layouts:?}: {error} at {i}");
        }
        for (row, before) in out.chunks(stride.max(1)).zip(before.chunks(stride.max(1))) {
            assert_eq!(row[n..], before[n..], "{isa} {words:?}: what lies between rows was touched");
        }
        if words == Words::Scaled {
            let first = scaled.get_or_insert_with(|| out.clone());
            assert!(*first == out, "{isa} {words:?} {m} {k} {n} {layouts:?}: not as on other instruction sets");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_shape_and_layout(
        m in 0usize..70, k in 0usize..90, n in 0usize..110,
        layouts in [0..LAYOUTS, 0..LAYOUTS], accumulate: bool, seed in 0u64..1000,
    ) {
        check(m, k, n, layouts, accumulate, seed);
    }
}

#[test]
fn several_blocks_of_each_side() {
    check(21, 801, 50, [0, 2], false, 1);
    check(19, 1603, 17, [2, 0], true, 2);
    check(2100, 5, 3, [1, 3], false, 3);
    check(3, 7, 3200, [3, 1], true, 4);
}

#[test]
fn the_same_for_every_number_of_threads() {
    let (m, k, n) = (300, 500, 400);
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    let (a, b) = (View::row_major(&a[..], [m, k]), View::row_major(&b[..], [k, n]));
    for precision in [Precision::F32, Precision::Bf16, Precision::Bfp12] {
        let [one, two, three] = [1, 2, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut out = vec![0.0; m * n];
            pool.install(|| gemm(Isa::best(), precision, a, b, &mut out, n, false));
            out
        });
        assert!(one == two && two == three);
    }
}

#[test]
fn rounding_is_to_the_nearest_bf16_and_no_number_stays_none() {
    let special = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.0, 1e-40, f32::MAX, f32::INFINITY, f32::NAN, 3.0e38];
    let x: Vec<f32> = special.into_iter().chain(numbers(56, 5)).collect();
    let expected: Vec<u32> = x.iter().map(|x| u32::from(bf16::from_f32(*x).to_bits()) << 16).collect();
    for isa in Isa::available() {
        for strides in [[64, 1], [1, 4], [1, 1]] {
            // The same numbers in each lane, or one number a lane.
            let rows = if strides == [1, 1] { 64 } else { 1 };
            let view = match strides {
                [1, 1] => View::strided(&x[..], [64, 1], [1, 1]),
                _ => View::strided(&x[..], [1, 64], [strides[0], 1]),
            };
            let width = tile::lanes(isa)[1];
            let mut words = vec![0; view.rows().next_multiple_of(width) * view.columns()];
            pack::pack(isa, Words::Rounded, view, 0..rows, 0..view.columns(), width, &mut words);
            for (i, expected) in expected.iter().enumerate() {
                let (lane, step) = if rows == 64 { (i, 0) } else { (0, i) };
                let at = lane / width * width * view.columns() + step * width + lane % width;
                assert_eq!(words[at], *expected, "{isa}: {}", x[i]);
            }
        }
    }
}

#[test]
#[should_panic(expected = "do not fit each other")]
fn factors_that_do_not_fit_are_refused() {
    let x = [0.0; 12];
    let (a, b) = (View::row_major(&x[..], [3, 4]), View::row_major(&x[..], [3, 4]));
    gemm(Isa::Scalar, Precision::F32, a, b, &mut [0.0; 12], 4, false);
}

#[test]
#[should_panic(expected = "does not fit into 11 numbers")]
fn a_view_past_the_end_is_refused() {
    let _ = View::strided(&[0.0f32; 11][..], [3, 4], [1, 3]);
}
