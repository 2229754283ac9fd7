//! The one rounding function of each quantizer.
//!
//! [`quantize`] is written once, over the operations of [`RowMatrix`]. Plain `f32` matrices implement them here for
//! packing; Burn tensors implement them in `bitllama-nn` for fake quantization, on whatever device they live. So the
//! numbers that training sees and the numbers that a file holds cannot drift apart.
//!
//! A "row" is here what shares a scale: an output row, a group of its columns, or a whole matrix
//! ([`crate::Granularity`]).

use std::collections::HashMap;

use crate::quantizer::{Method, Offset};
use crate::scales::{DOUBLE_BLOCK, LARGEST_F16, Nesting, SMALLEST_F16};
use crate::{DenseMatrix, Quantizer, ScaleFormat, Scheme};

/// A matrix of rows that share a scale, or one number a row (`[rows, 1]`), on some device.
///
/// `row` arguments hold one number for each row of `self`. All arithmetic is IEEE `f32`.
pub trait RowMatrix: Clone {
    /// |x|.
    fn abs(self) -> Self;
    /// The mean of each row, `[rows, 1]`.
    fn row_mean(self) -> Self;
    /// The largest element of each row, `[rows, 1]`.
    fn row_max(self) -> Self;
    /// The smallest element of each row, `[rows, 1]`.
    fn row_min(self) -> Self;
    /// `x * factor`.
    fn scale(self, factor: f32) -> Self;
    /// `x / divisor`, which is not always `x * (1 / divisor)`.
    fn divide(self, divisor: f32) -> Self;
    /// `x + term`.
    fn shift(self, term: f32) -> Self;
    /// 1 in the place of each 0.
    fn one_where_zero(self) -> Self;
    /// Each row divided by its number.
    fn div_rows(self, row: Self) -> Self;
    /// Each row multiplied by its number.
    fn mul_rows(self, row: Self) -> Self;
    /// Each row plus its number.
    fn add_rows(self, row: Self) -> Self;
    /// 1 where an element is at least its row's number, else 0.
    fn at_least_rows(self, row: Self) -> Self;
    /// Elements times elements.
    fn mul(self, other: Self) -> Self;
    /// Elements plus elements.
    fn add(self, other: Self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// `value` in the place of each element for which `x`, of the same shape, is above `bound`.
    fn put_where_above(self, x: Self, bound: f32, value: f32) -> Self;
    /// Limited to `low ..= high`.
    fn clamp(self, low: f32, high: f32) -> Self;
    /// 1 where `low <= x <= high`, else 0.
    fn within(self, low: f32, high: f32) -> Self;
    /// +1 where x >= 0, else -1.
    fn sign_or_one(self) -> Self;
    /// The nearest f16, ties to even.
    fn round_f16(self) -> Self;
    /// The mean of all elements, a matrix of one.
    fn all_mean(self) -> Self;
    /// Each element plus the one of `number`.
    fn add_all(self, number: Self) -> Self;
    /// Numbers of rows as rows of `size`, filled up with zeros: in the order of a packed matrix, `[rows, groups]`.
    fn in_blocks(self, size: usize) -> Self;
    /// The numbers of rows of which [`RowMatrix::in_blocks`] made `self`, in the shape of `numbers`.
    fn out_of_blocks(self, numbers: &Self) -> Self;
}

/// Scales and offsets, one per row (`[rows, 1]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Scales<M> {
    /// The value of a code of 1; for [`Method::Seq`] the largest magnitude alpha, of which levels are fractions.
    pub scales: M,
    /// Offsets, where the quantizer has some.
    pub offsets: Option<Offsets<M>>,
}

/// Zero points or minimums, one per row (`[rows, 1]`); see [`Offset`].
#[derive(Debug, Clone, PartialEq)]
pub enum Offsets<M> {
    /// The field that stands for 0, as a whole number.
    ZeroPoints(M),
    /// The number that is subtracted from `scale * field`, at least 0.
    Minimums(M),
}

