//! `export`: a checkpoint to an artifact.

use std::path::PathBuf;

use anyhow::{Context, Result};
use bitllama_core::size::StoredSize;
use bitllama_formats::artifact;
use clap::ValueEnum;
use serde_json::json;

use crate::export::export;
use crate::models;

/// Pack a trained student into an artifact
#[derive(clap::Args)]
pub struct Args {
    /// The checkpoint, or the folder of a run (then its best checkpoint)
    #[arg(long)]
    checkpoint: String,
    /// Folder of the artifact; an artifact that is there is replaced
    #[arg(long)]
    output: PathBuf,
    /// Keys of weights.npz
    #[arg(long, value_enum, default_value = "packed")]
    layout: Layout,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Keys of `weights.npz`
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// Every low-bit matrix truly packed
    Packed,
    /// The keys and loose files of the older tools
    V2,
}

/// Runs the command.
///
/// # Errors
/// A checkpoint that is missing or damaged; a folder that cannot be written.
pub fn run(args: Args) -> Result<()> {
    let loaded = models::load(&args.checkpoint, &bitllama_nn::device("flex")?)?;
    let plan = loaded
        .plan
        .with_context(|| format!("{}: not a checkpoint of a run (no state.json)", loaded.source.path.display()))?;
    let layout = match args.layout {
        Layout::Packed => artifact::Layout::Packed,
        Layout::V2 => artifact::Layout::V2,
    };
    let provenance = json!({
        "checkpoint": loaded.source.path.file_name().map(|n| n.to_string_lossy()),
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
    });
    export(&args.output, &loaded.llama, &plan, &loaded.source.tokenizer, layout, provenance)?;
    let size = StoredSize::of(&plan);
    if args.json {
        let result = json!({
            "artifact": args.output, "bits_per_weight": size.bits_per_weight(), "bytes": size.bytes,
            "parameters": size.parameters,
        });
        println!("{result}");
    } else {
        println!("{}: {} bytes, {:.3} bits per weight", args.output.display(), size.bytes, size.bits_per_weight());
    }
    Ok(())
}
