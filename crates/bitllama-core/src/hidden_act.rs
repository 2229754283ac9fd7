//! Activation functions of feed-forward layers, by the names of Hugging Face's `hidden_act`.

use serde::{Deserialize, Serialize};

/// The function that a feed-forward layer applies to the output of `gate_proj`, before it multiplies it with that of
/// `up_proj`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x / (1 + exp(-x))`, also called swish (SwiGLU: Shazeer 2020, <https://arxiv.org/abs/2002.05202>).
    #[default]
    Silu,
    /// GELU by its approximation with `tanh`: `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel
    /// 2016, <https://arxiv.org/abs/1606.08415>; GeGLU in Shazeer 2020).
    GeluTanh,
    /// `max(x, 0)^2` (Primer: So et al. 2021, <https://arxiv.org/abs/2109.08668>), as BitNet b1.58 2B4T has it.
    Relu2,
}

impl HiddenAct {
    /// Every function.
    pub const ALL: [HiddenAct; 3] = [HiddenAct::Silu, HiddenAct::GeluTanh, HiddenAct::Relu2];

    /// The function of a name in a `config.json`, if it is supported.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu_pytorch_tanh" | "gelu_new" => Some(Self::GeluTanh),
            "relu2" => Some(Self::Relu2),
            _ => None,
        }
    }

    /// The name in a `config.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Silu => "silu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::Relu2 => "relu2",
        }
    }

    /// The value for one number, in f64: the definition that kernels are tested against.
    pub fn value(self, x: f64) -> f64 {
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                0.5 * x * (1.0 + inner.tanh())
            }
            Self::Relu2 => x.max(0.0).powi(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_exact_gelu_is_not_taken_for_its_approximation() {
        for act in HiddenAct::ALL {
            assert_eq!(HiddenAct::from_name(act.name()), Some(act));
        }
        assert_eq!(HiddenAct::from_name("swish"), Some(HiddenAct::Silu));
        assert_eq!(HiddenAct::from_name("gelu"), None);
    }
}
