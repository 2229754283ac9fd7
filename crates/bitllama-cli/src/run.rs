//! `bitllama run`: continues a prompt.

use std::fs;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bitllama_runtime::{Generation, Opened, Settings, generate_with_draft};
use clap::Args;

use crate::sampling::SamplingFlags;
use crate::source::{Compute, Draft, Quantize};

/// Continue a prompt
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to run; also a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR")]
    artifact: PathBuf,
    /// Text to continue; control tokens that it spells, like </s>, are read as such, so that chat templates can be written
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_file", conflicts_with = "prompt_file")]
    prompt: Option<String>,
    /// File with the text to continue; `-` is standard input
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    #[command(flatten)]
    draft: Draft,
    #[command(flatten)]
    sampling: SamplingFlags,
    #[command(flatten)]
    quantize: Quantize,
    #[command(flatten)]
    compute: Compute,
    /// Print one JSON object at the end (text, tokens, speed) in place of the text
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let prompt = match (&options.prompt, &options.prompt_file) {
        (Some(prompt), _) => prompt.clone(),
        (None, file) => read_prompt(file.as_deref().unwrap_or(Path::new("-")))?,
    };
    let generating = options.sampling.options();
    generating.sampling.check()?;
    let settings = options.compute.start(Settings::fast())?;
    let Opened { decoder, tokenizer, .. } = options.quantize.open(&options.artifact)?;
    let draft = options.draft.open(&tokenizer, &settings)?;
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
    let generation = generate_with_draft(&decoder, draft.as_ref(), &tokenizer, &prompt, &generating, on_text)
        .with_context(|| options.artifact.display().to_string())?;
    written?;
    if options.json {
        drop(stdout);
        return crate::print_json(&generation);
    }
    writeln!(stdout)?;
    tell_speed(&generation);
    Ok(())
}

/// The text of a file, or of standard input for `-`. A line break at its end is left out: it is the file's, not the prompt's.
fn read_prompt(path: &Path) -> anyhow::Result<String> {
    let mut text = match path == Path::new("-") {
        true => {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).context("standard input")?;
            text
        }
        false => fs::read_to_string(path).with_context(|| path.display().to_string())?,
    };
    let whole = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(whole);
    Ok(text)
}

/// Tells the speed of a generation on standard error.
pub fn tell_speed(generation: &Generation) {
    // Speed is for the curious; a closed stderr is no failure.
    let _ = writeln!(
        io::stderr(),
        "prompt: {} tokens, {:.1} tokens/s; decode: {} tokens, {:.1} tokens/s",
        generation.prompt_tokens,
        generation.prompt_tokens_per_second,
        generation.tokens.len(),
        generation.decode_tokens_per_second
    );
    if let Some(draft) = generation.draft {
        let share = 100.0 * draft.accepted as f64 / draft.guessed.max(1) as f64;
        let _ = writeln!(
            io::stderr(),
            "draft: {} of {} guesses accepted ({share:.0} %), {} passes of the model",
            draft.accepted,
            draft.guessed,
            draft.passes
        );
    }
}