impl<M> Offsets<M> {
    /// Numbers of the kind that `offset` says, of which there are some.
    pub fn of(offset: Offset, numbers: M) -> Self {
        match offset {
            Offset::Minimum => Self::Minimums(numbers),
            Offset::None | Offset::ZeroPoint => Self::ZeroPoints(numbers),
        }
    }

    /// The same kind of offsets, of other numbers.
    pub fn map<N>(self, f: impl FnOnce(M) -> N) -> Offsets<N> {
        match self {
            Self::ZeroPoints(numbers) => Offsets::ZeroPoints(f(numbers)),
            Self::Minimums(numbers) => Offsets::Minimums(f(numbers)),
        }
    }

    /// The numbers, whatever they are.
    pub fn numbers(&self) -> &M {
        match self {
            Self::ZeroPoints(numbers) | Self::Minimums(numbers) => numbers,
        }
    }

    /// The numbers, whatever they are.
    pub fn into_numbers(self) -> M {
        match self {
            Self::ZeroPoints(numbers) | Self::Minimums(numbers) => numbers,
        }
    }
}

/// Trained scales by the names of their weights: one number for each group of weights, row-major as in
/// [`PackedMatrix`](crate::PackedMatrix), or one in all for a scale of the whole matrix.
pub type StoredScales = HashMap<String, Scales<DenseMatrix>>;

/// A matrix as codes and scales: `weight = (code - zero_point) * scale[row]`, or `code * scale[row] - minimum`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized<M> {
    /// `[rows, columns]`: codes of the scheme ([`Scheme::code_of`]), or fields where there are offsets.
    pub codes: M,
    /// `[rows, 1]`; 0 only where scales are rounded together.
    pub scales: M,
    /// `[rows, 1]`.
    pub offsets: Option<Offsets<M>>,
    /// The parts that `scales` are made of, where they are rounded together.
    pub parts: Option<ScaleParts<M>>,
}

/// Scales in the form in which files hold them, where they are rounded together.
#[derive(Debug, Clone, PartialEq)]
pub enum ScaleParts<M> {
    /// Those of [`ScaleFormat::Double`].
    Double(DoubleQuantized<M>),
    /// Those of [`ScaleFormat::Nested`].
    Nested {
        /// Parts of scales.
        scales: Multiples<M>,
        /// Parts of minimums.
        minimums: Option<Multiples<M>>,
    },
}

/// Numbers `factor * step`, see [`Nesting`].
#[derive(Debug, Clone, PartialEq)]
pub struct Multiples<M> {
    /// `[blocks, 1]`, numbers in half precision.
    pub factors: M,
    /// `[blocks, groups]`, whole numbers.
    pub steps: M,
}

/// Scales quantized themselves: `code * step + mean`, see [`ScaleFormat::Double`].
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleQuantized<M> {
    /// `[blocks, DOUBLE_BLOCK]`, whole numbers from -128 to 127.
    pub codes: M,
    /// `[blocks, 1]`.
    pub steps: M,
    /// One number.
    pub mean: M,
}

impl<M: RowMatrix> Quantized<M> {
    /// The weights that codes and scales stand for.
    pub fn dequantize(self) -> M {
        match self.offsets {
            None => self.codes.mul_rows(self.scales),
            Some(Offsets::ZeroPoints(points)) => self.codes.add_rows(points.scale(-1.0)).mul_rows(self.scales),
            // The product is rounded, then the difference, as in ggml.
            Some(Offsets::Minimums(minimums)) => self.codes.mul_rows(self.scales).add_rows(minimums.scale(-1.0)),
        }
    }
}

