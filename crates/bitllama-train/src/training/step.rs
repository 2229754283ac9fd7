//! One optimizer step: micro-batches forward and backward, gradients gathered, clipped and applied.

use anyhow::{Result, bail};
use bitllama_nn::{Llama, mask};
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};

use super::loss::{Terms, terms};
use super::optimizer::{clip_global_norm, learning_rate};
use crate::data::batches::{Batch, Rows};
use crate::evaluate::token_tensor;
use crate::recipe::Recipe;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// The loss that was followed down.
    pub loss: f64,
    /// Cross-entropy, nats a token.
    pub ce: f64,
    /// Divergence from the teacher, nats a token.
    pub kl: Option<f64>,
    /// Learning rate applied.
    pub lr: f64,
    /// Norm of all gradients before clipping.
    pub grad_norm: f64,
}

/// Everything a step works with.
pub struct Trainer<'a> {
    /// The run.
    pub recipe: &'a Recipe,
    /// On an inner device: no gradient is ever taken through it.
    pub teacher: Option<&'a Llama>,
    /// With autodiff.
    pub device: &'a Device,
    /// Training rows.
    pub rows: Rows,
    /// Optimizer with its moments.
    pub optimizer: ModuleOptimizer,
}

impl Trainer<'_> {
    /// Takes step `step` (the first is 1).
    ///
    /// # Errors
    /// If a term of the loss or the gradient norm is not finite: the student is lost with it, the message names the
    /// term.
    pub fn step(&mut self, student: Llama, step: usize) -> Result<(Llama, StepReport)> {
        let train = &self.recipe.train;
        let passes = train.grad_accumulation;
        let mut gathered = GradientsAccumulator::new();
        let (mut loss, mut ce, mut kl) = (0.0, 0.0, 0.0);
        for pass in 0..passes {
            let first = ((step - 1) * passes + pass) * train.batch_size;
            let batch = self.rows.batch(first as u64, train.batch_size);
            let (grads, values) = self.backward(&student, &batch);
            for (name, value) in [("cross-entropy", values[1]), ("KL divergence", values[2]), ("loss", values[0])] {
                if !value.is_finite() {
                    bail!("step {step}: the {name} is {value}");
                }
            }
            loss += values[0] / passes as f64;
            ce += values[1] / passes as f64;
            kl += values[2] / passes as f64;
            gathered.accumulate(&student, grads);
        }
        let mut grads = gathered.grads();
        let grad_norm = clip_global_norm(&student, &mut grads, train.max_grad_norm);
        if !grad_norm.is_finite() {
            bail!("step {step}: the gradient norm is {grad_norm}");
        }
        let lr = learning_rate(train, step);
        let student = self.optimizer.step(lr, student, grads);
        Ok((student, StepReport { loss, ce, kl: self.teacher.map(|_| kl), lr, grad_norm }))
    }

    /// Gradients of one micro-batch, scaled for their sum over the step, and `[loss, ce, kl]`.
    fn backward(&self, student: &Llama, batch: &Batch) -> (GradientsParams, [f64; 3]) {
        let rows = self.recipe.train.batch_size;
        let seq = self.recipe.data.sequence_length;
        let positions = rows * seq;
        let plain = self.device.clone().inner();
        let inputs = token_tensor(&batch.inputs, rows, &plain);
        let mask = mask::causal_within_documents(&batch.documents, seq, &plain);

        let flat = |logits: Tensor<3>| {
            let vocab = logits.dims()[2];
            logits.reshape([positions, vocab])
        };
        let teacher = self.teacher.map(|teacher| flat(teacher.forward(inputs.clone(), mask.clone())));
        let student_logits = flat(student.forward(Tensor::from_inner(inputs), Tensor::from_inner(mask)));
        let targets: Vec<i32> = batch.targets.iter().map(|t| *t as i32).collect();
        let scored: Vec<f32> = batch.scored.iter().map(|s| *s as u8 as f32).collect();
        let Terms { loss, ce, kl } = terms(
            student_logits,
            teacher,
            Tensor::from_data(TensorData::new(targets, [positions]), self.device),
            Tensor::from_data(TensorData::new(scored, [positions]), self.device),
            &self.recipe.distill(),
        );
        let kl = kl.unwrap_or_else(|| Tensor::zeros([1], self.device));
        let values = Tensor::cat(vec![loss.clone().inner(), ce.inner(), kl.inner()], 0);
        let grads = (loss / self.recipe.train.grad_accumulation as f64).backward();
        let values = values.into_data().convert::<f64>();
        let values = values.as_slice::<f64>().map_or([f64::NAN; 3], |v| [v[0], v[1], v[2]]);
        (GradientsParams::from_grads(grads, student), values)
    }
}
