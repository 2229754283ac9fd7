//! What a run needs to go on, on disk: `checkpoints/step-NNNNNN/` with the latent weights as a Hugging Face directory
//! (f32), trained scales, the optimizer's moments and the state. Written under a temporary name and renamed, so that a folder that is
//! there is whole. A list of checksums (`SHA256SUMS`), written last, tells damage that came later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitllama_core::rounding::StoredScales;
use bitllama_core::{Rule, Scheme};
use bitllama_formats::identity::{Identity, Likeness};
use bitllama_formats::output::{self, Growing, Kind};
use bitllama_formats::{Error as FormatError, TokenizerFiles, atomic, checksums, hf, json, notes, scales, version};
use bitllama_nn::Llama;
use bitllama_nn::weights::Weights;
use bitllama_runtime::one_line;
use burn::module::Module;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::states::Projections;
use super::step::Trainer;
use crate::export::write_hf_into;
use crate::models::ResolvedPlan;
use crate::recipe::activations::Activations;

/// Folder of the checkpoints within that of a run.
pub const FOLDER: &str = "checkpoints";
const STATE: &str = "state.json";
const SCALES: &str = "scales.safetensors";
const PROJECTIONS: &str = "projections.bpk";

/// Version of the checkpoints that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Identity of the teacher in a [`Fingerprint`].
pub const TEACHER: &str = "teacher";
/// Identity of the model that the student started from, if it was one.
pub const STUDENT_MODEL: &str = "student.model";

/// The state of a run after a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// [`FORMAT_VERSION`]; 1 in checkpoints of release 0.1.0, which did not say it.
    #[serde(default = "first_version")]
    pub format_version: u32,
    /// Steps taken.
    pub step: usize,
    /// Perplexity of the held-out documents, if it was evaluated at this step.
    pub perplexity: Option<f64>,
    /// Best perplexity so far and its step.
    pub best: Option<Best>,
    /// Bit plan, as in the recipe.
    pub bits: IndexMap<String, Rule>,
    /// The stage of progressive bits that the step was in: trained scales are those of this scheme then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Scheme>,
    /// Rounding of activations, as in the recipe.
    #[serde(default, skip_serializing_if = "Activations::is_empty")]
    pub activations: Activations,
    /// What must not change when a run goes on, by name.
    pub fingerprint: Fingerprint,
}

fn first_version() -> u32 {
    1
}

/// Names and values of all that the next batch, the loss and the meaning of the weights depend on.
pub type Fingerprint = BTreeMap<String, Value>;

/// The best evaluation so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its step.
    pub step: usize,
    /// Its perplexity.
    pub perplexity: f64,
}

impl CheckpointState {
    /// The state of a checkpoint folder, `None` if the folder is none.
    ///
    /// # Errors
    /// If the state is there and cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATE);
        if !path.is_file() {
            return Ok(None);
        }
        let json = json::read(&path)?;
        version::check(&path, &json, FORMAT_VERSION)?;
        let state = serde_json::from_value(json).with_context(|| format!("{}", path.display()))?;
        Ok(Some(state))
    }

    /// Makes sure that a run with `fingerprint` may go on from here. Models are told apart by their content; where the
    /// checkpoint, of version 0.1.0, has their paths and sizes only, a note says that nothing more is known.
    ///
    /// # Errors
    /// If anything in it differs; the message names what.
    pub fn ensure_same(&self, folder: &Path, fingerprint: &Fingerprint) -> Result<()> {
        let names: BTreeSet<&String> = self.fingerprint.keys().chain(fingerprint.keys()).collect();
        let mut differing = Vec::new();
        for name in names {
            let (recorded, found) = (self.fingerprint.get(name), fingerprint.get(name));
            if name != TEACHER && name != STUDENT_MODEL {
                differing.extend((recorded != found).then(|| name.clone()));
                continue;
            }
            match likeness(recorded, found) {
                Likeness::Same => {}
                Likeness::Unproven => notes::tell(
                    folder,
                    &format!(
                        "made by version 0.1.0, which knew the {name} by path and size only; nothing tells if its content \
                         has changed since"
                    ),
                ),
                Likeness::Different => {
                    let path = |value: Option<&serde_json::Value>| Some(value?["path"].as_str()?.to_string());
                    let replaced = path(recorded).filter(|path_then| Some(path_then) == path(found).as_ref());
                    let replaced = replaced.map(|path| format!(" ({path} has other content now)"));
                    differing.push(format!("{name}{}", replaced.unwrap_or_default()));
                }
            }
        }
        ensure!(
            differing.is_empty(),
            "{}: made with another {}; `--resume` needs the same",
            folder.display(),
            differing.join(", ")
        );
        Ok(())
    }
}

