//! The checkpoints of a run.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ARTIFACT, CheckpointState, FOLDER, MODEL, STATE};
use crate::artifact::MANIFEST_FILE;
use crate::hf::CONFIG;
use crate::{Error, Result, checksums, model, notes};

/// Checkpoints of a run by step.
///
/// # Errors
/// [`Error::Io`] if the folder is there and cannot be read.
pub fn list(checkpoints: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io(checkpoints)(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io(checkpoints))?.path();
        let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-")?.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}

/// The step of the newest checkpoint of a run, by its name.
///
/// # Errors
/// As [`list`].
pub fn newest_step(checkpoints: &Path) -> Result<Option<usize>> {
    Ok(list(checkpoints)?.pop().map(|(step, _)| step))
}

/// The newest checkpoint of a run that is not damaged. Newer ones, which are, are told of ([`notes`]).
///
/// # Errors
/// [`Error`] if the folder cannot be read, or all checkpoints in it are damaged.
pub fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    let mut damaged = Vec::new();
    for (_, folder) in list(checkpoints)?.into_iter().rev() {
        match check(&folder) {
            Ok(_) => {
                let tell = |error| notes::tell(&folder, &format!("the newest checkpoint that is whole; {error}"));
                damaged.iter().for_each(tell);
                return Ok(Some(folder));
            }
            Err(error) => damaged.push(error),
        }
    }
    let advice = "; no checkpoint of the run is whole: move `checkpoints/` away to start anew";
    damaged.into_iter().next().map_or(Ok(None), |error| Err(with_advice(error, advice)))
}

/// The best checkpoint of a run, by what the newest says; the newest if none was evaluated. Neither may be damaged: another
/// than the best is nobody's wish.
///
/// # Errors
/// [`Error`] if the folder cannot be read, or the newest or the best checkpoint is damaged or gone.
pub fn best(checkpoints: &Path) -> Result<Option<PathBuf>> {
    let all = list(checkpoints)?;
    let Some((_, newest)) = all.last() else { return Ok(None) };
    let advice = ", so the best checkpoint of the run is not known: name one of `checkpoints/` yourself";
    let whole = |folder: &Path| check(folder).map_err(|error| with_advice(error, advice));
    let Some(best) = whole(newest)?.best else { return Ok(Some(newest.clone())) };
    let Some((_, found)) = all.iter().find(|(step, _)| *step == best.step) else {
        let reason = format!("the best checkpoint, of step {}, is gone: name another one yourself", best.step);
        return Err(Error::invalid(checkpoints, reason));
    };
    if found != newest {
        whole(found)?;
    }
    Ok(Some(found.clone()))
}

/// The state of a checkpoint that is whole: by its checksums; one of version 0.1.0, which has none, by opening it.
fn check(folder: &Path) -> Result<CheckpointState> {
    if !checksums::verify(folder)? {
        model::open(folder)?;
    }
    CheckpointState::read(folder)?.ok_or_else(|| Error::invalid(folder, format!("no {STATE} in this checkpoint")))
}

/// An error with words behind it.
fn with_advice(error: Error, advice: &str) -> Error {
    match error {
        Error::Io { path, source } => Error::invalid(path, format!("{source}{advice}")),
        Error::Invalid { path, reason } => Error::invalid(path, format!("{reason}{advice}")),
        other => other,
    }
}

/// The place of a run's best student, if `path` is the folder of a run: its best checkpoint; where the checkpoints are gone, the
/// artifact or the model that it left. Any other path is given back as it is.
///
/// # Errors
/// [`Error`] if a checkpoint's state cannot be read, or for a run that has neither checkpoint nor result.
pub fn student_of(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() || path.join(CONFIG).is_file() || path.join(MANIFEST_FILE).is_file() {
        return Ok(path.to_path_buf());
    }
    let checkpoints = path.join(FOLDER);
    if let Some(best) = best(&checkpoints)? {
        return Ok(best);
    }
    for (folder, marker) in [(ARTIFACT, MANIFEST_FILE), (MODEL, CONFIG)] {
        let result = path.join(folder);
        if result.join(marker).is_file() {
            return Ok(result);
        }
    }
    match checkpoints.is_dir() || path.join("run.json").is_file() {
        true => Err(Error::invalid(path, "the run in this folder has no checkpoint yet, and no artifact")),
        false => Ok(path.to_path_buf()),
    }
}