/// Rounds `weight` by `quantizer`: by `trained` scales where its method trains them, else by those that the weights give.
/// Without `trained` scales, such methods take those that training starts from.
///
/// The code of a weight is the nearest one to `w / scale` (ties to even, those between levels of a table down; sign(0) = +1). Scales and zero
/// points:
///
/// - `absmean`: mean |w|;
/// - `twn`: mean of those |w| that are at least half the mean |w|, the others have the code 0;
/// - `minmax`: max |w| / ((largest code - smallest code) / 2); with zero points or minimums (max(w, 0) - min(w, 0)) / (levels - 1),
///   with the zero point round(-min / scale) or the minimum -min;
/// - `learned`, `elastic`: mean |w| at the start;
/// - `lsq`: 2 mean |w| / sqrt(largest code) at the start; with offsets or a table, as `minmax`;
/// - `seq`: alpha = max |w| at the start; levels -3/4, -1/4, 1/4, 3/4 of it in two bits, -2/3, 0, 2/3 in `ternary`.
///
/// Scales and minimums are rounded to the quantizer's [`ScaleFormat`] before codes are chosen.
pub fn quantize<M: RowMatrix>(quantizer: &Quantizer, weight: M, trained: Option<Scales<M>>) -> Quantized<M> {
    let scheme = quantizer.scheme;
    let Scales { scales, offsets } = trained.unwrap_or_else(|| start_scales(quantizer, weight.clone()));
    let (Scales { scales, offsets }, parts) =
        round_scales(quantizer.scales, Scales { scales: code_scales(quantizer, scales), offsets });
    let divisors = match parts {
        Some(_) => scales.clone().one_where_zero(),
        None => scales.clone(),
    };
    let highest = (scheme.levels() - 1) as f32;
    let codes = match (scheme, &offsets) {
        (Scheme::Binary, _) => weight.sign_or_one(),
        _ if quantizer.method == Method::Twn => {
            let magnitude = weight.clone().abs();
            let threshold = magnitude.clone().row_mean().scale(0.5).one_where_zero();
            weight.sign_or_one().mul(magnitude.at_least_rows(threshold))
        }
        (_, Some(Offsets::ZeroPoints(points))) => {
            weight.div_rows(divisors).round().add_rows(points.clone()).clamp(0.0, highest)
        }
        (_, Some(Offsets::Minimums(minimums))) => {
            weight.add_rows(minimums.clone()).div_rows(divisors).round().clamp(0.0, highest)
        }
        (_, None) => nearest_code(scheme, weight.div_rows(divisors)),
    };
    Quantized { codes, scales, offsets, parts }
}

/// Scales and minimums of a matrix, or of whole blocks of nested ones, as `format` can hold them. Those that are rounded together
/// may be 0.
pub fn round_scales<M: RowMatrix>(format: ScaleFormat, scales: Scales<M>) -> (Scales<M>, Option<ScaleParts<M>>) {
    let Scales { scales, offsets } = scales;
    match format {
        ScaleFormat::F32 => (Scales { scales, offsets }, None),
        ScaleFormat::F16 => {
            let offsets = offsets.map(|offsets| match offsets {
                Offsets::Minimums(minimums) => Offsets::Minimums(minimums.clamp(0.0, LARGEST_F16).round_f16()),
                points => points,
            });
            (Scales { scales: scales.clamp(SMALLEST_F16, LARGEST_F16).round_f16(), offsets }, None)
        }
        ScaleFormat::Nested(nesting) => {
            let (scales, parts) = multiples(nesting, scales);
            let unsigned = Nesting { signed: false, ..nesting };
            let (offsets, minimums) = match offsets {
                Some(Offsets::Minimums(minimums)) => {
                    let (minimums, parts) = multiples(unsigned, minimums);
                    (Some(Offsets::Minimums(minimums)), Some(parts))
                }
                others => (others, None),
            };
            (Scales { scales, offsets }, Some(ScaleParts::Nested { scales: parts, minimums }))
        }
        ScaleFormat::Double => {
            let mean = scales.clone().all_mean();
            let blocks = scales.clone().add_all(mean.clone().scale(-1.0)).in_blocks(DOUBLE_BLOCK);
            let steps = blocks.clone().abs().row_max().scale(1.0 / 128.0);
            let codes = blocks.div_rows(steps.clone().one_where_zero()).round().clamp(-128.0, 127.0);
            let differences = codes.clone().mul_rows(steps.clone()).out_of_blocks(&scales);
            let scales = differences.add_all(mean.clone());
            (Scales { scales, offsets }, Some(ScaleParts::Double(DoubleQuantized { codes, steps, mean })))
        }
    }
}

