//! `speed`: what a grid asks a process of its own for, since the memory that a model takes is that of a process.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bitllama_formats::Artifact;
use bitllama_runtime::bench::{self, Options};
use bitllama_runtime::{Decoder, Settings, memory};

use crate::grid::results::Speed;

/// Time an artifact and print one JSON object
#[derive(clap::Args)]
pub struct Args {
    /// The artifact
    #[arg(long, value_name = "DIR")]
    artifact: PathBuf,
    /// Tokens of the prompt test
    #[arg(long)]
    prompt: usize,
    /// Tokens of the generation test
    #[arg(long)]
    generate: usize,
    /// Runs of each test, after one to warm up
    #[arg(long)]
    repetitions: usize,
}

/// Runs the command.
///
/// # Errors
/// An artifact that is missing or damaged, tests that do not fit into its context.
pub fn run(args: Args) -> Result<()> {
    let at = || format!("{}", args.artifact.display());
    let decoder = Decoder::from_artifact(&Artifact::open(&args.artifact)?).with_context(at)?;
    let decoder = decoder.with_settings(Settings::fast());
    let of = |prompt, generate| -> Result<f64> {
        let options = Options { prompt, generate, depth: 0, sequences: 1, repetitions: args.repetitions };
        let tests = bench::run(&decoder, options).with_context(at)?;
        Ok(tests.first().map_or(f64::NAN, |test| test.tokens_per_second.median))
    };
    let speed = Speed { prompt: of(args.prompt, 0)?, decode: of(0, args.generate)?, peak_memory: memory::peak() };
    println!("{}", serde_json::to_string(&speed)?);
    Ok(())
}
