//! `quick`: a model fetched, rounded, exported, measured and run, in one command.

use std::collections::HashMap;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bitllama_core::{ActivationPlan, ModelConfig, Rule, Scheme};
use bitllama_formats::{Model, StoredWeight, hub, output};
use bitllama_runtime::evaluate::{self, Perplexity};
use bitllama_runtime::text::{encode_start, own_bos};
use bitllama_runtime::{Decoder, GenerationOptions, Settings, generate};
use serde_json::json;
use tokenizers::Tokenizer;

use super::quantize::{self, Choices, of_bits};
use crate::export::{self, Format, Options, Source, Summary};
use crate::models;
use crate::monitor::progress::tell;
use crate::ptq::Method;

/// Fetch, round, export, measure and run a model, with a default for everything
#[derive(clap::Args)]
pub struct Args {
    /// A short name (see below), hub id, Hugging Face directory, GGUF file, checkpoint, artifact, or folder of a run
    #[arg(help = format!(
        "A hub id, Hugging Face directory, GGUF file, checkpoint, artifact, folder of a run, or a short name of a model on the hub: {}",
        hub::short_names()
    ))]
    model: String,
    /// Bits per weight of the matrices of all blocks: 1, 1.58, 2, 3, 4, 5, 6 or 8 [default: 4, or as --to says]
    #[arg(long, value_parser = of_bits)]
    bits: Option<Scheme>,
    /// Format to write
    #[arg(long, value_name = "FORMAT", default_value = "artifact", help = format!(
        "Format to write: {}. Without --bits, its own grid is taken: `gguf:TYPE` that of the type, `gguf` the mix gguf:q4_k_m",
        export::names()
    ))]
    to: Format,
    /// Folder to write, or for GGUF the file [default: the name of the model and the scheme]
    #[arg(long)]
    output: Option<PathBuf>,
    /// Round the first N blocks only
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// Text that the rounded model continues
    #[arg(long, default_value = "It is a truth universally acknowledged, that")]
    prompt: String,
    /// Most tokens of the continuation
    #[arg(short = 'n', long, value_name = "N", default_value_t = 40)]
    max_tokens: usize,
    /// Text for the perplexity before and after [default: the first pages of *Sense and Sensibility*]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Print one JSON object at the end in place of tables and text
    #[arg(long)]
    json: bool,
}

/// Tokens of the text that are scored: half of each chunk.
const CTX: usize = 512;
const CHUNKS: usize = 4;

/// The text for the perplexity where none is given; public domain.
const TEXT: &str = include_str!("quick.txt");

/// Runs the command.
///
/// # Errors
/// A model that cannot be had, or that the format cannot hold; an output that cannot be written.
pub fn run(args: Args) -> Result<()> {
    let model = models::open(&args.model, false)?;
    let scheme = scheme(args.bits, args.to);
    let name = model_name(&args.model);
    let output = match &args.output {
        Some(output) => output.clone(),
        None => PathBuf::from(format!("{name}-{}{}", label(scheme), args.to.extension())),
    };
    output::apart(&output, [("MODEL", &*model.path)])?;
    let _claim = export::claim(args.to, &output)?;
    let plan = Choices { layers: args.layers, ..Choices::of(scheme) }.plan(&args.model, &model.config)?;
    let text = match &args.text {
        Some(path) => std::fs::read_to_string(path).with_context(|| path.display().to_string())?,
        None => TEXT.into(),
    };
    let ctx = CTX.min(model.config.max_position_embeddings);
    let tokens = tokens(&model.tokenizer, &text, ctx, args.text.as_deref())?;

    tell("perplexity of the model as it is");
    let (before, _) = score(decoder_of(&model)?, &model.tokenizer, &tokens, ctx)?;
    model.weights.release();

    tell(&format!("rounding to {scheme}"));
    // Packed weights are small enough to be kept: they are written, measured and run.
    let rounded = quantize::weights(&model, &plan, Method::Search, HashMap::new());
    let named = rounded.map(|weight| weight.map(|(spec, weight)| (spec.name, weight)));
    let rounded: HashMap<String, StoredWeight> = named.collect::<std::result::Result<_, _>>()?;
    model.weights.release();
    let provenance = json!({
        "command": "quick",
        "model": model.path,
        "scheme": scheme,
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
    });
    let source = Source {
        config: &model.config,
        activations: &ActivationPlan::default(),
        tokenizer: model.tokenizer_files(),
        provenance,
    };
    let weights = plan.iter().map(|(spec, _)| Ok((spec.clone(), rounded[&spec.name].clone())));
    let summary = export::write(args.to, &output, source, weights, Options::default())?;

    tell("perplexity of the rounded model");
    let decoder = Decoder::new(model.config.clone(), |spec| Ok(rounded[&spec.name].clone()))?;
    let decoder = decoder.with_settings(Settings::fast());
    let (after, decoder) = score(decoder, &model.tokenizer, &tokens, ctx)?;
    let report = Report { args: &args, name: &name, scheme, model: &model, output: &output, summary, before, after };
    report.finish(&decoder, &model.tokenizer)
}

/// The scheme that is rounded to: of so many bits, else that of the format.
fn scheme(bits: Option<Scheme>, to: Format) -> Rule {
    match bits {
        Some(scheme) => Rule::Quantizer(scheme.into()),
        None => to.own_grid().unwrap_or(Rule::Quantizer(Scheme::Int4.into())),
    }
}

/// A scheme in the name of a file.
fn label(scheme: Rule) -> String {
    match scheme {
        Rule::Target(target, _) => target.name.split(':').next_back().unwrap_or_default().to_string(),
        Rule::Quantizer(quantizer) => quantizer.scheme.to_string(),
        Rule::Full => scheme.to_string(),
    }
}

