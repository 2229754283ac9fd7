//! The one rounding function of each scheme.
//!
//! [`quantize`] is written once, over the operations of [`RowMatrix`]. Plain `f32` matrices implement them here for
//! packing; Burn tensors implement them in `bitllama-nn` for fake quantization, on whatever device they live. So the
//! numbers that training sees and the numbers that a file holds cannot drift apart.

use crate::Scheme;

/// A matrix of output rows, or one number a row (`[out_features, 1]`), on some device.
///
/// `row` arguments hold one number for each row of `self`. All arithmetic is IEEE `f32`.
pub trait RowMatrix: Clone {
    /// |x|.
    fn abs(self) -> Self;
    /// The mean of each row, `[out_features, 1]`.
    fn row_mean(self) -> Self;
    /// The largest element of each row, `[out_features, 1]`.
    fn row_max(self) -> Self;
    /// `x * factor`.
    fn scale(self, factor: f32) -> Self;
    /// 1 in the place of each 0.
    fn one_where_zero(self) -> Self;
    /// Each row divided by its number.
    fn div_rows(self, row: Self) -> Self;
    /// Each row multiplied by its number.
    fn mul_rows(self, row: Self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// Limited to `low ..= high`.
    fn clamp(self, low: f32, high: f32) -> Self;
    /// +1 where x >= 0, else -1.
    fn sign_or_one(self) -> Self;
}

/// A matrix as codes and scales: `weight = code * scale[row]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized<M> {
    /// `[out_features, in_features]`, whole numbers within [`Scheme::code_range`].
    pub codes: M,
    /// `[out_features, 1]`, positive; 1 for a row of zeros.
    pub scales: M,
}

impl<M: RowMatrix> Quantized<M> {
    /// The weights that codes and scales stand for.
    pub fn dequantize(self) -> M {
        self.codes.mul_rows(self.scales)
    }
}

/// Rounds `weight` (`[out_features, in_features]`) to the codes of `scheme`, one scale a row.
///
/// - `binary`: scale = mean |w|, code = sign(w) with sign(0) = +1 (XNOR-Net).
/// - `ternary`: scale = mean |w|, code = clamp(round(w / scale), -1, 1) (BitNet b1.58, a scale per row).
/// - `int2` .. `int8`: scale = max |w| / (2^(b-1) - 1/2), code = clamp(round(w / scale)) over all 2^b codes
///   (torchao's `MappingType.SYMMETRIC`).
pub fn quantize<M: RowMatrix>(scheme: Scheme, weight: M) -> Quantized<M> {
    let magnitude = weight.clone().abs();
    let scales = match scheme {
        Scheme::Binary | Scheme::Ternary => magnitude.row_mean(),
        Scheme::Int2 | Scheme::Int3 | Scheme::Int4 | Scheme::Int8 => {
            magnitude.row_max().scale(1.0 / ((scheme.levels() - 1) as f32 / 2.0))
        }
    }
    .one_where_zero();
    let codes = match scheme {
        Scheme::Binary => weight.sign_or_one(),
        _ => {
            let (low, high) = scheme.code_range();
            weight.div_rows(scales.clone()).round().clamp(low as f32, high as f32)
        }
    };
    Quantized { codes, scales }
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
    fn scale(self, factor: f32) -> Self {
        self.map(|x| x * factor)
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

    #[test]
    fn ternary_by_hand() {
        let q = quantize(Scheme::Ternary, dense(&[0.1, -2.0, 0.9, -1.0, 0.0, 0.0, 0.0, 0.0], 4));
        assert_eq!(q.scales.data, [1.0, 1.0]);
        assert_eq!(q.codes.data, [0.0, -1.0, 1.0, -1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn binary_gives_zero_a_plus() {
        let q = quantize(Scheme::Binary, dense(&[0.0, -0.5, 1.0], 3));
        assert_eq!((q.scales.data, q.codes.data), (vec![0.5], vec![1.0, -1.0, 1.0]));
    }

    #[test]
    fn int4_uses_all_sixteen_codes() {
        let q = quantize(Scheme::Int4, dense(&[-7.5, 7.5, 0.49, 3.0], 4));
        assert_eq!((q.scales.data, q.codes.data), (vec![1.0], vec![-8.0, 7.0, 0.0, 3.0]));
    }

    proptest! {
        #[test]
        fn codes_are_whole_and_in_range_and_the_error_is_bounded(
            data in prop::collection::vec(-10f32..10.0, 1..200), which in 0usize..6
        ) {
            let scheme = Scheme::ALL[which];
            let columns = data.len();
            let q = quantize(scheme, dense(&data, columns));
            let (low, high) = scheme.code_range();
            let scale = q.scales.data[0];
            prop_assert!(scale > 0.0);
            for (code, w) in q.codes.data.iter().zip(&data) {
                prop_assert!(code.fract() == 0.0 && *code >= low as f32 && *code <= high as f32);
                if !matches!(scheme, Scheme::Binary | Scheme::Ternary) {
                    prop_assert!((code * scale - w).abs() <= 0.5001 * scale, "{} {} {}", code, scale, w);
                }
            }
        }

        #[test]
        fn rounding_twice_is_rounding_once_for_integers(data in prop::collection::vec(-10f32..10.0, 2..50)) {
            let columns = data.len();
            let q = quantize(Scheme::Int8, dense(&data, columns));
            prop_assert_eq!(q.clone().dequantize().data.len(), columns);
            let (first, again) = (q.codes.data.clone(), quantize(Scheme::Int8, q.dequantize()).codes.data);
            // A second pass may rescale by half a step at the ends, never by more.
            prop_assert!(first.iter().zip(&again).all(|(a, b)| (a - b).abs() <= 1.0));
        }
    }
}
