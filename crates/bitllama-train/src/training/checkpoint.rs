//! What a run needs to go on, on disk: `checkpoints/step-NNNNNN/` with the latent weights as a Hugging Face directory
//! (f32), trained scales, the optimizer's moments and the state. Written under a temporary name and renamed, so that a folder that is
//! there is whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use bitllama_core::rounding::StoredScales;
use bitllama_core::{Rule, Scheme};
use bitllama_formats::{Error as FormatError, atomic, hf, json, scales, version};
use bitllama_nn::Llama;
use bitllama_nn::weights::Weights;
use bitllama_runtime::one_line;
use burn::module::Module;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::Tokenizer;

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

    /// Whether a run with `fingerprint` may go on from here.
    ///
    /// # Errors
    /// If anything in it differs; the message names what.
    pub fn ensure_same(&self, folder: &Path, fingerprint: &Fingerprint) -> Result<()> {
        let names = self.fingerprint.keys().chain(fingerprint.keys());
        let differing = names.filter(|name| self.fingerprint.get(*name) != fingerprint.get(*name));
        let differing: BTreeSet<&str> = differing.map(String::as_str).collect();
        ensure!(
            differing.is_empty(),
            "{}: made with another {}; `--resume` needs the same",
            folder.display(),
            differing.into_iter().collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }
}

/// Writes a checkpoint and removes those that are neither among the newest that the recipe keeps nor the best.
///
/// # Errors
/// If the disk does not take it; nothing half-written stays.
pub fn write(
    checkpoints: &Path,
    state: &CheckpointState,
    model: &Llama,
    trainer: &Trainer,
    tokenizer: &Tokenizer,
) -> Result<PathBuf> {
    let folder = checkpoints.join(format!("step-{:06}", state.step));
    atomic::write_folder(&folder, |temporary| {
        write_hf_into(temporary, model, tokenizer, hf::Dtype::F32)?;
        scales::write(&temporary.join(SCALES), &Weights::of(model).scales())?;
        trainer.optimizers.save(temporary)?;
        let projections = &trainer.projections;
        if !projections.is_empty() {
            let path = temporary.join(PROJECTIONS);
            projections.clone().save_file(&path).map_err(|e| FormatError::invalid(&path, one_line(&e)))?;
        }
        let json = serde_json::to_vec_pretty(state).map_err(|e| FormatError::invalid(temporary.join(STATE), e))?;
        atomic::write_bytes(&temporary.join(STATE), &json)
    })?;
    let all = list(checkpoints)?;
    let best = state.best.map(|best| best.step);
    for (step, old) in all.iter().rev().skip(trainer.recipe.train.keep_checkpoints) {
        if Some(*step) != best {
            fs::remove_dir_all(old).with_context(|| format!("{}", old.display()))?;
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

/// The newest checkpoint of a run.
///
/// # Errors
/// If the folder cannot be read.
pub fn newest(checkpoints: &Path) -> Result<Option<PathBuf>> {
    Ok(list(checkpoints)?.pop().map(|(_, path)| path))
}

/// The best checkpoint of a run; the newest if none was evaluated.
///
/// # Errors
/// If the folder or a state cannot be read.
pub fn best(checkpoints: &Path) -> Result<Option<PathBuf>> {
    let all = list(checkpoints)?;
    let Some((_, newest)) = all.last() else { return Ok(None) };
    let best = CheckpointState::read(newest)?.and_then(|state| state.best).map(|best| best.step);
    let found = all.iter().find(|(step, _)| Some(*step) == best);
    Ok(Some(found.map_or(newest, |(_, path)| path).clone()))
}

/// Checkpoints by step.
fn list(checkpoints: &Path) -> Result<Vec<(usize, PathBuf)>> {
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
