//! `bitllama run`: continues a prompt.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::Context;
use bitllama_kernels::Precision;
use bitllama_kernels::kv::KvKind;
use bitllama_runtime::{Sampling, Settings, generate};
use clap::Args;

use crate::source::{self, Quantize, Threads};

/// Continue a prompt
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to run; also a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR")]
    artifact: PathBuf,
    /// Text to continue; control tokens that it spells, like </s>, are read as such, so that chat templates can be written
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,
    /// Randomness: 0 takes the likeliest token always, 1 follows the model's probabilities
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the likeliest tokens whose probabilities together reach P only
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    quantize: Quantize,
    /// How products see their activations: f32 (exact), int8 (fast) or sign (binary weights, XNOR and popcount) [default:
    /// as the artifact was trained, else int8]
    #[arg(long, value_name = "TYPE")]
    activations: Option<Precision>,
    /// How keys and values are kept: f32, f16, int8 or int4 [default: as the artifact was trained, else f16]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvKind>,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object at the end (text, tokens, speed) in place of the text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    options.threads.apply()?;
    let Options { temperature, top_k, top_p, seed, .. } = *options;
    let settings = source::settings(options.activations, options.kv, Settings::fast())?;
    let (decoder, tokenizer) = options.quantize.open(&options.artifact)?;
    let decoder = decoder.with_settings(settings);
    let mut stdout = io::stdout().lock();
    let mut written = Ok(());
    let on_text = |piece: &str| {
        if options.json {
            return ControlFlow::Continue(());
        }
        // Flushed at once: people read along.
        written = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush());
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let sampling = Sampling { temperature, top_k, top_p, seed };
    let generation = generate(&decoder, &tokenizer, &options.prompt, options.max_tokens, sampling, on_text)
        .with_context(|| options.artifact.display().to_string())?;
    written?;
    if options.json {
        drop(stdout);
        return crate::print_json(&generation);
    }
    writeln!(stdout)?;
    // Speed is for the curious; a closed stderr is no failure.
    let _ = writeln!(
        io::stderr(),
        "prompt: {} tokens, {:.1} tokens/s; decode: {} tokens, {:.1} tokens/s",
        generation.prompt_tokens,
        generation.prompt_tokens_per_second,
        generation.tokens.len(),
        generation.decode_tokens_per_second
    );
    Ok(())
}
