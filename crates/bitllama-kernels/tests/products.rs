//! Every kernel against sums of `f64`, code by code; every instruction set against the portable one, bit by bit.

use std::sync::Arc;

use bitllama_core::blocks::{BlockForm, Codes, IQ4, PanelMut};
use bitllama_core::panel::{FieldBits, put_row};
use bitllama_core::scales::PackedScales;
use bitllama_core::{BlockMatrix, DenseMatrix, Error, PackedMatrix, Scheme, StoredRows};
use bitllama_kernels::{Activations, Input, Isa, LEVEL_ERROR, Matrix, Pool, Precision, Signs, Weight, products};
use half::f16;
use proptest::prelude::*;

/// Of sums in f32, and of activations that the reference rounds in another order of operations.
const ROUNDING: f64 = 2e-6;

/// Whole numbers that look random, `0 .. limit`.
fn numbers(seed: u64, limit: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % limit
    }
}

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut next = numbers(seed, 20_001);
    (0..len).map(|_| next() as f32 / 10_000.0 - 1.0).collect()
}

fn random_weight(
    scheme: Scheme,
    [rows, columns]: [usize; 2],
    groups: usize,
    zero_points: bool,
    seed: u64,
) -> PackedMatrix {
    let mut field = numbers(seed, scheme.levels() as u64);
    let scales: Vec<f32> = floats(seed + 1, rows * groups).iter().map(|x| x.abs() + 0.1).collect();
    let mut point = numbers(seed + 2, 40);
    let points = zero_points.then(|| (0..rows * groups).map(|_| point() as i32 - 20).collect());
    PackedMatrix::from_fields(scheme, [rows, columns], scales, points, |_, out| {
        out.iter_mut().for_each(|out| *out = field() as u8);
        Ok::<_, Error>(())
    })
    .unwrap()
}

/// An element of `x * weight^T` in f64.
#[derive(Clone, Copy)]
struct Sum {
    value: f64,
    /// The same with all terms positive: what rounding is relative to, however much of the sum cancels out.
    size: f64,
    /// The same with scales in place of weights: what an error of levels is relative to.
    scales: f64,
}

fn reference(weight: &PackedMatrix, x: &[f64]) -> Vec<Sum> {
    let (weights, columns, group) = (weight.dequantize(), weight.columns(), weight.group_size());
    let mut sums = Vec::new();
    for x in x.chunks_exact(columns) {
        for (w, scales) in weights.data.chunks_exact(columns).zip(weight.scales().chunks_exact(columns.div_ceil(group)))
        {
            let mut sum = Sum { value: 0.0, size: 0.0, scales: 0.0 };
            for (column, (w, x)) in w.iter().zip(x).enumerate() {
                let term = f64::from(*w) * x;
                sum.value += term;
                sum.size += term.abs();
                sum.scales += f64::from(scales[column / group].abs()) * x.abs();
            }
            sums.push(sum);
        }
    }
    sums
}

fn product(isa: Isa, precision: Precision, threads: usize, weight: &Matrix, x: &[f32]) -> Vec<f32> {
    let mut input = Input::new(isa, precision);
    let pool = Pool::new(threads);
    input.set(&pool, x, weight.columns(), &[weight]);
    let mut out = vec![f32::NAN; x.len() / weight.columns() * weight.rows()];
    products(&pool, &input, &mut [(weight, &mut out)]);
    out
}

/// Within `rounding` of the size of the sums, and `slack` of each.
fn close(found: &[f32], expected: &[Sum], rounding: f64, slack: impl Fn(usize) -> f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, Sum { value, size, .. })) in found.iter().zip(expected).enumerate() {
        let (error, bound) = ((f64::from(*found) - value).abs(), rounding * size + slack(index) + 1e-30);
        assert!(error <= bound, "{found} {value}: {error:e} of {bound:e}");
    }
}

