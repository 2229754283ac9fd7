//! Event files that TensorBoard opens: events by [`super::event`], records around them by `tensorboard-rs`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use bitllama_formats::atomic;
use bitllama_formats::output::{Growing, Kind};
use bitllama_nn::Llama;
use bitllama_nn::weights::Weights;
use tensorboard_rs::record_writer::RecordWriter;

use super::Metrics;
use super::event::{Histogram, What, encode};
use crate::models::ResolvedPlan;

/// The event file of one process.
///
/// Records are written by `tensorboard-rs`'s `RecordWriter` and not by its `SummaryWriter`, which panics where the disk
/// is full.
pub struct EventFile {
    path: PathBuf,
    writer: RecordWriter<File>,
}

impl EventFile {
    /// Starts a new event file in `folder`, which lies in that of its run. TensorBoard is told to forget what an earlier process had written after
    /// `resumed_at`.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(folder: &Path, resumed_at: usize) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // TensorBoard reads the files of a folder in the order of their names.
        let name =
            format!("events.out.tfevents.{:010}.{:09}.{}", now.as_secs(), now.subsec_nanos(), std::process::id());
        if let Some(run) = folder.parent() {
            Growing::new(run, Kind::Run).log(&format!("tensorboard/{name}"))?;
        }
        atomic::create_folders(folder)?;
        let path = folder.join(name);
        let writer = RecordWriter::new(File::create(&path).with_context(|| format!("{}", path.display()))?);
        let mut file = Self { path, writer };
        file.event(&What::FileVersion("brain.Event:2"), 0)?;
        file.event(&What::SessionStart, resumed_at + 1)?;
        Ok(file)
    }

    /// The scalars of a line of metrics.
    ///
    /// # Errors
    /// If the file can no longer be written.
    pub fn scalars(&mut self, metrics: &Metrics) -> Result<()> {
        let mut add = |tag: &str, value: f64| self.event(&What::Scalar(tag, value as f32), metrics.step);
        if let Some(train) = &metrics.train {
            add("train/loss", train.loss)?;
            add("train/ce", train.ce)?;
            let terms = [("divergence", train.divergence), ("hidden", train.hidden), ("relations", train.relations)];
            for (name, term) in terms {
                if let Some(term) = term {
                    add(&format!("train/{name}"), term)?;
                }
            }
            add("train/lr", train.lr)?;
            add("train/grad_norm", train.grad_norm)?;
            add("train/epoch", train.epoch)?;
            add("train/tokens_per_second", train.tokens_per_second)?;
        }
        if let Some(perplexity) = metrics.valid_perplexity {
            add("valid/perplexity", perplexity)?;
        }
        Ok(())
    }

    /// Latent weights and scales of every matrix in the bit plan.
    ///
    /// # Errors
    /// If the file can no longer be written.
    pub fn histograms(&mut self, step: usize, student: &Llama, plan: &ResolvedPlan) -> Result<()> {
        let weights = Weights::of(student);
        for (spec, _) in plan {
            let Some(packed) = weights.pack(spec)? else { continue };
            let name = spec.name.trim_end_matches(".weight");
            self.histogram(&format!("weights/{name}"), &weights.read(spec), step)?;
            self.histogram(&format!("scales/{name}"), &packed.scales().scales.data, step)?;
        }
        Ok(())
    }

    fn histogram(&mut self, tag: &str, values: &[f32], step: usize) -> Result<()> {
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
        let count = values.len() as f64;
        let histogram = Histogram { min, max, count, sum, sum_squares: squares, limits, counts };
        self.event(&What::Histogram(tag, &histogram), step)
    }

    fn event(&mut self, what: &What, step: usize) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let event = encode(now, step as i64, what);
        self.writer.write(&event).with_context(|| format!("{}", self.path.display()))
    }
}
