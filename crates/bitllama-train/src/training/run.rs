//! The loop: steps, evaluations with checkpoints, and an end that leaves the best student.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use bitllama_core::rounding::StoredScales;
use bitllama_core::{ModelConfig, Scheme};
use bitllama_formats::TokenizerFiles;
use bitllama_nn::weights::Weights;
use bitllama_nn::{Llama, SharedNumber};
use bitllama_runtime::Error as RuntimeError;
use bitllama_runtime::evaluate::{Options, Perplexity, perplexity};
use burn::tensor::Device;

use super::checkpoint::{self, Best, CheckpointState, Fingerprint};
use super::interrupt;
use super::optimizer::{Optimizers, all_finite};
use super::states::{Compared, Projections};
use super::step::{Trainer, diverged};
use super::teacher::Teacher;
use crate::data::batches::Rows;
use crate::evaluate::Scored;
use crate::models::{ResolvedPlan, quantized, quantized_by, rebuilt};
use crate::monitor::Monitor;
use crate::monitor::progress::Log;
use crate::recipe::Recipe;
use crate::recipe::quant::in_stage;

/// What the loop works on.
pub struct Run<'a> {
    /// The run.
    pub recipe: &'a Recipe,
    /// Who is learned from.
    pub teacher: &'a Teacher<'a>,
    /// Which of its blocks too.
    pub compared: &'a Compared,
    /// Between hidden states of different widths, as they start.
    pub projections: Projections,
    /// With autodiff.
    pub device: &'a Device,
    /// Of the student.
    pub plan: &'a ResolvedPlan,
    /// Of the student.
    pub tokenizer: TokenizerFiles<'a>,
    /// Held-out tokens.
    pub valid: &'a [u32],
    /// BOS as the evaluation protocol wants it.
    pub eval_bos: Option<u32>,
    /// How to report on standard error.
    pub log: Log,
    /// What must not change when a run goes on.
    pub fingerprint: Fingerprint,
}

/// How the loop ended.
pub enum Outcome {
    /// All steps were taken.
    Finished {
        /// The best checkpoint.
        best: PathBuf,
        /// Its perplexity on the held-out documents.
        perplexity: Perplexity,
    },
    /// A signal; the checkpoint to resume from.
    Interrupted(PathBuf),
}