/// What sums in f32 are off by, of scales times numbers: fields are summed as they are stored, and what is wrong with a level (its
/// zero, a zero point) is taken off the sum.
fn of_fields(scheme: Scheme) -> f64 {
    1e-6 * (scheme.levels() + 20) as f64
}

/// Above this an integer product keeps an activation apart.
fn limit(row: &[f32]) -> f32 {
    5.0 * row.iter().map(|x| x.abs()).sum::<f32>() / row.len() as f32
}

/// The activations that an integer product keeps apart, and zeros.
fn apart(x: &[f32], columns: usize) -> Vec<f64> {
    let of_row = |row: &'_ [f32]| -> Vec<f64> {
        let limit = limit(row);
        row.iter().map(|x| if x.abs() > limit { f64::from(*x) } else { 0.0 }).collect()
    };
    x.chunks_exact(columns).flat_map(of_row).collect()
}

/// What the activations of an integer product stand for.
fn rounded(x: &[f32], columns: usize) -> Vec<f64> {
    x.chunks_exact(columns)
        .flat_map(|row| {
            let limit = limit(row);
            let kept = row.iter().map(|x| x.abs()).filter(|x| *x <= limit).fold(0.0, f32::max);
            row.iter().map(move |x| match x.abs() <= limit {
                true if kept > 0.0 => ((x * (127.0 / kept)).round_ties_even() as f64) * (kept / 127.0) as f64,
                true => 0.0,
                false => *x as f64,
            })
        })
        .collect()
}

fn case() -> impl Strategy<Value = (Scheme, [usize; 2], usize, bool, usize, u64)> {
    // Miri takes a millisecond for what a processor does in ten nanoseconds.
    let (rows, columns, n) = if cfg!(miri) { (40, 50, 6) } else { (70usize, 200usize, 30usize) };
    let sizes = (0..Scheme::ALL.len(), 1..rows, 1..columns, 1..n, any::<bool>(), 0u64..1000, 0usize..4);
    sizes.prop_map(|(which, rows, columns, n, points, seed, groups)| {
        // Groups are whole multiples of 32 columns.
        let (columns, groups) = if groups > 1 { (columns.div_ceil(20) * 32 * groups, groups) } else { (columns, 1) };
        (Scheme::ALL[which], [rows, columns], groups, points && Scheme::ALL[which].has_zero_points(), n, seed)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 6 } else { 400 }))]

    #[test]
    fn integer_products_are_exact_and_alike_everywhere((scheme, shape, groups, points, n, seed) in case(), outliers in 0usize..4) {
        let packed = random_weight(scheme, shape, groups, points, seed);
        let mut x = floats(seed + 3, n * shape[1]);
        for i in 0..outliers {
            let len = x.len();
            x[(i * 7919 + seed as usize) % len] *= 100.0;
        }
        let weight = Matrix::from(packed.clone());
        let portable = product(Isa::Scalar, Precision::Int8, 1, &weight, &x);
        // Levels of a table are in fixed point, see `levels`.
        let of_levels = if scheme.table().is_some() { f64::from(LEVEL_ERROR) } else { 0.0 };
        let expected = reference(&packed, &rounded(&x, shape[1]));
        let outliers = reference(&packed, &apart(&x, shape[1]));
        let slack = |sum: usize| of_levels * expected[sum].scales + of_fields(scheme) * outliers[sum].scales;
        close(&portable, &expected, ROUNDING, slack);
        for isa in Isa::available() {
            for threads in [1, 2] {
                let found = product(isa, Precision::Int8, threads, &weight, &x);
                prop_assert!(found.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits()), "{} {}", isa, scheme);
            }
        }
    }

    #[test]
    fn float_products_are_within_rounding((scheme, shape, groups, points, n, seed) in case()) {
        let packed = random_weight(scheme, shape, groups, points, seed);
        let x = floats(seed + 3, n * shape[1]);
        let expected = reference(&packed, &x.iter().map(|x| *x as f64).collect::<Vec<_>>());
        let slack = |sum: usize| of_fields(scheme) * expected[sum].scales;
        for isa in Isa::available() {
            close(&product(isa, Precision::F32, 2, &Matrix::from(packed.clone()), &x), &expected, 5e-6, slack);
            let full = Matrix::Full(packed.dequantize());
            close(&product(isa, Precision::F32, 2, &full, &x), &expected, 5e-6, slack);
        }
    }

    #[test]
    fn sign_products_count_only_real_columns((_, shape, groups, _, n, seed) in case()) {
        let packed = random_weight(Scheme::Binary, shape, groups, false, seed);
        let x = floats(seed + 3, n * shape[1]);
        let columns = shape[1];
        let signs: Vec<f64> = x.chunks_exact(columns).flat_map(|row| {
            let scale = (row.iter().map(|x| x.abs() as f64).sum::<f64>() / columns as f64) as f32 as f64;
            row.iter().map(move |x| if *x >= 0.0 { scale } else { -scale })
        }).collect();
        let weight = Matrix::from(packed.clone());
        let portable = product(Isa::Scalar, Precision::Sign, 1, &weight, &x);
        close(&portable, &reference(&packed, &signs), ROUNDING, |_| 0.0);
        for isa in Isa::available() {
            let found = product(isa, Precision::Sign, 2, &weight, &x);
            prop_assert!(found.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits()), "{}", isa);
        }
    }
}

