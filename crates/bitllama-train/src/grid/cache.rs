//! What runs of a grid share: distributions of the same teacher on the same rows are computed once, and so are starts that calibration
//! finds.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::child::{self, Ended};
use super::config::{Grid, Planned};

/// Folders that a run shares with others, if there are others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shared {
    /// Its teacher's cache.
    pub teacher: Option<PathBuf>,
    /// Starts that calibration found, each in a file.
    pub starts: Option<PathBuf>,
}

impl Shared {
    /// What `planned` shares with others of `all`.
    pub fn of(grid: &Grid, planned: &Planned, all: &[Planned]) -> Self {
        let others = |key: fn(&Planned) -> Option<Value>| {
            let own = key(planned)?;
            let sharing = all.iter().filter(|other| key(other).as_ref() == Some(&own)).count();
            (sharing > 1).then_some(own)
        };
        let teacher = others(teacher_key).filter(|_| grid.cache_teacher);
        Self {
            teacher: teacher.map(|key| grid.output.join("teacher-cache").join(shortened(&key))),
            starts: others(start_key).map(|_| grid.output.join("starts")),
        }
    }

    /// As `--set` takes it.
    pub fn sets(&self) -> Vec<String> {
        let named = [("teacher.cache", &self.teacher), ("quant.cache", &self.starts)];
        let set = |key, path: &Path| format!("{key}={}", toml::Value::from(path.display().to_string()));
        named.into_iter().filter_map(|(key, path)| Some(set(key, path.as_ref()?))).collect()
    }
}

/// What a teacher's cache depends on; `None` of a run that needs no teacher, or more of it than a cache has.
fn teacher_key(planned: &Planned) -> Option<Value> {
    let recipe = &planned.recipe;
    let distill = recipe.distill();
    let trains = recipe.train.steps > 0 && distill.needs_teacher();
    let teacher = recipe.teacher.as_ref().filter(|_| trains)?;
    if distill.hidden.is_some() || distill.relations.is_some() || teacher.cache.is_some() {
        return None;
    }
    let content = planned.models[0].as_ref().and_then(|identity| identity.sha256.clone());
    let teacher = content.unwrap_or_else(|| teacher.model.clone());
    Some(json!([teacher, recipe.student, recipe.data, recipe.seed, distill.temperature, distill.top_k]))
}

/// What a start by calibration depends on; `None` of a run that does not calibrate, or keeps its start elsewhere.
fn start_key(planned: &Planned) -> Option<Value> {
    let recipe = &planned.recipe;
    let quant = &recipe.quant;
    if !quant.init.calibrates() || quant.cache.is_some() {
        return None;
    }
    let teacher = recipe.teacher.as_ref().map(|teacher| &teacher.model);
    let rounding = json!([recipe.bits, quant.init.name(), quant.calibration_tokens]);
    Some(json!([teacher, recipe.student, recipe.data, recipe.seed, rounding]))
}

fn shortened(key: &Value) -> String {
    Sha256::digest(key.to_string()).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Fills the cache in `folder` for the runs of `all` that share it; what is there stays.
///
/// # Errors
/// The message of `cache-teacher`.
pub fn fill(grid: &Grid, folder: &Path, all: &[Planned], threads: Option<usize>) -> Result<Ended> {
    let mut longest: Option<(&Planned, usize)> = None;
    for planned in all {
        let rows =
            planned.recipe.train.steps * planned.recipe.train.batch_size * planned.recipe.train.grad_accumulation;
        let shares = Shared::of(grid, planned, all).teacher.as_deref() == Some(folder);
        if shares && longest.is_none_or(|(_, most)| rows > most) {
            longest = Some((planned, rows));
        }
    }
    let Some((planned, _)) = longest else { return Ok(Ended::Done(String::new())) };
    let mut args =
        vec!["cache-teacher".to_string(), "--json".into(), "--config".into(), grid.recipe.display().to_string()];
    let cache = format!("teacher.cache={}", toml::Value::from(folder.display().to_string()));
    for set in planned.sets.iter().chain([&cache]) {
        args.extend(["--set".to_string(), set.clone()]);
    }
    child::run(&args, threads, |_| ())
}
