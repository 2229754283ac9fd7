//! What moves the weights, and beside it AdamW for trained scales; the learning-rate schedule, and clipping by the norm of all
//! gradients together.

use std::path::Path;

use anyhow::{Result, anyhow};
use bitllama_formats::Error as FormatError;
use bitllama_nn::ops::adamw::FusedAdamW;
use bitllama_nn::ops::squares::sum_of_squares;
use bitllama_nn::weights::block_matrices;
use bitllama_nn::{Llama, SharedNumber};
use bitllama_runtime::one_line;
use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdafactorConfig, AdjustLrFn, GradientsParams, ModuleOptimizer, MuonConfig};
use burn::tensor::Tensor;

use super::states::Projections;
use crate::recipe::{Optimizer, Train};

/// Gradients of everything that is trained.
pub struct Gradients {
    /// Of the student's weights and scales.
    pub student: GradientsParams,
    /// Of the projections between hidden states.
    pub projections: GradientsParams,
}

/// The optimizers of a run with their moments.
#[derive(Clone)]
pub struct Optimizers {
    /// Of weights and projections.
    weights: ModuleOptimizer,
    /// Of trained scales, in the order of the model.
    scales: ModuleOptimizer,
    scale_ids: Vec<ParamId>,
    /// Of the gradients of all that AdamW moves.
    gradient_scale: SharedNumber,
    /// Whether it moves everything.
    adamw_only: bool,
}

const WEIGHTS: &str = "optimizer.bpk";
const SCALES: &str = "scale_optimizer.bpk";

impl Optimizers {
    /// Those that the recipe asks for, without moments. Matrices decay, vectors (norms) and scales do not.
    pub fn new(model: &Llama, train: &Train) -> Self {
        let gradient_scale = SharedNumber::new(1.0);
        let adamw =
            |decay: f64| FusedAdamW::new([train.beta1, train.beta2], train.epsilon, decay, gradient_scale.clone());
        let adafactor = |decay: f64| {
            AdafactorConfig::new()
                .with_relative_step(false)
                .with_scale_parameter(false)
                .with_weight_decay(decay as f32)
                .build()
        };
        let mut ids = Ids::default();
        model.visit(&mut ids);
        let matrices = || ParamGroup::from_ids(ids.matrices.clone());
        let weights =
            match train.optimizer {
                Optimizer::Adamw => {
                    ModuleOptimizer::from(adamw(0.0)).with_group(matrices(), adamw(train.weight_decay), None)
                }
                Optimizer::Adafactor => {
                    ModuleOptimizer::from(adafactor(0.0)).with_group(matrices(), adafactor(train.weight_decay), None)
                }
                Optimizer::Muon => {
                    let of_blocks = model.layers.iter().flat_map(block_matrices).map(|(_, param)| param.id);
                    let decay = (train.weight_decay > 0.0).then(|| WeightDecayConfig::new(train.weight_decay as f32));
                    let muon = MuonConfig::new().with_adjust_lr_fn(AdjustLrFn::MatchRmsAdamW).with_weight_decay(decay);
                    ModuleOptimizer::from(adamw(0.0))
                        .with_group(matrices(), adamw(train.weight_decay), None)
                        .with_group(ParamGroup::from_ids(of_blocks.collect()), muon.build(), None)
                }
            };
        let adamw_only = train.optimizer == Optimizer::Adamw;
        Self { weights, scales: adamw(0.0).into(), scale_ids: ids.scales, gradient_scale, adamw_only }
    }

    /// Moves everything by its gradients times `share`, what clipping leaves of them: weights at the learning rate `lr`, scales
    /// at `scale_lr`, or not at all if that is `None`.
    pub fn step(
        &mut self,
        student: Llama,
        projections: Projections,
        mut grads: Gradients,
        share: f64,
        lr: f64,
        scale_lr: Option<f64>,
    ) -> (Llama, Projections) {
        if self.adamw_only {
            self.gradient_scale.set(share as f32);
        } else if share != 1.0 {
            student.visit(&mut Scale { grads: &mut grads.student, factor: share });
            projections.visit(&mut Scale { grads: &mut grads.projections, factor: share });
        }
        let mut of_scales = GradientsParams::new();
        for id in &self.scale_ids {
            if let Some(grad) = grads.student.remove::<3>(*id) {
                of_scales.register(*id, grad);
            }
        }
        let mut student = self.weights.step(lr, student, grads.student);
        if let Some(lr) = scale_lr.filter(|_| !of_scales.is_empty()) {
            student = self.scales.step(lr, student, of_scales);
        }
        let projections =
            if projections.is_empty() { projections } else { self.weights.step(lr, projections, grads.projections) };
        (student, projections)
    }

    /// Forgets the moments of the scales, which are others now.
    pub fn forget_scales(&mut self, model: &Llama, train: &Train) {
        let fresh = Self::new(model, train);
        (self.scales, self.scale_ids) = (fresh.scales, fresh.scale_ids);
    }

    /// Writes the moments into a folder.
    ///
    /// # Errors
    /// If the disk does not take them.
    pub fn save(&self, folder: &Path) -> Result<(), FormatError> {
        let save = |optimizer: &ModuleOptimizer, name: &str| {
            let path = folder.join(name);
            optimizer.save(&path).map_err(|e| FormatError::invalid(&path, one_line(&e)))
        };
        save(&self.weights, WEIGHTS)?;
        if self.scale_ids.is_empty() { Ok(()) } else { save(&self.scales, SCALES) }
    }

    /// These optimizers with the moments of a folder.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load(self, folder: &Path) -> Result<Self> {
        let load = |optimizer: ModuleOptimizer, name: &str| {
            let path = folder.join(name);
            optimizer.load(&path).map_err(|e| anyhow!("{}: {}", path.display(), one_line(&e)))
        };
        let scales = if self.scale_ids.is_empty() { self.scales } else { load(self.scales, SCALES)? };
        Ok(Self { weights: load(self.weights, WEIGHTS)?, scales, ..self })
    }
}

#[derive(Default)]
struct Ids {
    matrices: Vec<ParamId>,
    scales: Vec<ParamId>,
}

impl ModuleVisitor for Ids {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        match D {
            2 => self.matrices.push(param.id),
            // Zero points are such tensors too, but never have a gradient.
            3 => self.scales.push(param.id),
            _ => {}
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

/// L2 norm of all gradients together. One reading of the device.
pub fn global_norm(model: &Llama, projections: &Projections, grads: &Gradients) -> f64 {
    let mut squares = Squares { grads: &grads.student, sums: Vec::new() };
    model.visit(&mut squares);
    let mut squares = Squares { grads: &grads.projections, sums: squares.sums };
    projections.visit(&mut squares);
    let norm: f32 = Tensor::cat(squares.sums, 0).sum().sqrt().into_scalar();
    norm as f64
}

/// What is left of gradients that are scaled down to a norm of `limit`, if theirs is larger, as PyTorch's `clip_grad_norm_`
/// does; a `limit` of 0 leaves them.
pub fn clipped_share(norm: f64, limit: f64) -> f64 {
    if limit > 0.0 && norm > limit { limit / (norm + 1e-6) } else { 1.0 }
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
        self.sums.extend(self.grads.get::<D>(param.id).map(sum_of_squares));
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