/// How two entries of fingerprints, each an [`Identity`] or null, compare. Version 0.1.0 had no entry of the student's model.
fn likeness(recorded: Option<&serde_json::Value>, found: Option<&serde_json::Value>) -> Likeness {
    let Some(recorded) = recorded else { return Likeness::Same };
    let identity = |value: &serde_json::Value| serde_json::from_value::<Option<Identity>>(value.clone()).ok().flatten();
    match (identity(recorded), found.and_then(identity)) {
        (None, None) => Likeness::Same,
        (Some(recorded), Some(found)) => recorded.compare(&found),
        _ => Likeness::Different,
    }
}

/// Writes a checkpoint and removes those that are neither among the newest that the recipe keeps nor the best. One that
/// holds anything that this program did not write stays, under another name if it is in the way.
///
/// # Errors
/// If the disk does not take it; nothing half-written stays.
pub fn write(
    checkpoints: &Path,
    state: &CheckpointState,
    model: &Llama,
    trainer: &Trainer,
    tokenizer: TokenizerFiles,
) -> Result<PathBuf> {
    let name = format!("step-{:06}", state.step);
    let folder = checkpoints.join(&name);
    if let Some(run) = checkpoints.parent() {
        Growing::new(run, Kind::Run).subfolder(&format!("{FOLDER}/{name}"))?;
    }
    if output::foreign(&folder, &[])?.is_some() {
        output::set_aside(&folder)?;
    }
    atomic::write_folder(&folder, Kind::Checkpoint, |temporary| {
        write_hf_into(temporary, model, tokenizer, hf::Dtype::F32)?;
        scales::write(&temporary.join(SCALES), &Weights::of(model).scales())?;
        trainer.optimizers.save(temporary)?;
        let projections = &trainer.projections;
        if !projections.is_empty() {
            let path = temporary.join(PROJECTIONS);
            projections.clone().save_file(&path).map_err(|e| FormatError::invalid(&path, one_line(&e)))?;
        }
        let json = serde_json::to_vec_pretty(state).map_err(|e| FormatError::invalid(temporary.join(STATE), e))?;
        atomic::write_bytes(&temporary.join(STATE), &json)?;
        checksums::write(temporary)
    })?;
    let all = list(checkpoints)?;
    let best = state.best.map(|best| best.step);
    // Later ones are damaged, or the run would have gone on from them: they do not count.
    let until_now = all.iter().rev().filter(|(step, _)| *step <= state.step);
    for (step, old) in until_now.skip(trainer.recipe.train.keep_checkpoints) {
        if Some(*step) != best && output::foreign(old, &[])?.is_none() {
            output::remove_folder(old, Kind::Checkpoint)?;
        }
    }
    Ok(folder)
}

/// The projections of a checkpoint: `fresh` with its numbers.
///
/// # Errors
/// If the file is missing or damaged.
pub fn read_projections(folder: &Path, fresh: Projections) -> Result<Projections> {
    if fresh.is_empty() {
        return Ok(fresh);
    }
    let path = folder.join(PROJECTIONS);
    fresh.try_load_file(&path).map_err(|e| anyhow!("{}: {}", path.display(), one_line(&e)))
}

/// The trained scales of a checkpoint of `plan`: none if no method of it trains them, or if it was made in a stage before
/// that plan; the weights give them then.
///
/// # Errors
/// If the file is missing or damaged, or its scales are not those of the plan.
pub fn read_scales(folder: &Path, plan: &ResolvedPlan) -> Result<StoredScales> {
    if CheckpointState::read(folder)?.is_some_and(|state| state.stage.is_some()) {
        return Ok(StoredScales::new());
    }
    read_scales_of(folder, plan)
}

