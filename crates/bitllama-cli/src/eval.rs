//! `bitllama eval`: perplexity on a text, accuracy on multiple-choice tasks.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::Context;
use bitllama_console::TextFlags;
use bitllama_kernels::Precision;
use bitllama_kernels::kv::KvKind;
use bitllama_runtime::evaluate::{self, Perplexity, Progress, Task, TaskFile, TaskResult, TaskScore};
use bitllama_runtime::text::{encode_start, own_bos};
use bitllama_runtime::{Decoder, Opened, Settings};
use clap::Args;
use serde::Serialize;
use tokenizers::Tokenizer;

use crate::source::{self, Quantize, Threads};

/// Perplexity on a text, by llama.cpp's protocol, and accuracy on multiple-choice tasks, by lm-evaluation-harness's
#[derive(Debug, Args)]
pub struct Options {
    /// Artifact, checkpoint, or folder of a run (then its best student) to evaluate; also a Hugging Face directory or a GGUF file
    #[arg(long, value_name = "DIR")]
    artifact: PathBuf,
    /// Text to predict, a UTF-8 file or a folder of them: plain, or the texts of .jsonl, .ndjson and .json; .gz and .zst may
    /// follow
    #[arg(long, value_name = "FILE", required_unless_present = "task")]
    text: Option<PathBuf>,
    #[command(flatten)]
    text_flags: TextFlags,
    /// Tokens a chunk of the text; the second half of each is scored
    #[arg(long, value_name = "N", requires = "text", default_value_t = evaluate::Options::default().ctx)]
    ctx: usize,
    /// Score the first N chunks of the text only
    #[arg(long, value_name = "N", requires = "text")]
    chunks: Option<usize>,
    /// Multiple-choice questions to answer, a JSONL file with the fields of HellaSwag, ARC, PIQA, WinoGrande or BoolQ; may be
    /// given several times [layout: told by the fields, or named as in hellaswag=FILE]
    #[arg(long, value_name = "FILE")]
    task: Vec<TaskFile>,
    /// Answer the first N questions of each task only
    #[arg(long, value_name = "N", requires = "task")]
    limit: Option<usize>,
    #[command(flatten)]
    quantize: Quantize,
    /// How products see their activations: f32 (exact), int8 (as `run` does) or sign [default: as the artifact was
    /// trained, else f32]
    #[arg(long, value_name = "TYPE")]
    activations: Option<Precision>,
    /// How keys and values are kept: f32, f16 (as `run` does), int8 or int4 [default: as the artifact was trained, else
    /// f32]
    #[arg(long, value_name = "TYPE")]
    kv: Option<KvKind>,
    #[command(flatten)]
    threads: Threads,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    text: Option<TextReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tasks: Vec<TaskResult>,
    seconds: f64,
}

/// The part about the text.
#[derive(Serialize)]
struct TextReport {
    #[serde(flatten)]
    perplexity: Perplexity,
    ctx: usize,
    /// Token in front of each chunk, if the tokenizer has one.
    bos: Option<u32>,
}

/// Runs the command.
pub fn run(options: &Options) -> anyhow::Result<()> {
    options.threads.apply()?;
    // Before the model: a wrong path should not cost the time to load one.
    options.text_flags.check(options.text.is_some())?;
    let reading = options.text_flags.reading();
    let read = |path| Ok::<_, anyhow::Error>((path, reading.text(path)?));
    let text = options.text.as_deref().map(read).transpose()?;
    let read_task = |file| Task::read(file, options.limit);
    let tasks = options.task.iter().map(read_task).collect::<Result<Vec<_>, _>>()?;
    let settings = source::settings(options.activations, options.kv, Settings::default())?;
    let Opened { decoder, tokenizer, .. } = options.quantize.open(&options.artifact)?;
    let mut decoder = decoder.with_settings(settings);
    let bos = own_bos(&tokenizer).with_context(|| options.artifact.display().to_string())?;
    let tokenizer = reading.tokenizer(&tokenizer)?;
    let start = std::time::Instant::now();
    let text = match text {
        Some((path, text)) => {
            let evaluation = evaluate::Options { ctx: options.ctx, chunks: options.chunks, bos };
            let perplexity = perplexity(&mut decoder, &tokenizer, &text, evaluation);
            Some(TextReport {
                perplexity: perplexity.with_context(|| path.display().to_string())?,
                ctx: options.ctx,
                bos,
            })
        }
        None => None,
    };
    let limit = decoder.config().max_position_embeddings;
    let answer = |task: &Task| task.score(&mut decoder, &tokenizer, bos, limit, |score| report_answers(task, score));
    let tasks = tasks.iter().map(answer).collect::<Result<Vec<_>, _>>()?;
    if options.json {
        return crate::print_json(&Report { text, tasks, seconds: start.elapsed().as_secs_f64() });
    }
    if let Some(TextReport { perplexity: Perplexity { perplexity, error, tokens_scored, chunks, .. }, ctx, .. }) = text
    {
        writeln!(
            io::stdout(),
            "perplexity {perplexity:.4} ± {error:.4} ({tokens_scored} tokens of {chunks} chunks of {ctx})"
        )?;
    }
    if !tasks.is_empty() {
        write!(io::stdout(), "{}", evaluate::table(&tasks))?;
    }
    Ok(())
}

fn perplexity(
    decoder: &mut Decoder,
    tokenizer: &Tokenizer,
    text: &str,
    options: evaluate::Options,
) -> bitllama_runtime::Result<Perplexity> {
    let tokens = encode_start(tokenizer, options.bos, text, options.tokens())?;
    evaluate::perplexity(decoder, &tokens, options, report_chunk)
}

fn report_chunk(Progress { chunk, chunks, perplexity }: Progress) {
    report_progress(&format!("chunk {chunk}/{chunks}: perplexity {perplexity:.4}"), chunk == chunks);
}

/// As there may be thousands of questions, not of each where lines stay.
fn report_answers(task: &Task, TaskScore { questions, acc, .. }: &TaskScore) {
    let last = *questions == task.len();
    if last || questions % 100 == 0 || io::stderr().is_terminal() {
        let line = format!("{} {questions}/{}: acc {:.2} %", task.layout(), task.len(), 100.0 * acc);
        report_progress(&line, last);
    }
}

/// On a terminal one line that changes, else a line each.
fn report_progress(line: &str, last: bool) {
    let mut stderr = io::stderr().lock();
    let (before, after) = match stderr.is_terminal() {
        true => ("\r", if last { "\n" } else { "" }),
        false => ("", "\n"),
    };
    // Progress that nobody can read is no failure.
    let _ = write!(stderr, "{before}{line}{after}");
}
