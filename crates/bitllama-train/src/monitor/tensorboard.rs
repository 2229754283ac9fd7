//! Event files that TensorBoard opens, by `tensorboard-rs`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitllama_nn::Llama;
use bitllama_nn::weights::Weights;
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_rs::summary::{histogram_raw, scalar};
use tensorboard_rs::summary_writer::FileWriter;

use super::Metrics;
use crate::models::ResolvedPlan;

/// The event file of one process.
pub struct EventFile {
    folder: PathBuf,
    writer: FileWriter,
}

impl EventFile {
    /// Starts a new event file in `folder`. After a resume TensorBoard is told to forget what a killed process had
    /// written past the checkpoint.
    ///
    /// # Errors
    /// If the folder cannot be made.
    pub fn open(folder: &Path, resumed_at: usize) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
        let mut writer = FileWriter::new(folder);
        if resumed_at > 0 {
            let mut start = SessionLog::new();
            start.set_status(SessionLog_SessionStatus::START);
            let mut event = Event::new();
            event.set_session_log(start);
            writer.add_event(&event, resumed_at + 1);
        }
        Ok(Self { folder: folder.to_path_buf(), writer })
    }

    /// The scalars of a line of metrics.
    ///
    /// # Errors
    /// If the file can no longer be written.
    pub fn scalars(&mut self, metrics: &Metrics) -> Result<()> {
        let mut add = |tag: &str, value: f64| self.writer.add_summary(scalar(tag, value as f32), metrics.step);
        if let Some(train) = &metrics.train {
            add("train/loss", train.loss);
            add("train/ce", train.ce);
            if let Some(kl) = train.kl {
                add("train/kl", kl);
            }
            add("train/lr", train.lr);
            add("train/grad_norm", train.grad_norm);
            add("train/epoch", train.epoch);
            add("train/tokens_per_second", train.tokens_per_second);
        }
        if let Some(perplexity) = metrics.valid_perplexity {
            add("valid/perplexity", perplexity);
        }
        self.flush()
    }

    /// Latent weights and scales of every matrix in the bit plan.
    ///
    /// # Errors
    /// If the file can no longer be written.
    pub fn histograms(&mut self, step: usize, student: &Llama, plan: &ResolvedPlan) -> Result<()> {
        let weights = Weights::of(student);
        for (spec, scheme) in plan {
            let Some(scheme) = scheme else { continue };
            let name = spec.name.trim_end_matches(".weight");
            self.histogram(&format!("weights/{name}"), &weights.read(spec), step);
            self.histogram(&format!("scales/{name}"), weights.pack(spec, *scheme)?.scales(), step);
        }
        self.flush()
    }

    fn histogram(&mut self, tag: &str, values: &[f32], step: usize) {
        const BUCKETS: usize = 50;
        let (min, max) =
            values.iter().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(*v as f64), high.max(*v as f64)));
        let width = ((max - min) / BUCKETS as f64).max(f64::MIN_POSITIVE);
        let limits: Vec<f64> = (1..=BUCKETS).map(|i| if i == BUCKETS { max } else { min + i as f64 * width }).collect();
        let mut counts = vec![0.0; BUCKETS];
        let (mut sum, mut squares) = (0.0, 0.0);
        for value in values.iter().map(|v| *v as f64) {
            counts[(((value - min) / width) as usize).min(BUCKETS - 1)] += 1.0;
            sum += value;
            squares += value * value;
        }
        let summary = histogram_raw(tag, min, max, values.len() as f64, sum, squares, &limits, &counts);
        self.writer.add_summary(summary, step);
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.flush();
        Ok(())
    }
}
