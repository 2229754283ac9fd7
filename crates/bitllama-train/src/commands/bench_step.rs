//! `bench-step`: how fast a recipe's training steps are, how near to what the machine can do, and where their time goes.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bitllama_core::ModelConfig;
use bitllama_core::weights::{Kind, specs};
use bitllama_nn::profile;
use bitllama_runtime::memory;
use serde_json::json;

use super::identity::provenance;
use super::prepare::{Lesson, compared, sources, student};
use super::recipe_args::RecipeArgs;
use crate::data::batches::Rows;
use crate::data::{self, Split};
use crate::recipe::{Recipe, dry_run};
use crate::training::optimizer::Optimizers;
use crate::training::step::Trainer;
use crate::training::teacher::Teacher;

/// Time the training steps of a recipe
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Steps to time, after two to warm up
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

/// What was measured.
struct Report {
    /// Seconds of each step.
    seconds: Vec<f64>,
    /// Floating-point operations of a step's products.
    operations: f64,
    /// What the machine's units do a second, where that is known.
    peak: Option<f64>,
    /// Bytes.
    memory: Option<u64>,
    tokens: usize,
    /// Phases in the order of a step, with their operators.
    phases: Vec<Phase>,
}

struct Phase {
    name: &'static str,
    /// Milliseconds a step.
    time: f64,
    operators: Vec<(&'static str, f64, usize)>,
}

/// Steps before those that are timed: in the first the moments are made, and up to the second memory grows.
const WARM_UP: usize = 2;

/// The phases of a step, in order.
const PHASES: [&str; 8] = ["data", "teacher", "forward", "loss", "recompute", "backward", "clip", "optimizer"];

/// # Errors
/// Whatever keeps the recipe's steps from being taken, in one line.
pub fn run(args: Args) -> Result<()> {
    let recipe = args.recipe.read()?;
    let at_recipe = || args.recipe.at();
    ensure!(args.steps > 0, "--steps must be at least 1");
    let device = bitllama_nn::device(&recipe.device).with_context(at_recipe)?;
    let sources = sources(&recipe, None).with_context(at_recipe)?;
    let teacher_config = sources.teacher.as_ref().map(|teacher| &teacher.config);
    dry_run::ensure_memory(&recipe, &sources.plan, &sources.config, teacher_config).with_context(at_recipe)?;
    let mut student = student(&recipe, &sources, None, &device).with_context(at_recipe)?;
    let Split { train, valid } = data::load(&recipe, &sources.tokenizer, &sources.config)?;
    let hashes = json!({ "train": train.hashes, "valid": valid.hashes });
    let provenance = provenance(&recipe, sources.teacher.as_ref(), hashes)?;
    let cache = Lesson::cache(&recipe, &sources, &provenance).with_context(at_recipe)?;
    let lesson = Lesson::of(&recipe, &sources, cache, &device).with_context(at_recipe)?;
    let rows = Rows::new(train, recipe.data.sequence_length, recipe.seed)?;
    let tracked = device.clone().autodiff();
    let (compared, projections) = compared(&recipe, &sources, &tracked).with_context(at_recipe)?;
    let teacher = lesson.teacher();
    let optimizers = Optimizers::new(&student, &recipe.train);
    let mut trainer = Trainer {
        recipe: &recipe,
        teacher: &teacher,
        compared: &compared,
        device: &tracked,
        rows,
        optimizers,
        projections,
    };

    let mut seconds = Vec::new();
    for step in 1..=WARM_UP + args.steps {
        if step == WARM_UP + 1 {
            memory::reset_peak();
            profile::start();
        }
        let start = Instant::now();
        (student, _) = trainer.step(student, step)?;
        if step > WARM_UP {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let spent = profile::stop();
    let a_step = |time: std::time::Duration| time.as_secs_f64() * 1e3 / args.steps as f64;
    let phases = PHASES
        .into_iter()
        .filter_map(|name| {
            let time = a_step(spent.get(&(name, ""))?.time);
            let of_phase = spent.iter().filter(|((phase, operator), _)| *phase == name && !operator.is_empty());
            let mut operators: Vec<_> = of_phase
                .map(|((_, operator), spent)| (*operator, a_step(spent.time), spent.calls / args.steps))
                .collect();
            operators.sort_by(|a, b| b.1.total_cmp(&a.1));
            Some(Phase { name, time, operators })
        })
        .collect();
    let report = Report {
        seconds,
        operations: operations(
            &recipe,
            &sources.config,
            sources.teacher.as_ref().filter(|_| matches!(teacher, Teacher::Model(_))).map(|t| &t.config),
        ),
        peak: (recipe.device == "flex").then(bitllama_nn::ops::peak),
        memory: memory::peak(),
        tokens: recipe.tokens_per_step(),
        phases,
    };
    print(&args, &recipe, &report);
    Ok(())
}

/// Multiplications and additions of the matrix products of a step, those of attention over the past included: each product
/// once forward and twice backward, those of a teacher in memory once. What is computed twice to save memory counts once.
fn operations(recipe: &Recipe, student: &ModelConfig, teacher: Option<&ModelConfig>) -> f64 {
    let seq = recipe.data.sequence_length as f64;
    let forward = |config: &ModelConfig| {
        let of_matrices: usize = specs(config)
            .iter()
            .filter(|spec| matches!(spec.kind, Kind::Linear | Kind::Head))
            .map(|spec| spec.len())
            .sum();
        let tied = if config.tie_word_embeddings { config.vocab_size * config.hidden_size } else { 0 };
        let seen: f64 = (0..config.num_hidden_layers).map(|layer| seen_on_average(config, layer, seq)).sum();
        let attention = 2.0 * config.q_size() as f64 * seen;
        2.0 * ((of_matrices + tied) as f64 + attention)
    };
    (3.0 * forward(student) + teacher.map_or(0.0, forward)) * recipe.tokens_per_step() as f64
}

/// Positions that a token of a row of `seq` sees in a layer, on average.
fn seen_on_average(config: &ModelConfig, layer: usize, seq: f64) -> f64 {
    match config.window_of(config.arch.layer(layer)).map(|window| window as f64).filter(|window| *window < seq) {
        // The first tokens see fewer.
        Some(window) => window - window * (window - 1.0) / (2.0 * seq),
        None => (seq + 1.0) / 2.0,
    }
}

fn print(args: &Args, recipe: &Recipe, report: &Report) {
    let mut sorted = report.seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let (speed, rate) = (report.tokens as f64 / median, report.operations / median);
    if args.json {
        let phases: Vec<_> = report
            .phases
            .iter()
            .map(|phase| {
                let operators: Vec<_> = phase
                    .operators
                    .iter()
                    .map(|(name, ms, calls)| json!({ "name": name, "ms": ms, "calls": calls }))
                    .collect();
                json!({ "name": phase.name, "ms": phase.time, "operators": operators })
            })
            .collect();
        let answer = json!({
            "tokens_per_step": report.tokens, "seconds": report.seconds, "median_seconds": median,
            "tokens_per_second": speed, "operations": report.operations, "operations_per_second": rate,
            "peak_operations_per_second": report.peak, "peak_memory_bytes": report.memory, "phases": phases,
        });
        println!("{answer}");
        return;
    }
    println!(
        "{} rows of {} tokens, device {}: {speed:.1} tokens/s, {median:.3} s a step (median of {}, {:.3} to {:.3})",
        recipe.train.batch_size * recipe.train.grad_accumulation,
        recipe.data.sequence_length,
        recipe.device,
        sorted.len(),
        sorted[0],
        sorted[sorted.len() - 1]
    );
    let share = report.peak.map_or(String::new(), |peak| {
        format!(", {:.0} % of the {:.0} that its units reach in f32", 100.0 * rate / peak, peak / 1e9)
    });
    println!("{:.1} GFLOP a step, {:.0} GFLOP/s{share}", report.operations / 1e9, rate / 1e9);
    if let Some(bytes) = report.memory {
        println!("peak memory {:.2} GB", bytes as f64 / 1e9);
    }
    println!("\n{:<24} {:>10} {:>7} {:>7}", "", "ms a step", "%", "calls");
    let all = report.seconds.iter().sum::<f64>() * 1e3 / report.seconds.len() as f64;
    let row =
        |name: &str, ms: f64, calls: String| println!("{name:<24} {ms:>10.1} {:>7.1} {calls:>7}", 100.0 * ms / all);
    for Phase { name, time, operators } in &report.phases {
        row(name, *time, String::new());
        for (name, time, calls) in operators {
            row(&format!("  {name}"), *time, calls.to_string());
        }
        let other = time - operators.iter().map(|(_, time, _)| time).sum::<f64>();
        if !operators.is_empty() {
            row("  other", other, String::new());
        }
    }
    row("other", all - report.phases.iter().map(|phase| phase.time).sum::<f64>(), String::new());
}