#[test]
fn one_token_is_as_many_are_with_every_kind_of_groups() {
    let (group_sizes, count): (&[usize], _) = if cfg!(miri) { (&[64], 2) } else { (&[32, 64, 96, 128, 256], 19) };
    // Under Miri, which takes minutes for each scheme, one of each layout of codes.
    let (halves, tokens): (&[bool], _) = if cfg!(miri) { (&[true], 2) } else { (&[false, true], 5) };
    let few = [Scheme::Ternary, Scheme::Int3, Scheme::Nf4];
    for &scheme in if cfg!(miri) { &few[..] } else { &Scheme::ALL[..] } {
        for points in (0..=u8::from(scheme.has_zero_points())).map(|points| points > 0) {
            for (half, group_size) in halves.iter().flat_map(|half| group_sizes.iter().map(|g| (*half, g))) {
                let (rows, columns) = (18, count * group_size);
                let packed = random_weight(scheme, [rows, columns], count, points, 7);
                let scales: PackedScales = match half {
                    true => PackedScales::F16(packed.scales().iter().map(|x| f16::from_f32_const(*x)).collect()),
                    false => packed.scales().to_vec().into(),
                };
                let zero_points = packed.zero_points().map(<[i32]>::to_vec);
                let packed =
                    PackedMatrix::new(scheme, [rows, columns], packed.bytes().clone(), scales, zero_points).unwrap();
                let (weight, x) = (Matrix::from(packed.clone()), floats(11, tokens * columns));
                let many = product(Isa::Scalar, Precision::Int8, 1, &weight, &x);
                let expected = reference(&packed, &rounded(&x, columns));
                let of_levels = if scheme.table().is_some() { f64::from(LEVEL_ERROR) } else { 0.0 };
                close(&many, &expected, ROUNDING, |sum| of_levels * expected[sum].scales);
                for isa in Isa::available() {
                    assert!(product(isa, Precision::Int8, 1, &weight, &x) == many, "{isa} {scheme} {group_size}");
                    for (x, many) in x.chunks_exact(columns).zip(many.chunks_exact(rows)) {
                        let one = product(isa, Precision::Int8, 1, &weight, x);
                        assert!(one == many, "{isa} {scheme} {group_size} {half} {points}");
                    }
                }
            }
        }
    }
}

