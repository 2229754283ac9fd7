//! One optimizer step: micro-batches forward and backward, gradients gathered, clipped and applied.

use anyhow::{Error, Result, anyhow};
use bitllama_nn::Llama;
use bitllama_nn::linear::set_precision;
use bitllama_nn::profile::phase;
use burn::tensor::Device;

use super::backward::{Gathered, Setting, Values, micro_batch};
use super::optimizer::{Optimizers, clipped_share, global_norm, learning_rate};
use super::states::{Compared, Projections};
use super::teacher::Teacher;
use crate::data::batches::Rows;
use crate::recipe::Recipe;

/// What a step did. Terms are means over the step, before they are weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The loss that was followed down.
    pub loss: f64,
    /// Cross-entropy, nats a token.
    pub ce: f64,
    /// The recipe's divergence from the teacher, nats a token.
    pub divergence: Option<f64>,
    /// Distance of hidden states from the teacher's.
    pub hidden: Option<f64>,
    /// Divergence of attention relations from the teacher's, nats a position.
    pub relations: Option<f64>,
    /// Learning rate applied.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
}

/// Everything a step works with.
pub struct Trainer<'a> {
    /// The run.
    pub recipe: &'a Recipe,
    /// Who is learned from.
    pub teacher: &'a Teacher<'a>,
    /// Which of its blocks too.
    pub compared: &'a Compared,
    /// With autodiff.
    pub device: &'a Device,
    /// Training rows.
    pub rows: Rows,
    /// Optimizers with their moments.
    pub optimizers: Optimizers,
    /// Between hidden states of different widths.
    pub projections: Projections,
}

/// Loss up to which a gradient may be 0: a student that is its teacher has nothing to learn.
const NO_LOSS: f64 = 1e-3;

/// The error of a run that no further step can save: `found` at a step, and what to change. Where no weight has `moved` yet, it is
/// not the learning rate.
pub fn diverged(step: usize, found: &str, lr: f64, moved: bool) -> Error {
    match moved {
        true => {
            anyhow!("step {step}: {found}: training diverged; lower `train.lr`, which is {lr} (`--set train.lr=...`)")
        }
        false => anyhow!(
            "step {step}: {found}, though no weight has moved yet; check the weights of teacher and student, `[bits]` and \
             `[distill]`"
        ),
    }
}

impl Trainer<'_> {
    /// Takes step `step` (the first is 1).
    ///
    /// # Errors
    /// If a term of the loss or the gradient norm is not finite: the student is lost with it, the message names the
    /// term.
    pub fn step(&mut self, mut student: Llama, step: usize) -> Result<(Llama, StepReport)> {
        let (train, distill) = (&self.recipe.train, self.recipe.distill());
        let passes = train.grad_accumulation;
        set_precision(&mut student, train.precision.into(), train.int8_forward);
        let mut gathered = Gathered::default();
        let mut means = [0.0; Values::NAMES.len()];
        let Self { recipe, teacher, compared, ref projections, device, .. } = *self;
        let setting = Setting { recipe, teacher, compared, projections, device };
        // All tokens of the step come first: a scored target counts as much as any other of the step.
        let first = (step - 1) * passes * train.batch_size;
        let rows = |pass: usize| (first + pass * train.batch_size) as u64;
        let batches: Vec<_> =
            phase("data", || (0..passes).map(|pass| self.rows.batch(rows(pass), train.batch_size)).collect());
        for pass in 0..passes {
            let Values(values) = micro_batch(&setting, &student, first, (&batches, pass), &mut gathered)?;
            // The loss last: it is not finite where a term is not.
            for (name, value) in Values::NAMES.iter().zip(values).cycle().skip(1).take(values.len()) {
                if !value.is_finite() {
                    return Err(diverged(step, &format!("the {name} is {value}"), train.lr, step > 1));
                }
            }
            means.iter_mut().zip(values).for_each(|(mean, value)| *mean += value / passes as f64);
        }
        let grads = gathered.gradients();
        let grad_norm = phase("clip", || global_norm(&student, &self.projections, &grads));
        if !grad_norm.is_finite() {
            return Err(diverged(step, &format!("the gradient norm is {grad_norm}"), train.lr, step > 1));
        }
        // Numbers so large that a norm overflows become 0: nothing moves such a student any more.
        if grad_norm == 0.0 && means[0] > NO_LOSS {
            let found = format!("the gradient is 0 at a loss of {:.4}", means[0]);
            return Err(diverged(step, &found, train.lr, step > 1));
        }
        let share = clipped_share(grad_norm, train.max_grad_norm);
        let lr = learning_rate(train, step);
        let scales_move = step + self.recipe.quant.freeze_scales_steps <= train.steps;
        let scale_lr = scales_move.then_some(lr * train.scale_lr.unwrap_or(train.lr) / train.lr);
        let projections = self.projections.clone();
        let (student, projections) =
            phase("optimizer", || self.optimizers.step(student, projections, grads, share, lr, scale_lr));
        self.projections = projections;
        let [loss, ce, divergence, hidden, relations] = means;
        let report = StepReport {
            loss,
            ce,
            divergence: self.teacher.is_present().then_some(divergence),
            hidden: distill.hidden.map(|_| hidden),
            relations: distill.relations.map(|_| relations),
            lr,
            grad_norm,
        };
        Ok((student, report))
    }
}
