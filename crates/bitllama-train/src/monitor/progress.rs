//! What a person sees of a run, on standard error.

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::Metrics;

/// How a run reports on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Log {
    /// A bar on a terminal, plain lines otherwise.
    Auto,
    /// Plain lines.
    Plain,
    /// The lines of `metrics.jsonl`.
    Json,
}

/// The bar, or the lines.
pub struct Progress {
    log: Log,
    steps: usize,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// For a run of `steps` that goes on after `done`.
    pub fn new(log: Log, steps: usize, done: usize) -> Self {
        let bar = (log == Log::Auto && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  ETA {eta}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_position(done as u64);
            bar.reset_eta();
            bar
        });
        Self { log, steps, bar }
    }

    /// Shows a line of metrics.
    pub fn show(&self, metrics: &Metrics) {
        if self.log == Log::Json {
            if let Ok(line) = serde_json::to_string(metrics) {
                tell(&line);
            }
            return;
        }
        let step = metrics.step;
        if let (Some(perplexity), error) = (metrics.valid_perplexity, metrics.valid_perplexity_error.unwrap_or(0.0)) {
            self.say(&format!("step {step}/{}  valid perplexity {perplexity:.3} ± {error:.3}", self.steps));
        }
        let Some(train) = &metrics.train else { return };
        let terms = [("divergence", train.divergence), ("hidden", train.hidden), ("relations", train.relations)];
        let terms: String = terms.iter().filter_map(|(name, term)| Some(format!("  {name} {:.4}", (*term)?))).collect();
        let figures =
            format!("loss {:.4}  ce {:.4}{terms}  {:.0} tok/s", train.loss, train.ce, train.tokens_per_second);
        match &self.bar {
            Some(bar) => {
                bar.set_position(step as u64);
                bar.set_message(figures);
            }
            None => tell(&format!(
                "step {step}/{}  {figures}  lr {:.2e}  grad {:.3}",
                self.steps, train.lr, train.grad_norm
            )),
        }
    }

    /// A line of its own.
    pub fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.log == Log::Json => {}
            None => tell(text),
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error. A run goes on without anybody to read it: its terminal may be gone.
pub fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
