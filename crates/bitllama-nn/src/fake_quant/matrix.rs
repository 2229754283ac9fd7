//! Burn parameters as the rows that share a scale, for the rounding functions of `bitllama-core`.

use bitllama_core::rounding::{DoubleQuantized, Multiples, Quantized, ScaleParts, Scales};
use bitllama_core::weights::Kind;
use bitllama_core::{DenseMatrix, Granularity, Quantizer, RowMatrix};
use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData, f16};

use crate::weights::{floats, input_dimension, transposed};

/// A matrix on a Burn device, seen as rows that share a scale: `[outer, n, inner]`, where a row is what lies along the
/// middle. Numbers of rows are `[outer, 1, inner]`.
#[derive(Debug, Clone)]
pub struct TensorMatrix(pub Tensor<3>);

/// How a parameter becomes a [`TensorMatrix`] and back.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// The parameter's own shape: `[d_in, d_out]` of a linear layer or head, `[rows, d_in]` of an embedding.
    shape: [usize; 2],
    kind: Kind,
    quantizer: Quantizer,
}

impl View {
    /// The view of a parameter of the given shape.
    pub fn new(quantizer: Quantizer, kind: Kind, shape: [usize; 2]) -> Self {
        Self { shape, kind, quantizer }
    }

    /// `[out_features, in_features]`.
    pub fn matrix_shape(&self) -> [usize; 2] {
        let [a, b] = self.shape;
        if input_dimension(self.kind) == 0 { [b, a] } else { [a, b] }
    }

    /// The parameter as rows that share a scale.
    pub fn rows_of<const D: usize>(&self, parameter: Tensor<D>) -> Tensor<3> {
        parameter.reshape(self.rows_shape())
    }

    /// The quantizer of the parameter.
    pub fn quantizer(&self) -> &Quantizer {
        &self.quantizer
    }

    /// `[outer, n, inner]`.
    pub fn rows_shape(&self) -> [usize; 3] {
        let [a, b] = self.shape;
        match (self.quantizer.granularity, input_dimension(self.kind)) {
            (Granularity::Tensor, _) => [1, a * b, 1],
            (Granularity::Row, 0) => [1, a, b],
            (Granularity::Row, _) => [a, b, 1],
            (Granularity::Group(size), 0) => [a / size, size, b],
            (Granularity::Group(size), _) => [a * b / size, size, 1],
        }
    }

    /// Elements of the parameter on the host, row-major `[out_features, in_features]`.
    pub fn elements(&self, rows: TensorMatrix) -> Vec<f32> {
        let [a, b] = self.shape;
        match input_dimension(self.kind) {
            0 => floats(rows.0.reshape::<2, _>([a, b]).transpose()),
            _ => floats(rows.0),
        }
    }

    /// Numbers of rows on the host, in the order of [`View::elements`]: `[out_features, groups]`, or one.
    pub fn numbers(&self, numbers: TensorMatrix) -> DenseMatrix {
        let [outer, _, inner] = numbers.0.dims();
        DenseMatrix { data: floats(numbers.0.reshape::<2, _>([outer, inner]).transpose()), columns: 1 }
    }

    /// Numbers of rows from the host, as [`View::numbers`] gives them.
    pub fn from_numbers(&self, numbers: &DenseMatrix, device: &Device) -> Tensor<3> {
        let [outer, _, inner] = self.rows_shape();
        let data = transposed(&numbers.data, inner, outer);
        Tensor::from_data(TensorData::new(data, [outer, 1, inner]), (device, DType::F32))
    }

    /// Codes and scales on the host, as [`RoundedMatrix::pack`](bitllama_core::RoundedMatrix::pack) takes them.
    pub fn quantized(&self, rounded: Quantized<TensorMatrix>) -> Quantized<DenseMatrix> {
        let [_, columns] = self.matrix_shape();
        // Parts are in the order of a packed matrix already.
        let plain = |numbers: TensorMatrix| {
            let [_, columns, _] = numbers.0.dims();
            DenseMatrix { data: floats(numbers.0), columns }
        };
        let multiples = |of: Multiples<TensorMatrix>| Multiples { factors: plain(of.factors), steps: plain(of.steps) };
        let parts = rounded.parts.map(|parts| match parts {
            ScaleParts::Double(DoubleQuantized { codes, steps, mean }) => {
                ScaleParts::Double(DoubleQuantized { codes: plain(codes), steps: plain(steps), mean: plain(mean) })
            }
            ScaleParts::Nested { scales, minimums } => {
                ScaleParts::Nested { scales: multiples(scales), minimums: minimums.map(multiples) }
            }
        });
        Quantized {
            codes: DenseMatrix { data: self.elements(rounded.codes), columns },
            scales: self.numbers(rounded.scales),
            offsets: rounded.offsets.map(|offsets| offsets.map(|numbers| self.numbers(numbers))),
            parts,
        }
    }

