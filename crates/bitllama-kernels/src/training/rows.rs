//! Rows that share a scale, for the rounding functions of `bitllama-core`. Operations are recorded, and computed when
//! numbers are asked for, all of them for a few hundred numbers at a time: a matrix is read and written once, where it
//! lies.
//!
//! | module | subject |
//! |---|---|
//! | this one | recording |
//! | `program` | computing, in loops that the compiler makes vectors of for each instruction set |

use std::rc::Rc;

use bitllama_core::RowMatrix;

use super::blocks::{Part, PartMut};
use crate::isa::Isa;

mod program;

use program::{Each, Fold, Pair, Program};

/// `[outer, n, inner]`, row-major: a row is what lies along the middle. Numbers of rows are `[outer, 1, inner]`.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    numbers: Rc<Numbers<'a>>,
    shape: Shape,
    isa: Isa,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    outer: usize,
    n: usize,
    inner: usize,
}

/// What the numbers of a matrix are.
#[derive(Debug)]
enum Numbers<'a> {
    Given(Part<'a>),
    Computed(Vec<f32>),
    Each(Each, Rc<Numbers<'a>>),
    Pair(Pair, Rc<Numbers<'a>>, Rc<Numbers<'a>>),
    /// With numbers of rows, which are given or computed.
    OfRows(Pair, Rc<Numbers<'a>>, Rc<Numbers<'a>>),
}

impl<'a> Rows<'a> {
    /// Rows of `n` numbers, `inner` of them side by side.
    ///
    /// # Panics
    /// If these are no whole rows, or the lines of `part` have neither `inner` numbers nor lie in one piece.
    pub fn new(part: Part<'a>, n: usize, inner: usize, isa: Isa) -> Self {
        let total = part.lines() * part.width();
        assert!(total.is_multiple_of(n * inner), "{total} numbers, rows of {n}, {inner} side by side");
        assert!(part.width() == inner || inner == 1 && part.flat().is_some(), "lines of {}", part.width());
        let shape = Shape { outer: total / (n * inner), n, inner };
        Rows { numbers: Rc::new(Numbers::Given(part)), shape, isa }
    }

    /// Computes all numbers and writes them.
    ///
    /// # Panics
    /// If `out` has another shape.
    pub fn write(&self, out: &mut PartMut<'_>) {
        Program::of(&self.numbers, self.shape, out.is_whole()).write(self.isa, out);
    }

    /// All numbers, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        let Shape { outer, n, inner } = self.shape;
        let mut data = vec![0.0; outer * n * inner];
        if !data.is_empty() {
            self.write(&mut PartMut::whole(&mut data, inner));
        }
        data
    }

    fn each(self, operation: Each) -> Self {
        let numbers = Rc::new(Numbers::Each(operation, self.numbers));
        Rows { numbers, ..self }.recorded()
    }

    fn pair(self, operation: Pair, other: Self) -> Self {
        assert_eq!(self.shape, other.shape, "matrices of different shapes");
        let numbers = Rc::new(Numbers::Pair(operation, self.numbers, other.numbers));
        Rows { numbers, ..self }.recorded()
    }

    fn with_rows(self, operation: Pair, rows: Self) -> Self {
        assert_eq!(Shape { n: 1, ..self.shape }, rows.shape, "not one number for each row");
        let numbers = Rc::new(Numbers::OfRows(operation, self.numbers, rows.numbers));
        Rows { numbers, ..self }.recorded()
    }

    /// The same, computed at once where there is one number a row: these are few, and wanted more often than once.
    fn recorded(self) -> Self {
        if self.shape.n == 1 { Rows { numbers: Rc::new(Numbers::Computed(self.to_vec())), ..self } } else { self }
    }

    fn fold(self, fold: Fold) -> Self {
        let shape = Shape { n: 1, ..self.shape };
        let numbers = Program::of(&self.numbers, self.shape, true).fold(self.isa, fold);
        Rows { numbers: Rc::new(Numbers::Computed(numbers)), shape, ..self }
    }
}

/// Row-major `[rows, columns]` as row-major `[columns, rows]`.
fn turned(numbers: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..numbers.len()).map(|i| numbers[i % rows * columns + i / rows]).collect()
}

