//! `export`: a checkpoint to an artifact.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bitllama_core::size::StoredSize;
use bitllama_formats::output::{self, Kind};
use bitllama_formats::{artifact, hf};
use bitllama_nn::device::default_name;
use burn::module::Module;
use clap::ValueEnum;
use serde_json::json;

use crate::export::{export, save_hf};
use crate::models;

/// Pack a trained student into an artifact
#[derive(clap::Args)]
pub struct Args {
    /// The checkpoint, or the folder of a run (then its best checkpoint)
    #[arg(long)]
    checkpoint: String,
    /// Folder to write; what an earlier `export` or `quantize` wrote there is replaced
    #[arg(long)]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value = "packed")]
    layout: Layout,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What `export` writes
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layout {
    /// An artifact with every low-bit matrix truly packed
    Packed,
    /// An artifact with the keys and loose files of the older tools
    V2,
    /// A Hugging Face directory of the rounded weights in f32, for tools that know no low-bit formats
    Hf,
}

/// Runs the command.
///
/// # Errors
/// A checkpoint that is missing or damaged; a folder that cannot be written, or holds what this program did not write.
pub fn run(args: Args) -> Result<()> {
    output::apart(&args.output, [("--checkpoint", Path::new(&args.checkpoint))])?;
    let kind = if args.layout == Layout::Hf { Kind::Model } else { Kind::Artifact };
    let _claim = output::claim_folder(&args.output, kind)?;
    let loaded = models::load(&args.checkpoint, false, &bitllama_nn::device(default_name())?)?;
    let plan = loaded
        .plan
        .with_context(|| format!("{}: not a checkpoint of a run (no state.json)", loaded.source.path.display()))?;
    let (llama, tokenizer) = (&loaded.llama, loaded.source.tokenizer_files());
    let provenance = json!({
        "checkpoint": loaded.source.path.file_name().map(|n| n.to_string_lossy()),
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
    });
    match args.layout {
        Layout::Packed => export(&args.output, llama, &plan, tokenizer, artifact::Layout::Packed, provenance)?,
        Layout::V2 => export(&args.output, llama, &plan, tokenizer, artifact::Layout::V2, provenance)?,
        Layout::Hf => save_hf(&args.output, &llama.valid().materialize(), tokenizer, hf::Dtype::F32)?,
    }
    let size = StoredSize::of(&plan);
    if args.json {
        let result = json!({
            "output": args.output, "bits_per_weight": size.bits_per_weight(), "bytes": size.bytes,
            "parameters": size.parameters,
        });
        println!("{result}");
    } else {
        println!(
            "{}: {} bytes packed, {:.3} bits per weight",
            args.output.display(),
            size.bytes,
            size.bits_per_weight()
        );
    }
    Ok(())
}