/// The last part of a model's name, without an ending.
fn model_name(model: &str) -> String {
    let last = Path::new(model).file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
    last.strip_suffix(".gguf").unwrap_or(&last).split([':', '@']).next().unwrap_or_default().to_string()
}

fn decoder_of(model: &Model) -> Result<Decoder> {
    let decoder = Decoder::new(model.config.clone(), |spec| Ok(model.weights.stored(spec)?))?;
    Ok(decoder.with_settings(Settings::fast()))
}

/// The first tokens of a text, as many as are scored.
fn tokens(tokenizer: &Tokenizer, text: &str, ctx: usize, path: Option<&Path>) -> Result<Vec<u32>> {
    let tokens = encode_start(tokenizer, own_bos(tokenizer)?, text, CHUNKS * ctx)?;
    let path = path.map_or("the built-in text".into(), |path| path.display().to_string());
    ensure!(tokens.len() >= ctx, "{path}: {} tokens are no chunk of {ctx}; give more text", tokens.len());
    Ok(tokens)
}

fn score(mut decoder: Decoder, tokenizer: &Tokenizer, tokens: &[u32], ctx: usize) -> Result<(Perplexity, Decoder)> {
    let options = evaluate::Options { ctx, chunks: Some(CHUNKS), bos: own_bos(tokenizer)? };
    let found = evaluate::perplexity(&mut decoder, tokens, options, |_| ())?;
    Ok((found, decoder))
}

/// All that was found.
struct Report<'a> {
    args: &'a Args,
    name: &'a str,
    scheme: Rule,
    model: &'a Model,
    output: &'a Path,
    summary: Summary,
    before: Perplexity,
    after: Perplexity,
}

impl Report<'_> {
    /// Runs the model and prints everything.
    fn finish(&self, decoder: &Decoder, tokenizer: &Tokenizer) -> Result<()> {
        let Args { prompt, max_tokens, json: as_json, .. } = self.args;
        let bytes = self.model.weights.stored_bytes();
        let bits = bytes as f64 * 8.0 / self.summary.parameters as f64;
        if !as_json {
            println!("{:<24} {:>14} {:>16} {:>12}", "", "bytes", "bits per weight", "perplexity");
            let line = |what: &str, bytes: u64, bits: f64, found: Perplexity| {
                println!("{what:<24} {bytes:>14} {bits:>16.3} {:>12.3}", found.perplexity);
            };
            line(self.name, bytes, bits, self.before);
            line(&label(self.scheme), self.summary.bytes, self.summary.bits_per_weight(), self.after);
            println!();
            print!("{prompt}");
        }
        let mut stdout = io::stdout().lock();
        let mut written = Ok(());
        let on_text = |piece: &str| {
            if *as_json {
                return ControlFlow::Continue(());
            }
            written = stdout.write_all(piece.as_bytes()).and_then(|()| stdout.flush());
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let options = GenerationOptions { max_tokens: *max_tokens, ..GenerationOptions::default() };
        let generation = generate(decoder, tokenizer, prompt, &options, on_text)?;
        written?;
        drop(stdout);
        let next = next_command(&self.args.model, &self.model.config, self.scheme);
        if *as_json {
            let found = json!({
                "output": self.output, "scheme": self.scheme, "parameters": self.summary.parameters,
                "before": { "bytes": bytes, "bits_per_weight": bits, "perplexity": self.before },
                "after": {
                    "bytes": self.summary.bytes, "bits_per_weight": self.summary.bits_per_weight(),
                    "perplexity": self.after,
                },
                "generation": generation, "train": next,
            });
            println!("{found}");
            return Ok(());
        }
        println!("\n\n{}: written; {:.1} tokens/s here", self.output.display(), generation.decode_tokens_per_second);
        println!(
            "{} tokens of {} were scored; train it to win back what rounding cost:",
            self.after.tokens_scored,
            self.text()
        );
        println!("  {next}");
        Ok(())
    }

    fn text(&self) -> String {
        self.args.text.as_ref().map_or("Sense and Sensibility".into(), |path| path.display().to_string())
    }
}

/// The command that trains the model on the same grid.
fn next_command(model: &str, config: &ModelConfig, scheme: Rule) -> String {
    let rule = match scheme {
        Rule::Target(target, _) => format!("\"{}\"", target.name),
        Rule::Quantizer(quantizer) => {
            let groups = if config.hidden_size.is_multiple_of(64) { ", group_size = 64" } else { "" };
            let method = quantizer.scheme.description().trained_method.name();
            format!("{{ scheme = \"{}\", method = \"{method}\"{groups} }}", quantizer.scheme)
        }
        Rule::Full => return String::new(),
    };
    format!(
        "bitllama-train distill --config recipes/smollm2-135m-4bit.toml --set teacher.model={model} --set \
         'bits.layers.*={rule}' --set 'data.train=[\"YOUR-TEXT.txt\"]' --set output=runs/{}",
        model_name(model)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_named_after_model_and_scheme() {
        for (model, expected) in [
            ("org/Name-1B", "Name-1B"),
            ("models/x/Some.Q4_1.gguf", "Some.Q4_1"),
            ("org/name@main", "name"),
            ("org/name:a.gguf", "name"),
            ("smollm2-135m", "smollm2-135m"),
        ] {
            assert_eq!(model_name(model), expected, "{model}");
        }
        assert_eq!(label(scheme(None, Format::Gguf(None))), "q4_k_m");
        assert_eq!(label(scheme(None, "gguf:q8_0".parse().unwrap())), "q8_0");
        assert_eq!(label(scheme(None, Format::Artifact)), "int4");
        assert_eq!(label(scheme(Some(Scheme::Int2), Format::Gguf(None))), "int2");
    }
}
