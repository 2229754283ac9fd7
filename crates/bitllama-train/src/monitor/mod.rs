//! How a run goes: a bar or lines for people, `metrics.jsonl` for programs, event files for TensorBoard.
//!
//! | module | subject |
//! |---|---|
//! | [`progress`] | standard error: bar on a terminal, plain lines when piped, JSON on request |
//! | [`metrics`] | `metrics.jsonl`, which survives kills and resumes |
//! | [`tensorboard`] | scalars and histograms |
//! | [`event`] | TensorBoard's events as bytes |

use std::path::Path;

use anyhow::Result;
use bitllama_formats::output::{Growing, Kind};
use bitllama_runtime::evaluate::Perplexity;
use serde::{Deserialize, Serialize};

use crate::models::ResolvedPlan;
use crate::training::step::StepReport;

pub mod event;
pub mod metrics;
pub mod progress;
pub mod tensorboard;
pub mod work;

use metrics::MetricsFile;
use progress::{Log, Progress};
use tensorboard::EventFile;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Steps taken.
    pub step: usize,
    /// Training figures of this step.
    #[serde(flatten)]
    pub train: Option<TrainMetrics>,
    /// Perplexity of the held-out documents after this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_perplexity: Option<f64>,
    /// Its standard error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_perplexity_error: Option<f64>,
}

/// Training figures of one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainMetrics {
    /// Loss.
    pub loss: f64,
    /// Cross-entropy, nats a token.
    pub ce: f64,
    /// The recipe's divergence from the teacher, nats a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub divergence: Option<f64>,
    /// Distance of hidden states from the teacher's, 0 to about 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden: Option<f64>,
    /// Divergence of attention relations from the teacher's, nats a position.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relations: Option<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Passes over the training text.
    pub epoch: f64,
    /// Since the last line; the one figure that differs between runs.
    pub tokens_per_second: f64,
}

/// Where a run reports to.
pub struct Monitor {
    progress: Progress,
    metrics: MetricsFile,
    events: EventFile,
}

impl Monitor {
    /// Opens the files of a run in `folder`; lines after `resumed_at` steps, left by a run that was killed, are
    /// dropped.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(folder: &Path, log: Log, steps: usize, resumed_at: usize) -> Result<Self> {
        Growing::new(folder, Kind::Run).log("metrics.jsonl")?;
        Ok(Self {
            progress: Progress::new(log, steps, resumed_at),
            metrics: MetricsFile::open(&folder.join("metrics.jsonl"), resumed_at)?,
            events: EventFile::open(&folder.join("tensorboard"), resumed_at)?,
        })
    }

    /// The figures of a step that is to be logged.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn step(&mut self, step: usize, report: &StepReport, epoch: f64, tokens_per_second: f64) -> Result<()> {
        let StepReport { loss, ce, divergence, hidden, relations, lr, grad_norm } = *report;
        let train = TrainMetrics { loss, ce, divergence, hidden, relations, lr, grad_norm, epoch, tokens_per_second };
        self.write(Metrics { step, train: Some(train), valid_perplexity: None, valid_perplexity_error: None })
    }

    /// An evaluation.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn evaluation(&mut self, step: usize, result: &Perplexity) -> Result<()> {
        let (value, error) = (Some(result.perplexity), Some(result.error));
        self.write(Metrics { step, train: None, valid_perplexity: value, valid_perplexity_error: error })
    }

    /// Histograms of the weights and scales of a student.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn histograms(&mut self, step: usize, student: &bitllama_nn::Llama, plan: &ResolvedPlan) -> Result<()> {
        self.events.histograms(step, student, plan)
    }

    /// A line for people.
    pub fn say(&self, text: &str) {
        self.progress.say(text);
    }

    /// Ends the bar.
    pub fn finish(&mut self) {
        self.progress.finish();
    }

    fn write(&mut self, metrics: Metrics) -> Result<()> {
        self.metrics.write(&metrics)?;
        self.events.scalars(&metrics)?;
        self.progress.show(&metrics);
        Ok(())
    }
}
