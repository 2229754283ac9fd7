//! `eval`: perplexity of a model on a text, and its divergence from a teacher.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use bitllama_core::ModelConfig;
use bitllama_formats::{Artifact, artifact};
use bitllama_nn::device::default_name;
use bitllama_runtime::Decoder;
use bitllama_runtime::evaluate::{Comparison, LogitModel, Options, Progress, compare, perplexity};
use bitllama_runtime::text::{encode, own_bos};
use burn::tensor::Device;
use tokenizers::Tokenizer;

use crate::evaluate::Scored;
use crate::models;

/// Perplexity of a model on a text, by llama.cpp's protocol
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, GGUF file, hub id, checkpoint, folder of a run, or artifact
    #[arg(long)]
    model: String,
    /// The text, a UTF-8 file
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens a chunk; chunks do not overlap and the second half of each is scored
    #[arg(long, default_value_t = 512)]
    ctx: usize,
    /// Score the first so many chunks only
    #[arg(long)]
    chunks: Option<usize>,
    /// Also compare with this model: KL divergence, same top token
    #[arg(long, value_name = "MODEL")]
    teacher: Option<String>,
    /// Device: flex, ndarray, tch, cuda:N or wgpu (artifacts always run on the CPU)
    #[arg(long, default_value = default_name())]
    device: String,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// Something to score, with what belongs to it.
struct Subject {
    model: Box<dyn LogitModel>,
    tokenizer: Tokenizer,
    config: ModelConfig,
}

/// Runs the command.
///
/// # Errors
/// A model or text that is missing, damaged, too short, or a teacher with another vocabulary.
pub fn run(args: Args) -> Result<()> {
    let device = bitllama_nn::device(&args.device)?;
    let text = std::fs::read_to_string(&args.text).with_context(|| format!("{}", args.text.display()))?;
    ensure!(!text.trim().is_empty(), "{}: the text is empty", args.text.display());
    let mut student = subject(&args.model, &device)?;
    let bos = own_bos(&student.tokenizer, student.config.bos_token_id)?;
    let tokens = encode(&student.tokenizer, bos, &text)?;
    let options = Options { ctx: args.ctx, chunks: args.chunks, bos };
    let limit = student.config.max_position_embeddings;
    ensure!(args.ctx <= limit, "--ctx {} is longer than the context of {}, {limit} tokens", args.ctx, args.model);
    let progress = |p: Progress| eprintln!("[{}/{}] perplexity {:.4}", p.chunk, p.chunks, p.perplexity);
    let at_text = || format!("{}", args.text.display());

    let Some(teacher) = &args.teacher else {
        let result = perplexity(&mut *student.model, &tokens, options, progress).with_context(at_text)?;
        if args.json {
            println!("{}", serde_json::to_string(&result)?);
        } else {
            println!(
                "perplexity {:.4} ± {:.4} ({} tokens scored)",
                result.perplexity, result.error, result.tokens_scored
            );
        }
        return Ok(());
    };
    let mut teacher = subject(teacher, &device)?;
    ensure!(
        teacher.tokenizer.get_vocab(true) == student.tokenizer.get_vocab(true),
        "{} and {} have different tokenizers",
        args.model,
        args.teacher.as_deref().unwrap_or_default()
    );
    let result = compare(&mut *student.model, &mut *teacher.model, &tokens, options, progress).with_context(at_text)?;
    if args.json {
        println!("{}", serde_json::to_string(&result)?);
    } else {
        print(&result);
    }
    Ok(())
}

/// The figures under the names that llama.cpp's `perplexity` gives them.
fn print(result: &Comparison) {
    let line = |name: &str, value: f64, error: f64| println!("{name:<22} {value:>12.6} ± {error:.6}");
    line("perplexity", result.student.perplexity, result.student.error);
    line("perplexity of teacher", result.teacher.perplexity, result.teacher.error);
    line("mean KLD", result.mean_kld, result.mean_kld_error);
    let kld = &result.kld;
    for (name, value) in [
        ("median", kld.median),
        ("90 %", kld.p90),
        ("95 %", kld.p95),
        ("99 %", kld.p99),
        ("99.9 %", kld.p99_9),
        ("maximum", kld.max),
    ] {
        println!("{:<22} {value:>12.6}", format!("KLD {name}"));
    }
    line("mean Δp (%)", 100.0 * result.mean_delta_p, 100.0 * result.mean_delta_p_error);
    line("RMS Δp (%)", 100.0 * result.rms_delta_p, 100.0 * result.rms_delta_p_error);
    line("same top p (%)", 100.0 * result.same_top, 100.0 * result.same_top_error);
}

fn subject(name: &str, device: &Device) -> Result<Subject> {
    if let Ok(path) = models::resolve(name)
        && path.join(artifact::MANIFEST_FILE).is_file()
    {
        let artifact = Artifact::open(&path)?;
        let config = artifact.config.clone();
        let tokenizer = artifact.tokenizer.clone().with_context(|| format!("{}: no tokenizer.json", path.display()))?;
        let model = Box::new(Decoder::from_artifact(&artifact)?);
        return Ok(Subject { model, tokenizer, config });
    }
    let loaded = models::load(name, device)?;
    Ok(Subject {
        model: Box::new(Scored::new(&loaded.llama, device)),
        tokenizer: loaded.source.tokenizer,
        config: loaded.source.config,
    })
}