impl RowMatrix for Rows<'_> {
    fn abs(self) -> Self {
        self.each(Each::Abs)
    }
    fn row_mean(self) -> Self {
        self.fold(Fold::Mean)
    }
    fn row_max(self) -> Self {
        self.fold(Fold::Max)
    }
    fn row_min(self) -> Self {
        self.fold(Fold::Min)
    }
    fn scale(self, factor: f32) -> Self {
        self.each(Each::Scale(factor))
    }
    fn divide(self, divisor: f32) -> Self {
        self.each(Each::Divide(divisor))
    }
    fn shift(self, term: f32) -> Self {
        self.each(Each::Shift(term))
    }
    fn one_where_zero(self) -> Self {
        self.each(Each::OneWhereZero)
    }
    fn div_rows(self, row: Self) -> Self {
        self.with_rows(Pair::Divide, row)
    }
    fn mul_rows(self, row: Self) -> Self {
        self.with_rows(Pair::Multiply, row)
    }
    fn add_rows(self, row: Self) -> Self {
        self.with_rows(Pair::Add, row)
    }
    fn at_least_rows(self, row: Self) -> Self {
        self.with_rows(Pair::AtLeast, row)
    }
    fn mul(self, other: Self) -> Self {
        self.pair(Pair::Multiply, other)
    }
    fn add(self, other: Self) -> Self {
        self.pair(Pair::Add, other)
    }
    fn round(self) -> Self {
        self.each(Each::Round)
    }
    fn put_where_above(self, x: Self, bound: f32, value: f32) -> Self {
        self.pair(Pair::PutWhereAbove(bound, value), x)
    }
    fn clamp(self, low: f32, high: f32) -> Self {
        self.each(Each::Clamp(low, high))
    }
    fn within(self, low: f32, high: f32) -> Self {
        self.each(Each::Within(low, high))
    }
    fn sign_or_one(self) -> Self {
        self.each(Each::SignOrOne)
    }
    fn round_f16(self) -> Self {
        self.each(Each::RoundF16)
    }
    fn all_mean(self) -> Self {
        let numbers = self.to_vec();
        let shape = Shape { outer: 1, n: numbers.len(), inner: 1 };
        Rows { numbers: Rc::new(Numbers::Computed(numbers)), shape, ..self }.row_mean()
    }
    fn add_all(self, number: Self) -> Self {
        let [term] = number.to_vec()[..] else { panic!("one number for all") };
        self.shift(term)
    }
    fn in_blocks(self, size: usize) -> Self {
        let Shape { outer, inner, .. } = self.shape;
        let mut numbers = turned(&self.to_vec(), outer, inner);
        numbers.resize(numbers.len().next_multiple_of(size), 0.0);
        let shape = Shape { outer: numbers.len() / size, n: size, inner: 1 };
        Rows { numbers: Rc::new(Numbers::Computed(numbers)), shape, ..self }
    }
    fn out_of_blocks(self, numbers: &Self) -> Self {
        let Shape { outer, inner, .. } = numbers.shape;
        let blocks = self.to_vec();
        let numbers = turned(&blocks[..outer * inner], inner, outer);
        Rows { numbers: Rc::new(Numbers::Computed(numbers)), shape: Shape { outer, n: 1, inner }, ..self }
    }
}

#[cfg(test)]
mod tests {
    use bitllama_core::rounding::{Offsets, Quantized, Scales, quantize};
    use bitllama_core::{DenseMatrix, Granularity, Method, Offset, Quantizer, ScaleFormat, Scheme, Target};

    use super::*;
    use crate::training::blocks::{Cut, for_each_block};

    /// `[columns, rows]` of `[rows, columns]`.
    fn transposed(data: &[f32], columns: usize) -> Vec<f32> {
        let rows = data.len() / columns;
        (0..data.len()).map(|i| data[i % rows * columns + i / rows]).collect()
    }

