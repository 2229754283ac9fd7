//! `bitllama bench`: how fast a model, or a kernel, runs on this machine.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use bitllama_core::size::StoredSize;
use bitllama_core::{ModelConfig, Scheme, excerpt};
use bitllama_formats::hf;
use bitllama_kernels::kv::KvKind;
use bitllama_kernels::{Pool, Precision};
use bitllama_runtime::{Decoder, Settings, bench, memory};
use clap::Args;
use include_dir::{Dir, include_dir};
use serde::Serialize;

use crate::bench_kernels;
use crate::source::{self, Quantize, SchemeOrFull};

/// Time prompt processing and generation, as llama-bench does, or single kernels
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to time; also a Hugging Face directory or a GGUF file, which
    /// run in f32
    #[arg(long, value_name = "DIR", required_unless_present_any = ["shape", "kernels"], conflicts_with = "shape")]
    artifact: Option<PathBuf>,
    #[command(flatten)]
    quantize: Quantize,
    /// Time random weights in the shape of a config: a name out of `configs/`, or a path of a config.json
    #[arg(long, value_name = "NAME")]
    shape: Option<String>,
    /// Scheme of the random weights: binary, ternary, seq2, int2, int3, int4, nf4, int8 or f32
    #[arg(long, value_name = "SCHEME", default_value = "ternary")]
    scheme: SchemeOrFull,
    /// Scheme of the random embedding and head [default: as --scheme]
    #[arg(long, value_name = "SCHEME")]
    embedding: Option<SchemeOrFull>,
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
    /// Streaming reads from memory with as many threads, bytes a second.
    read_bandwidth: f64,
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
    let (model, mut decoder, size) = match (&options.artifact, &options.shape) {
        (Some(path), _) => {
            let (decoder, _) = options.quantize.open(path)?;
            let decoder = decoder.with_settings(settings.clone());
            decoder.forward(&[1], &mut decoder.new_cache(), bitllama_runtime::LogitsOf::Last)?;
            first_token_seconds = Some(start.elapsed().as_secs_f64());
            let size = decoder.size();
            (path.display().to_string(), decoder, size)
        }
        (None, Some(shape)) => random(shape, options.scheme, options.embedding)?,
        (None, None) => bail!("neither --artifact nor --shape"),
    };
    let tests = bench::Options {
        prompt: options.prompt,
        generate: options.generate,
        depth: options.depth,
        sequences: options.sequences,
        repetitions: options.repetitions,
    };
    let mut runs = Vec::new();
    for threads in threads {
        let pool = Some(Arc::new(Pool::new(threads)));
        decoder = decoder.with_settings(Settings { pool, ..settings.clone() });
        let read_bandwidth = bench::read_bandwidth(&decoder);
        let tests = bench::run(&decoder, tests).with_context(|| model.clone())?;
        runs.push(Run { threads, read_bandwidth, tests });
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

fn random(
    shape: &str,
    SchemeOrFull(scheme): SchemeOrFull,
    embedding: Option<SchemeOrFull>,
) -> anyhow::Result<(String, Decoder, StoredSize)> {
    let config = config_of(shape)?;
    let embedding = embedding.map_or(scheme, |SchemeOrFull(embedding)| embedding);
    let name = |scheme: Option<Scheme>| scheme.map_or("f32", Scheme::name);
    let label = match embedding == scheme {
        true => format!("{shape}, random {}", name(scheme)),
        false => format!("{shape}, random {}, embedding and head {}", name(scheme), name(embedding)),
    };
    let decoder = bench::random_decoder(&config, scheme, embedding)?;
    let size = decoder.size();
    Ok((label, decoder, size))
}

/// The configs that come with the program: `configs/`.
static CONFIGS: Dir = include_dir!("$CARGO_MANIFEST_DIR/../../configs");

/// A config by its path, or by its name out of [`CONFIGS`].
fn config_of(shape: &str) -> anyhow::Result<ModelConfig> {
    if let Some(file) = CONFIGS.get_file(format!("{shape}.json")) {
        let json = serde_json::from_slice(file.contents())?;
        return Ok(hf::parse_config(&PathBuf::from(format!("configs/{shape}.json")), &json)?);
    }
    let path = PathBuf::from(shape);
    if !path.is_file() {
        let names = CONFIGS.files().filter_map(|file| file.path().file_stem()?.to_str());
        let nearest = names.max_by(|a, b| strsim::jaro_winkler(shape, a).total_cmp(&strsim::jaro_winkler(shape, b)));
        let shape = excerpt(shape);
        let nearest = nearest.unwrap_or_default();
        bail!("--shape {shape}: no such file, nor a config that comes with the program; did you mean `{nearest}`?");
    }
    Ok(hf::read_config(&path)?)
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
        writeln!(out, "streaming reads from memory, {} threads: {:.1} GB/s", run.threads, run.read_bandwidth / 1e9)?;
    }
    if let Some(seconds) = report.first_token_seconds {
        writeln!(out, "opened and first token after {:.0} ms", seconds * 1e3)?;
    }
    if let Some(bytes) = report.peak_memory_bytes {
        writeln!(out, "peak memory {:.1} MB", bytes as f64 / 1e6)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_config_describes_a_model() {
        let names: Vec<_> = CONFIGS.files().map(|file| file.path().file_stem().unwrap().to_str().unwrap()).collect();
        assert!(names.len() > 15, "{names:?}");
        for name in names {
            config_of(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let error = config_of("gemma-3-270").unwrap_err().to_string();
        assert!(error.ends_with("did you mean `gemma-3-270m`?"), "{error}");
    }
}
