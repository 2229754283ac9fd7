//! The gated feed-forward layer (Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use bitllama_core::HiddenAct;
use burn::module::Module;
use burn::tensor::Tensor;

use crate::decoder::{Site, Value};
use crate::linear::{Linear, side_by_side};
use crate::ops;
use crate::rms_norm::RmsNorm;

/// `down_proj(act(gate_proj(x)) * up_proj(x))`, with a norm around the product where the model has sub-norms.
#[derive(Module, Debug)]
pub struct Mlp {
    /// hidden to intermediate.
    pub gate_proj: Linear,
    /// hidden to intermediate.
    pub up_proj: Linear,
    /// Norm before `down_proj`, over intermediate, where the model has sub-norms.
    pub ffn_sub_norm: Option<RmsNorm>,
    /// intermediate to hidden.
    pub down_proj: Linear,
    /// Activation function of the gate.
    #[module(skip)]
    pub hidden_act: HiddenAct,
}

impl Mlp {
    /// `[batch, seq, hidden]` to the same shape. `observe` is shown each [`Site`] of the layer, before any rounding.
    pub fn forward(&self, x: Tensor<3>, observe: &mut dyn FnMut(Site, Value)) -> Tensor<3> {
        observe(Site::Input(&["mlp.gate_proj", "mlp.up_proj"]), &|| x.clone());
        let gate_up = side_by_side([&self.gate_proj, &self.up_proj], x);
        let gated = match ops::fused(&gate_up.device()) {
            true => ops::gated::forward(gate_up, self.hidden_act),
            false => ops::gated::composed(gate_up, self.hidden_act),
        };
        let gated = match &self.ffn_sub_norm {
            Some(norm) => norm.forward(gated),
            None => gated,
        };
        observe(Site::Input(&["mlp.down_proj"]), &|| gated.clone());
        self.down_proj.forward(gated)
    }
}
