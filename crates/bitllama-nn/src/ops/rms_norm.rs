//! RMSNorm, fused.

use bitllama_kernels::Isa;
use bitllama_kernels::training::buffer::written;
use bitllama_kernels::training::rms_norm;
use burn::tensor::Tensor;

use crate::profile::operator;

use super::node::{Input, Numbers, record};

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension of `x` (`[batch, seq, width]`), to the same shape.
pub fn forward(x: Tensor<3>, weight: Tensor<1>, eps: f64) -> Tensor<3> {
    let shape = x.dims();
    let (isa, eps) = (Isa::current(), eps as f32);
    let inputs = vec![Input::of(x), Input::of(weight)];
    let (x, weight) = (inputs[0].numbers(), inputs[1].numbers());
    let out = operator("rms_norm", || written(x.len(), |out| rms_norm::forward(isa, &x, &weight, eps, out)));
    record("rms_norm", inputs, Numbers::new(out, shape), move |d_out, wanted| {
        let mut d_weight = vec![0.0; weight.len()];
        let d_x = written(x.len(), |d_x| rms_norm::backward(isa, &x, &weight, eps, &d_out, d_x, &mut d_weight));
        vec![wanted.gradient(0, || d_x), wanted.gradient(1, || d_weight)]
    })
}