/// The trained scales of a checkpoint, which are those of `plan`.
///
/// # Errors
/// As [`read_scales`].
pub fn read_scales_of(folder: &Path, plan: &ResolvedPlan) -> Result<StoredScales> {
    let trained =
        plan.iter().filter_map(|(spec, quantizer)| Some((spec, quantizer.filter(|q| q.method.trains_scales())?)));
    let trained: Vec<_> = trained.collect();
    if trained.is_empty() {
        return Ok(StoredScales::new());
    }
    let path = folder.join(SCALES);
    let stored = scales::read(&path)?;
    for (spec, quantizer) in trained {
        let expected = spec.len() / quantizer.group_len([spec.shape[0], spec.shape[1]]);
        let found = stored
            .get(&spec.name)
            .map(|scales| (scales.scales.data.len(), scales.zero_points.as_ref().map(|points| points.data.len())));
        ensure!(
            found == Some((expected, quantizer.zero_point.then_some(expected))),
            "{}: the scales of {} are not those of the bit plan",
            path.display(),
            spec.name
        );
    }
    Ok(stored)
}

/// The step of the newest checkpoint of a run, by its name.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest_step(checkpoints: &Path) -> Result<Option<usize>> {
    Ok(list(checkpoints)?.pop().map(|(step, _)| step))
}

/// The newest checkpoint of a run that is not damaged. Newer ones, which are, are told of ([`notes`]).
///
/// # Errors
/// If the folder cannot be read, or all checkpoints in it are damaged.
pub fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    let mut damaged = Vec::new();
    for (_, folder) in list(checkpoints)?.into_iter().rev() {
        match check(&folder) {
            Ok(()) => {
                let tell = |error| notes::tell(&folder, &format!("the newest checkpoint that is whole; {error}"));
                damaged.iter().for_each(tell);
                return Ok(Some(folder));
            }
            Err(error) => damaged.push(one_line(error.as_ref())),
        }
    }
    match damaged.first() {
        Some(error) => bail!("{error}; no checkpoint of the run is whole: move `checkpoints/` away to start anew"),
        None => Ok(None),
    }
}

/// The best checkpoint of a run, by what the newest says; the newest if none was evaluated. Neither may be damaged: another
/// than the best is nobody's wish.
///
/// # Errors
/// If the folder cannot be read, or the newest or the best checkpoint is damaged or gone.
pub fn best(checkpoints: &Path) -> Result<Option<PathBuf>> {
    let all = list(checkpoints)?;
    let Some((_, newest)) = all.last() else { return Ok(None) };
    let whole = |folder: &Path| {
        let advice = "so the best checkpoint of the run is not known: name one of `checkpoints/` yourself";
        check(folder).map_err(|error| anyhow!("{}, {advice}", one_line(error.as_ref())))
    };
    whole(newest)?;
    let Some(best) = CheckpointState::read(newest)?.and_then(|state| state.best) else {
        return Ok(Some(newest.clone()));
    };
    let found = all.iter().find(|(step, _)| *step == best.step);
    let (_, found) = found.with_context(|| {
        let (at, step) = (checkpoints.display(), best.step);
        format!("{at}: the best checkpoint, of step {step}, is gone: name another one yourself")
    })?;
    if found != newest {
        whole(found)?;
    }
    Ok(Some(found.clone()))
}

/// Makes sure that a checkpoint is whole: by its checksums; one of version 0.1.0, which has none, by opening it.
fn check(folder: &Path) -> Result<()> {
    if !checksums::verify(folder)? {
        bitllama_formats::model::open(folder)?;
    }
    CheckpointState::read(folder)?.with_context(|| format!("{}: no {STATE} in this checkpoint", folder.display()))?;
    Ok(())
}

/// Checkpoints by step.
///
/// # Errors
/// If the folder cannot be read.
pub fn list(checkpoints: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("{}", checkpoints.display())),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let step = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix("step-")?.parse().ok());
        found.extend(step.map(|step| (step, path)));
    }
    found.sort();
    Ok(found)
}
