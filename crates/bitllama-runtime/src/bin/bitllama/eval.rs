//! `bitllama eval`: perplexity on a text.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use bitllama_kernels::Precision;
use bitllama_kernels::kv::KvKind;
use bitllama_runtime::Settings;
use bitllama_runtime::evaluate::{self, Perplexity, Progress};
use bitllama_runtime::text::{encode, own_bos};
use clap::Args;
use serde::Serialize;

use crate::source::{self, Quantize, Threads};

/// Perplexity on a text, by llama.cpp's protocol
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact to evaluate; also a Hugging Face directory or a GGUF file, which run in f32
    #[arg(long, value_name = "DIR")]
    artifact: PathBuf,
    /// UTF-8 text to predict
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens a chunk; the second half of each is scored
    #[arg(long, value_name = "N", default_value_t = evaluate::Options::default().ctx)]
    ctx: usize,
    /// Score the first N chunks only
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
    #[command(flatten)]
    quantize: Quantize,
    /// How products see their activations: f32 (exact), int8 (as `run` does) or sign [default: as the artifact was
    /// trained, else f32]
    #[arg(long, value_name = "TYPE")]
    activations: Option<Precision>,
    /// How keys and values are kept: f32, f16 (as `run` does), int8 or int4 [default: as the artifact was trained, else
    /// f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvKind>,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    perplexity: Perplexity,
    ctx: usize,
    /// Token in front of each chunk, if the tokenizer has one.
    bos: Option<u32>,
    seconds: f64,
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    options.threads.apply()?;
    let of_text = || options.text.display().to_string();
    // Before the model: a wrong path should not cost the time to load one.
    let text = fs::read_to_string(&options.text).with_context(of_text)?;
    let settings = source::settings(options.activations, options.kv, Settings::default())?;
    let (decoder, tokenizer) = options.quantize.open(&options.artifact)?;
    let mut decoder = decoder.with_settings(settings);
    let bos = own_bos(&tokenizer, decoder.config().bos_token_id)?;
    // Not a lone BOS where there is no text.
    let tokens = if text.is_empty() { Vec::new() } else { encode(&tokenizer, bos, &text).with_context(of_text)? };
    drop(text);
    let start = std::time::Instant::now();
    let evaluation = evaluate::Options { ctx: options.ctx, chunks: options.chunks, bos };
    let perplexity = evaluate::perplexity(&mut decoder, &tokens, evaluation, report_progress).with_context(of_text)?;
    if options.json {
        let seconds = start.elapsed().as_secs_f64();
        return crate::print_json(&Report { perplexity, ctx: options.ctx, bos, seconds });
    }
    let Perplexity { perplexity, error, tokens_scored, chunks, .. } = perplexity;
    writeln!(
        io::stdout(),
        "perplexity {perplexity:.4} ± {error:.4} ({tokens_scored} tokens of {chunks} chunks of {})",
        options.ctx
    )?;
    Ok(())
}

/// On a terminal one line that changes, else a line a chunk.
fn report_progress(progress: Progress) {
    let Progress { chunk, chunks, perplexity } = progress;
    let mut stderr = io::stderr().lock();
    let (before, after) = match stderr.is_terminal() {
        true => ("\r", if chunk == chunks { "\n" } else { "" }),
        false => ("", "\n"),
    };
    // Progress that nobody can read is no failure.
    let _ = write!(stderr, "{before}chunk {chunk}/{chunks}: perplexity {perplexity:.4}{after}");
}
