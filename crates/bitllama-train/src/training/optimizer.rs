//! AdamW (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>) by parameter groups, the learning-rate
//! schedule, and clipping by the norm of all gradients together.

use bitllama_nn::Llama;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::Tensor;

use crate::recipe::Train;

/// AdamW with the recipe's decay on matrices and none on vectors (norms).
pub fn adamw(model: &Llama, train: &Train) -> ModuleOptimizer {
    let config = AdamWConfig::new()
        .with_beta_1(train.beta1 as f32)
        .with_beta_2(train.beta2 as f32)
        .with_epsilon(train.epsilon as f32);
    let mut matrices = Matrices(Vec::new());
    model.visit(&mut matrices);
    ModuleOptimizer::from(config.clone().with_weight_decay(0.0).build()).with_group(
        ParamGroup::from_ids(matrices.0),
        config.with_weight_decay(train.weight_decay as f32).build(),
        None,
    )
}

struct Matrices(Vec<ParamId>);

impl ModuleVisitor for Matrices {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D == 2 {
            self.0.push(param.id);
        }
    }
}

/// Learning rate of step `step` (the first is 1): linear warm-up, then half a cosine down to the final fraction.
pub fn learning_rate(train: &Train, step: usize) -> f64 {
    if step <= train.warmup_steps {
        return train.lr * step as f64 / train.warmup_steps as f64;
    }
    let length = (train.steps - train.warmup_steps).max(1) as f64;
    let progress = ((step - train.warmup_steps) as f64 / length).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
    train.lr * (train.lr_final_fraction + (1.0 - train.lr_final_fraction) * cosine)
}

/// L2 norm of all gradients together, before clipping; scales them down to `limit` if it is larger. A `limit` of 0
/// leaves them. One reading of the device.
pub fn clip_global_norm(model: &Llama, grads: &mut GradientsParams, limit: f64) -> f64 {
    let mut squares = Squares { grads, sums: Vec::new() };
    model.visit(&mut squares);
    let norm: f32 = Tensor::cat(squares.sums, 0).sum().sqrt().into_scalar();
    let norm = norm as f64;
    if limit > 0.0 && norm > limit {
        // As PyTorch's `clip_grad_norm_`.
        model.visit(&mut Scale { grads, factor: limit / (norm + 1e-6) });
    }
    norm
}

/// Whether every parameter is a finite number. One reading of the device.
pub fn all_finite(model: &Llama) -> bool {
    let mut sums = Sums(Vec::new());
    model.visit(&mut sums);
    let total: f32 = Tensor::cat(sums.0, 0).sum().into_scalar();
    total == 0.0
}

/// For each parameter the sum of `x - x`, which is 0 unless an element is infinite or no number.
struct Sums(Vec<Tensor<1>>);

impl ModuleVisitor for Sums {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base().inner();
        self.0.push((value.clone() - value).sum());
    }
}

struct Squares<'a> {
    grads: &'a GradientsParams,
    sums: Vec<Tensor<1>>,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.sums.extend(self.grads.get::<D>(param.id).map(|grad| grad.square().sum()));
    }
}

struct Scale<'a> {
    grads: &'a mut GradientsParams,
    factor: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            self.grads.register(param.id, grad * self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_warms_up_and_falls_to_its_final_fraction() {
        let text = "steps = 110\nlr = 1.0\nwarmup_steps = 10\nlr_final_fraction = 0.1";
        let train: Train = toml::from_str(text).unwrap();
        let rate = |step| learning_rate(&train, step);
        assert_eq!((rate(1), rate(5), rate(10)), (0.1, 0.5, 1.0));
        assert!((rate(60) - 0.55).abs() < 1e-12);
        assert!((rate(110) - 0.1).abs() < 1e-12);
        let train: Train = toml::from_str("steps = 5\nlr = 1.0").unwrap();
        assert!(learning_rate(&train, 1) < 1.0 && learning_rate(&train, 5) > 0.0);
    }
}
