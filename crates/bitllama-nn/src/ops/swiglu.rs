//! SwiGLU, fused.

use bitllama_kernels::Isa;
use bitllama_kernels::training::buffer::written;
use bitllama_kernels::training::swiglu;
use burn::tensor::Tensor;

use crate::profile::operator;

use super::node::{Input, Numbers, record};

/// `silu(gate) * up` (`[batch, seq, width]`) of both side by side, `[batch, seq, 2 * width]`: in each row the gates first.
pub fn forward(gate_up: Tensor<3>) -> Tensor<3> {
    let [batch, seq, both] = gate_up.dims();
    let (isa, width) = (Isa::current(), both / 2);
    let inputs = vec![Input::of(gate_up)];
    let gate_up = inputs[0].numbers();
    let out = operator("swiglu", || written(gate_up.len() / 2, |out| swiglu::forward(isa, &gate_up, width, out)));
    record("swiglu", inputs, Numbers::new(out, [batch, seq, width]), move |d_out, wanted| {
        vec![wanted.gradient(0, || written(gate_up.len(), |d| swiglu::backward(isa, &gate_up, width, &d_out, d)))]
    })
}
