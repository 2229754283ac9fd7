//! RMSNorm (Zhang and Sennrich 2019, <https://arxiv.org/abs/1910.07467>).

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::ops;

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension.
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// The width of what is normalized.
    pub weight: Param<Tensor<1>>,
    /// Added to the mean square.
    pub eps: f64,
}

impl RmsNorm {
    /// `[batch, seq, width]` to the same shape.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        if ops::fused(&x.device()) {
            return ops::rms_norm::forward(x, self.weight.val(), self.eps);
        }
        let rms = (x.clone().square().mean_dim(2) + self.eps).sqrt();
        x / rms * self.weight.val().unsqueeze()
    }
}
