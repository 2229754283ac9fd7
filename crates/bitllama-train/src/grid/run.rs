//! One run of a grid: from its recipe to its figures, each stage kept on disk, so that a grid that was killed goes on inside of a run.
//!
//! | file | what |
//! |---|---|
//! | `recipe.toml` | the resolved recipe, written by `distill` |
//! | `spent.json` | [`Spent`], while it trains |
//! | `result.json`, `artifact/` | of `distill`, when it has trained |
//! | `texts.json` | the artifact on the grid's texts |
//! | `speed.json` | its size and its speed, and on which machine |
//!
//! A report needs these files only, so what was trained may be removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bitllama_formats::atomic;
use bitllama_formats::identity::{Identity, Likeness};
use bitllama_formats::output::{Growing, Kind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::child::{self, Ended};
use super::config::{Bench, Eval, Planned, model_names};
use super::energy::Energy;
use super::measure::{Reference, bytes_of};
use super::results::{Cell, Speed, Training, machine};
use crate::commands::outcome::Outcome;
use crate::monitor::Metrics;
use crate::recipe::{Recipe, load};

/// The file of [`Spent`].
pub const SPENT: &str = "spent.json";

/// What training took so far, over all starts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// Of the process.
    pub seconds: f64,
    /// `None` without counters.
    pub joules: Option<f64>,
}

/// `texts.json`: figures with what they depend on beside the artifact.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnTexts {
    /// Tokens a chunk, and how many chunks.
    ctx: usize,
    chunks: Option<usize>,
    /// By the names of the texts.
    pub texts: indexmap::IndexMap<String, bitllama_runtime::evaluate::Comparison>,
}

/// `speed.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Timed {
    machine: String,
    artifact_bytes: u64,
    #[serde(flatten)]
    speed: Speed,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It has no artifact yet.
    Training,
    /// It has one, which is not evaluated.
    Trained,
    /// Its speed is missing.
    Evaluated,
    /// All is there.
    Finished,
}

/// The folder of a run.
pub fn folder(planned: &Planned) -> &Path {
    &planned.recipe.output
}

fn artifact(planned: &Planned) -> PathBuf {
    folder(planned).join("artifact")
}

/// How far it is.
///
/// # Errors
/// If its folder holds a run of another recipe, or of another teacher or start under the same name.
pub fn stage(planned: &Planned, eval: &Eval) -> Result<Stage> {
    let folder = folder(planned);
    if let Some(made) = made_with(folder)? {
        ensure!(
            comparable(&made)? == comparable(&planned.recipe)?,
            "{}: made with another recipe than the grid has now; remove that folder or name another `output`",
            folder.display()
        );
        if let Some(model) = replaced(folder, &made, planned) {
            bail!(
                "{}: made with another {model} than the grid has now; remove that folder or name another `output`",
                folder.display()
            );
        }
    }
    if read::<Outcome>(folder, "result.json").is_none() {
        return Ok(Stage::Training);
    }
    let of_texts = read::<OnTexts>(folder, "texts.json");
    if !of_texts.is_some_and(|found| found.is_of(eval)) {
        return Ok(Stage::Trained);
    }
    Ok(if read::<Timed>(folder, "speed.json").is_none() { Stage::Evaluated } else { Stage::Finished })
}

impl OnTexts {
    fn is_of(&self, eval: &Eval) -> bool {
        (self.ctx, self.chunks) == (eval.ctx, eval.chunks) && self.texts.keys().eq(eval.texts.keys())
    }
}

/// The recipe that a folder's run was made with, if it has one.
fn made_with(folder: &Path) -> Result<Option<Recipe>> {
    let path = folder.join("recipe.toml");
    if path.is_file() { load::load(&path, &[]).map(Some) } else { Ok(None) }
}

/// The model that `planned` has another one of than the run in `folder` was made with. They are told apart by their content, as
/// far as that is known on both sides, and else by their names.
fn replaced(folder: &Path, made: &Recipe, planned: &Planned) -> Option<&'static str> {
    let record: serde_json::Value = read(folder, "run.json").unwrap_or_default();
    let names = model_names(made).into_iter().zip(model_names(&planned.recipe));
    let models = ["teacher", "student"].into_iter().zip(names).zip(&planned.models);
    let mut replaced = models.filter(|((what, (before, now)), found)| {
        let recorded: Option<Identity> = serde_json::from_value(record[what].clone()).ok().flatten();
        match (recorded, found) {
            (Some(recorded), Some(found)) => recorded.compare(found) == Likeness::Different,
            _ => before != now,
        }
    });
    replaced.next().map(|((what, _), _)| what)
}

/// All of a recipe that its figures depend on, but models, which [`replaced`] compares; folders may be moved, and caches come and
/// go with other runs of the grid.
fn comparable(recipe: &Recipe) -> Result<String> {
    let mut recipe = recipe.clone();
    if let Some(teacher) = &mut recipe.teacher {
        teacher.cache = None;
        teacher.model.clear();
    }
    recipe.student.model = None;
    recipe.quant.cache = None;
    recipe.output.clear();
    recipe.data.cache.clear();
    Ok(toml::to_string(&recipe)?)
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()
}