/// The forms of a GGUF's types: every layout, line and table, with scales of each kind, with and without minimums.
fn forms() -> [BlockForm; 15] {
    let line = |bits, low, group_size, nested, has_minimums| {
        let step = if bits == FieldBits::One { 2 } else { 1 };
        BlockForm { bits, codes: Codes::Line { low, step }, group_size, nested, has_minimums }
    };
    let table = |nested| BlockForm {
        bits: FieldBits::Four,
        codes: Codes::Table(IQ4),
        group_size: 32,
        nested,
        has_minimums: false,
    };
    [
        line(FieldBits::One, -1, 128, None, false),
        line(FieldBits::Two, -1, 256, None, false),
        line(FieldBits::Two, -2, 64, None, false),
        line(FieldBits::Two, 0, 16, Some(16), true),
        line(FieldBits::Three, -4, 16, Some(16), false),
        line(FieldBits::Four, -8, 32, None, false),
        line(FieldBits::Four, 0, 32, None, true),
        line(FieldBits::Four, 0, 32, Some(8), true),
        line(FieldBits::Five, -16, 32, None, false),
        line(FieldBits::Five, 0, 32, None, true),
        line(FieldBits::Five, 0, 32, Some(8), true),
        line(FieldBits::Six, -32, 16, Some(16), false),
        line(FieldBits::Eight, -128, 32, None, false),
        table(None),
        table(Some(8)),
    ]
}

fn random_blocks(form: BlockForm, shape: [usize; 2], seed: u64) -> BlockMatrix {
    let mut next = numbers(seed, 1 << 16);
    let fill = |panels: Vec<PanelMut<'_>>| {
        for mut panel in panels {
            for row in 0..16.min(shape[0] - 16 * panel.index) {
                let fields: Vec<u8> = (0..shape[1]).map(|_| (next() as u8) & form.bits.largest()).collect();
                put_row(form.bits, panel.fields, row, &fields);
                for scales in [Some(&mut panel.scales), panel.minimums.as_mut()].into_iter().flatten() {
                    scales.halves.iter_mut().skip(row).step_by(16).for_each(|half| {
                        *half = f16::from_f32_const(next() as f32 / 32768.0 - 1.0).to_bits();
                    });
                    scales.steps.iter_mut().skip(row).step_by(16).for_each(|step| *step = (next() % 64) as i8 - 32);
                }
            }
        }
    };
    BlockMatrix::new(shape, form, fill).unwrap()
}

/// Sums in f64, with the sizes of codes and minimums apart, which cancel out.
fn reference_of_blocks(matrix: &BlockMatrix, x: &[f64]) -> Vec<Sum> {
    let (columns, form) = (matrix.columns(), matrix.form());
    let mut sums = vec![Sum { value: 0.0, size: 0.0, scales: 0.0 }; x.len() / columns * matrix.rows()];
    let mut weights = vec![0.0; columns];
    for row in 0..matrix.rows() {
        matrix.dequantize_row_into(row, &mut weights);
        let [mut scales, mut minimums] = [(); 2].map(|()| vec![0.0; matrix.groups() * 16]);
        matrix.scales_into(row / 16, &mut scales);
        matrix.minimums_into(row / 16, &mut minimums);
        for (token, x) in x.chunks_exact(columns).enumerate() {
            let sum = &mut sums[token * matrix.rows() + row];
            for (column, (w, x)) in weights.iter().zip(x).enumerate() {
                let at = column / form.group_size * 16 + row % 16;
                sum.value += f64::from(*w) * x;
                sum.size += (f64::from(*w).abs() + 2.0 * f64::from(minimums[at]).abs()) * x.abs();
                sum.scales += f64::from(scales[at].abs()) * x.abs();
            }
        }
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 150 }))]

    #[test]
    fn products_with_blocks_are_exact_and_alike_everywhere(
        which in 0usize..15, rows in 1usize..if cfg!(miri) { 20 } else { 50 }, n in 1usize..if cfg!(miri) { 3 } else { 30 }, seed in 0u64..1000, outliers in 0usize..3
    ) {
        let form = forms()[which];
        let columns = 256 * (1 + seed as usize % 2);
        let blocks = random_blocks(form, [rows, columns], seed);
        let mut x = floats(seed + 3, n * columns);
        for i in 0..outliers {
            let len = x.len();
            x[(i * 7919 + seed as usize) % len] *= 100.0;
        }
        let weight = Matrix::Packed(Weight::of_blocks(blocks.clone(), 1).unwrap());
        let mut row = vec![0.0; columns];
        let mut expected_row = row.clone();
        weight.row_into(rows - 1, &mut row);
        blocks.dequantize_row_into(rows - 1, &mut expected_row);
        prop_assert_eq!(row, expected_row);
        let expected = reference_of_blocks(&blocks, &rounded(&x, columns));
        let slack = |sum: usize| 1e-6 * 64.0 * expected[sum].scales;
        let portable = product(Isa::Scalar, Precision::Int8, 1, &weight, &x);
        close(&portable, &expected, ROUNDING, slack);
        let exact = reference_of_blocks(&blocks, &x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        for isa in Isa::available() {
            for threads in [1, 2] {
                let found = product(isa, Precision::Int8, threads, &weight, &x);
                prop_assert!(found.iter().zip(&portable).all(|(a, b)| a.to_bits() == b.to_bits()), "{} {:?}", isa, form);
            }
            let slack = |sum: usize| 1e-6 * 64.0 * exact[sum].scales;
            close(&product(isa, Precision::F32, 2, &weight, &x), &exact, 5e-6, slack);
        }
    }
}