    /// Scales and offsets on the host.
    pub fn scales(&self, scales: Scales<TensorMatrix>) -> Scales<DenseMatrix> {
        let offsets = scales.offsets.map(|offsets| offsets.map(|numbers| self.numbers(numbers)));
        Scales { scales: self.numbers(scales.scales), offsets }
    }
}

impl TensorMatrix {
    fn map(self, f: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Self {
        Self(f(self.0))
    }
}

impl RowMatrix for TensorMatrix {
    fn abs(self) -> Self {
        self.map(Tensor::abs)
    }
    fn row_mean(self) -> Self {
        self.map(|t| t.mean_dim(1))
    }
    fn row_max(self) -> Self {
        self.map(|t| t.max_dim(1))
    }
    fn row_min(self) -> Self {
        self.map(|t| t.min_dim(1))
    }
    fn scale(self, factor: f32) -> Self {
        self.map(|t| t * factor)
    }
    fn divide(self, divisor: f32) -> Self {
        self.map(|t| t / divisor)
    }
    fn shift(self, term: f32) -> Self {
        self.map(|t| t + term)
    }
    fn one_where_zero(self) -> Self {
        self.map(|t| t.clone().mask_fill(t.equal_elem(0.0), 1.0))
    }
    fn div_rows(self, row: Self) -> Self {
        self.map(|t| t / row.0)
    }
    fn mul_rows(self, row: Self) -> Self {
        self.map(|t| t * row.0)
    }
    fn add_rows(self, row: Self) -> Self {
        self.map(|t| t + row.0)
    }
    fn at_least_rows(self, row: Self) -> Self {
        self.map(|t| t.greater_equal(row.0).float())
    }
    fn mul(self, other: Self) -> Self {
        self.map(|t| t * other.0)
    }
    fn add(self, other: Self) -> Self {
        self.map(|t| t + other.0)
    }
    fn round(self) -> Self {
        self.map(Tensor::round)
    }
    fn put_where_above(self, x: Self, bound: f32, value: f32) -> Self {
        self.map(|t| t.mask_fill(x.0.greater_elem(bound), value))
    }
    fn clamp(self, low: f32, high: f32) -> Self {
        self.map(|t| t.clamp(low, high))
    }
    fn within(self, low: f32, high: f32) -> Self {
        self.map(|t| t.clone().greater_equal_elem(low).bool_and(t.lower_equal_elem(high)).float())
    }
    fn sign_or_one(self) -> Self {
        self.map(|t| t.greater_equal_elem(0.0).float() * 2.0 - 1.0)
    }
    fn round_f16(self) -> Self {
        self.map(|t| match t.device().supports_dtype(DType::F16) {
            true => t.cast(FloatDType::F16).cast(FloatDType::F32),
            // Scales are few; Burn's data rounds as the `half` crate does.
            false => {
                let rounded = t.to_data().convert::<f16>().convert::<f32>();
                Tensor::from_data(rounded, (&t.device(), DType::F32))
            }
        })
    }
    fn all_mean(self) -> Self {
        self.map(|t| t.mean().reshape([1, 1, 1]))
    }
    fn add_all(self, number: Self) -> Self {
        self.map(|t| t + number.0)
    }
    fn in_blocks(self, size: usize) -> Self {
        let [outer, _, inner] = self.0.dims();
        let (len, blocks) = (outer * inner, (outer * inner).div_ceil(size));
        let flat = self.0.reshape::<2, _>([outer, inner]).transpose().reshape::<1, _>([len]);
        let rest = Tensor::zeros([blocks * size - len], (&flat.device(), DType::F32));
        Self(Tensor::cat(vec![flat, rest], 0).reshape([blocks, size, 1]))
    }
    fn out_of_blocks(self, numbers: &Self) -> Self {
        let [outer, _, inner] = numbers.0.dims();
        let [blocks, size, _] = self.0.dims();
        let flat = self.0.reshape::<1, _>([blocks * size]).narrow(0, 0, outer * inner);
        Self(flat.reshape::<2, _>([inner, outer]).transpose().reshape([outer, 1, inner]))
    }
}