/// Numbers as multiples of factors, of which blocks of `nesting.groups` share one: the largest magnitude is the largest step.
fn multiples<M: RowMatrix>(nesting: Nesting, numbers: M) -> (M, Multiples<M>) {
    let (low, top) = (f32::from(nesting.low()), f32::from(nesting.top()));
    let blocks = numbers.clone().in_blocks(nesting.groups);
    let factors = blocks.clone().abs().row_max().divide(top).clamp(0.0, LARGEST_F16).round_f16();
    let steps = blocks.div_rows(factors.clone().one_where_zero()).round().clamp(low, top);
    let rounded = steps.clone().mul_rows(factors.clone()).out_of_blocks(&numbers);
    (rounded, Multiples { factors, steps })
}

/// The values of one code, before rounding, of `scales` as a method trains them or starts from them.
pub(crate) fn code_scales<M: RowMatrix>(quantizer: &Quantizer, scales: M) -> M {
    match quantizer.method.trains_scales() {
        true => scales.clamp(SMALLEST_SCALE, f32::MAX).divide(alpha_codes(quantizer)),
        false => scales,
    }
}

/// Below this a trained scale counts as this, as in ParetoQ.
const SMALLEST_SCALE: f32 = 1e-5;

/// How many codes a trained scale stands for: 1, but of `seq` alpha is the end of the stretched range.
pub fn alpha_codes(quantizer: &Quantizer) -> f32 {
    match (quantizer.method, quantizer.scheme) {
        (Method::Seq, Scheme::Ternary) => 1.5,
        (Method::Seq, _) => 4.0,
        _ => 1.0,
    }
}

/// The code next to `x`, which is in units of the scale.
fn nearest_code<M: RowMatrix>(scheme: Scheme, x: M) -> M {
    let (low, high) = scheme.code_range();
    if let Some(table) = scheme.table() {
        let lowest = x.clone().clamp(low, low);
        let above = table.bounds.iter().zip(&table.levels[1..]);
        return above.fold(lowest, |codes, (bound, level)| codes.put_where_above(x.clone(), *bound, *level));
    }
    match scheme.line() {
        (_, 1) => x.round().clamp(low, high),
        (_, step) => {
            let fields = x.shift(-low).divide(step as f32).round();
            fields.clamp(0.0, (scheme.levels() - 1) as f32).scale(step as f32).shift(low)
        }
    }
}

/// The scales that `weight` gives, which training starts from where the method trains them; see [`quantize`].
pub fn start_scales<M: RowMatrix>(quantizer: &Quantizer, weight: M) -> Scales<M> {
    let scheme = quantizer.scheme;
    let steps = (scheme.levels() - 1) as f32;
    if quantizer.offset != Offset::None {
        // No range excludes 0, so that 0 has a field.
        let low = weight.clone().row_min().clamp(f32::MIN, 0.0);
        let high = weight.row_max().clamp(0.0, f32::MAX);
        let scales = high.add_rows(low.clone().scale(-1.0)).divide(steps);
        if quantizer.offset == Offset::Minimum {
            // A block of zeros has scales of 0 where these are rounded together.
            let scales = if together(quantizer.scales) { scales } else { scales.one_where_zero() };
            return Scales { scales, offsets: Some(Offsets::Minimums(low.scale(-1.0))) };
        }
        let scales = scales.one_where_zero();
        let points = low.div_rows(scales.clone()).scale(-1.0).round().clamp(0.0, steps);
        return Scales { scales, offsets: Some(Offsets::ZeroPoints(points)) };
    }
    let magnitude = weight.abs();
    let (low, high) = scheme.code_range();
    let scales = match quantizer.method {
        Method::Absmean | Method::Learned | Method::Elastic => magnitude.row_mean(),
        Method::Twn => {
            let threshold = magnitude.clone().row_mean().scale(0.5);
            let kept = magnitude.clone().at_least_rows(threshold);
            let share = kept.clone().row_mean().one_where_zero();
            kept.mul(magnitude).row_mean().div_rows(share)
        }
        Method::Lsq if scheme.table().is_none() => magnitude.row_mean().scale(2.0 / high.sqrt()),
        Method::Minmax | Method::Lsq => magnitude.row_max().divide((high - low) / 2.0),
        Method::Seq => magnitude.row_max(),
    };
    // A group of zeros has the scale 1, but where that would be far from the others that it is rounded with.
    let scales = if together(quantizer.scales) { scales } else { scales.one_where_zero() };
    Scales { scales, offsets: None }
}

