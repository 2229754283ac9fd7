//! The one rounding function of each quantizer.
//!
//! [`quantize`] is written once, over the operations of [`RowMatrix`]. Plain `f32` matrices implement them here for
//! packing; Burn tensors implement them in `bitllama-nn` for fake quantization, on whatever device they live. So the
//! numbers that training sees and the numbers that a file holds cannot drift apart.
//!
//! A "row" is here what shares a scale: an output row, a group of its columns, or a whole matrix
//! ([`crate::Granularity`]).

use std::collections::HashMap;

use crate::quantizer::Method;
use crate::{Quantizer, Scheme};

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
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// Limited to `low ..= high`.
    fn clamp(self, low: f32, high: f32) -> Self;
    /// +1 where x >= 0, else -1.
    fn sign_or_one(self) -> Self;
}

/// What a quantizer divides by: of every row one number (`[rows, 1]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Scales<M> {
    /// What a code of 1 stands for; of [`Method::Seq`] the largest magnitude alpha, of which levels are fractions.
    pub scales: M,
    /// The field that stands for 0, as a whole number, where the quantizer has zero points.
    pub zero_points: Option<M>,
}

/// Trained scales by the names of their weights: one number for each group of weights, row-major as in
/// [`PackedMatrix`](crate::PackedMatrix), or one in all for a scale of the whole matrix.
pub type StoredScales = HashMap<String, Scales<DenseMatrix>>;

/// A matrix as codes and scales: `weight = (code - zero_point) * scale[row]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized<M> {
    /// `[rows, columns]`, whole numbers: codes within [`Scheme::code_range`], or fields where there are zero points.
    pub codes: M,
    /// `[rows, 1]`; of weights never 0.
    pub scales: M,
    /// `[rows, 1]`.
    pub zero_points: Option<M>,
}

impl<M: RowMatrix> Quantized<M> {
    /// The weights that codes and scales stand for.
    pub fn dequantize(self) -> M {
        let codes = match self.zero_points {
            Some(points) => self.codes.add_rows(points.scale(-1.0)),
            None => self.codes,
        };
        codes.mul_rows(self.scales)
    }
}

/// Rounds `weight` by `quantizer`: by `trained` scales where its method trains them, else by those that the weights give.
/// Without `trained` scales, such methods take those that training starts from.
///
/// The code of a weight is the nearest one to `w / scale` (ties to even; sign(0) = +1). Scales and zero points:
///
/// - `absmean`: mean |w|;
/// - `twn`: mean of those |w| that are at least half the mean |w|, the others have the code 0;
/// - `minmax`: max |w| / ((levels - 1) / 2); with zero points (max(w, 0) - min(w, 0)) / (levels - 1), and
///   round(-min / scale);
/// - `learned`, `elastic`: mean |w| at the start;
/// - `lsq`: 2 mean |w| / sqrt(largest code) at the start; with zero points as `minmax`;
/// - `seq`: alpha = max |w| at the start; levels -3/4, -1/4, 1/4, 3/4 of it in two bits, -2/3, 0, 2/3 in `ternary`.
pub fn quantize<M: RowMatrix>(quantizer: &Quantizer, weight: M, trained: Option<Scales<M>>) -> Quantized<M> {
    let scheme = quantizer.scheme;
    let Scales { scales, zero_points } = trained.unwrap_or_else(|| start_scales(quantizer, weight.clone()));
    let scales = match quantizer.method {
        method if method.trains_scales() => scales.clamp(SMALLEST_SCALE, f32::MAX).divide(alpha_codes(quantizer)),
        _ => scales,
    };
    let codes = match (scheme, &zero_points) {
        (Scheme::Binary, _) => weight.sign_or_one(),
        _ if quantizer.method == Method::Twn => {
            let magnitude = weight.clone().abs();
            let threshold = magnitude.clone().row_mean().scale(0.5).one_where_zero();
            weight.sign_or_one().mul(magnitude.at_least_rows(threshold))
        }
        (_, Some(points)) => {
            let highest = (scheme.levels() - 1) as f32;
            weight.div_rows(scales.clone()).round().add_rows(points.clone()).clamp(0.0, highest)
        }
        (_, None) => nearest_code(scheme, weight.div_rows(scales.clone())),
    };
    Quantized { codes, scales, zero_points }
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
    match scheme.code_step() {
        1 => x.round().clamp(low as f32, high as f32),
        step => {
            let fields = x.shift(-low as f32).divide(step as f32).round();
            fields.clamp(0.0, (scheme.levels() - 1) as f32).scale(step as f32).shift(low as f32)
        }
    }
}

