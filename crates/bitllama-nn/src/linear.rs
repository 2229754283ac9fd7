//! A linear layer without bias, with a place for the rounding of its input ([`crate::activations`]).

use bitllama_core::Activation;
use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::module::linear;

use crate::activations::rounded;

/// `x * weight`.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_in, d_out]`.
    pub weight: Param<Tensor<2>>,
    /// How each token's input is rounded; `None` leaves it as it is.
    #[module(skip)]
    pub input: Option<Activation>,
}

impl Linear {
    /// `[batch, seq, d_in]` to `[batch, seq, d_out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [out] = forward_all([self], x);
        out
    }
}

/// Several layers of one input, which is rounded once for each way that they read it in.
pub fn forward_all<const N: usize>(layers: [&Linear; N], x: Tensor<3>) -> [Tensor<3>; N] {
    let mut inputs: Vec<(Option<Activation>, Tensor<3>)> = Vec::new();
    layers.map(|layer| {
        let known = inputs.iter().find(|(kind, _)| *kind == layer.input).map(|(_, input)| input.clone());
        let input = known.unwrap_or_else(|| {
            let input = rounded(x.clone(), layer.input);
            inputs.push((layer.input, input.clone()));
            input
        });
        linear(input, layer.weight.val(), None)
    })
}
