//! Which runs of a grid learn from the same teacher on the same rows: they read its distributions from one cache.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::child::{self, Ended};
use super::config::{Grid, Planned};
use crate::recipe::Recipe;

/// The folder in which a run finds its teacher's cache, if it shares one with another run.
pub fn folder(grid: &Grid, planned: &Planned, all: &[Planned]) -> Result<Option<PathBuf>> {
    let Some(key) = key(&planned.recipe)?.filter(|_| grid.cache_teacher) else { return Ok(None) };
    let mut sharing = 0;
    for other in all {
        sharing += usize::from(self::key(&other.recipe)?.as_ref() == Some(&key));
    }
    Ok((sharing > 1).then(|| grid.output.join("teacher-cache").join(key)))
}

/// What a cache depends on, shortened; `None` of a run that needs no teacher, or more of it than a cache has.
fn key(recipe: &Recipe) -> Result<Option<String>> {
    let distill = recipe.distill();
    let trains = recipe.train.steps > 0 && distill.needs_teacher();
    let Some(teacher) = recipe.teacher.as_ref().filter(|_| trains) else { return Ok(None) };
    if distill.hidden.is_some() || distill.relations.is_some() || teacher.cache.is_some() {
        return Ok(None);
    }
    let parts = json!([teacher.model, recipe.student, recipe.data, recipe.seed, distill.temperature, distill.top_k]);
    let hash = Sha256::digest(serde_json::to_vec(&parts)?);
    Ok(Some(hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect()))
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
        let shares = self::folder(grid, planned, all)?.as_deref() == Some(folder);
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
