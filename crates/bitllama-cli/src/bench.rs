//! `bitllama bench`: how fast a model, or a kernel, runs on this machine.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use bitllama_kernels::bandwidth::{Stream, streaming_bytes};
use bitllama_kernels::kv::KvKind;
use bitllama_kernels::{Pool, Precision};
use bitllama_runtime::{Settings, bench, memory};
use clap::Args;
use serde::Serialize;

use crate::bench_kernels;
use crate::bench_random::RandomPlan;
use crate::source::{self, Quantize};

/// Time prompt processing and generation, as llama-bench does, or single kernels
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to time; also a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR", required_unless_present_any = ["shape", "kernels"], conflicts_with = "shape")]
    artifact: Option<PathBuf>,
    #[command(flatten)]
    quantize: Quantize,
    /// Time random weights in the shape of a config: a name out of `configs/`, or a path of a config.json
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    #[command(flatten)]
    random: RandomPlan,
    /// Tokens of the prompt test; 0 leaves it out
    #[arg(short = 'p', long, value_name = "N", default_value_t = 512)]
    prompt: usize,
    /// Tokens of the generation test; 0 leaves it out
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    generate: usize,
    /// Tokens in the cache before each test
    #[arg(short = 'd', long, value_name = "N", default_value_t = 0)]
    depth: usize,
    /// Sequences that generate together
    #[arg(short = 's', long, value_name = "N", default_value_t = 1)]
    sequences: usize,
    /// Runs of each test, after one to warm up
    #[arg(short = 'r', long, value_name = "N", default_value_t = 5)]
    repetitions: usize,
    /// Numbers of threads, each timed by itself [default: one for each core]
    #[arg(short = 't', long, value_name = "N,..", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=Pool::MAX_THREADS as i64))]
    threads: Vec<u16>,
    /// How products see their activations: f32, int8 or sign [default: as the artifact was trained, else int8]
    #[arg(long, value_name = "TYPE")]
    activations: Option<Precision>,
    /// How keys and values are kept: f32, f16, int8 or int4 [default: as the artifact was trained, else f16]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvKind>,
    /// Time the kernels by themselves, on every instruction set, against what memory and registers allow
    #[arg(long, conflicts_with_all = ["artifact", "shape"])]
    kernels: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    model: String,
    parameters: usize,
    bytes: usize,
    bits_per_weight: f64,
    /// Bytes of weights that a generated token reads.
    weight_bytes_per_token: usize,
    isa: &'static str,
    activations: &'static str,
    kv: &'static str,
    /// From opening the model to its first token, for artifacts.
    first_token_seconds: Option<f64>,
    runs: Vec<Run>,
    /// The most memory that the process had, bytes; null where the system does not tell.
    peak_memory_bytes: Option<u64>,
}

/// The tests with one number of threads.
#[derive(Serialize)]
struct Run {
    threads: usize,
    /// Streaming reads from memory with as many threads, bytes a second: the median of `read_bandwidth_samples`.
    read_bandwidth: f64,
    /// Reads before, between and after the tests, in this order.
    read_bandwidth_samples: Vec<f64>,
    tests: Vec<bench::Test>,
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let settings = source::settings(options.activations, options.kv, Settings::fast())?;
    let threads: Vec<usize> = match options.threads[..] {
        [] => vec![Pool::global().threads()],
        ref threads => threads.iter().map(|n| usize::from(*n)).collect(),
    };
    if options.kernels {
        return bench_kernels::run(&threads, options.json);
    }
    let mut first_token_seconds = None;
    let start = std::time::Instant::now();
    let (model, mut decoder) = match (&options.artifact, &options.shape) {
        (Some(path), _) => {
            let decoder = options.quantize.open(path)?.decoder;
            let decoder = decoder.with_settings(settings.clone());
            decoder.forward(&[1], &mut decoder.new_cache(), bitllama_runtime::LogitsOf::Last)?;
            first_token_seconds = Some(start.elapsed().as_secs_f64());
            (path.display().to_string(), decoder)
        }
        (None, Some(shape)) => options.random.decoder(shape)?,
        (None, None) => bail!("neither --artifact nor --shape"),
    };
    let tests = bench::Options {
        prompt: options.prompt,
        generate: options.generate,
        depth: options.depth,
        sequences: options.sequences,
        repetitions: options.repetitions,
    };
    let size = decoder.size();
    let memory_to_read = Stream::new(Pool::global(), streaming_bytes());
    let mut runs = Vec::new();
    for threads in threads {
        let pool = Some(Arc::new(Pool::new(threads)));
        decoder = decoder.with_settings(Settings { pool, ..settings.clone() });
        let (tests, reads) =
            bench::run_beside_memory(&decoder, tests, &memory_to_read).with_context(|| model.clone())?;
        runs.push(Run { threads, read_bandwidth: reads.median, read_bandwidth_samples: reads.samples, tests });
    }
    let report = Report {
        model,
        parameters: size.parameters,
        bytes: size.bytes,
        bits_per_weight: size.bits_per_weight(),
        weight_bytes_per_token: decoder.bytes_per_token(),
        isa: settings.isa.name(),
        activations: decoder.activation_name(),
        kv: decoder.kv().name(),
        first_token_seconds,
        runs,
        peak_memory_bytes: memory::peak(),
    };
    if options.json { crate::print_json(&report) } else { Ok(print(&report)?) }
}

fn print(report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", report.model)?;
    writeln!(
        out,
        "{:.1} M parameters, {:.1} MB, {:.3} bits per weight, {:.1} MB of weights a token; {} kernels, {} activations, {} cache",
        report.parameters as f64 / 1e6,
        report.bytes as f64 / 1e6,
        report.bits_per_weight,
        report.weight_bytes_per_token as f64 / 1e6,
        report.isa,
        report.activations,
        report.kv
    )?;
    writeln!(out)?;
    writeln!(out, "| threads | test             |             tokens/s |  median |   GB/s | of bandwidth |")?;
    writeln!(out, "|--------:|------------------|---------------------:|--------:|-------:|-------------:|")?;
    for run in &report.runs {
        for test in &run.tests {
            let bench::Speed { mean, sd, median, .. } = &test.tokens_per_second;
            let (rate, share) = match test.bytes_per_second {
                Some(rate) => (format!("{:.1}", rate / 1e9), format!("{:.0} %", 100.0 * rate / run.read_bandwidth)),
                None => ("-".into(), "-".into()),
            };
            let speed = format!("{mean:.2} ± {sd:.2}");
            writeln!(
                out,
                "| {:>7} | {:<16} | {speed:>20} | {median:>7.1} | {rate:>6} | {share:>12} |",
                run.threads, test.test
            )?;
        }
    }
    writeln!(out)?;
    for run in &report.runs {
        let samples = &run.read_bandwidth_samples;
        let low = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let high = samples.iter().copied().fold(0.0, f64::max);
        writeln!(
            out,
            "streaming reads from memory, {} threads: {:.1} GB/s, the median of {} beside the tests ({:.1} to {:.1})",
            run.threads,
            run.read_bandwidth / 1e9,
            samples.len(),
            low / 1e9,
            high / 1e9
        )?;
    }
    if let Some(seconds) = report.first_token_seconds {
        writeln!(out, "opened and first token after {:.0} ms", seconds * 1e3)?;
    }
    if let Some(bytes) = report.peak_memory_bytes {
        writeln!(out, "peak memory {:.1} MB", bytes as f64 / 1e6)?;
    }
    Ok(())
}
