//! Inputs that a run's outputs must not touch, and runs of version 0.1.0, which kept no record.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bitllama_formats::artifact::{MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE};
use bitllama_formats::output::{self, Growing, Kind};
use serde_json::Value;

use crate::recipe::Recipe;
use crate::training::checkpoint;

/// Makes sure that nothing that a recipe reads, nor `config`, lies in the folder that is about to be written. A run that goes
/// on has no `config` here, and only its models are looked at: it replaces nothing that is not its own.
///
/// # Errors
/// The first key whose path does.
pub fn apart(folder: &Path, recipe: &Recipe, config: Option<&Path>) -> Result<()> {
    let (student, data) = (&recipe.student, &recipe.data);
    let mut inputs: Vec<(&str, &Path)> = Vec::new();
    if let Some(teacher) = &recipe.teacher {
        inputs.push(("teacher.model", Path::new(&teacher.model)));
        inputs.extend(teacher.config.as_deref().filter(|_| config.is_some()).map(|path| ("teacher.config", path)));
    }
    inputs.extend(student.model.as_ref().map(|name| ("student.model", Path::new(name))));
    if let Some(config) = config {
        inputs.extend(student.config.as_deref().map(|path| ("student.config", path)));
        inputs.extend(student.tokenizer.as_deref().map(|path| ("student.tokenizer", path)));
        inputs.extend(data.train.iter().map(|path| ("data.train", &**path)));
        inputs.extend(data.valid.iter().map(|path| ("data.valid", &**path)));
        inputs.push(("--config", config));
    }
    Ok(output::apart(folder, inputs)?)
}

/// Caches that a recipe names, which no output removes.
pub fn caches(recipe: &Recipe) -> Vec<PathBuf> {
    let of_teacher = recipe.teacher.as_ref().and_then(|teacher| teacher.cache.clone());
    [Some(recipe.data.cache.clone()), recipe.quant.cache.clone(), of_teacher].into_iter().flatten().collect()
}

/// Files of a checkpoint of version 0.1.0.
const CHECKPOINT: [&str; 9] = [
    "config.json",
    "model.safetensors",
    "optimizer.bpk",
    "projections.bpk",
    "scale_optimizer.bpk",
    "scales.safetensors",
    "state.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Puts a run on record that version 0.1.0 wrote into `folder`, if it is one: the files of the names that it wrote. The run
/// has been told by the state of its checkpoint. Everything else stays the user's.
///
/// # Errors
/// A file that cannot be read, a record that cannot be written.
pub fn adopt(folder: &Path) -> Result<()> {
    let run = Growing::new(folder, Kind::Run);
    if run.has("run.json")? {
        return Ok(());
    }
    let mut files: Vec<PathBuf> = ["run.json", "baseline.json", "result.json"].map(PathBuf::from).into();
    files.extend(resolved(folder).then(|| "recipe.toml".into()));
    let events = fs::read_dir(folder.join("tensorboard")).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_event = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("events.out.tfevents."))
    };
    let logs: Vec<PathBuf> = [folder.join("metrics.jsonl")].into_iter().chain(events.filter(is_event)).collect();
    run.adopt(&files, &logs)?;
    let mut parts: Vec<(PathBuf, Kind, &[&str])> =
        vec![("artifact".into(), Kind::Artifact, &[MANIFEST_FILE, TOKENIZER_FILE, WEIGHTS_FILE])];
    for (_, path) in checkpoint::list(&folder.join(checkpoint::FOLDER))? {
        let name = path.strip_prefix(folder).unwrap_or(&path).to_path_buf();
        parts.push((name, Kind::Checkpoint, &CHECKPOINT));
    }
    for (name, kind, files) in parts {
        let (path, within) = (folder.join(&name), files.iter().map(PathBuf::from).collect::<Vec<_>>());
        let part = Growing::new(&path, kind);
        if path.is_dir() && !part.is_recorded() {
            part.adopt(&within, &[])?;
            run.subfolder(&name.to_string_lossy().replace('\\', "/"))?;
        }
    }
    Ok(())
}

/// Whether the `recipe.toml` of a run is the one that the run wrote: what its `run.json` says.
fn resolved(folder: &Path) -> bool {
    let recipe =
        fs::read_to_string(folder.join("recipe.toml")).ok().and_then(|text| toml::from_str::<Value>(&text).ok());
    let run = fs::read(folder.join("run.json")).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    recipe.zip(run).is_some_and(|(recipe, mut run)| {
        let noted = &mut run["recipe"];
        remove_nulls(noted);
        recipe == *noted
    })
}

/// TOML has no `null`.
fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(entries) => {
            entries.retain(|_, value| !value.is_null());
            entries.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_the_runs_if_its_record_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write(
            "run.json",
            r#"{"recipe": {"seed": 0, "teacher": {"model": "a", "config": null}, "train": {"lr": 0.002}}}"#,
        );
        write("recipe.toml", "seed = 0\n[teacher]\nmodel = \"a\"\n[train]\nlr = 2e-3\n");
        assert!(resolved(folder.path()));
        write("recipe.toml", "# mine\nseed = 1\n[teacher]\nmodel = \"a\"\n[train]\nlr = 2e-3\n");
        assert!(!resolved(folder.path()));
        fs::remove_file(folder.path().join("run.json")).unwrap();
        assert!(!resolved(folder.path()));
    }
}
