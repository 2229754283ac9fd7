//! The loop: steps, evaluations with checkpoints, and an end that leaves the best student.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitllama_core::ModelConfig;
use bitllama_nn::Llama;
use bitllama_runtime::evaluate::{Options, Perplexity, perplexity};
use burn::tensor::Device;
use tokenizers::Tokenizer;

use super::checkpoint::{self, Best, CheckpointState, Fingerprint};
use super::interrupt;
use super::optimizer::{adamw, all_finite};
use super::step::Trainer;
use crate::data::batches::Rows;
use crate::evaluate::Scored;
use crate::models::ResolvedPlan;
use crate::monitor::Monitor;
use crate::monitor::progress::Log;
use crate::recipe::Recipe;

/// What the loop works on.
pub struct Run<'a> {
    /// The run.
    pub recipe: &'a Recipe,
    /// On an inner device.
    pub teacher: Option<&'a Llama>,
    /// With autodiff.
    pub device: &'a Device,
    /// Of the student.
    pub plan: &'a ResolvedPlan,
    /// Of the student.
    pub tokenizer: &'a Tokenizer,
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
    /// Ctrl-C; the checkpoint to resume from.
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

    /// Trains from `start`: the state and folder of a checkpoint, or nothing for a new run.
    ///
    /// # Errors
    /// A loss that is not finite (with the last good checkpoint), files that cannot be written.
    pub fn train(&self, mut student: Llama, rows: Rows, start: Option<(CheckpointState, PathBuf)>) -> Result<Outcome> {
        let train = &self.recipe.train;
        let mut optimizer = adamw(&student, train);
        let (mut done, mut best, mut last) = (0, None, None);
        if let Some((state, folder)) = start {
            optimizer = checkpoint::read_optimizer(&folder, optimizer)?;
            (done, best, last) = (state.step, state.best, Some(folder));
        }
        let epoch_of = |step: usize, rows: &Rows| {
            (step * train.batch_size * train.grad_accumulation) as f64 / rows.rows_per_epoch() as f64
        };
        let mut monitor = Monitor::open(&self.recipe.output, self.log, train.steps, done)?;
        let mut trainer = Trainer { recipe: self.recipe, teacher: self.teacher, device: self.device, rows, optimizer };
        let (mut since, mut steps_since) = (Instant::now(), 0);
        let mut newest = None;
        for step in done + 1..=train.steps {
            let report;
            (student, report) = trainer.step(student, step).map_err(|e| stopped(e, last.as_deref()))?;
            steps_since += 1;
            if step % train.log_every == 0 || step == train.steps || step == 1 {
                let speed = (steps_since * self.recipe.tokens_per_step()) as f64 / since.elapsed().as_secs_f64();
                monitor.step(step, &report, epoch_of(step, &trainer.rows), speed)?;
                (since, steps_since) = (Instant::now(), 0);
            }
            let interrupted = interrupt::asked();
            let due = step % train.checkpoint_every == 0 || step == train.steps;
            if !(due || interrupted) {
                continue;
            }
            let paused = Instant::now();
            let mut result = None;
            if due {
                let evaluation = self.evaluate(&student).with_context(|| format!("step {step}"));
                let evaluation = evaluation.map_err(|e| stopped(e, last.as_deref()))?;
                if best.is_none_or(|b: Best| evaluation.perplexity < b.perplexity) {
                    best = Some(Best { step, perplexity: evaluation.perplexity });
                }
                monitor.evaluation(step, &evaluation)?;
                if train.histograms {
                    monitor.histograms(step, &student, self.plan)?;
                }
                result = Some(evaluation);
            }
            if !all_finite(&student) {
                return Err(stopped(anyhow!("step {step}: the weights are not finite"), last.as_deref()));
            }
            let state = CheckpointState {
                step,
                perplexity: result.map(|r| r.perplexity),
                best,
                bits: self.recipe.bits.clone(),
                activations: self.recipe.activations.clone(),
                fingerprint: self.fingerprint.clone(),
            };
            let keep = train.keep_checkpoints;
            let folder =
                checkpoint::write(&self.checkpoints(), &state, &student, &trainer.optimizer, self.tokenizer, keep)?;
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

/// Says what is left of a run that cannot go on.
fn stopped(error: anyhow::Error, last: Option<&Path>) -> anyhow::Error {
    match last {
        Some(folder) => error.context(format!("stopped; the last good checkpoint is {}", folder.display())),
        None => error.context("stopped before the first checkpoint"),
    }
}

/// The student of a checkpoint, fake-quantized, on `device`.
///
/// # Errors
/// If the checkpoint is damaged or of another architecture than `config`.
pub fn restored(folder: &Path, config: &ModelConfig, plan: &ResolvedPlan, device: &Device) -> Result<Llama> {
    let source = bitllama_formats::model::open(folder)?;
    ensure!(source.config == *config, "{}: its architecture is not that of the recipe", folder.display());
    let llama = crate::models::to_device(&source, device)?;
    let state = CheckpointState::read(folder)?.with_context(|| format!("{}: has no state.json", folder.display()))?;
    crate::models::quantized(llama, plan, &state.activations, &checkpoint::read_scales(folder, plan)?)
}
