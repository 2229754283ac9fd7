//! Gated activations, fused.

use bitllama_core::HiddenAct;
use bitllama_kernels::Isa;
use bitllama_kernels::training::buffer::written;
use bitllama_kernels::training::gated;
use burn::tensor::Tensor;
use burn::tensor::activation::{relu, silu};

use crate::profile::operator;

use super::node::{Input, Numbers, record};

/// `act(gate) * up` (`[batch, seq, width]`) of both side by side, `[batch, seq, 2 * width]`: in each row the gates first.
pub fn forward(gate_up: Tensor<3>, act: HiddenAct) -> Tensor<3> {
    let [batch, seq, both] = gate_up.dims();
    let (isa, width) = (Isa::current(), both / 2);
    let inputs = vec![Input::of(gate_up)];
    let gate_up = inputs[0].numbers();
    let out = operator("gated", || written(gate_up.len() / 2, |out| gated::forward(isa, act, &gate_up, width, out)));
    record("gated", inputs, Numbers::new(out, [batch, seq, width]), move |d_out, wanted| {
        vec![wanted.gradient(0, || written(gate_up.len(), |d| gated::backward(isa, act, &gate_up, width, &d_out, d)))]
    })
}

/// As [`forward`], composed out of Burn's operators.
pub fn composed(gate_up: Tensor<3>, act: HiddenAct) -> Tensor<3> {
    let width = gate_up.dims()[2] / 2;
    let (gate, up) = (gate_up.clone().narrow(2, 0, width), gate_up.narrow(2, width, width));
    let value = match act {
        HiddenAct::Silu => silu(gate),
        HiddenAct::GeluTanh => {
            let cube = gate.clone().powi_scalar(3);
            let inner = (gate.clone() + cube * 0.044_715) * (2.0 / std::f64::consts::PI).sqrt();
            gate * 0.5 * (inner.tanh() + 1.0)
        }
        HiddenAct::Relu2 => relu(gate).square(),
    };
    value * up
}
