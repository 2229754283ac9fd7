//! A matrix in memory, and rounding on it: the operations of [`RowMatrix`] without a tensor library.

use half::f16;

use crate::RowMatrix;

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
    fn add(mut self, other: Self) -> Self {
        self.data.iter_mut().zip(other.data).for_each(|(x, y)| *x += y);
        self
    }
    fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }
    fn put_where_above(mut self, x: Self, bound: f32, value: f32) -> Self {
        self.data.iter_mut().zip(x.data).for_each(|(element, x)| *element = if x > bound { value } else { *element });
        self
    }
    fn clamp(self, low: f32, high: f32) -> Self {
        self.map(|x| x.clamp(low, high))
    }
    fn within(self, low: f32, high: f32) -> Self {
        self.map(|x| if (low..=high).contains(&x) { 1.0 } else { 0.0 })
    }
    fn sign_or_one(self) -> Self {
        self.map(|x| if x >= 0.0 { 1.0 } else { -1.0 })
    }
    fn round_f16(self) -> Self {
        self.map(|x| f16::from_f32(x).to_f32())
    }
    fn all_mean(self) -> Self {
        let columns = self.data.len();
        self.with_columns(columns).row_mean()
    }
    fn add_all(self, number: Self) -> Self {
        self.map(|x| x + number.data[0])
    }
    fn in_blocks(mut self, size: usize) -> Self {
        self.data.resize(self.data.len().next_multiple_of(size), 0.0);
        self.with_columns(size)
    }
    fn out_of_blocks(mut self, numbers: &Self) -> Self {
        self.data.truncate(numbers.data.len());
        self.with_columns(numbers.columns)
    }
}