fn write(folder: &Path, name: &str, value: &impl Serialize) -> Result<()> {
    let (files, text) = (Growing::new(folder, Kind::Run), format!("{:#}\n", serde_json::to_value(value)?));
    if !files.is_recorded() {
        // Of version 0.1.0, which kept no record.
        let own: [(&str, bool); 3] = [
            (SPENT, read::<Spent>(folder, SPENT).is_some()),
            ("texts.json", read::<OnTexts>(folder, "texts.json").is_some()),
            ("speed.json", read::<Timed>(folder, "speed.json").is_some()),
        ];
        let own: Vec<PathBuf> = own.iter().filter(|(_, is_own)| *is_own).map(|(name, _)| name.into()).collect();
        files.adopt(&own, &[])?;
    }
    if name != SPENT {
        return Ok(files.write(name, text.as_bytes())?);
    }
    // Written every few seconds: the record would grow without end.
    files.log(name)?;
    Ok(atomic::write_bytes(&folder.join(name), text.as_bytes())?)
}

/// What training took so far.
pub fn spent(planned: &Planned) -> Spent {
    read(folder(planned), SPENT).unwrap_or_default()
}

/// Trains a run to its end, or goes on with it; `progress` is told how many steps it has taken.
///
/// # Errors
/// Its own message.
pub fn train(
    grid_recipe: &Path,
    planned: &Planned,
    shared: &[String],
    threads: Option<usize>,
    mut progress: impl FnMut(usize),
) -> Result<Ended> {
    /// Between notes of what has been spent: as much is lost of it when the grid is killed.
    const NOTE: Duration = Duration::from_secs(5);
    let mut args: Vec<String> = ["distill", "--resume", "--json", "--log", "json", "--config"].map(String::from).into();
    args.push(grid_recipe.display().to_string());
    for set in planned.sets.iter().chain(shared) {
        args.extend(["--set".to_string(), set.clone()]);
    }
    let folder = folder(planned);
    let earlier = spent(planned);
    let (start, energy) = (Instant::now(), Energy::now());
    let note = || -> Result<()> {
        // Nothing to note of a run that never came as far as its folder.
        if !folder.is_dir() {
            return Ok(());
        }
        let joules = Energy::now().zip(energy.as_ref()).and_then(|(now, start)| now.since(start));
        let joules = joules.map(|joules| joules + earlier.joules.unwrap_or_default());
        write(folder, SPENT, &Spent { seconds: earlier.seconds + start.elapsed().as_secs_f64(), joules })
    };
    let (mut noted, mut failed) = (start, Ok(()));
    let ended = child::run(&args, threads, |line| {
        if let Ok(Metrics { step, .. }) = serde_json::from_str(line) {
            progress(step);
        }
        if noted.elapsed() > NOTE && failed.is_ok() {
            (noted, failed) = (Instant::now(), note());
        }
    })?;
    failed.and_then(|()| note()).with_context(|| format!("{}", folder.display()))?;
    Ok(ended)
}

/// Evaluates the artifact of a run that has been trained.
///
/// # Errors
/// Those of [`Reference::compare`].
pub fn evaluate(planned: &Planned, eval: &Eval, reference: &mut Reference, progress: impl FnMut()) -> Result<()> {
    let texts = reference.compare(&artifact(planned), progress)?;
    write(folder(planned), "texts.json", &OnTexts { ctx: eval.ctx, chunks: eval.chunks, texts })
}

/// Times the artifact of a run, in a process of its own.
///
/// # Errors
/// Its own message.
pub fn time(planned: &Planned, bench: &Bench) -> Result<Ended> {
    let Bench { prompt, generate, repetitions } = *bench;
    let numbers = [("--prompt", prompt), ("--generate", generate), ("--repetitions", repetitions)];
    let mut args = vec!["speed".to_string(), "--artifact".into(), artifact(planned).display().to_string()];
    args.extend(numbers.into_iter().flat_map(|(flag, n)| [flag.to_string(), n.to_string()]));
    let ended = child::run(&args, None, |_| ())?;
    if let Ended::Done(output) = &ended {
        let speed: Speed = serde_json::from_str(output.trim()).context("what `speed` printed")?;
        let timed = Timed { machine: machine(), artifact_bytes: bytes_of(&artifact(planned))?, speed };
        write(folder(planned), "speed.json", &timed)?;
    }
    Ok(ended)
}

/// The figures of a finished run.
///
/// # Errors
/// If a file of it is missing or damaged.
pub fn cell(planned: &Planned) -> Result<Cell> {
    let folder = folder(planned);
    let missing = |name: &str| format!("{}: missing or damaged", folder.join(name).display());
    let outcome: Outcome = read(folder, "result.json").with_context(|| missing("result.json"))?;
    let OnTexts { texts, .. } = read(folder, "texts.json").with_context(|| missing("texts.json"))?;
    let timed = read(folder, "speed.json").with_context(|| missing("speed.json"))?;
    let Timed { machine, artifact_bytes, speed } = timed;
    let Spent { seconds, joules } = spent(planned);
    let recipe = &planned.recipe;
    let tokens = (recipe.train.steps * recipe.tokens_per_step()) as u64;
    Ok(Cell {
        scheme: planned.scheme.clone(),
        method: planned.method.clone(),
        seed: planned.seed,
        bits_per_weight: outcome.student.bits_per_weight,
        artifact_bytes,
        texts,
        machine,
        speed,
        training: Training { steps: recipe.train.steps, tokens, seconds, joules },
    })
}
