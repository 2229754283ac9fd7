//! `eval`: perplexity of a model on a text, its divergence from a teacher, and its answers to multiple-choice tasks.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bitllama_console::TextFlags;
use bitllama_core::ModelConfig;
use bitllama_formats::checkpoint::student_of;
use bitllama_formats::{Artifact, artifact};
use bitllama_nn::device::default_name;
use bitllama_runtime::Decoder;
use bitllama_runtime::evaluate::{
    Comparison, LogitModel, Options, Perplexity, Progress, Task, TaskFile, TaskResult, TaskScore, compare, perplexity,
    table,
};
use bitllama_runtime::text::{encode_start, own_bos};
use burn::tensor::Device;
use serde::Serialize;
use tokenizers::Tokenizer;

use crate::evaluate::Scored;
use crate::models;

/// Perplexity of a model on a text, by llama.cpp's protocol, and accuracy on multiple-choice tasks, by lm-evaluation-harness's
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, GGUF file, hub id, checkpoint, artifact, or folder of a run (then its best student)
    #[arg(long)]
    model: String,
    /// Evaluate the latent weights of the checkpoint, not the student that has them rounded
    #[arg(long)]
    latent_weights: bool,
    /// The text, a UTF-8 file or a folder of them: plain, or the texts of .jsonl, .ndjson and .json; .gz and .zst may follow
    #[arg(long, value_name = "FILE", required_unless_present = "task")]
    text: Option<PathBuf>,
    #[command(flatten)]
    text_flags: TextFlags,
    /// Tokens a chunk of the text; chunks do not overlap and the second half of each is scored
    #[arg(long, requires = "text", default_value_t = 512)]
    ctx: usize,
    /// Score the first so many chunks of the text only
    #[arg(long, requires = "text")]
    chunks: Option<usize>,
    /// Also compare with this model on the text: KL divergence, same top token
    #[arg(long, value_name = "MODEL", requires = "text")]
    teacher: Option<String>,
    /// Multiple-choice questions to answer, a JSONL file with the fields of HellaSwag, ARC, PIQA, WinoGrande or BoolQ; may be
    /// given several times [layout: told by the fields, or named as in hellaswag=FILE]
    #[arg(long, value_name = "FILE")]
    task: Vec<TaskFile>,
    /// Answer the first so many questions of each task only
    #[arg(long, requires = "task")]
    limit: Option<usize>,
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

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    text: Option<OnText>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<TaskResult>,
}

/// What was found on a text.
#[derive(Serialize)]
#[serde(untagged)]
enum OnText {
    Alone(Perplexity),
    BesideTeacher(Box<Comparison>),
}

/// Runs the command.
///
/// # Errors
/// A model, text or task that is missing, damaged or too short, or a teacher with another vocabulary.
pub fn run(args: Args) -> Result<()> {
    let device = bitllama_nn::device(&args.device)?;
    args.text_flags.check(args.text.is_some())?;
    let text = args
        .text
        .as_deref()
        .map(|path| Ok::<_, anyhow::Error>((path, args.text_flags.reading().text(path)?)))
        .transpose()?;
    let tasks = args.task.iter().map(|file| Task::read(file, args.limit)).collect::<Result<Vec<_>, _>>()?;
    let mut student = subject(&args.model, args.latent_weights, &device)?;
    let bos = own_bos(&student.tokenizer).with_context(|| args.model.clone())?;
    let limit = student.config.max_position_embeddings;
    let text = match text {
        Some((path, text)) => {
            ensure!(
                args.ctx <= limit,
                "--ctx {} is longer than the context of {}, {limit} tokens",
                args.ctx,
                args.model
            );
            let options = Options { ctx: args.ctx, chunks: args.chunks, bos };
            Some(on_text(&args, &mut student, path, &text, options, &device)?)
        }
        None => None,
    };
    let Subject { model, tokenizer, .. } = &mut student;
    let tokenizer = args.text_flags.reading().tokenizer(tokenizer)?;
    let answer = |task: &Task| task.score(&mut **model, &tokenizer, bos, limit, |score| report_answers(task, score));
    let tasks = tasks.iter().map(answer).collect::<Result<Vec<_>, _>>()?;
    if args.json {
        println!("{}", serde_json::to_string(&Report { text, tasks })?);
        return Ok(());
    }
    match text {
        Some(OnText::Alone(Perplexity { perplexity, error, tokens_scored, .. })) => {
            println!("perplexity {perplexity:.4} ± {error:.4} ({tokens_scored} tokens scored)");
        }
        Some(OnText::BesideTeacher(comparison)) => print(&comparison),
        None => {}
    }
    if !tasks.is_empty() {
        print!("{}", table(&tasks));
    }
    Ok(())
}

/// Perplexity on a text, beside the teacher's if there is one.
fn on_text(
    args: &Args,
    student: &mut Subject,
    path: &Path,
    text: &str,
    options: Options,
    device: &Device,
) -> Result<OnText> {
    let tokenizer = args.text_flags.reading().tokenizer(&student.tokenizer)?;
    let tokens = encode_start(&tokenizer, options.bos, text, options.tokens())?;
    let progress = |p: Progress| eprintln!("[{}/{}] perplexity {:.4}", p.chunk, p.chunks, p.perplexity);
    let at_text = || format!("{}", path.display());
    let Some(name) = &args.teacher else {
        let found = perplexity(&mut *student.model, &tokens, options, progress).with_context(at_text)?;
        return Ok(OnText::Alone(found));
    };
    let mut teacher = subject(name, false, device)?;
    ensure!(
        teacher.tokenizer.get_vocab(true) == student.tokenizer.get_vocab(true),
        "{} and {name} have different tokenizers",
        args.model
    );
    let found = compare(&mut *student.model, &mut *teacher.model, &tokens, options, progress).with_context(at_text)?;
    Ok(OnText::BesideTeacher(Box::new(found)))
}

/// A line for each hundred questions: there may be thousands.
fn report_answers(task: &Task, TaskScore { questions, acc, .. }: &TaskScore) {
    if questions % 100 == 0 || *questions == task.len() {
        eprintln!("[{questions}/{}] {} acc {:.2} %", task.len(), task.layout(), 100.0 * acc);
    }
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

fn subject(name: &str, latent: bool, device: &Device) -> Result<Subject> {
    let path = student_of(&models::resolve(name)?)?;
    if path.join(artifact::MANIFEST_FILE).is_file() && !latent {
        let artifact = Artifact::open(&path)?;
        let config = artifact.config.clone();
        let tokenizer = artifact.tokenizer.clone().with_context(|| format!("{}: no tokenizer.json", path.display()))?;
        let model = Box::new(Decoder::from_artifact(&artifact)?);
        return Ok(Subject { model, tokenizer, config });
    }
    let loaded = models::load(name, latent, device)?;
    Ok(Subject {
        model: Box::new(Scored::new(&loaded.llama, device)),
        tokenizer: loaded.source.tokenizer,
        config: loaded.source.config,
    })
}
