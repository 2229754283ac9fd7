//! All runs of a grid, some at a time, under one progress bar.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Result, anyhow};
use indexmap::IndexMap;

use super::cache;
use super::child::Ended;
use super::config::{Grid, Planned};
use super::measure::Reference;
use super::run::{self, Stage};
use crate::monitor::work::Work;
use crate::training::interrupt;

/// A run that is to be made or finished.
pub struct Task<'a> {
    /// Which.
    pub planned: &'a Planned,
    /// How far it is.
    pub stage: Stage,
    /// What it shares with other runs.
    pub shared: cache::Shared,
}

/// How it ended.
pub struct Done {
    /// Runs that failed, and why.
    pub failed: IndexMap<String, String>,
    /// Whether a signal stopped it.
    pub interrupted: bool,
}

/// What came of a cache: it is filled, or why it is not.
type Filled = Result<(), String>;

/// What runs share.
struct Shared<'a> {
    grid: &'a Grid,
    all: &'a [Planned],
    reference: Mutex<&'a mut Reference>,
    caches: Mutex<HashMap<PathBuf, Arc<Mutex<Option<Filled>>>>>,
    failed: Mutex<IndexMap<String, String>>,
    interrupted: AtomicBool,
    progress: Work,
    /// Of each run's process; all cores if `None`.
    threads: Option<usize>,
    /// Tokens of an evaluation's chunk.
    ctx: u64,
}

/// Trains and evaluates runs, `jobs` at a time; then times them, one after the other and beside nothing else. A run that fails is
/// left out.
pub fn run(grid: &Grid, all: &[Planned], tasks: &[Task], jobs: usize, reference: &mut Reference) -> Done {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let chunks = reference.chunks() as u64;
    let ctx = grid.eval.ctx as u64;
    let work = |task: &Task| match task.stage {
        Stage::Training => tokens(task.planned) + chunks * ctx,
        Stage::Trained => chunks * ctx,
        _ => 0,
    };
    let progress = Work::new(tasks.iter().map(work).sum(), 0, "tokens");
    let shared = Shared {
        grid,
        all,
        reference: Mutex::new(reference),
        caches: Mutex::default(),
        failed: Mutex::default(),
        interrupted: AtomicBool::new(false),
        progress,
        threads: (jobs > 1).then_some((cores / jobs).max(1)),
        ctx,
    };
    let next = AtomicUsize::new(0);
    let worker = || {
        while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !shared.stopped()) {
            shared.note(task, shared.train(task));
        }
    };
    std::thread::scope(|scope| (0..jobs.min(tasks.len())).for_each(|_| drop(scope.spawn(worker))));
    for task in tasks.iter().filter(|task| task.stage < Stage::Finished) {
        if shared.stopped() {
            break;
        }
        let name = task.planned.to_string();
        if !locked(&shared.failed).contains_key(&name) {
            shared.progress.name(format!("{name}: speed"));
            shared.note(task, run::time(task.planned, &grid.bench));
        }
    }
    shared.progress.finish();
    let interrupted = shared.stopped();
    Done { failed: shared.failed.into_inner().unwrap_or_else(PoisonError::into_inner), interrupted }
}

fn tokens(planned: &Planned) -> u64 {
    (planned.recipe.train.steps * planned.recipe.tokens_per_step()) as u64
}

fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    fn stopped(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || interrupt::asked()
    }

    fn note(&self, task: &Task, ended: Result<Ended>) {
        match ended {
            Ok(Ended::Done(_)) => {}
            Ok(Ended::Interrupted) => self.interrupted.store(true, Ordering::Relaxed),
            // Signals reach the processes of runs as well, and not all of them end in good order.
            Err(_) if interrupt::asked() => self.interrupted.store(true, Ordering::Relaxed),
            Err(error) => {
                let name = task.planned.to_string();
                self.progress.say(&format!("{name} failed: {error:#}"));
                locked(&self.failed).insert(name, format!("{error:#}"));
            }
        }
    }

    /// Trains a run if it is not trained, and evaluates it if it is not evaluated.
    fn train(&self, task: &Task) -> Result<Ended> {
        let Task { planned, stage, shared } = task;
        let tell = |what: &str| self.progress.name(format!("{planned}: {what}"));
        if *stage <= Stage::Training {
            if let Some(cache) = &shared.teacher {
                tell("the teacher's cache");
                self.fill(cache)?;
            }
            tell("training");
            let (mut told, a_step) = (0, planned.recipe.tokens_per_step() as u64);
            let trained = run::train(&self.grid.recipe, planned, &shared.sets(), self.threads, |step| {
                self.progress.advance((step.saturating_sub(told)) as u64 * a_step);
                told = told.max(step);
            })?;
            if let Ended::Interrupted = trained {
                return Ok(trained);
            }
        }
        if *stage <= Stage::Trained {
            tell("evaluation");
            let mut reference = locked(&self.reference);
            run::evaluate(planned, &self.grid.eval, &mut reference, || self.progress.advance(self.ctx))?;
        }
        Ok(Ended::Done(String::new()))
    }

    /// Fills a cache, once; another run that wants it waits.
    fn fill(&self, folder: &Path) -> Result<()> {
        let slot = locked(&self.caches).entry(folder.to_path_buf()).or_default().clone();
        let mut filled = locked(&slot);
        let result = filled.get_or_insert_with(|| match cache::fill(self.grid, folder, self.all, self.threads) {
            Ok(Ended::Done(_)) => Ok(()),
            Ok(Ended::Interrupted) => Err("stopped".into()),
            Err(error) => Err(format!("{error:#}")),
        });
        result.clone().map_err(|error| anyhow!("{}: {error}", folder.display()))
    }
}
