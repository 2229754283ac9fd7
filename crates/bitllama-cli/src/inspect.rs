//! `bitllama inspect`: what an artifact, or the student of a checkpoint, holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::PathBuf;

use bitllama_core::size::StoredSize;
use bitllama_core::weights::specs;
use bitllama_core::{ActivationPlan, ModelConfig, PackedMatrix, Scheme};
use bitllama_formats::checkpoint::{CheckpointState, student_of};
use bitllama_formats::{Artifact, Model, StoredWeight, WeightSource, model};
use clap::Args;
use rayon::prelude::*;
use serde::Serialize;

/// Check an artifact or a checkpoint and describe it: architecture, weights by scheme, bits per weight
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to describe
    #[arg(value_name = "DIR")]
    artifact: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    path: PathBuf,
    architecture: ModelConfig,
    parameters: usize,
    bytes: usize,
    bits_per_weight: f64,
    schemes: Vec<SchemeReport>,
    /// How the student was trained to read them.
    activations: String,
    has_tokenizer: bool,
    /// What had to be assumed on reading, and what the artifact says of itself.
    notes: Vec<String>,
}

/// The weights of one scheme.
#[derive(Serialize)]
struct SchemeReport {
    /// Name of the scheme, or `f32`, or ggml's name of the type of blocks.
    scheme: &'static str,
    weights: usize,
    parameters: usize,
    bytes: usize,
    bits_per_weight: f64,
    /// Of packed weights only.
    #[serde(flatten)]
    codes: Option<Codes>,
}

/// What the codes of one scheme look like.
#[derive(Serialize)]
struct Codes {
    /// Share of the weights that each level has, from the smallest code up.
    level_usage: Vec<f64>,
    scale_min: f32,
    scale_max: f32,
    /// Columns that share a scale, where that is not a whole row.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    group_sizes: BTreeSet<usize>,
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let path = student_of(&options.artifact)?;
    let report = match CheckpointState::read(&path)? {
        Some(_) => {
            let Model { path, config, activations, weights, .. } = model::open(&path)?;
            let student = Student { path, config: &config, activations: &activations, weights: &*weights };
            describe(student, true, Vec::new())?
        }
        None => {
            let artifact = Artifact::open(&path)?;
            artifact.verify()?;
            let Artifact { path, config, activations, notes, .. } = &artifact;
            let own_notes = artifact.manifest["model"]["notes"].as_str().filter(|notes| !notes.is_empty());
            let notes = notes.iter().cloned().chain(own_notes.map(str::to_string)).collect();
            let student = Student { path: path.clone(), config, activations, weights: &artifact };
            describe(student, artifact.tokenizer.is_some(), notes)?
        }
    };
    if options.json {
        return crate::print_json(&report);
    }
    Ok(io::stdout().write_all(table(&report).as_bytes())?)
}

/// The model to describe.
struct Student<'a> {
    path: PathBuf,
    config: &'a ModelConfig,
    activations: &'a ActivationPlan,
    weights: &'a dyn WeightSource,
}

fn describe(student: Student, has_tokenizer: bool, notes: Vec<String>) -> anyhow::Result<Report> {
    let Student { path, config, activations, weights } = student;
    // In the order of `Scheme`, what has none first.
    let mut schemes = BTreeMap::<(Option<Scheme>, &str), SchemeReport>::new();
    let mut counts = BTreeMap::<Scheme, Counts>::new();
    for spec in &specs(config) {
        let stored = weights.stored(spec)?;
        let (scheme, name, bytes) = match &stored {
            StoredWeight::Packed(packed) => (Some(packed.scheme()), packed.scheme().name(), packed.stored_bytes()),
            StoredWeight::Full(values) => (None, "f32", size_of_val(values.as_slice())),
            StoredWeight::Rows(rows) => (None, rows.stored_row(0).map_or("f32", |(name, _)| name), rows.bytes()),
        };
        let entry = schemes.entry((scheme, name)).or_insert_with(|| SchemeReport {
            scheme: name,
            weights: 0,
            parameters: 0,
            bytes: 0,
            bits_per_weight: 0.0,
            codes: None,
        });
        entry.weights += 1;
        entry.parameters += spec.len();
        entry.bytes += bytes;
        if let StoredWeight::Packed(packed) = stored {
            counts.entry(packed.scheme()).or_default().add(&packed);
        }
    }
    for ((scheme, _), entry) in &mut schemes {
        entry.bits_per_weight = entry.bytes as f64 * 8.0 / entry.parameters as f64;
        entry.codes = scheme.and_then(|scheme| counts.remove(&scheme)).map(Counts::finish);
    }
    let schemes: Vec<SchemeReport> = schemes.into_values().collect();
    let sum = |of: fn(&SchemeReport) -> usize| schemes.iter().map(of).sum();
    let size = StoredSize { parameters: sum(|scheme| scheme.parameters), bytes: sum(|scheme| scheme.bytes) };
    Ok(Report {
        path,
        architecture: config.clone(),
        parameters: size.parameters,
        bytes: size.bytes,
        bits_per_weight: size.bits_per_weight(),
        schemes,
        activations: activations.to_string(),
        has_tokenizer,
        notes,
    })
}