#[test]
fn many_rows_in_f32_see_the_weights_of_blocks_to_the_bit() {
    let (step, tokens) = if cfg!(miri) { (7, 64) } else { (1, 256) };
    for form in forms().into_iter().step_by(step) {
        let blocks = random_blocks(form, [33, 256], 7);
        let mut data = vec![0.0; 33 * 256];
        data.chunks_mut(256).enumerate().for_each(|(row, out)| blocks.dequantize_row_into(row, out));
        let weight = Matrix::Packed(Weight::of_blocks(blocks, 1).unwrap());
        // One activation of each row is not 0, so that products are weights.
        let mut x = vec![0.0; tokens * 256];
        (0..tokens).for_each(|column| x[column * 256 + column] = 1.0);
        for isa in Isa::available() {
            let found = product(isa, Precision::F32, 1, &weight, &x);
            for (at, found) in found.iter().enumerate() {
                assert_eq!(*found, data[at % 33 * 256 + at / 33], "{isa} {form:?}");
            }
        }
    }
}

#[test]
fn forms_that_kernels_do_not_have_are_refused() {
    let plain = BlockForm {
        bits: FieldBits::Four,
        codes: Codes::Line { low: 0, step: 1 },
        group_size: 32,
        nested: None,
        has_minimums: false,
    };
    let weight = |form| Weight::of_blocks(random_blocks(form, [3, 64], 1), 1);
    let of = |codes, has_minimums| weight(BlockForm { codes, has_minimums, ..plain });
    assert!(of(Codes::Table([1; 16]), false).is_none());
    assert!(of(Codes::Line { low: -8, step: 1 }, true).is_none());
    assert_eq!(of(Codes::Table(IQ4), false).unwrap().stored_bytes(), 1);
    assert!(weight(BlockForm { group_size: 16, ..plain }).is_none());
    assert!(weight(BlockForm { group_size: 16, nested: Some(2), ..plain }).is_none());
    assert!(weight(BlockForm { bits: FieldBits::One, nested: Some(2), ..plain }).is_none());
    assert!(weight(BlockForm { nested: Some(2), ..plain }).is_some());
}

