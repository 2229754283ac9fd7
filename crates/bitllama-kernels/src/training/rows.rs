//! Rows that share a scale, for the rounding functions of `bitllama-core`, in loops that the compiler makes vectors of for each
//! instruction set. Meant for blocks that a processor's cache holds: every operation is a pass over them.

use bitllama_core::RowMatrix;
use half::f16;

use crate::isa::Isa;
use crate::operators::lanes::{Simd, for_isa};

/// `[outer, n, inner]`, row-major: a row is what lies along the middle. Numbers of rows are `[outer, 1, inner]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    /// All numbers.
    pub data: Vec<f32>,
    /// Numbers of a row.
    pub n: usize,
    /// Rows that lie side by side.
    pub inner: usize,
    /// The instruction set to use.
    pub isa: Isa,
}

/// A pass over all numbers: `|x, parameters..| result`.
macro_rules! mapped {
    ($self:ident, |$x:ident $(, $parameter:ident)*| $result:expr) => {{
        #[inline(always)]
        fn all<S: Simd>(_: S, data: &mut [f32] $(, $parameter: f32)*) {
            for number in data {
                let $x = *number;
                *number = $result;
            }
        }
        let mut this = $self;
        let data = &mut this.data[..];
        for_isa!(this.isa, all(data: &mut [f32] $(, $parameter: f32)*));
        this
    }};
}

/// A pass over all numbers and as many others: `|x, y, parameters..| result`.
macro_rules! zipped {
    ($self:ident, $other:expr, |$x:ident, $y:ident $(, $parameter:ident)*| $result:expr) => {{
        #[inline(always)]
        fn all<S: Simd>(_: S, data: &mut [f32], other: &[f32] $(, $parameter: f32)*) {
            for (number, other) in data.iter_mut().zip(other) {
                let ($x, $y) = (*number, *other);
                *number = $result;
            }
        }
        let mut this = $self;
        let (data, other) = (&mut this.data[..], &$other.data[..]);
        assert_eq!(data.len(), other.len(), "matrices of different sizes");
        for_isa!(this.isa, all(data: &mut [f32], other: &[f32] $(, $parameter: f32)*));
        this
    }};
}

/// A pass over all numbers, each with its row's: `|x, r| result`.
macro_rules! by_rows {
    ($self:ident, $rows:ident, |$x:ident, $r:ident| $result:expr) => {{
        #[inline(always)]
        fn all<S: Simd>(_: S, data: &mut [f32], rows: &[f32], n: usize, inner: usize) {
            for (matrix, rows) in data.chunks_exact_mut(n * inner).zip(rows.chunks_exact(inner)) {
                if let [$r] = *rows {
                    for number in matrix {
                        let $x = *number;
                        *number = $result;
                    }
                } else {
                    for line in matrix.chunks_exact_mut(inner) {
                        for (number, row) in line.iter_mut().zip(rows) {
                            let ($x, $r) = (*number, *row);
                            *number = $result;
                        }
                    }
                }
            }
        }
        let mut this = $self;
        let (n, inner) = (this.n, this.inner);
        assert_eq!(this.data.len(), $rows.data.len() * n, "not one number for each row");
        let (data, rows) = (&mut this.data[..], &$rows.data[..]);
        for_isa!(this.isa, all(data: &mut [f32], rows: &[f32], n: usize, inner: usize));
        this
    }};
}

/// One number of each row: accumulators of type `$t` start as `$start`, take `|sum, x| next` and end as `|sum, n| result`.
macro_rules! folded {
    ($self:ident, $t:ty, $start:expr, |$sum:ident, $x:ident| $next:expr, |$last:ident, $n:ident| $result:expr) => {{
        #[inline(always)]
        fn all<S: Simd>(_: S, data: &[f32], n: usize, inner: usize, out: &mut [f32]) {
            // Several sums of a row that lies in one piece, for one not to wait for the other.
            const PARTS: usize = 16;
            for (matrix, out) in data.chunks_exact(n * inner).zip(out.chunks_exact_mut(inner)) {
                let mut sums: Vec<$t> = vec![$start; inner.max(PARTS)];
                let whole = if inner == 1 { PARTS } else { inner };
                let (lines, rest) = (matrix.chunks_exact(whole), matrix.chunks_exact(whole).remainder());
                for line in lines.chain(std::iter::once(rest)) {
                    for (sum, x) in sums.iter_mut().zip(line) {
                        let ($sum, $x) = (*sum, *x);
                        *sum = $next;
                    }
                }
                if let [out] = out {
                    let mut total: $t = $start;
                    for part in &sums {
                        total = joined(total, *part);
                    }
                    let ($last, $n) = (total, n);
                    *out = $result;
                    continue;
                }
                for (out, sum) in out.iter_mut().zip(&sums) {
                    let ($last, $n) = (*sum, n);
                    *out = $result;
                }
            }
            #[inline(always)]
            fn joined(a: $t, b: $t) -> $t {
                let ($sum, $x) = (a, b);
                $next
            }
        }
        let Rows { data, n, inner, isa } = $self;
        let mut numbers = vec![0.0; data.len() / n];
        let (data, out) = (&data[..], &mut numbers[..]);
        for_isa!(isa, all(data: &[f32], n: usize, inner: usize, out: &mut [f32]));
        Rows { data: numbers, n: 1, inner, isa }
    }};
}

