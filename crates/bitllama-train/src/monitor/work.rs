//! Progress of work of a known length, on standard error: a bar on a terminal, elsewhere a line every half minute.

use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::progress::tell;

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(30);

/// Work of a known length.
pub struct Work {
    bar: ProgressBar,
    unit: &'static str,
    /// The time of the last line; none on a terminal.
    told: Option<Mutex<Instant>>,
}

impl Work {
    /// Work of `length` units, such as `blocks`, of which `done` are done.
    pub fn new(length: u64, done: u64, unit: &'static str) -> Self {
        let bar = ProgressBar::new(length).with_position(done);
        let style = ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {unit}  ETA {{eta}}  {{msg}}"));
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.reset_eta();
        let told = (!std::io::stderr().is_terminal()).then(|| Mutex::new(Instant::now()));
        Self { bar, unit, told }
    }

    /// Reports that so many more units are done.
    pub fn advance(&self, units: u64) {
        self.bar.inc(units);
        let Some(told) = &self.told else { return };
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= INTERVAL {
            *told = Instant::now();
            let (position, length) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let (left, message) = (HumanDuration(self.bar.eta()), self.bar.message());
            let message = if message.is_empty() { message } else { format!("  {message}") };
            tell(&format!("{position}/{length} {}, about {left} left{message}", self.unit));
        }
    }

    /// Names what is being done.
    pub fn name(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Writes a line of its own.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| tell(line));
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
