//! A linear layer, with a place for the rounding of its input ([`crate::activations`]).

use bitllama_core::Activation;
pub use bitllama_kernels::gemm::Precision;
use burn::module::{Module, Param};
use burn::tensor::module::linear;
use burn::tensor::{DType, FloatDType, Tensor, bf16};

use crate::activations::rounded;
use crate::decoder::Llama;
use crate::ops;

/// `x * weight + bias`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_out]`, where the layer has one.
    pub bias: Option<Param<Tensor<1>>>,
    /// How each token's input is rounded; `None` leaves it as it is.
    #[module(skip)]
    pub input: Option<Activation>,
    /// Of both factors of the product, forward and backward.
    #[module(skip)]
    pub precision: Precision,
    /// Whether the forward product is computed in whole numbers where the weight is ternary or binary; the input has 8 bits then.
    #[module(skip)]
    pub int8_forward: bool,
}

impl Linear {
    /// `[batch, seq, d_in]` to `[batch, seq, d_out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        side_by_side([self], x)
    }
}

/// Sets the precision of all products with weights, the head's included. With `int8_forward`, products of 8-bit inputs with weights
/// that are ternary or binary, with a scale for each output, are computed in whole numbers on `flex`, forward: exact, where others
/// add up rounding errors.
pub fn set_precision(model: &mut Llama, precision: Precision, int8_forward: bool) {
    for block in &mut model.layers {
        for (_, linear) in block.linears_mut() {
            linear.precision = precision;
            linear.int8_forward = int8_forward && linear.input == Some(Activation::Int8);
        }
    }
    model.head_precision = precision;
}

/// In `f32`, whatever type a tensor is stored in.
pub(crate) fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if x.dtype() == DType::F32 { x } else { x.cast(FloatDType::F32) }
}

/// A number as bf16 stores it, where a device has no such type.
fn through_bf16<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let value = x.clone().inner();
    let shape = value.shape();
    let data = value.flatten::<1>(0, D - 1).into_data().convert::<bf16>().convert::<f32>();
    let value = Tensor::<1>::from_data(data, (&x.device().inner(), DType::F32));
    let value = value.reshape(shape);
    if !x.is_autodiff() {
        return value;
    }
    // `x - x` is 0 in every element and carries the gradient.
    Tensor::from_inner(value) + (x.clone() - Tensor::from_inner(x.inner()))
}

/// `x * weight` of `[batch, seq, d_in]` and `[d_in, d_out]`.
pub(crate) fn product(x: Tensor<3>, weight: Tensor<2>, precision: Precision, int8_forward: bool) -> Tensor<3> {
    if ops::fused(&x.device()) {
        return ops::linear::forward(x, [weight], [None], precision, int8_forward);
    }
    let weight = wide(weight);
    match precision {
        // Block floating point is a matter of the CPU's units.
        Precision::F32 | Precision::Bfp12 => linear(x, weight, None),
        Precision::Bf16 if x.device().supports_dtype(DType::BF16) => {
            linear(x.cast(FloatDType::BF16), weight.cast(FloatDType::BF16), None).cast(FloatDType::F32)
        }
        Precision::Bf16 => linear(through_bf16(x), through_bf16(weight), None),
    }
}

/// Several layers of one input, which is rounded once for each way that they read it in; outputs side by side, `[batch, seq,
/// sum of d_out]`.
pub fn side_by_side<const N: usize>(layers: [&Linear; N], x: Tensor<3>) -> Tensor<3> {
    let [first, others @ ..] = &layers[..] else { panic!("no layers") };
    let kind = |layer: &Linear| (layer.input, layer.precision, layer.int8_forward);
    let alike = others.iter().all(|layer| kind(layer) == kind(first));
    if alike && ops::fused(&x.device()) {
        let x = rounded(x, first.input);
        let biases = layers.map(|layer| layer.bias.as_ref().map(Param::val));
        let weights = layers.map(|layer| layer.weight.val());
        return ops::linear::forward(x, weights, biases, first.precision, first.int8_forward);
    }
    let mut inputs: Vec<(Option<Activation>, Tensor<3>)> = Vec::new();
    let outputs = layers.map(|layer| {
        let known = inputs.iter().find(|(kind, _)| *kind == layer.input).map(|(_, input)| input.clone());
        let input = known.unwrap_or_else(|| {
            let input = rounded(x.clone(), layer.input);
            inputs.push((layer.input, input.clone()));
            input
        });
        let out = product(input, layer.weight.val(), layer.precision, layer.int8_forward);
        match &layer.bias {
            Some(bias) => out + bias.val().unsqueeze(),
            None => out,
        }
    });
    Tensor::cat(outputs.to_vec(), 2)
}