/// The scales that `weight` gives, which training starts from where the method trains them; see [`quantize`].
pub fn start_scales<M: RowMatrix>(quantizer: &Quantizer, weight: M) -> Scales<M> {
    let scheme = quantizer.scheme;
    let steps = (scheme.levels() - 1) as f32;
    if quantizer.zero_point {
        // No range excludes 0, so that 0 has a field.
        let low = weight.clone().row_min().clamp(f32::MIN, 0.0);
        let high = weight.row_max().clamp(0.0, f32::MAX);
        let scales = high.add_rows(low.clone().scale(-1.0)).divide(steps).one_where_zero();
        let points = low.div_rows(scales.clone()).scale(-1.0).round().clamp(0.0, steps);
        return Scales { scales, zero_points: Some(points) };
    }
    let magnitude = weight.abs();
    let scales = match quantizer.method {
        Method::Absmean | Method::Learned | Method::Elastic => magnitude.row_mean(),
        Method::Twn => {
            let threshold = magnitude.clone().row_mean().scale(0.5);
            let kept = magnitude.clone().at_least_rows(threshold);
            let share = kept.clone().row_mean().one_where_zero();
            kept.mul(magnitude).row_mean().div_rows(share)
        }
        Method::Minmax => magnitude.row_max().divide(steps / 2.0 * scheme.code_step() as f32),
        Method::Lsq => magnitude.row_mean().scale(2.0 / (scheme.code_range().1 as f32).sqrt()),
        Method::Seq => magnitude.row_max(),
    };
    Scales { scales: scales.one_where_zero(), zero_points: None }
}

/// A plain row-major `f32` matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseMatrix {
    /// Row-major elements, `rows * columns` of them.
    pub data: Vec<f32>,
    /// Elements a row.
    pub columns: usize,
}

impl DenseMatrix {
    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        self.data.iter_mut().for_each(|x| *x = f(*x));
        self
    }

    fn fold_rows(self, f: impl Fn(&[f32]) -> f32) -> Self {
        DenseMatrix { data: self.data.chunks_exact(self.columns).map(f).collect(), columns: 1 }
    }

    /// The matrix with rows of another length.
    pub fn with_columns(self, columns: usize) -> Self {
        DenseMatrix { data: self.data, columns }
    }

    fn zip_rows(mut self, row: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (elements, r) in self.data.chunks_exact_mut(self.columns).zip(row.data) {
            elements.iter_mut().for_each(|x| *x = f(*x, r));
        }
        self
    }
}

impl RowMatrix for DenseMatrix {
    fn abs(self) -> Self {
        self.map(f32::abs)
    }
    fn row_mean(self) -> Self {
        // Summed in f64: the mean is then the same whatever the order of summation, up to one f32 rounding.
        self.fold_rows(|row| (row.iter().map(|x| *x as f64).sum::<f64>() / row.len() as f64) as f32)
    }
    fn row_max(self) -> Self {
        self.fold_rows(|row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max))
    }
    fn row_min(self) -> Self {
        self.fold_rows(|row| row.iter().copied().fold(f32::INFINITY, f32::min))
    }
    fn scale(self, factor: f32) -> Self {
        self.map(|x| x * factor)
    }
    fn divide(self, divisor: f32) -> Self {
        self.map(|x| x / divisor)
    }
    fn shift(self, term: f32) -> Self {
        self.map(|x| x + term)
    }
    fn one_where_zero(self) -> Self {
        self.map(|x| if x == 0.0 { 1.0 } else { x })
    }
    fn div_rows(self, row: Self) -> Self {
        self.zip_rows(row, |x, r| x / r)
    }
    fn mul_rows(self, row: Self) -> Self {
        self.zip_rows(row, |x, r| x * r)
    }
    fn add_rows(self, row: Self) -> Self {
        self.zip_rows(row, |x, r| x + r)
    }
    fn at_least_rows(self, row: Self) -> Self {
        self.zip_rows(row, |x, r| if x >= r { 1.0 } else { 0.0 })
    }
    fn mul(mut self, other: Self) -> Self {
        self.data.iter_mut().zip(other.data).for_each(|(x, y)| *x *= y);
        self
    }
    fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    fn clamp(self, low: f32, high: f32) -> Self {
        self.map(|x| x.clamp(low, high))
    }
    fn sign_or_one(self) -> Self {
        self.map(|x| if x >= 0.0 { 1.0 } else { -1.0 })
    }
}

#[cfg(test)]
mod tests {
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
    fn zero_points_move_the_range() {
        let asymmetric = Quantizer::from(Scheme::Int2).with_zero_point();
        let q = quantize(&asymmetric, dense(&[-1.0, 0.0, 0.9, 2.0, 1.0, 2.0, 3.0, 3.0], 4), None);
        assert_eq!(q.zero_points.as_ref().unwrap().data, [1.0, 0.0]);
        assert_eq!(q.codes.data, [0.0, 1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 3.0]);
        assert_eq!(q.dequantize().data, [-1.0, 0.0, 1.0, 2.0, 1.0, 2.0, 3.0, 3.0]);
    }

    proptest! {
        #[test]
        fn codes_are_whole_and_in_range_and_the_error_is_bounded(
            data in prop::collection::vec(-10f32..10.0, 1..200), which in 0usize..1000
        ) {
            let all = crate::quantizer::tests::all();
            let quantizer = all[which % all.len()];
            let scheme = quantizer.scheme;
            let q = quantize(&quantizer, dense(&data, data.len()), None);
            let (low, high) = if quantizer.zero_point { (0, scheme.levels() as i32 - 1) } else { scheme.code_range() };
            let scale = q.scales.data[0];
            prop_assert!(scale > 0.0);
            let rounded = q.clone().dequantize().data;
            for ((code, w), rounded) in q.codes.data.iter().zip(&data).zip(rounded) {
                prop_assert!(code.fract() == 0.0 && *code >= low as f32 && *code <= high as f32);
                if quantizer.method == Method::Minmax {
                    let half = 0.5001 * scale * scheme.code_step() as f32;
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