impl Run<'_> {
    fn checkpoints(&self) -> PathBuf {
        self.recipe.output.join(checkpoint::FOLDER)
    }

    /// Perplexity of a model on the held-out documents.
    ///
    /// # Errors
    /// If there is not enough held-out text for one chunk.
    pub fn evaluate(&self, model: &Llama) -> Result<Perplexity> {
        let options = Options { ctx: self.recipe.eval_ctx(), chunks: self.recipe.eval.chunks, bos: self.eval_bos };
        perplexity(&mut Scored::new(model, self.device), self.valid, options, |_| {})
            .context("evaluation of the held-out documents")
    }

    /// Trains from `start`: the state and folder of a checkpoint, or nothing for a new run. The student is fake-quantized by
    /// the bit plan, or by that of the checkpoint's stage.
    ///
    /// # Errors
    /// A loss that is not finite (with the last good checkpoint), files that cannot be written.
    pub fn train(&self, mut student: Llama, rows: Rows, start: Option<(CheckpointState, PathBuf)>) -> Result<Outcome> {
        let (train, quant) = (&self.recipe.train, &self.recipe.quant);
        let mut stage = start.as_ref().and_then(|(state, _)| state.stage);
        let strength = SharedNumber::new(1.0);
        if quant.fades_in() {
            let scales = Weights::of(&student).scales();
            student = self.requantized(&student, stage, &scales, &strength)?;
        }
        let mut optimizers = Optimizers::new(&student, train);
        let mut projections = self.projections.clone();
        let (mut done, mut best, mut last) = (0, None, None);
        if let Some((state, folder)) = start {
            optimizers = optimizers.load(&folder)?;
            projections = checkpoint::read_projections(&folder, projections)?;
            (done, best, last) = (state.step, state.best, Some(folder));
        }
        let epoch_of = |step: usize, rows: &Rows| {
            (step * train.batch_size * train.grad_accumulation) as f64 / rows.rows_per_epoch() as f64
        };
        let mut monitor = Monitor::open(&self.recipe.output, self.log, train.steps, done)?;
        let mut trainer = Trainer {
            recipe: self.recipe,
            teacher: self.teacher,
            compared: self.compared,
            device: self.device,
            rows,
            optimizers,
            projections,
        };
        let (mut since, mut steps_since) = (Instant::now(), 0);
        let mut newest = None;
        // Without steps there is one evaluation and one checkpoint, of the student as it starts.
        let first = if train.steps == 0 { 0 } else { done + 1 };
        for step in first..=train.steps {
            if step > 0 {
                if quant.stage(step) != stage {
                    stage = quant.stage(step);
                    student = self.requantized(&student, stage, &StoredScales::new(), &strength)?;
                    trainer.optimizers.forget_scales(&student, train);
                }
                strength.set(quant.strength(step));
                let report;
                (student, report) = trainer.step(student, step).map_err(|e| stopped(e, last.as_deref()))?;
                steps_since += 1;
                if step % train.log_every == 0 || step == train.steps || step == 1 {
                    let speed = (steps_since * self.recipe.tokens_per_step()) as f64 / since.elapsed().as_secs_f64();
                    monitor.step(step, &report, epoch_of(step, &trainer.rows), speed)?;
                    (since, steps_since) = (Instant::now(), 0);
                }
            }
            let interrupted = interrupt::asked();
            let due = step % train.checkpoint_every == 0 || step == train.steps;
            if !(due || interrupted) {
                continue;
            }
            let paused = Instant::now();
            // What is evaluated is what would be exported: rounded by the plan itself, and wholly.
            strength.set(1.0);
            let whole = stage.map(|_| self.requantized(&student, None, &StoredScales::new(), &strength)).transpose()?;
            let whole = whole.as_ref().unwrap_or(&student);
            let mut result = None;
            let lost = |found: &str| stopped(diverged(step, found, train.lr, step > 0), last.as_deref());
            if !all_finite(&student) {
                return Err(lost("the weights are not finite"));
            }
            if due {
                let evaluation = match self.evaluate(whole) {
                    Ok(evaluation) if evaluation.nll <= HOPELESS => evaluation,
                    Ok(Perplexity { perplexity, .. }) => {
                        return Err(lost(&format!("the perplexity of the held-out documents is {perplexity:.3e}")));
                    }
                    Err(e) if matches!(e.downcast_ref(), Some(RuntimeError::NotFinite(_))) => {
                        return Err(lost("the logits of the held-out documents are not finite"));
                    }
                    Err(e) => return Err(stopped(e.context(format!("step {step}")), last.as_deref())),
                };
                if best.is_none_or(|b: Best| evaluation.perplexity < b.perplexity) {
                    best = Some(Best { step, perplexity: evaluation.perplexity });
                }
                monitor.evaluation(step, &evaluation)?;
                if train.histograms {
                    monitor.histograms(step, whole, self.plan)?;
                }
                result = Some(evaluation);
            }
            let state = CheckpointState {
                format_version: checkpoint::FORMAT_VERSION,
                step,
                perplexity: result.map(|r| r.perplexity),
                best,
                bits: self.recipe.bits.clone(),
                stage,
                activations: self.recipe.activations.clone(),
                fingerprint: self.fingerprint.clone(),
            };
            let folder = checkpoint::write(&self.checkpoints(), &state, &student, &trainer, self.tokenizer)?;
            newest = result.map(|r| (step, r));
            last = Some(folder.clone());
            since += paused.elapsed();
            if interrupted && step < train.steps {
                monitor.finish();
                return Ok(Outcome::Interrupted(folder));
            }
        }
        monitor.finish();
        self.finished(best, newest, &student)
    }

    /// A student with its latent weights as they are and the quantizers of a stage, or of the plan after all stages.
    fn requantized(
        &self,
        student: &Llama,
        stage: Option<Scheme>,
        scales: &StoredScales,
        strength: &SharedNumber,
    ) -> Result<Llama> {
        let plan = stage.map(|stage| in_stage(self.plan, stage));
        let plan = plan.as_ref().unwrap_or(self.plan);
        quantized_by(rebuilt(student, &HashMap::new(), self.device), plan, &self.recipe.activations, scales, strength)
    }

    fn finished(&self, best: Option<Best>, newest: Option<(usize, Perplexity)>, student: &Llama) -> Result<Outcome> {
        let checkpoints = self.checkpoints();
        let Some(folder) = checkpoint::best(&checkpoints)? else {
            bail!("{}: no checkpoint was written", checkpoints.display())
        };
        let perplexity = match (best, newest) {
            (Some(best), Some((step, result))) if best.step == step => result,
            _ => self.evaluate(&restored(&folder, &student.config, self.plan, self.device)?)?,
        };
        Ok(Outcome::Finished { best: folder, perplexity })
    }
}

/// Nats a token beyond which a student is no model any more: a guess among all the tokens that there are costs 12.
const HOPELESS: f64 = 100.0;

/// Says what is left of a run that cannot go on.
fn stopped(error: Error, last: Option<&Path>) -> Error {
    match last {
        Some(folder) => {
            anyhow!("{error:#}; `--resume` goes on from the last good checkpoint, {}", folder.display())
        }
        None => anyhow!("{error:#}; there is no checkpoint yet"),
    }
}

/// The student of a checkpoint, fake-quantized, on `device`.
///
/// # Errors
/// If the checkpoint is damaged or of another architecture than `config`.
pub fn restored(folder: &Path, config: &ModelConfig, plan: &ResolvedPlan, device: &Device) -> Result<Llama> {
    let source = bitllama_formats::model::open_latent(folder)?;
    ensure!(source.config == *config, "{}: its architecture is not that of the recipe", folder.display());
    let llama = crate::models::to_device(&source, device)?;
    let state = CheckpointState::read(folder)?.with_context(|| format!("{}: has no state.json", folder.display()))?;
    quantized(llama, plan, &state.activations, &checkpoint::read_scales(folder, plan)?)
}
