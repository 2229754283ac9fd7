//! `generate-data`: a corpus that a teacher writes by itself (LLM-QAT, <https://arxiv.org/abs/2305.17888>): documents that
//! start with a random token, go on with the likeliest few, and are sampled from there.
//!
//! Documents are written in groups that are generated together; what is in the file is a function of the settings, which lie
//! beside it, and of the document's number. So a command that was stopped goes on to the same file.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bitllama_formats::atomic;
use bitllama_runtime::generate_batch::{Start, generate_batch};
use bitllama_runtime::text::decode;
use bitllama_runtime::{Decoder, Sampling};
use indicatif::{ProgressBar, ProgressStyle};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizers::Tokenizer;

use crate::{models, seeded};

/// Let a model write a corpus to train on, by sampling
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, GGUF file or hub id
    #[arg(long)]
    model: String,
    /// JSONL file to write, a line for each document; one that was begun with the same settings is gone on with
    #[arg(long)]
    output: PathBuf,
    /// Tokens to write, about: whole groups of documents
    #[arg(long)]
    tokens: usize,
    /// Tokens of a document, at most; it may end earlier by itself
    #[arg(long, default_value_t = 512)]
    length: usize,
    /// Documents that are generated together
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Tokens after the first that are the likeliest, not sampled
    #[arg(long, default_value_t = 4)]
    greedy: usize,
    /// Logits are divided by it
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// Sample from the K likeliest tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the likeliest tokens that together reach this probability only
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Of all random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace a file that was made with other settings
    #[arg(long)]
    overwrite: bool,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What decides a document, beside the file it is in.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Origin {
    model: String,
    model_bytes: u64,
    length: usize,
    batch: usize,
    greedy: usize,
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    seed: u64,
}

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Document {
    text: String,
    /// Of the text, as the model gave them.
    tokens: usize,
}

/// Runs the command.
///
/// # Errors
/// A model that is missing or damaged, settings out of range, a file that was made with others or cannot be written.
pub fn run(args: Args) -> Result<()> {
    ensure!(args.tokens > 0, "--tokens must be at least 1");
    ensure!(args.batch > 0, "--batch must be at least 1");
    let model = models::open(&args.model)?;
    let limit = model.config.max_position_embeddings;
    ensure!(
        args.length >= 2 && args.length <= limit,
        "--length {} is not between 2 and the model's context of {limit} tokens",
        args.length
    );
    let origin = Origin {
        model: args.model.clone(),
        model_bytes: model.weights.stored_bytes(),
        length: args.length,
        batch: args.batch,
        greedy: args.greedy,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let (mut done, mut tokens) = begun(&args, &origin)?;
    let (found, tokenizer) = (tokens, &model.tokenizer);
    let starts = first_tokens(tokenizer, model.config.end_tokens())?;
    let decoder = Decoder::from_model(&model)?;

    let mut file = OpenOptions::new().append(true).open(&args.output).with_context(|| at(&args.output))?;
    let bar = ProgressBar::new(args.tokens as u64).with_position(tokens as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} tokens  ETA {eta}")?);
    bar.reset_eta();
    let start = Instant::now();
    while tokens < args.tokens {
        let group: Vec<Start> = (done..done + args.batch)
            .map(|document| {
                let mut rng = seeded(args.seed, "document", document as u64);
                let first = starts[rng.random_range(0..starts.len())];
                let sampling = Sampling {
                    temperature: args.temperature,
                    top_k: args.top_k,
                    top_p: args.top_p,
                    seed: rng.random(),
                };
                Start { tokens: vec![first], sampling, greedy: args.greedy }
            })
            .collect();
        let mut lines = Vec::new();
        for written in generate_batch(&decoder, &group, args.length)? {
            let text = decode(tokenizer, &written)?;
            serde_json::to_writer(&mut lines, &Document { text, tokens: written.len() })?;
            lines.push(b'\n');
            tokens += written.len();
        }
        file.write_all(&lines).with_context(|| at(&args.output))?;
        done += args.batch;
        bar.set_position(tokens as u64);
    }
    file.sync_all().with_context(|| at(&args.output))?;
    bar.finish_and_clear();
    let speed = (tokens - found) as f64 / start.elapsed().as_secs_f64().max(1e-9);
    if args.json {
        println!(
            "{}",
            json!({ "output": args.output, "documents": done, "tokens": tokens, "tokens_per_second": speed })
        );
    } else {
        println!("{}: {done} documents, {tokens} tokens; {speed:.0} tok/s", args.output.display());
    }
    Ok(())
}

fn at(path: &Path) -> String {
    path.display().to_string()
}

/// Where the settings lie.
fn origin_path(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".origin.json");
    name.into()
}

/// Documents and tokens that the file has, in whole groups; what a group that was cut short left is taken away. A new file
/// is made, with its settings beside it.
fn begun(args: &Args, origin: &Origin) -> Result<(usize, usize)> {
    let (output, beside) = (&args.output, origin_path(&args.output));
    if output.exists() && !args.overwrite {
        let bytes = fs::read(&beside).with_context(|| {
            format!(
                "{}: not made by `generate-data`, or {} is gone; `--overwrite` replaces it",
                at(output),
                at(&beside)
            )
        })?;
        let earlier: Origin = serde_json::from_slice(&bytes).with_context(|| at(&beside))?;
        ensure!(
            earlier == *origin,
            "{}: was made with other settings ({}); `--overwrite` replaces it",
            at(output),
            at(&beside)
        );
        let text = fs::read_to_string(output).with_context(|| at(output))?;
        let mut lines: Vec<(&str, usize)> = text
            .split_inclusive('\n')
            .map_while(|line| Some((line, serde_json::from_str::<Document>(line).ok()?.tokens)))
            .filter(|(line, _)| line.ends_with('\n'))
            .collect();
        lines.truncate(lines.len() / args.batch * args.batch);
        let kept: usize = lines.iter().map(|(line, _)| line.len()).sum();
        let file = OpenOptions::new().write(true).open(output).with_context(|| at(output))?;
        file.set_len(kept as u64).with_context(|| at(output))?;
        return Ok((lines.len(), lines.iter().map(|(_, tokens)| tokens).sum()));
    }
    if let Some(parent) = output.parent() {
        fs::create_dir_all(parent).with_context(|| at(parent))?;
    }
    atomic::write_bytes(&beside, format!("{:#}\n", serde_json::to_value(origin)?).as_bytes())?;
    atomic::write_bytes(output, b"")?;
    Ok((0, 0))
}

/// Tokens that a document may start with: those that have a text and are no special tokens.
fn first_tokens(tokenizer: &Tokenizer, ends: impl Iterator<Item = u32>) -> Result<Vec<u32>> {
    let mut special: Vec<u32> = ends.collect();
    special.extend(tokenizer.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id));
    let mut tokens: Vec<u32> = tokenizer.get_vocab(true).into_values().filter(|id| !special.contains(id)).collect();
    tokens.sort_unstable();
    ensure!(!tokens.is_empty(), "the tokenizer has special tokens only");
    Ok(tokens)
}