/// Whether several scales are rounded together.
fn together(format: ScaleFormat) -> bool {
    matches!(format, ScaleFormat::Double | ScaleFormat::Nested(_))
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;

    fn dense(data: &[f32], columns: usize) -> DenseMatrix {
        DenseMatrix { data: data.to_vec(), columns }
    }

    fn plain(scheme: Scheme, data: &[f32], columns: usize) -> Quantized<DenseMatrix> {
        quantize(&scheme.into(), dense(data, columns), None)
    }

    fn by(scheme: Scheme, method: Method, data: &[f32], columns: usize) -> Quantized<DenseMatrix> {
        quantize(&Quantizer::from(scheme).with_method(method), dense(data, columns), None)
    }

    /// Rows that share a scale, by the grid of a target.
    fn by_target(name: &str, rows: &[[f32; 4]]) -> Quantized<DenseMatrix> {
        let quantizer = crate::Target::named(name).unwrap().quantizers[0];
        quantize(&quantizer, dense(rows.as_flattened(), 4), None)
    }

    #[test]
    fn ternary_by_hand() {
        let q = plain(Scheme::Ternary, &[0.1, -2.0, 0.9, -1.0, 0.0, 0.0, 0.0, 0.0], 4);
        assert_eq!(q.scales.data, [1.0, 1.0]);
        assert_eq!(q.codes.data, [0.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn twn_by_hand() {
        // Mean |w| is 1, so the threshold is 0.5; the mean of those above is 3.4 / 3.
        let q = by(Scheme::Ternary, Method::Twn, &[0.45, -2.0, 0.55, -1.0, 0.0, 0.0, 0.0, 0.0], 4);
        assert_eq!(q.codes.data, [0.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]);
        assert!((q.scales.data[0] - 3.55 / 3.0).abs() < 1e-6 && q.scales.data[1] == 1.0, "{:?}", q.scales.data);
    }

    #[test]
    fn binary_gives_zero_a_plus() {
        let q = plain(Scheme::Binary, &[0.0, -0.5, 1.0], 3);
        assert_eq!((q.scales.data, q.codes.data), (vec![0.5], vec![1.0, -1.0, 1.0]));
    }

    #[test]
    fn int4_uses_all_sixteen_codes() {
        let q = plain(Scheme::Int4, &[-7.5, 7.5, 0.49, 3.0], 4);
        assert_eq!((q.scales.data, q.codes.data), (vec![1.0], vec![-8.0, 7.0, 0.0, 3.0]));
    }

    #[test]
    fn two_bits_of_seq_have_no_zero() {
        let q = by(Scheme::Seq2, Method::Seq, &[-4.0, -1.9, 0.0, 1.9, 2.1, 4.0], 6);
        assert_eq!((q.scales.data.clone(), q.codes.data.clone()), (vec![1.0], vec![-3.0, -1.0, 1.0, 1.0, 3.0, 3.0]));
        let q = by(Scheme::Ternary, Method::Seq, &[-3.0, -0.9, 1.1, 2.0], 4);
        assert_eq!((q.scales.data, q.codes.data), (vec![2.0], vec![-1.0, 0.0, 1.0, 1.0]));
    }

    #[test]
    fn nf4_takes_the_nearest_level_and_survives_zeros() {
        let q = plain(Scheme::Nf4, &[-2.0, 1.0, 0.079_580_3, 0.08, 0.0, 0.0, 0.0, 0.0], 4);
        assert_eq!(q.scales.data, [2.0, 1.0]);
        assert_eq!(q.codes.data, [-1.0, 0.440_709_83, 0.0, 0.079_580_3, 0.0, 0.0, 0.0, 0.0]);
        let data: Vec<f32> = (-2000..2000).map(|i| i as f32 / 1900.0).collect();
        let q = by(Scheme::Nf4, Method::Minmax, &data, data.len());
        let scale = q.scales.data[0];
        assert!(data.iter().zip(q.codes.data).all(|(w, code)| crate::levels::NF4.nearest(w / scale) == code));
    }

    #[test]
    fn f16_scales_are_rounded_before_codes_are_chosen() {
        let quantizer = Quantizer::from(Scheme::Int8).with_scales(ScaleFormat::F16);
        let q = quantize(&quantizer, dense(&[0.1, -0.0521, 1e-9, -1e-9, 9e8, 5e6, 0.0, 0.0], 2), None);
        let scale = f16::from_f32(0.1 / 127.5).to_f32();
        assert_eq!(q.scales.data, [scale, SMALLEST_F16, LARGEST_F16, 1.0]);
        // What is far below the smallest scale is 0, and what is above the largest is cut off.
        assert_eq!(q.codes.data, [127.0, (-0.0521f32 / scale).round(), 0.0, 0.0, 127.0, 76.0, 0.0, 0.0]);
    }

    #[test]
    fn double_quantization_by_hand() {
        // Scales 1, 2, 3 and, of a group of zeros, 0; their mean is 1.5 and the largest difference 1.5.
        let rows = [[1.0; 32], [2.0; 32], [-3.0; 32], [0.0; 32]];
        let quantizer = Quantizer::from(Scheme::Nf4).with_granularity(crate::Granularity::Group(32));
        let q = quantize(&quantizer.with_scales(ScaleFormat::Double), dense(rows.as_flattened(), 32), None);
        let Some(ScaleParts::Double(double)) = q.parts.clone() else { panic!("scales are double-quantized") };
        let step = 1.5 / 128.0;
        assert_eq!((double.mean.data, double.steps.data), (vec![1.5], vec![step]));
        assert_eq!(double.codes.data[..5], [-43.0, 43.0, 127.0, -128.0, 0.0]);
        assert_eq!(q.scales.data, [1.5 - 43.0 * step, 1.5 + 43.0 * step, 1.5 + 127.0 * step, 0.0]);
        let codes: Vec<f32> = q.codes.data.chunks(32).map(|codes| codes[0]).collect();
        assert_eq!(codes, [1.0, 1.0, -1.0, 0.0]);
    }

    #[test]
    fn zero_points_move_the_range() {
        let asymmetric = Quantizer::from(Scheme::Int2).with_zero_point();
        let q = quantize(&asymmetric, dense(&[-1.0, 0.0, 0.9, 2.0, 1.0, 2.0, 3.0, 3.0], 4), None);
        assert_eq!(q.offsets.as_ref().unwrap().numbers().data, [1.0, 0.0]);
        assert_eq!(q.codes.data, [0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 3.0]);
        assert_eq!(q.dequantize().data, [-1.0, 0.0, 1.0, 2.0, 1.0, 2.0, 3.0, 3.0]);
    }

    #[test]
    fn minimums_are_subtracted() {
        let q = by_target("gguf:q4_1", &[[-3.0, 12.0, 0.0, 4.4], [0.0, 30.0, 1.0, 2.9], [-1e-9, 0.0, 0.0, 0.0]]);
        assert_eq!(q.scales.data, [1.0, 2.0, SMALLEST_F16]);
        assert_eq!(q.offsets.clone().unwrap().into_numbers().data, [3.0, 0.0, 0.0]);
        // Ties go to the even field; a scale that is too small for half precision is the smallest.
        assert_eq!(q.codes.data, [0.0, 15.0, 3.0, 7.0, 0.0, 15.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(q.dequantize().data, [-3.0, 12.0, 0.0, 4.0, 0.0, 30.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn nested_scales_are_multiples_of_their_largest() {
        // Eight groups of a block: scales 63, 20.4, 0 and five of 1; minimums 126, 0, 10, ...
        let mut rows = [[0.0, 15.0, 0.0, 0.0]; 8];
        rows[0] = [-126.0, 63.0 * 15.0 - 126.0, 0.0, 63.0];
        rows[1] = [0.0, 20.4 * 15.0, 0.0, 0.0];
        rows[2] = [0.0; 4];
        rows[3] = [-10.0, 5.0, 0.0, 0.0];
        let q = by_target("gguf:q4_k", &rows);
        assert_eq!(q.scales.data, [63.0, 20.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
        assert_eq!(q.offsets.clone().unwrap().into_numbers().data, [126.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0]);
        let Some(ScaleParts::Nested { scales, minimums: Some(minimums) }) = &q.parts else { panic!("{:?}", q.parts) };
        assert_eq!((&scales.factors.data[..], scales.steps.columns), (&[1.0][..], 8));
        assert_eq!((minimums.factors.data[0], minimums.steps.data[3]), (2.0, 5.0));
        assert_eq!(q.codes.data[..8], [0.0, 15.0, 2.0, 3.0, 0.0, 15.0, 0.0, 0.0]);
        // A group whose scale is 0 is its minimum, whatever its codes.
        assert_eq!(q.dequantize().data[..12], [-126.0, 819.0, 0.0, 63.0, 0.0, 300.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        // Steps of formats without minimums have a sign, and codes both.
        let q = by_target("gguf:q6_k", &[[31.5, -31.5, 1.0, 0.0]; 16]);
        let scale = f16::from_f32(1.0 / 127.0).to_f32() * 127.0;
        assert_eq!((q.scales.data[0], &q.codes.data[..4]), (scale, &[31.0, -32.0, 1.0, 0.0][..]));
    }

    proptest! {
        #[test]
        fn codes_are_those_of_the_scheme_and_the_error_is_bounded(
            data in prop::collection::vec(-10f32..10.0, 1..200), which in 0usize..1000
        ) {
            let all = crate::quantizer::tests::all();
            let quantizer = all[which % all.len()];
            let scheme = quantizer.scheme;
            let q = quantize(&quantizer, dense(&data, data.len()), None);
            let scale = q.scales.data[0];
            prop_assert!(scale > 0.0 || quantizer.scales == ScaleFormat::Double);
            let rounded = q.clone().dequantize().data;
            for ((code, w), rounded) in q.codes.data.iter().zip(&data).zip(rounded) {
                let field = if quantizer.has_zero_points() { scheme.whole_field(*code) } else { scheme.field_of(*code) };
                prop_assert!(field.is_some(), "{} {}", quantizer, code);
                if quantizer.method == Method::Minmax && quantizer.scales == ScaleFormat::F32 {
                    let codes = (0..scheme.levels()).map(|field| scheme.code_of(field as u8));
                    let step = codes.clone().skip(1).zip(codes).map(|(above, below)| above - below).fold(0.0, f32::max);
                    let half = 0.5001 * scale * step;
                    prop_assert!((rounded - w).abs() <= half, "{} {} {} {}", quantizer, code, scale, w);
                }
            }
        }

        #[test]
        fn rounding_twice_is_rounding_once_for_integers(data in prop::collection::vec(-10f32..10.0, 2..50)) {
            let columns = data.len();
            let q = plain(Scheme::Int8, &data, columns);
            let (first, again) = (q.codes.data.clone(), plain(Scheme::Int8, &q.dequantize().data, columns).codes.data);
            // A second pass may rescale by half a step at the ends, never by more.
            prop_assert!(first.iter().zip(&again).all(|(a, b)| (a - b).abs() <= 1.0));
        }
    }
}
