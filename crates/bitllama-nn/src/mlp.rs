//! The gated feed-forward layer (SwiGLU, Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use crate::decoder::Site;
use crate::linear::{Linear, forward_all};
use crate::rms_norm::RmsNorm;

/// `down_proj(silu(gate_proj(x)) * up_proj(x))`, with a norm around the product where the model has sub-norms.
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
}

impl Mlp {
    /// `[batch, seq, hidden]` to the same shape. `observe` is shown each [`Site`] of the layer, before any rounding.
    pub fn forward(&self, x: Tensor<3>, observe: &mut dyn FnMut(Site, &Tensor<3>)) -> Tensor<3> {
        observe(Site::Input(&["mlp.gate_proj", "mlp.up_proj"]), &x);
        let [gate, up] = forward_all([&self.gate_proj, &self.up_proj], x);
        let gated = silu(gate) * up;
        let gated = match &self.ffn_sub_norm {
            Some(norm) => norm.forward(gated),
            None => gated,
        };
        observe(Site::Input(&["mlp.down_proj"]), &gated);
        self.down_proj.forward(gated)
    }
}
