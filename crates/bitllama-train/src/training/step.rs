//! One optimizer step: micro-batches forward and backward, gradients gathered, clipped and applied.

use anyhow::{Result, bail};
use bitllama_nn::linear::set_precision;
use bitllama_nn::profile::phase;
use bitllama_nn::{Llama, Mask};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};

use super::loss::{Terms, losses};
use super::optimizer::{Gradients, Optimizers, clipped_share, global_norm, learning_rate};
use super::states::{Compared, Projections, Side};
use super::teacher::Teacher;
use crate::data::batches::{Batch, Rows};
use crate::evaluate::token_tensor;
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

/// The loss and its terms as numbers, by the names of their kinds; 0 for what the recipe has not.
const TERMS: [&str; 5] =
    ["loss", "cross-entropy", "divergence", "distance of hidden states", "divergence of relations"];

impl Trainer<'_> {
    /// Takes step `step` (the first is 1).
    ///
    /// # Errors
    /// If a term of the loss or the gradient norm is not finite: the student is lost with it, the message names the
    /// term.
    pub fn step(&mut self, mut student: Llama, step: usize) -> Result<(Llama, StepReport)> {
        let (train, distill) = (&self.recipe.train, self.recipe.distill());
        let passes = train.grad_accumulation;
        set_precision(&mut student, train.precision.into());
        let (mut gathered, mut of_projections) = (GradientsAccumulator::new(), GradientsAccumulator::new());
        let mut means = [0.0; TERMS.len()];
        for pass in 0..passes {
            let first = ((step - 1) * passes + pass) * train.batch_size;
            let batch = phase("data", || self.rows.batch(first as u64, train.batch_size));
            let (grads, values) = self.backward(&student, first, &batch)?;
            // The loss last: it is not finite where a term is not.
            for (name, value) in TERMS.iter().zip(values).cycle().skip(1).take(TERMS.len()) {
                if !value.is_finite() {
                    bail!("step {step}: the {name} is {value}");
                }
            }
            means.iter_mut().zip(values).for_each(|(mean, value)| *mean += value / passes as f64);
            gathered.accumulate(&student, grads.student);
            of_projections.accumulate(&self.projections, grads.projections);
        }
        let grads = Gradients { student: gathered.grads(), projections: of_projections.grads() };
        let grad_norm = phase("clip", || global_norm(&student, &self.projections, &grads));
        if !grad_norm.is_finite() {
            bail!("step {step}: the gradient norm is {grad_norm}");
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

    /// Gradients of the micro-batch that starts at row `first`, scaled for their sum over the step, and the values of
    /// [`TERMS`].
    fn backward(&self, student: &Llama, first: usize, batch: &Batch) -> Result<(Gradients, [f64; TERMS.len()])> {
        let (rows, seq) = (self.recipe.train.batch_size, self.recipe.data.sequence_length);
        let distill = self.recipe.distill();
        let plain = self.device.clone().inner();
        let inputs = token_tensor(&batch.inputs, rows, &plain);
        let mask = Mask::within_documents(&batch.documents, seq, &plain);

        let (known, of_teacher) = phase("teacher", || self.teacher.known(first, inputs.clone(), &mask, self.compared))?;
        let (hidden, head, states) =
            phase("forward", || self.compared.forward(Side::Student, student, Tensor::from_inner(inputs), &mask));
        let Terms { mut loss, ce, divergence } =
            phase("loss", || losses(hidden, &head, known, &batch.targets, &batch.scored, &distill));
        let [hidden, relations] = self.compared.losses(&states, &of_teacher, &self.projections, &mask);
        let weights = [distill.hidden.map(|term| term.weight), distill.relations.map(|term| term.weight)];
        for (term, weight) in [&hidden, &relations].into_iter().zip(weights) {
            if let (Some(term), Some(weight)) = (term, weight) {
                loss = loss + term.clone() * weight;
            }
        }
        let value = |term: Option<Tensor<1>>| term.map_or_else(|| Tensor::zeros([1], &plain), Tensor::inner);
        let values = [Some(loss.clone()), Some(ce), divergence, hidden, relations].map(value);
        let values = Tensor::cat(values.to_vec(), 0);
        let share = 1.0 / self.recipe.train.grad_accumulation as f64;
        let mut grads = phase("backward", || (if share == 1.0 { loss } else { loss * share }).backward());
        let values = values.into_data().convert::<f64>();
        let values = values.as_slice::<f64>().ok().and_then(|values| values.try_into().ok());
        let projections = GradientsParams::from_module(&mut grads, &self.projections);
        let student = GradientsParams::from_grads(grads, student);
        Ok((Gradients { student, projections }, values.unwrap_or([f64::NAN; TERMS.len()])))
    }
}
