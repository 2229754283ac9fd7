//! Which model a command opens, and how it computes.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bitllama_core::weights::Kind;
use bitllama_core::{Scheme, scheme};
use bitllama_kernels::kv::KvKind;
use bitllama_kernels::{Isa, Pool, Precision};
use bitllama_runtime::speculate::check_draft;
use bitllama_runtime::{Decoder, Opened, Settings, open, open_latent, open_quantized};
use clap::Args;
use tokenizers::Tokenizer;

/// Options for opening a full-precision model or a checkpoint.
#[derive(Debug, Args)]
pub struct Quantize {
    /// Take the latent weights of a checkpoint, in f32, not the student that has them rounded
    #[arg(long)]
    latent_weights: bool,
    /// Round a Hugging Face directory or GGUF file to this scheme while opening it, to nearest, without training
    #[arg(long, value_name = "SCHEME", help = format!(
        "Round a Hugging Face directory or GGUF file while opening it, to nearest, without training: {}", scheme::names()
    ))]
    quantize: Option<Scheme>,
    /// Scheme of its embedding and head, or f32 [default: as --quantize]
    #[arg(long, value_name = "SCHEME", requires = "quantize")]
    quantize_embedding: Option<SchemeOrFull>,
}

impl Quantize {
    /// Opens the model at `path`.
    pub fn open(&self, path: &Path) -> anyhow::Result<Opened> {
        let Some(scheme) = self.quantize else {
            return Ok(if self.latent_weights { open_latent(path)? } else { open(path)? });
        };
        let embedding = self.quantize_embedding.map_or(Some(scheme), |SchemeOrFull(embedding)| embedding);
        Ok(open_quantized(path, self.latent_weights, |spec| match spec.kind {
            Kind::Embedding | Kind::Head => embedding,
            Kind::Linear => Some(scheme),
            Kind::Norm | Kind::Bias => None,
        })?)
    }
}

/// A smaller model that guesses tokens.
#[derive(Debug, Args)]
pub struct Draft {
    /// Smaller model with the same tokenizer, such as a low-bit student of this one, that guesses the next tokens, which this one then
    /// checks several at a time; the text is that of this model alone
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
}

impl Draft {
    /// Opens the draft, if there is one, for a model with this tokenizer.
    pub fn open(&self, tokenizer: &Tokenizer, settings: &Settings) -> anyhow::Result<Option<Decoder>> {
        let Some(path) = &self.draft else { return Ok(None) };
        Ok(Some(open_draft(path, tokenizer)?.with_settings(settings.clone())))
    }
}

/// Opens a draft for a model with this tokenizer.
pub fn open_draft(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Decoder> {
    let draft = open(path)?;
    check_draft(tokenizer, &draft.tokenizer).with_context(|| path.display().to_string())?;
    Ok(draft.decoder)
}

/// A scheme, or full precision.
#[derive(Debug, Clone, Copy)]
pub struct SchemeOrFull(pub Option<Scheme>);

impl std::str::FromStr for SchemeOrFull {
    type Err = bitllama_core::Error;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        if name == "f32" { Ok(Self(None)) } else { name.parse().map(|scheme| Self(Some(scheme))) }
    }
}

/// Threads of a command that computes.
#[derive(Debug, Args)]
pub struct Threads {
    /// Threads to compute with [default: one for each core]
    #[arg(short = 't', long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=Pool::MAX_THREADS as i64))]
    threads: Option<u16>,
}

impl Threads {
    /// Sizes the pools that everything runs in. To be called once, before any work.
    pub fn apply(&self) -> anyhow::Result<()> {
        if let Some(threads) = self.threads {
            Pool::set_global_threads(threads.into())?;
        }
        // Evaluation spreads softmax over logits on rayon's pool.
        Ok(rayon::ThreadPoolBuilder::new().num_threads(Pool::global().threads()).build_global()?)
    }
}

/// Threads and numbers of commands that generate text.
#[derive(Debug, Args)]
pub struct Compute {
    /// How products see their activations: f32 (exact), int8 (fast) or sign (binary weights, XNOR and popcount) [default:
    /// as the artifact was trained, else int8]
    #[arg(long, value_name = "TYPE")]
    activations: Option<Precision>,
    /// How keys and values are kept: f32, f16, int8 or int4 [default: as the artifact was trained, else f16]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvKind>,
    #[command(flatten)]
    threads: Threads,
}

impl Compute {
    /// Sizes the pools and gives the settings. To be called once, before any work.
    pub fn start(&self, default: Settings) -> anyhow::Result<Settings> {
        self.threads.apply()?;
        settings(self.activations, self.kv, default)
    }
}

/// The settings that a command computes with: what it was asked for, and otherwise as the student was trained, and what
/// training says nothing of as in `default`; on the instruction set that `BITLLAMA_ISA` names, if it does.
pub fn settings(activations: Option<Precision>, kv: Option<KvKind>, default: Settings) -> anyhow::Result<Settings> {
    let isa = Isa::from_env().map_err(anyhow::Error::msg)?;
    Ok(Settings {
        precision: activations.unwrap_or(default.precision),
        activations_as_trained: activations.is_none(),
        kv: kv.unwrap_or(default.kv),
        kv_as_trained: kv.is_none(),
        isa,
        ..default
    })
}
