//! `metrics.jsonl`: one JSON object a line, flushed line by line. A resumed run drops the lines after its checkpoint,
//! so that the finished file equals that of a run that was never interrupted.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitllama_formats::atomic;

use super::Metrics;

/// The open file.
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens `path` for lines after step `keep_up_to`.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn open(path: &Path, keep_up_to: usize) -> Result<Self> {
        let old = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("{}", path.display())),
        };
        // A kill may have cut the last line short: what cannot be read came after the last checkpoint.
        let kept: String = old
            .split_inclusive('\n')
            .filter(|line| serde_json::from_str::<Metrics>(line).is_ok_and(|m| m.step <= keep_up_to))
            .collect();
        atomic::write_bytes(path, if keep_up_to == 0 { b"" } else { kept.as_bytes() })?;
        let file = OpenOptions::new().append(true).open(path).with_context(|| format!("{}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn write(&mut self, metrics: &Metrics) -> Result<()> {
        let mut line = serde_json::to_vec(metrics)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("{}", self.path.display()))
    }
}