#[test]
fn the_largest_sums_fit() {
    // All fields and activations at their ends: where partial sums in 16 bits would run over.
    let columns = if cfg!(miri) { 35 } else { 3001 };
    for scheme in Scheme::ALL {
        for largest in [0, (scheme.levels() - 1) as u8] {
            let packed = PackedMatrix::from_fields(scheme, [17, columns], vec![1.0; 17], None, |_, out| {
                out.fill(largest);
                Ok::<_, Error>(())
            });
            let weight = Matrix::from(packed.unwrap());
            for x in [1.0f32, -1.0] {
                let expected = scheme.code_of(largest) * 127.0 * columns as f32 * (x / 127.0);
                for isa in Isa::available() {
                    for n in if cfg!(miri) { &[1, 4][..] } else { &[1, 2, 4, 7, 13, 24] } {
                        for found in product(isa, Precision::Int8, 1, &weight, &vec![x; columns * n]) {
                            assert!(
                                (found - expected).abs() <= expected.abs() * 1e-6,
                                "{isa} {scheme} {found} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn levels_of_a_table_are_off_by_no_more_than_said() {
    let [rows, columns] = [33, 192];
    let packed = random_weight(Scheme::Nf4, [rows, columns], 3, false, 11);
    let x = floats(5, 9 * columns);
    let expected = reference(&packed, &rounded(&x, columns));
    let found = product(Isa::best(), Precision::Int8, 1, &Matrix::from(packed), &x);
    close(&found, &expected, ROUNDING, |sum| f64::from(LEVEL_ERROR) * expected[sum].scales);
}

#[test]
fn what_is_no_number_stays_none() {
    let weight = Matrix::from(random_weight(Scheme::Int4, [20, 40], 1, false, 1));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = floats(2, 80);
        x[45] = bad;
        for isa in Isa::available() {
            let found = product(isa, Precision::Int8, 1, &weight, &x);
            assert!(found[..20].iter().all(|x| x.is_finite()) && found[20..].iter().all(|x| x.is_nan()), "{isa}");
        }
    }
    let zeros = product(Isa::best(), Precision::Int8, 1, &weight, &[0.0; 40]);
    assert_eq!(zeros, [0.0; 20]);
}

#[test]
fn several_weights_share_one_input() {
    let weights: Vec<Matrix> = [Scheme::Ternary, Scheme::Int8, Scheme::Binary]
        .into_iter()
        .map(|scheme| Matrix::from(random_weight(scheme, [33, 96], 1, false, 5)))
        .chain([Matrix::Full(DenseMatrix { data: floats(6, 7 * 96), columns: 96 })])
        .collect();
    let x = floats(7, 3 * 96);
    for precision in Precision::ALL {
        let mut input = Input::new(Isa::best(), precision);
        input.set(&Pool::new(2), &x, 96, &weights.iter().collect::<Vec<_>>());
        let mut outs: Vec<Vec<f32>> = weights.iter().map(|weight| vec![0.0; 3 * weight.rows()]).collect();
        let mut jobs: Vec<_> = weights.iter().zip(outs.iter_mut().map(|out| out.as_mut_slice())).collect();
        products(&Pool::new(2), &input, &mut jobs);
        for (weight, out) in weights.iter().zip(outs) {
            assert_eq!(out, product(Isa::best(), precision, 1, weight, &x), "{precision}");
        }
    }
}

/// Numbers of 16 bits: halves, or the upper half of an f32, under the name of their type or none.
#[derive(Debug)]
struct Halves {
    columns: usize,
    bytes: Vec<u8>,
    kind: Option<&'static str>,
}

impl Halves {
    fn new(kind: Option<&'static str>, columns: usize, data: &[f32]) -> Self {
        let bits = |x: &f32| match kind {
            Some("F16") => f16::from_f32_const(*x).to_bits(),
            _ => (x.to_bits() >> 16) as u16,
        };
        Self { columns, bytes: data.iter().flat_map(|x| bits(x).to_le_bytes()).collect(), kind }
    }
}

impl StoredRows for Halves {
    fn rows(&self) -> usize {
        self.bytes.len() / 2 / self.columns
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn rows_into(&self, first: usize, out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(self.bytes[2 * first * self.columns..].as_chunks().0) {
            let bits = u16::from_le_bytes(*bytes);
            *out = match self.kind {
                Some("F16") => f16::from_bits(bits).to_f32_const(),
                _ => f32::from_bits(u32::from(bits) << 16),
            };
        }
    }

    fn stored_row(&self, row: usize) -> Option<(&'static str, &[u8])> {
        Some((self.kind?, &self.bytes[2 * row * self.columns..][..2 * self.columns]))
    }
}

#[test]
fn products_with_stored_rows_are_those_of_f32_to_the_bit() {
    let shapes: &[[usize; 2]] = match cfg!(miri) {
        true => &[[5, 9]],
        // Fewer rows than a tile, several tiles, rows longer than a tile of few, and tiles of many that end early.
        false => &[[1, 1], [5, 33], [300, 576], [3, 5000], [700, 900]],
    };
    let kinds = [None, Some("BF16"), Some("F16")];
    for (kind, &[rows, columns]) in kinds.iter().flat_map(|kind| shapes.iter().map(move |shape| (*kind, shape))) {
        let data = floats(3, rows * columns);
        let stored: Arc<dyn StoredRows> = Arc::new(Halves::new(kind, columns, &data));
        let full = Matrix::Full(DenseMatrix { data: stored.to_f32(), columns });
        let stored = Matrix::Stored(stored);
        assert_eq!((stored.rows(), stored.columns()), (rows, columns));
        assert_eq!((stored.bytes(), stored.stored_bytes()), (2 * rows * columns, 2 * rows * columns));
        let mut row = vec![0.0; columns];
        stored.row_into(rows - 1, &mut row);
        let Matrix::Full(DenseMatrix { data, .. }) = &full else { panic!() };
        assert_eq!(row, data[(rows - 1) * columns..]);
        for n in [1, 2, 4, 5, 24] {
            let x = floats(4, n * columns);
            for isa in Isa::available() {
                for threads in [1, 2] {
                    let [found, expected] =
                        [&stored, &full].map(|matrix| product(isa, Precision::Int8, threads, matrix, &x));
                    let equal = found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(equal, "[{rows}, {columns}] {kind:?}, {n} tokens, {isa}, {threads} threads");
                }
            }
        }
    }
}

#[test]
fn sums_beyond_32_bits_are_refused() {
    let far = PackedMatrix::from_fields(Scheme::Int2, [1, 64], vec![1.0], Some(vec![-1_000_000]), |_, out| {
        out.fill(1);
        Ok::<_, Error>(())
    });
    let far = far.unwrap();
    assert!(Weight::new(far.clone()).is_err());
    assert_eq!(Matrix::from(far), Matrix::Full(DenseMatrix { data: vec![1_000_001.0; 64], columns: 64 }));
}

#[test]
fn packed_signs_are_those_of_numbers() {
    let x = [vec![-1.0f32; 3], vec![2.0; 8], vec![-0.5; 30]].concat();
    let mut bytes = vec![0u8; 6];
    x.iter().enumerate().filter(|(_, x)| **x >= 0.0).for_each(|(i, _)| bytes[i / 8] |= 0x80 >> (i % 8));
    // Spare bits mean nothing.
    bytes[5] |= 0x7f;
    let weight = Matrix::from(random_weight(Scheme::Binary, [5, 41], 1, false, 3));
    let signs = Signs::from_packbits(&bytes, 41, vec![1.0]);
    assert_eq!((signs.len(), signs.columns()), (1, 41));
    let mut input = Input::new(Isa::best(), Precision::Sign);
    input.set_signs(signs);
    let mut out = vec![0.0; 5];
    products(&Pool::new(1), &input, &mut [(&weight, &mut out)]);
    let mean = x.iter().map(|x| x.abs()).sum::<f32>() / 41.0;
    let expected = product(Isa::best(), Precision::Sign, 1, &weight, &x);
    assert!(out.iter().zip(expected).all(|(found, expected)| (found * mean - expected).abs() < 1e-4));
}

#[test]
fn activations_keep_outliers_apart() {
    let mut x = vec![0.5; 100];
    x[17] = 80.0;
    let activations = Activations::new(&x, 100);
    assert_eq!((activations.len(), activations.columns(), activations.outliers()), (1, 100, 1));
}
