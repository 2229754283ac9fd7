//! `grid`: which bits, and at what cost? Schemes, methods and seeds over one recipe, and a report.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bitllama_core::excerpt;
use bitllama_formats::output::{Kind, claim_growing};
use globset::GlobBuilder;
use indexmap::IndexMap;
use serde_json::Value;
use time::OffsetDateTime;

use crate::grid::cache::Shared;
use crate::grid::child::{self, Ended};
use crate::grid::config::{Grid, Planned, identify};
use crate::grid::measure::Reference;
use crate::grid::results::{FORMAT_VERSION, Other, Results, Teacher, machines};
use crate::grid::run::{self, Stage};
use crate::grid::schedule::{self, Task};
use crate::grid::{others, report};
use crate::recipe;
use crate::training::interrupt;

/// Run schemes, methods and seeds over one recipe, and report which bits cost what
#[derive(clap::Args)]
pub struct Args {
    /// The grid, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only runs whose names, such as int4/distill/seed-0, match this glob; the report has all that there are
    #[arg(long, value_name = "GLOB")]
    only: Option<String>,
    /// Runs at a time
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// List the runs with their states, and stop
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
///
/// # Errors
/// A grid, recipe, teacher or text that cannot be read; a report that cannot be written. A run that fails is reported, and the
/// exit code says so, when all others are done.
pub fn run(args: Args) -> Result<ExitCode> {
    ensure!(args.jobs > 0, "--jobs must be at least 1");
    let grid = Grid::read(&args.config)?;
    let at_grid = || format!("{}", args.config.display());
    let mut all = grid.plan().with_context(at_grid)?;
    identify(&mut all).with_context(at_grid)?;
    let others = others::read(&grid)?;
    let mut failed = IndexMap::new();
    let mut tasks = Vec::new();
    let chosen = chosen(args.only.as_deref())?;
    for planned in all.iter().filter(|planned| chosen(planned)) {
        match run::stage(planned, &grid.eval) {
            Ok(stage) => tasks.push(Task { planned, stage, shared: Shared::of(&grid, planned, &all) }),
            Err(error) => drop(failed.insert(planned.to_string(), format!("{error:#}"))),
        }
    }
    ensure!(
        !tasks.is_empty() || !failed.is_empty(),
        "--only {}: no run has such a name",
        excerpt(&args.only.unwrap_or_default())
    );
    if args.dry_run {
        for Task { planned, stage, .. } in &tasks {
            println!("{planned}: {}", named(*stage));
        }
        failed.iter().for_each(|(name, why)| println!("{name}: {why}"));
        return Ok(ExitCode::SUCCESS);
    }

    failed.iter().for_each(|(name, why)| eprintln!("{name} failed: {why}"));
    interrupt::listen()?;
    let _claim = claim_growing(&grid.output, Kind::Grid)?;
    let (model, device) = (teacher_of(&all).with_context(at_grid)?, bitllama_nn::device(&all[0].recipe.device)?);
    let start = Instant::now();
    let mut reference = Reference::open(model, &grid.eval, &device).with_context(at_grid)?;
    estimate(&args, &grid, &tasks, start.elapsed().as_secs_f64());
    let done = schedule::run(&grid, &all, &tasks, args.jobs, &mut reference);
    failed.extend(done.failed);

    let results = report::finite(results(&args, &grid, &all, failed, reference.teacher, others))?;
    report::write(&results, &grid.output)?;
    print!("{}", report::terminal(&results));
    println!("\nreport: {}", grid.output.join(report::PAGE_FILE).display());
    Ok(match (done.interrupted, results.failed.is_empty()) {
        (true, _) => ExitCode::from(interrupt::exit_code()),
        (_, false) => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

/// Whether a run's name matches `--only`.
fn chosen(only: Option<&str>) -> Result<impl Fn(&Planned) -> bool + use<>> {
    let glob = only
        .map(|only| GlobBuilder::new(only).build().with_context(|| format!("--only {}", excerpt(only))))
        .transpose()?;
    let glob = glob.map(|glob| glob.compile_matcher());
    Ok(move |planned: &Planned| glob.as_ref().is_none_or(|glob| glob.is_match(planned.to_string())))
}

fn named(stage: Stage) -> &'static str {
    match stage {
        Stage::Training => "to be trained",
        Stage::Trained => "to be evaluated",
        Stage::Evaluated => "to be timed",
        Stage::Finished => "finished",
    }
}

/// The one model that all runs learn from.
fn teacher_of(all: &[Planned]) -> Result<&recipe::Teacher> {
    let mut teachers = all.iter().filter_map(|planned| planned.recipe.teacher.as_ref());
    let first = teachers.next().context("no run has a teacher")?;
    let same = |other: &recipe::Teacher| (&other.model, other.latent_weights) == (&first.model, first.latent_weights);
    if let Some(other) = teachers.find(|other| !same(other)) {
        bail!(
            "runs have different teachers, `{}` and `{}`: there is one that all are compared with",
            first.model,
            other.model
        );
    }
    Ok(first)
}

/// Says how long it is going to take: as long as runs that are finished took for each token, or some steps of the first one that
/// is not.
fn estimate(args: &Args, grid: &Grid, tasks: &[Task], evaluation: f64) {
    let left = |stage: Stage| tasks.iter().filter(move |task| task.stage <= stage);
    let tokens = |planned: &Planned| (planned.recipe.train.steps * planned.recipe.tokens_per_step()) as f64;
    let to_train: f64 = left(Stage::Training).map(|task| tokens(task.planned)).sum();
    let mut known = (0.0, 0.0);
    for task in tasks.iter().filter(|task| task.stage > Stage::Training) {
        let spent = run::spent(task.planned);
        known = (known.0 + spent.seconds, known.1 + tokens(task.planned));
    }
    // A run that cannot be timed fails in its own turn.
    let timed = || {
        left(Stage::Training).filter(|task| tokens(task.planned) > 0.0).find_map(|task| timed(grid, task.planned).ok())
    };
    let a_token = if to_train == 0.0 {
        Some(0.0)
    } else if known.1 > 0.0 {
        Some(known.0 / known.1)
    } else {
        timed()
    };
    let to_evaluate = left(Stage::Trained).count() as f64 * 2.0 * evaluation;
    let time = match a_token {
        Some(a_token) => format!("about {:.0} minutes", ((to_train * a_token + to_evaluate) / 60.0).ceil()),
        None => "nobody knows how long".to_string(),
    };
    eprintln!(
        "{} runs, {} of them finished; {to_train:.0} tokens to train on: {time}{}",
        tasks.len(),
        tasks.iter().filter(|task| task.stage == Stage::Finished).count(),
        if args.jobs > 1 { " for one at a time" } else { "" }
    );
}

/// Seconds a token of a run's steps, by `bench-step`.
fn timed(grid: &Grid, planned: &Planned) -> Result<f64> {
    let mut args: Vec<String> = ["bench-step", "--steps", "1", "--json", "--config"].map(String::from).into();
    args.push(grid.recipe.display().to_string());
    args.extend(planned.sets.iter().flat_map(|set| ["--set".to_string(), set.clone()]));
    let Ended::Done(output) = child::run(&args, None, |_| ())? else { bail!("stopped") };
    let answer: Value = serde_json::from_str(output.trim()).context("what `bench-step` printed")?;
    answer["median_seconds"]
        .as_f64()
        .zip(answer["tokens_per_step"].as_f64())
        .map(|(seconds, tokens)| seconds / tokens)
        .context("`bench-step` did not say how long a step takes")
}

fn results(
    args: &Args,
    grid: &Grid,
    all: &[Planned],
    failed: IndexMap<String, String>,
    teacher: Teacher,
    others: Vec<Other>,
) -> Results {
    let (mut cells, mut missing) = (Vec::new(), Vec::new());
    for planned in all {
        let name = planned.to_string();
        if failed.contains_key(&name) {
            continue;
        }
        // Also of runs that `--only` left out.
        let cell = run::stage(planned, &grid.eval).and_then(|stage| match stage {
            Stage::Finished => run::cell(planned).map(Some),
            _ => Ok(None),
        });
        match cell {
            Ok(Some(cell)) => cells.push(cell),
            Ok(None) => missing.push(name),
            Err(error) => missing.push(format!("{name}: {error:#}")),
        }
    }
    let stem = args.config.file_stem().unwrap_or_default().to_string_lossy();
    Results {
        format_version: FORMAT_VERSION,
        title: grid.title.clone().unwrap_or_else(|| stem.into_owned()),
        date: OffsetDateTime::now_utc().date().to_string(),
        machine: machines(&cells),
        revision: Some(env!("GIT_REVISION").to_string()).filter(|revision| !revision.is_empty()),
        command: format!("bitllama-train grid --config {}", args.config.display()),
        teacher,
        cells,
        failed,
        missing,
        others,
    }
}