impl RowMatrix for Rows {
    fn abs(self) -> Self {
        mapped!(self, |x| x.abs())
    }
    fn row_mean(self) -> Self {
        // In f64, as the plain matrix of the core: the mean is then the same whatever the order, up to one rounding.
        folded!(self, f64, 0.0, |sum, x| sum + x as f64, |sum, n| (sum / n as f64) as f32)
    }
    fn row_max(self) -> Self {
        folded!(self, f32, f32::NEG_INFINITY, |sum, x| if x > sum { x } else { sum }, |sum, _n| sum)
    }
    fn row_min(self) -> Self {
        folded!(self, f32, f32::INFINITY, |sum, x| if x < sum { x } else { sum }, |sum, _n| sum)
    }
    fn scale(self, factor: f32) -> Self {
        mapped!(self, |x, factor| x * factor)
    }
    fn divide(self, divisor: f32) -> Self {
        mapped!(self, |x, divisor| x / divisor)
    }
    fn shift(self, term: f32) -> Self {
        mapped!(self, |x, term| x + term)
    }
    fn one_where_zero(self) -> Self {
        mapped!(self, |x| if x == 0.0 { 1.0 } else { x })
    }
    fn div_rows(self, row: Self) -> Self {
        by_rows!(self, row, |x, r| x / r)
    }
    fn mul_rows(self, row: Self) -> Self {
        by_rows!(self, row, |x, r| x * r)
    }
    fn add_rows(self, row: Self) -> Self {
        by_rows!(self, row, |x, r| x + r)
    }
    fn at_least_rows(self, row: Self) -> Self {
        by_rows!(self, row, |x, r| if x >= r { 1.0 } else { 0.0 })
    }
    fn mul(self, other: Self) -> Self {
        zipped!(self, other, |x, y| x * y)
    }
    fn add(self, other: Self) -> Self {
        zipped!(self, other, |x, y| x + y)
    }
    fn round(self) -> Self {
        mapped!(self, |x| x.round_ties_even())
    }
    fn put_where_above(self, x: Self, bound: f32, value: f32) -> Self {
        zipped!(self, x, |x, y, bound, value| if y > bound { value } else { x })
    }
    fn clamp(self, low: f32, high: f32) -> Self {
        // What is no number stays none.
        mapped!(self, |x, low, high| if x < low {
            low
        } else if x > high {
            high
        } else {
            x
        })
    }
    fn within(self, low: f32, high: f32) -> Self {
        mapped!(self, |x, low, high| if x >= low && x <= high { 1.0 } else { 0.0 })
    }
    fn sign_or_one(self) -> Self {
        mapped!(self, |x| if x >= 0.0 { 1.0 } else { -1.0 })
    }
    fn round_f16(mut self) -> Self {
        self.data.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        self
    }
    fn all_mean(self) -> Self {
        let n = self.data.len();
        Self { n, inner: 1, ..self }.row_mean()
    }
    fn add_all(self, number: Self) -> Self {
        let [term] = number.data[..] else { panic!("one number for all") };
        self.shift(term)
    }
    fn in_blocks(self, _: usize) -> Self {
        panic!("scales of a block are not all scales of their matrix")
    }
    fn out_of_blocks(self, _: &Self) -> Self {
        panic!("scales of a block are not all scales of their matrix")
    }
}

#[cfg(test)]
mod tests {
    use bitllama_core::rounding::quantize;
    use bitllama_core::{DenseMatrix, Granularity, Method, Quantizer, ScaleFormat, Scheme};

    use super::*;

    /// In rows that lie in one piece and in columns, against the plain matrix of the core.
    #[test]
    fn rounding_is_that_of_the_core_to_the_bit() {
        for (rows, n) in [(1, 1), (3, 7), (32, 64), (20, 576), (5, 33)] {
            let data: Vec<f32> = (0..rows * n).map(|i| ((i * 7919) % 1009) as f32 / 504.5 - 1.0).collect();
            let columns: Vec<f32> = (0..rows * n).map(|i| data[i % rows * n + i / rows]).collect();
            for scheme in Scheme::ALL {
                for method in Method::ALL {
                    for (zero_point, scales) in
                        [(false, ScaleFormat::F32), (true, ScaleFormat::F32), (false, ScaleFormat::F16)]
                    {
                        let quantizer = Quantizer { scheme, method, granularity: Granularity::Row, zero_point, scales };
                        if quantizer.check().is_err() {
                            continue;
                        }
                        let expected = quantize(&quantizer, DenseMatrix { data: data.clone(), columns: n }, None);
                        let expected = expected.dequantize().data;
                        for isa in Isa::available() {
                            let lying = Rows { data: data.clone(), n, inner: 1, isa };
                            let got = quantize(&quantizer, lying, None).dequantize().data;
                            assert!(got == expected, "{isa} {quantizer:?} [{rows}, {n}]");
                            let standing = Rows { data: columns.clone(), n, inner: rows, isa };
                            let got = quantize(&quantizer, standing, None).dequantize().data;
                            assert!(
                                (0..rows * n).all(|i| got[i] == expected[i % rows * n + i / rows]),
                                "{isa} {quantizer:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
