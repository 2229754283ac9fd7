//! AdamW as one pass over a parameter, its gradient and both moments, in place.

use bitllama_kernels::Isa;
use bitllama_kernels::training::adamw;
use burn::backend::Flex;
use burn::backend::flex::FlexTensor;
use burn::optim::{AdamW, AdamWConfig, AdamWState, AdaptiveMomentumState, Optimizer};
use burn::tensor::{Device, Tensor};

use super::fused;
use crate::SharedNumber;

/// Burn's AdamW, with its states and results; on `flex` in one pass.
#[derive(Clone)]
pub struct FusedAdamW {
    plain: AdamW,
    gradient_scale: SharedNumber,
    told: adamw::Step,
}

impl FusedAdamW {
    /// From the coefficients of [`AdamWConfig`]; gradients are multiplied with `gradient_scale` first, all of
    /// them, in passing.
    pub fn new([beta_1, beta_2]: [f64; 2], epsilon: f64, weight_decay: f64, gradient_scale: SharedNumber) -> Self {
        let (beta_1, beta_2, epsilon, weight_decay) =
            (beta_1 as f32, beta_2 as f32, epsilon as f32, weight_decay as f32);
        let plain = AdamWConfig::new()
            .with_beta_1(beta_1)
            .with_beta_2(beta_2)
            .with_epsilon(epsilon)
            .with_weight_decay(weight_decay)
            .build();
        let told = adamw::Step { lr: 0.0, beta_1, beta_2, epsilon, weight_decay, gradient_scale: 1.0, time: 0 };
        Self { plain, gradient_scale, told }
    }
}

impl Optimizer for FusedAdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: f64,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        if !fused(&tensor.device()) {
            let scale = self.gradient_scale.get();
            return self.plain.step(lr, tensor, if scale == 1.0 { grad } else { grad * scale }, state);
        }
        let state = state.map_or_else(
            || AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
            |state| state.momentum,
        );
        let time = state.time + 1;
        let mut tensors = [tensor, state.moment_1, state.moment_2].map(primitive);
        let grad = primitive(grad);
        let [tensor, first, second] = tensors.each_mut().map(|tensor| tensor.storage_mut::<f32>());
        let told = adamw::Step { lr, gradient_scale: self.gradient_scale.get(), time: time as i32, ..self.told };
        adamw::step(Isa::current(), &told, tensor, grad.storage(), first, second);
        let [tensor, first, second] = tensors.map(Tensor::from_primitive::<Flex>);
        (tensor, Some(AdamWState::new(AdaptiveMomentumState::new(time, first, second))))
    }

    fn to_device<const D: usize>(state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        AdamW::to_device(state, device)
    }
}

/// Contiguous, and not a part of something larger.
fn primitive<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    let tensor = tensor
        .try_into_primitive::<Flex>()
        .unwrap_or_else(|e| panic!("an optimizer works on tensors of the inner device: {e:?}"));
    let len = tensor.layout().num_elements();
    let whole = tensor.is_contiguous() && tensor.layout().start_offset() == 0;
    if whole && tensor.storage::<f32>().len() == len { tensor } else { tensor.to_contiguous() }
}
