//! `generate-data`: a corpus that a teacher writes by itself (LLM-QAT, <https://arxiv.org/abs/2305.17888>): documents that
//! start with a random token, go on with the likeliest few, and are sampled from there.
//!
//! Documents are written in groups that are generated together; what is in the file is a function of the settings, which lie
//! beside it, and of the document's number. So a command that was stopped goes on to the same file.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bitllama_formats::identity::Identity;
use bitllama_formats::output;
use bitllama_runtime::generate_batch::{Start, generate_batch};
use bitllama_runtime::text::decode;
use bitllama_runtime::{Decoder, KvCache, Sampling, memory};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokenizers::Tokenizer;

use super::corpus::{Corpus, Document};
use crate::monitor::work::Work;
use crate::{models, seeded};

/// More documents at once make no machine faster.
const MAX_BATCH: usize = 1 << 16;

/// Let a model write a corpus to train on, by sampling
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, GGUF file, hub id, checkpoint, artifact, or folder of a run (then its best student)
    #[arg(long)]
    model: String,
    /// Let the latent weights of the checkpoint write, not the student that has them rounded
    #[arg(long)]
    latent_weights: bool,
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
    /// Replace a file that this command made with other settings
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
    model_sha256: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    latent_weights: bool,
    length: usize,
    batch: usize,
    greedy: usize,
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f32>,
    seed: u64,
}

/// Runs the command.
///
/// # Errors
/// A model that is missing or damaged, settings out of range, a file that was made with others or cannot be written.
pub fn run(args: Args) -> Result<()> {
    ensure!(args.tokens > 0, "--tokens must be at least 1");
    ensure!((1..=MAX_BATCH).contains(&args.batch), "--batch {} is not between 1 and {MAX_BATCH}", args.batch);
    let model = models::open(&args.model, args.latent_weights)?;
    output::apart(&args.output, [("--model", &*model.path)])?;
    let _claim = output::claim_file(&args.output)?;
    let limit = model.config.max_position_embeddings;
    ensure!(
        args.length >= 2 && args.length <= limit,
        "--length {} is not between 2 and the model's context of {limit} tokens",
        args.length
    );
    memory::ensure(args.batch as u128 * KvCache::bytes_at_most(&model.config, args.length), 1)
        .with_context(|| format!("--batch {} documents of --length {}", args.batch, args.length))?;
    let origin = Origin {
        model: args.model.clone(),
        model_bytes: model.weights.stored_bytes(),
        model_sha256: Identity::of(&model)?.sha256,
        latent_weights: args.latent_weights,
        length: args.length,
        batch: args.batch,
        greedy: args.greedy,
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        seed: args.seed,
    };
    let (temperature, top_k, top_p) = (args.temperature, args.top_k, args.top_p);
    let sampling = |seed| Sampling { temperature, top_k, top_p, seed, ..Sampling::default() };
    // Before a file that they would not fill is made or replaced.
    sampling(args.seed).check()?;
    let decoder = Decoder::from_model(&model)?;
    let mut corpus = Corpus::open(&args.output, serde_json::to_value(&origin)?, args.batch, args.overwrite)?;
    let (found, tokenizer) = (corpus.tokens, &model.tokenizer);
    let starts = first_tokens(tokenizer, model.config.end_tokens())?;

    let work = Work::new(args.tokens as u64, found as u64, "tokens");
    let start = Instant::now();
    while corpus.tokens < args.tokens {
        let group: Vec<Start> = (corpus.documents..corpus.documents + args.batch)
            .map(|document| {
                let mut rng = seeded(args.seed, "document", document as u64);
                let first = starts[rng.random_range(0..starts.len())];
                Start { tokens: vec![first], sampling: sampling(rng.random()), greedy: args.greedy }
            })
            .collect();
        let mut documents = Vec::new();
        for written in generate_batch(&decoder, &group, args.length)? {
            let text = decode(tokenizer, &written)?;
            documents.push(Document { text, tokens: written.len() });
        }
        let before = corpus.tokens;
        corpus.append(&documents)?;
        work.advance((corpus.tokens - before) as u64);
    }
    let (done, tokens) = (corpus.documents, corpus.tokens);
    corpus.finish()?;
    work.finish();
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

/// Tokens that a document may start with: those that have a text and are no special tokens.
fn first_tokens(tokenizer: &Tokenizer, ends: impl Iterator<Item = u32>) -> Result<Vec<u32>> {
    let mut special: Vec<u32> = ends.collect();
    special.extend(tokenizer.get_added_tokens_decoder().iter().filter(|(_, t)| t.special).map(|(id, _)| *id));
    let mut tokens: Vec<u32> = tokenizer.get_vocab(true).into_values().filter(|id| !special.contains(id)).collect();
    tokens.sort_unstable();
    ensure!(!tokens.is_empty(), "the tokenizer has special tokens only");
    Ok(tokens)
}
