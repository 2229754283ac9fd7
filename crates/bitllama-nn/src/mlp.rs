//! The gated feed-forward layer (SwiGLU, Shazeer 2020, <https://arxiv.org/abs/2002.05202>).

use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;

use crate::decoder::Site;

/// `down_proj(silu(gate_proj(x)) * up_proj(x))`.
#[derive(Module, Debug)]
pub struct Mlp {
    /// hidden to intermediate.
    pub gate_proj: Linear,
    /// hidden to intermediate.
    pub up_proj: Linear,
    /// intermediate to hidden.
    pub down_proj: Linear,
}

impl Mlp {
    /// `[batch, seq, hidden]` to the same shape. `observe` is shown each [`Site`] of the layer.
    pub fn forward(&self, x: Tensor<3>, observe: &mut dyn FnMut(Site, &Tensor<3>)) -> Tensor<3> {
        observe(Site::Input(&["mlp.gate_proj", "mlp.up_proj"]), &x);
        let gate = silu(self.gate_proj.forward(x.clone()));
        let gated = gate * self.up_proj.forward(x);
        observe(Site::Input(&["mlp.down_proj"]), &gated);
        self.down_proj.forward(gated)
    }
}
