//! What a grid found out: one [`Cell`] for each of its runs, beside models of other tools.

use std::fs;

use bitllama_runtime::evaluate::{Comparison, Perplexity};
use indexmap::{IndexMap, IndexSet};
use serde::{Deserialize, Serialize};

/// Version of `results.json` that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

fn first_version() -> u32 {
    1
}

/// All of a grid: `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT_VERSION`]; 1 in files of release 0.1.0, which did not say it.
    #[serde(default = "first_version")]
    pub format_version: u32,
    /// The grid file's own name for it.
    pub title: String,
    /// When the report was made, `2026-11-23`, UTC.
    pub date: String,
    /// Processor, threads and memory; of all machines that cells were timed on.
    pub machine: String,
    /// Of the code, if known.
    pub revision: Option<String>,
    /// The command that makes it again.
    pub command: String,
    /// The model that all cells learn from and are compared with.
    pub teacher: Teacher,
    /// In the order of the grid: schemes, then methods, then seeds.
    pub cells: Vec<Cell>,
    /// Cells that failed, and why.
    pub failed: IndexMap<String, String>,
    /// Cells that have not run yet.
    pub missing: Vec<String>,
    /// Models of other tools.
    pub others: Vec<Other>,
}

/// The model learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Teacher {
    /// As the recipe names it.
    pub name: String,
    /// Of all weights together, as its file stores them.
    pub bits_per_weight: f64,
    /// Of its weights as stored.
    pub bytes: u64,
    /// Perplexity by text.
    pub texts: IndexMap<String, Perplexity>,
}

/// What was measured of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the scheme, as the grid file gives it.
    pub scheme: String,
    /// Name of the method.
    pub method: String,
    /// The run's seed.
    pub seed: u64,
    /// Everything counted: scales, embedding, head.
    pub bits_per_weight: f64,
    /// Of the artifact's folder on disk.
    pub artifact_bytes: u64,
    /// The artifact as the runtime computes it, beside the teacher, by text.
    pub texts: IndexMap<String, Comparison>,
    /// Where it was timed.
    #[serde(default)]
    pub machine: String,
    /// How fast the runtime is with it there.
    pub speed: Speed,
    /// What it took to make it.
    pub training: Training,
}

/// Of the runtime, on the machine of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens a second of a prompt.
    pub prompt: f64,
    /// Tokens a second one after the other.
    pub decode: f64,
    /// The most memory that the process had meanwhile, bytes, where the system tells.
    pub peak_memory: Option<u64>,
}

/// What a cell cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Training {
    /// Optimizer steps; 0 where weights were rounded only.
    pub steps: usize,
    /// Tokens that the student was trained on.
    pub tokens: u64,
    /// Of the run from reading its recipe to the artifact, without evaluations; summed over its starts.
    pub seconds: f64,
    /// Of processors and GPUs in that time, where the machine has counters.
    pub joules: Option<f64>,
}

/// A model of another tool on one text: a line of the grid's CSV of comparisons. Columns that a tool does not have stay empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Other {
    /// `llama.cpp`.
    pub tool: String,
    /// `Q4_K_M`.
    pub model: String,
    /// Everything counted.
    pub bits_per_weight: f64,
    /// Of the file.
    pub bytes: u64,
    /// A name of the grid's texts.
    pub text: String,
    /// By llama.cpp's protocol, with the grid's context and chunks.
    pub perplexity: f64,
    /// Its standard error.
    pub perplexity_error: f64,
    /// KL divergence from the same teacher, nats.
    pub mean_kld: Option<f64>,
    /// Its standard error.
    pub mean_kld_error: Option<f64>,
    /// Fraction of positions with the teacher's likeliest token.
    pub same_top: Option<f64>,
    /// Root mean square of the difference in the probability of the next token, a fraction.
    pub rms_delta_p: Option<f64>,
    /// Tokens a second of a prompt.
    pub prompt_tokens_per_second: Option<f64>,
    /// Tokens a second one after the other.
    pub decode_tokens_per_second: Option<f64>,
}

/// All machines that cells were timed on, or this one if there are none.
pub fn machines(cells: &[Cell]) -> String {
    let known = cells.iter().map(|cell| cell.machine.as_str()).filter(|machine| !machine.is_empty());
    let distinct: IndexSet<&str> = known.collect();
    if distinct.is_empty() { machine() } else { distinct.into_iter().collect::<Vec<_>>().join("; ") }
}

/// This machine: processor, cores, memory.
pub fn machine() -> String {
    let found = |file: &str, key: &str| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let processor = found("/proc/cpuinfo", "model name").unwrap_or_else(|| std::env::consts::ARCH.to_string());
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let kilobytes: Option<f64> =
        found("/proc/meminfo", "MemTotal").and_then(|x| x.strip_suffix("kB")?.trim().parse().ok());
    let memory = kilobytes.map_or(String::new(), |kilobytes| format!(", {:.0} GiB", kilobytes / (1 << 20) as f64));
    format!("{processor}, {cores} cores{memory}, {}", std::env::consts::OS)
}