    /// Weights with a row of zeros, a row of infinities, and some that are no numbers.
    fn weights(rows: usize, n: usize) -> Vec<f32> {
        let mut data: Vec<f32> = (0..rows * n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
        let fill = |row: &mut [f32], step: usize, number| row.iter_mut().step_by(step).for_each(|x| *x = number);
        for (row, data) in data.chunks_mut(n).enumerate() {
            match row % 16 {
                1 => fill(data, 1, 0.0),
                4 => fill(data, 3, f32::NAN),
                9 => fill(data, 1, -0.0),
                14 => fill(data, 5, f32::INFINITY),
                _ => {}
            }
        }
        data
    }

    fn same(got: &[f32], expected: &[f32]) -> bool {
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        got.len() == expected.len() && got.iter().zip(expected).all(same)
    }

    /// Codes, scales, zero points if there are any, and rounded weights.
    fn all<M: RowMatrix>(quantizer: &Quantizer, weight: M, trained: Option<Scales<M>>) -> Vec<M> {
        let rounded = quantize(quantizer, weight, trained);
        let Quantized { codes, scales, offsets, .. } = rounded.clone();
        let offsets = offsets.map(Offsets::into_numbers);
        [codes, scales].into_iter().chain(offsets).chain([rounded.dequantize()]).collect()
    }

    fn quantizers() -> Vec<Quantizer> {
        let plain = [Offset::None, Offset::ZeroPoint].map(|offset| (offset, ScaleFormat::F32));
        let formats = [plain[0], plain[1], (Offset::None, ScaleFormat::F16), (Offset::Minimum, ScaleFormat::F16)];
        let mut all = Vec::new();
        for scheme in Scheme::ALL {
            for method in Method::ALL {
                let with = |(offset, scales)| Quantizer {
                    scheme,
                    method,
                    granularity: Granularity::Group(32),
                    offset,
                    scales,
                };
                all.extend(formats.map(with).into_iter().filter(|quantizer| quantizer.check().is_ok()));
            }
        }
        all
    }

    /// In rows that lie in one piece, in columns, and in some columns of a matrix, against the plain matrix of the
    /// core.
    #[test]
    fn rounding_is_that_of_the_core_to_the_bit() {
        for (rows, n) in [(1, 1), (3, 7), (32, 64), (20, 576), (5, 33), (300, 17), (2, 1000)] {
            let data = weights(rows, n);
            let columns = transposed(&data, n);
            // Between other columns.
            let wide: Vec<f32> = columns.chunks(rows).flat_map(|line| [&[7.0], line, &[8.0, 9.0]].concat()).collect();
            let scales: Vec<f32> = (0..rows).map(|i| (i as f32 - 1.0) / 50.0).collect();
            let points: Vec<f32> = (0..rows).map(|i| (i % 4) as f32).collect();
            for quantizer in quantizers() {
                for trained in [false, true] {
                    if trained && !quantizer.method.trains_scales() {
                        continue;
                    }
                    let dense = |data: &[f32], columns| DenseMatrix { data: data.to_vec(), columns };
                    let offset = quantizer.offset;
                    let offsets = |points| (offset != Offset::None).then(|| Offsets::of(offset, dense(points, 1)));
                    let of = Scales { scales: dense(&scales, 1), offsets: offsets(&points) };
                    let expected = all(&quantizer, dense(&data, n), trained.then_some(of));
                    for isa in Isa::available() {
                        let whole = |data, width| Part::whole(data, width);
                        let inside = Part::columns(&wide, rows + 3, 1..rows + 1);
                        let cases = [(whole(&data, n), 1), (whole(&columns, rows), rows), (inside, rows)];
                        for (part, inner) in cases {
                            let numbers = |data| Rows::new(Part::whole(data, inner), 1, inner, isa);
                            let offsets = (offset != Offset::None).then(|| Offsets::of(offset, numbers(&points)));
                            let of = Scales { scales: numbers(&scales), offsets };
                            let got = all(&quantizer, Rows::new(part, n, inner, isa), trained.then_some(of));
                            for (got, expected) in got.iter().zip(&expected) {
                                let got = got.to_vec();
                                let got = if inner == 1 { got } else { transposed(&got, rows) };
                                let what = format!("{isa} {quantizer} [{rows}, {n}] {inner} {trained}");
                                assert!(same(&got, &expected.data), "{what}\n{got:?}\n{expected:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    /// Groups of a column's neighbours, and of a row's.
    #[test]
    fn groups_are_rows() {
        let (outer, n, inner) = (3, 32, 300);
        let data = weights(outer * inner, n);
        let quantizer = Quantizer::from(Scheme::Int4);
        let expected = quantize(&quantizer, DenseMatrix { data: data.clone(), columns: n }, None).dequantize().data;
        for isa in Isa::available() {
            let lying = Rows::new(Part::whole(&data, n * inner), n, 1, isa);
            assert!(same(&quantize(&quantizer, lying, None).dequantize().to_vec(), &expected), "{isa}");
            let columns: Vec<f32> = data.chunks(n * inner).flat_map(|group| transposed(group, n)).collect();
            let standing = Rows::new(Part::whole(&columns, inner), n, inner, isa);
            let got = quantize(&quantizer, standing, None).dequantize().to_vec();
            let got: Vec<f32> = got.chunks(n * inner).flat_map(|group| transposed(group, inner)).collect();
            assert!(same(&got, &expected), "{isa}");
        }
    }

    /// Groups whose scales are multiples of a factor, along rows and along columns.
    #[test]
    fn nested_scales_are_rounded_with_their_neighbours() {
        for name in ["gguf:q2_k", "gguf:q3_k", "gguf:q4_k", "gguf:q6_k"] {
            let quantizer = Target::named(name).unwrap().quantizers[0];
            let Granularity::Group(n) = quantizer.granularity else { panic!("{name} has groups") };
            let rows = 21;
            let data: Vec<f32> = weights(rows, 512).into_iter().map(|w| if w.is_finite() { w } else { 0.5 }).collect();
            let expected = all(&quantizer, DenseMatrix { data: data.clone(), columns: n }, None);
            let columns = transposed(&data, 512);
            for isa in Isa::available() {
                let lying = all(&quantizer, Rows::new(Part::whole(&data, 512), n, 1, isa), None);
                let standing = all(&quantizer, Rows::new(Part::whole(&columns, rows), n, rows, isa), None);
                for ((lying, standing), expected) in lying.iter().zip(&standing).zip(&expected) {
                    assert!(same(&lying.to_vec(), &expected.data), "{isa} {name}");
                    let standing = standing.to_vec();
                    assert!(same(&transposed(&standing, rows), &expected.data), "{isa} {name} in columns");
                }
            }
        }
    }

    /// Blocks of a whole matrix, the last of them of a single column, or of a row.
    #[test]
    fn blocks_are_put_together() {
        let [outer, n, inner] = [3, 32, 65];
        let columns = weights(inner, outer * n);
        let standing = transposed(&columns, outer * n);
        let quantizer = Quantizer::from(Scheme::Int4);
        let expected = quantize(&quantizer, DenseMatrix { data: columns.clone(), columns: n }, None);
        for (cut, data) in [(Cut::Columns(inner), &standing), (Cut::Rows(outer * inner), &columns)] {
            let (mut codes, mut scales) = (vec![0.0; data.len()], vec![0.0; outer * inner]);
            for_each_block(cut, &[data], &mut [&mut codes, &mut scales], |_, parts, mut out| {
                let width = if matches!(cut, Cut::Columns(_)) { parts[0].width() } else { 1 };
                let rounded = quantize(&quantizer, Rows::new(parts[0], n, width, Isa::best()), None);
                rounded.codes.write(&mut out[0]);
                rounded.scales.write(&mut out[1]);
            });
            if let Cut::Columns(_) = cut {
                (codes, scales) = (transposed(&codes, inner), transposed(&scales, inner));
            }
            assert!(same(&codes, &expected.codes.data) && same(&scales, &expected.scales.data), "{cut:?}");
        }
    }

    /// The operations that gradients of quantizers are made of, one after the other.
    #[test]
    fn every_operation_is_that_of_the_core() {
        fn results<M: RowMatrix>(x: &M, y: &M, rows: &M) -> Vec<M> {
            let [x, y, rows] = [x, y, rows].map(Clone::clone);
            let inside = x.clone().div_rows(rows.clone()).within(-0.5, 0.75);
            let shared = x.clone().mul(inside.clone()).add(y.clone().scale(-1.0));
            vec![
                x.clone(),
                shared.clone().mul(shared).shift(0.25).divide(3.0),
                inside,
                x.clone().add_rows(rows.clone()).at_least_rows(rows.clone()),
                x.clone().sign_or_one().put_where_above(y.clone(), 0.1, 5.0).clamp(-0.5, 4.0),
                y.clone().round_f16().scale(9.0).round().one_where_zero(),
                x.clone().mul(y.clone()).row_mean(),
                // The largest of zeros of both signs may be either.
                x.clone().mul_rows(rows.clone()).row_max().shift(0.0),
                y.clone().abs().row_min(),
                rows.clone().add_all(rows.all_mean()),
            ]
        }
        for (rows, n) in [(1, 1), (3, 7), (32, 64), (20, 576), (300, 17)] {
            let (x, y) = (weights(rows, n), weights(rows, n).into_iter().rev().collect::<Vec<f32>>());
            let of_rows: Vec<f32> = (0..rows).map(|i| i as f32 / 7.0).collect();
            let dense = |data: &[f32], columns| DenseMatrix { data: data.to_vec(), columns };
            let expected = results(&dense(&x, n), &dense(&y, n), &dense(&of_rows, 1));
            for isa in Isa::available() {
                let (x_columns, y_columns) = (transposed(&x, n), transposed(&y, n));
                for (x, y, width, inner) in [(&x, &y, n, 1), (&x_columns, &y_columns, rows, rows)] {
                    let matrix = |data| Rows::new(Part::whole(data, width), n, inner, isa);
                    let got = results(&matrix(x), &matrix(y), &Rows::new(Part::whole(&of_rows, inner), 1, inner, isa));
                    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                        let got = got.to_vec();
                        let got = if inner == 1 { got } else { transposed(&got, rows) };
                        assert!(same(&got, &expected.data), "{isa} {i} [{rows}, {n}] {inner}");
                    }
                }
            }
        }
    }
}
