//! Fake quantization: weights that are rounded in the forward pass and train through the rounding.
//!
//! The numbers are [`bitllama_core::quantize`]'s, run on Burn tensors; the gradient is the straight-through estimator
//! (Bengio et al. 2013, <https://arxiv.org/abs/1308.3432>).

use std::collections::HashMap;

use bitllama_core::rounding::{Quantized, quantize as round};
use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_core::{RowMatrix, Scheme};
use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::Tensor;

/// A matrix on a Burn device, seen as output rows.
#[derive(Debug, Clone)]
pub struct TensorMatrix {
    tensor: Tensor<2>,
    /// The dimension along which the inputs of one row lie.
    inputs: usize,
}

impl TensorMatrix {
    /// A linear weight `[d_in, d_out]` if `inputs` is 0, an embedding `[rows, d_in]` if it is 1.
    pub fn new(tensor: Tensor<2>, inputs: usize) -> Self {
        Self { tensor, inputs }
    }

    /// The tensor, in the layout it was given in.
    pub fn into_tensor(self) -> Tensor<2> {
        self.tensor
    }

    fn map(self, f: impl FnOnce(Tensor<2>) -> Tensor<2>) -> Self {
        Self { tensor: f(self.tensor), inputs: self.inputs }
    }
}

impl RowMatrix for TensorMatrix {
    fn abs(self) -> Self {
        self.map(Tensor::abs)
    }
    fn row_mean(self) -> Self {
        let inputs = self.inputs;
        self.map(|t| t.mean_dim(inputs))
    }
    fn row_max(self) -> Self {
        let inputs = self.inputs;
        self.map(|t| t.max_dim(inputs))
    }
    fn scale(self, factor: f32) -> Self {
        self.map(|t| t * factor)
    }
    fn one_where_zero(self) -> Self {
        self.map(|t| t.clone().mask_fill(t.equal_elem(0.0), 1.0))
    }
    fn div_rows(self, row: Self) -> Self {
        self.map(|t| t / row.tensor)
    }
    fn mul_rows(self, row: Self) -> Self {
        self.map(|t| t * row.tensor)
    }
    fn round(self) -> Self {
        self.map(Tensor::round)
    }
    fn clamp(self, low: f32, high: f32) -> Self {
        self.map(|t| t.clamp(low, high))
    }
    fn sign_or_one(self) -> Self {
        self.map(|t| t.greater_equal_elem(0.0).float() * 2.0 - 1.0)
    }
}

/// The dimension of a Burn parameter along which the inputs of one output row lie.
pub fn input_dimension(kind: Kind) -> usize {
    match kind {
        Kind::Embedding => 1,
        Kind::Linear | Kind::Head | Kind::Norm => 0,
    }
}

/// Codes and scales of a Burn parameter, in the parameter's own layout; no gradient.
pub fn codes_and_scales(scheme: Scheme, kind: Kind, weight: Tensor<2>) -> Quantized<TensorMatrix> {
    round(scheme, TensorMatrix::new(weight.inner(), input_dimension(kind)))
}

/// Rounds a parameter to a scheme whenever its value is taken.
#[derive(Module, Debug)]
pub struct FakeQuant {
    /// Number format.
    #[module(skip)]
    scheme: Scheme,
    /// What the weight is for, which tells its layout.
    #[module(skip)]
    kind: Kind,
}

impl Reparameterization for FakeQuant {
    const NAME: &'static str = "fake_quant";

    /// The rounded weight, exactly; the gradient passes to `base` unchanged.
    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        let shape = base.shape();
        let matrix = base.clone().inner().reshape([shape[0] as i64, -1]);
        let rounded = codes_and_scales(self.scheme, self.kind, matrix).dequantize().into_tensor().reshape(shape);
        if !base.is_autodiff() {
            return rounded;
        }
        // base - base is 0 in every element and carries the gradient, so that the sum is the rounded weight to the
        // bit; `base + (rounded - base)` is not.
        let residual = base.clone() - Tensor::from_inner(base.inner());
        Tensor::from_inner(rounded) + residual
    }
}

/// Attaches `plan` (weight and its scheme, `None` for full precision) to a model.
pub fn quantize<M: Module>(model: M, plan: &[(WeightSpec, Option<Scheme>)]) -> M {
    let schemes = plan
        .iter()
        .filter_map(|(weight, scheme)| {
            scheme.map(|s| (weight.name.clone(), FakeQuant { scheme: s, kind: weight.kind }))
        })
        .collect();
    model.apply_reparameterization(Attach { schemes })
}

struct Attach {
    schemes: HashMap<String, FakeQuant>,
}

impl Reparameterizer for Attach {
    type Reparam = FakeQuant;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<FakeQuant>) {
        (param, self.schemes.get(path).cloned())
    }
}