/// Codes and scales seen so far.
#[derive(Default)]
struct Counts {
    levels: Vec<u64>,
    scales: Option<(f32, f32)>,
    group_sizes: BTreeSet<usize>,
}

impl Counts {
    fn add(&mut self, packed: &PackedMatrix) {
        let levels = packed.scheme().levels() as usize;
        let empty = || (vec![0u64; levels], vec![0u8; packed.columns()]);
        // A field beyond the levels can only be damage (ternary has three in two bits), which `verify` finds.
        let count_row = |(mut counts, mut fields): (Vec<u64>, Vec<u8>), row: usize| {
            packed.fields_into(row, &mut fields);
            fields.iter().for_each(|field| counts[(*field as usize).min(levels - 1)] += 1);
            (counts, fields)
        };
        let sum = |mut a: Vec<u64>, b: Vec<u64>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        let rows = (0..packed.rows()).into_par_iter();
        let counted = rows.fold(empty, count_row).map(|(counts, _)| counts).reduce(|| vec![0; levels], sum);
        self.group_sizes.extend((packed.groups() > 1).then(|| packed.group_size()));
        self.levels.resize(levels, 0);
        self.levels.iter_mut().zip(counted).for_each(|(all, new)| *all += new);
        for scale in packed.scales() {
            let (low, high) = self.scales.unwrap_or((*scale, *scale));
            self.scales = Some((low.min(*scale), high.max(*scale)));
        }
    }

    fn finish(self) -> Codes {
        let total = self.levels.iter().sum::<u64>().max(1) as f64;
        let (scale_min, scale_max) = self.scales.unwrap_or_default();
        Codes {
            level_usage: self.levels.iter().map(|n| *n as f64 / total).collect(),
            scale_min,
            scale_max,
            group_sizes: self.group_sizes,
        }
    }
}

/// The report for people.
fn table(report: &Report) -> String {
    let ModelConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        max_position_embeddings,
        rope_theta,
        tie_word_embeddings,
        sub_norm,
        arch,
        ..
    } = &report.architecture;
    let mut out = format!(
        "{}\n{}, {num_hidden_layers} layers, hidden {hidden_size}, ffn {intermediate_size}, {num_attention_heads} heads of \
         {head_dim}, {num_key_value_heads} key-value heads, vocabulary {vocab_size}{}, context \
         {max_position_embeddings}, rope theta {rope_theta}{}{}\n\n",
        report.path.display(),
        arch.family,
        if *tie_word_embeddings { " (tied)" } else { "" },
        if *sub_norm { ", sub-norms" } else { "" },
        match arch.sliding_window {
            Some(window) =>
                format!(", window {window} in {} layers", arch.layers.iter().filter(|kind| kind.window).count()),
            None => String::new(),
        },
    );
    let mut line = |scheme: &str, [weights, parameters, bytes]: [String; 3], bits: f64, rest: &str| {
        let row = format!("{scheme:<8} {weights:>7} {parameters:>14} {bytes:>14} {bits:>6.3}  {rest}");
        let _ = writeln!(out, "{}", row.trim_end());
    };
    let mut all = 0;
    for SchemeReport { scheme, weights, parameters, bytes, bits_per_weight, codes } in &report.schemes {
        all += weights;
        let rest = codes.as_ref().map(describe_codes).unwrap_or_default();
        line(scheme, [*weights, *parameters, *bytes].map(|n| n.to_string()), *bits_per_weight, &rest);
    }
    line("total", [all, report.parameters, report.bytes].map(|n| n.to_string()), report.bits_per_weight, "");
    let heading = format!(
        "{:<8} {:>7} {:>14} {:>14} {:>6}  codes and scales\n",
        "scheme", "weights", "parameters", "bytes", "bits"
    );
    let first_row = out.find("\n\n").map_or(0, |at| at + 2);
    out.insert_str(first_row, &heading);
    let _ = write!(out, "\nactivations: {}\n", report.activations);
    if !report.has_tokenizer {
        out.push_str("\nnote: no tokenizer, so it can be neither run nor evaluated\n");
    }
    for note in &report.notes {
        let _ = write!(out, "\nnote: {note}\n");
    }
    out
}

fn describe_codes(codes: &Codes) -> String {
    let Codes { level_usage, scale_min, scale_max, group_sizes } = codes;
    // 256 percentages would tell nobody anything.
    let usage = if level_usage.len() <= 16 {
        level_usage.iter().map(|share| format!("{:.0}", share * 100.0)).collect::<Vec<_>>().join("/") + " %"
    } else {
        let used = level_usage.iter().filter(|share| **share > 0.0).count();
        format!("{used} of {} levels used", level_usage.len())
    };
    let groups = match group_sizes.iter().map(usize::to_string).collect::<Vec<_>>() {
        none if none.is_empty() => String::new(),
        sizes => format!(", groups of {}", sizes.join(", ")),
    };
    format!("{usage}, scales {scale_min:.3e} .. {scale_max:.3e}{groups}")
}
