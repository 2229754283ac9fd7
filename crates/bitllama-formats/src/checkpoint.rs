//! Checkpoints and folders of runs, as far as a reader of the student needs them: the state of a run, which checkpoint is the
//! best, and the latent weights rounded as the bit plan says.
//!
//! A checkpoint is a Hugging Face directory of the latent f32 weights with two files beside them: `state.json`
//! ([`CheckpointState`]) and `scales.safetensors` (trained scales). What it stands for is the student: those weights, rounded.
//!
//! | file | subject |
//! |---|---|
//! | this one | the state, the bit plan, trained scales |
//! | `run.rs` | the checkpoints of a run: the newest, the best |
//! | `student.rs` | latent weights, rounded as they are read |

mod run;
mod student;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bitllama_core::bit_plan::ResolvedPlan;
use bitllama_core::rounding::{Offsets, StoredScales};
use bitllama_core::{ActivationRules, BitPlan, ModelConfig, Offset, Rule, Scheme};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::identity::{Identity, Likeness};
use crate::{Error, Result, json, notes, scales, version};

pub use run::{best, list, newest, newest_step, student_of};
pub(crate) use student::student;

/// Folder of the checkpoints within that of a run.
pub const FOLDER: &str = "checkpoints";
/// Identity of the teacher in a [`Fingerprint`].
pub const TEACHER: &str = "teacher";
/// Identity of the model that the student started from, if it was one.
pub const STUDENT_MODEL: &str = "student.model";
/// File of a checkpoint's state.
pub const STATE: &str = "state.json";
/// File of a checkpoint's trained scales.
pub const SCALES: &str = "scales.safetensors";
/// Folder of the artifact that a finished `distill` leaves in that of a run.
pub const ARTIFACT: &str = "artifact";
/// Folder of the model that a finished `pretrain` leaves in that of a run.
pub const MODEL: &str = "model";

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
    #[serde(deserialize_with = "best_if_finite")]
    pub best: Option<Best>,
    /// Bit plan, as in the recipe.
    pub bits: IndexMap<String, Rule>,
    /// The stage of progressive bits that the step was in: trained scales are those of this scheme then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Scheme>,
    /// Rounding of activations, as in the recipe.
    #[serde(default, skip_serializing_if = "ActivationRules::is_empty")]
    pub activations: ActivationRules,
    /// Settings that must stay the same when a run goes on, by name.
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

/// Version 0.1.0 wrote an infinite perplexity, which JSON has not, as `null`: that is no best one.
fn best_if_finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Best>, D::Error> {
    #[derive(Deserialize)]
    struct Found {
        step: usize,
        perplexity: Option<f64>,
    }
    let found = Option::<Found>::deserialize(deserializer)?;
    Ok(found.and_then(|Found { step, perplexity }| Some(Best { step, perplexity: perplexity? })))
}

impl CheckpointState {
    /// The state of a checkpoint folder, `None` if the folder is none: other programs write files of that name too, without a
    /// bit plan.
    ///
    /// # Errors
    /// [`Error`] if the state is there and cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATE);
        if !path.is_file() {
            return Ok(None);
        }
        let value = json::read(&path)?;
        let has = |key: &str| value.get(key).is_some();
        if value.is_object() && !has("bits") && !has("fingerprint") {
            return Ok(None);
        }
        version::check(&path, &value, FORMAT_VERSION)?;
        serde_json::from_value(value).map(Some).map_err(|e| Error::invalid(&path, e))
    }

    /// Makes sure that a run with `fingerprint` may go on from here. Models are told apart by their content; where the
    /// checkpoint, of version 0.1.0, has their paths and sizes only, a note says that nothing more is known.
    ///
    /// # Errors
    /// [`Error::Invalid`] if anything in it differs; the message names what.
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
                    let path = |value: Option<&Value>| Some(value?["path"].as_str()?.to_string());
                    let replaced = path(recorded).filter(|path_then| Some(path_then) == path(found).as_ref());
                    let replaced = replaced.map(|path| format!(" ({path} has other content now)"));
                    differing.push(format!("{name}{}", replaced.unwrap_or_default()));
                }
            }
        }
        if differing.is_empty() {
            return Ok(());
        }
        let of_first_release = self.fingerprint.get(TEACHER).is_some_and(|it| it.is_object() && it["sha256"].is_null());
        let advice = match of_first_release && differing.iter().any(|name| name == "data") {
            true => {
                "a run of version 0.1.0 cannot go on, since text is tokenized differently now; evaluate or export it"
            }
            false => "`--resume` needs the same",
        };
        let names = differing.join(", ");
        Err(Error::invalid(folder, format!("made with another {names}; {advice}")))
    }
}

/// Compares two entries of fingerprints, each an [`Identity`] or null. Version 0.1.0 had no entry of the student's model.
fn likeness(recorded: Option<&Value>, found: Option<&Value>) -> Likeness {
    let Some(recorded) = recorded else { return Likeness::Same };
    let identity = |value: &Value| serde_json::from_value::<Option<Identity>>(value.clone()).ok().flatten();
    match (identity(recorded), found.and_then(identity)) {
        (None, None) => Likeness::Same,
        (Some(recorded), Some(found)) => recorded.compare(&found),
        _ => Likeness::Different,
    }
}

/// The trained scales of a checkpoint of `plan`: none if no method of it trains them, or if it was made in a stage before
/// that plan; the weights give them then.
///
/// # Errors
/// [`Error`] if the file is missing or damaged, or its scales are not those of the plan.
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
        let found = stored.get(&spec.name).map(|scales| {
            (scales.scales.data.len(), scales.offsets.as_ref().map(|offsets| offsets.numbers().data.len()))
        });
        let minimums =
            stored.get(&spec.name).is_some_and(|scales| matches!(scales.offsets, Some(Offsets::Minimums(_))));
        let offsets = (quantizer.offset != Offset::None).then_some(expected);
        if found != Some((expected, offsets)) || minimums != (quantizer.offset == Offset::Minimum) {
            return Err(Error::invalid(&path, format!("the scales of {} are not those of the bit plan", spec.name)));
        }
    }
    Ok(stored)
}

/// The bit plan of a checkpoint for a model of its architecture.
///
/// # Errors
/// [`Error::Invalid`] if a rule does not fit the model.
pub fn plan(folder: &Path, state: &CheckpointState, config: &ModelConfig) -> Result<ResolvedPlan> {
    let plan = BitPlan::new(state.bits.iter().map(|(glob, rule)| (glob.as_str(), *rule)));
    plan.and_then(|plan| plan.resolve(config)).map_err(|e| Error::invalid(folder.join(STATE), e))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::artifact::MANIFEST_FILE;
    use crate::checksums;

    fn state(best: &str) -> String {
        format!(
            r#"{{"step": 4, "perplexity": null, "best": {best}, "bits": {{"*": "ternary"}}, "fingerprint": {{"seed": 1}}}}"#
        )
    }

    fn checkpoint(checkpoints: &Path, step: usize, best: &str) -> PathBuf {
        let folder = checkpoints.join(format!("step-{step:06}"));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(STATE), state(best)).unwrap();
        checksums::write(&folder).unwrap();
        folder
    }

    #[test]
    fn an_infinite_perplexity_of_old_is_no_best_one() {
        let folder = tempfile::tempdir().unwrap();
        let read = |best: &str| CheckpointState::read(&checkpoint(folder.path(), 4, best)).unwrap().unwrap();
        assert_eq!(read(r#"{"step": 2, "perplexity": null}"#).best, None);
        assert_eq!(read("null").best, None);
        let state = read(r#"{"step": 2, "perplexity": 7.5}"#);
        assert_eq!(state.best, Some(Best { step: 2, perplexity: 7.5 }));
        assert_eq!((state.step, state.stage, state.activations.is_empty()), (4, None, true));
        let error = |json: &str| {
            fs::write(folder.path().join(STATE), json).unwrap();
            CheckpointState::read(folder.path()).unwrap_err().to_string()
        };
        assert!(error(r#"{"bits": {}}"#).contains("state.json: missing field `step`"));
        assert!(error("{").contains("state.json"));
        fs::write(folder.path().join(STATE), r#"{"epoch": 3}"#).unwrap();
        assert_eq!(CheckpointState::read(folder.path()).unwrap(), None, "another program's");
        assert_eq!(CheckpointState::read(&folder.path().join("no")).unwrap(), None);
    }

    #[test]
    fn a_run_is_its_best_checkpoint_or_what_it_left() {
        let run = tempfile::tempdir().unwrap();
        let path = run.path();
        assert_eq!(student_of(path).unwrap(), path, "a folder that is no run");
        fs::write(path.join("run.json"), "{}").unwrap();
        assert!(student_of(path).unwrap_err().to_string().contains("no checkpoint yet"));
        let artifact = path.join(ARTIFACT);
        fs::create_dir(&artifact).unwrap();
        fs::write(artifact.join(MANIFEST_FILE), "{}").unwrap();
        assert_eq!(student_of(path).unwrap(), artifact);
        assert_eq!(student_of(&artifact).unwrap(), artifact);
        let checkpoints = path.join(FOLDER);
        let second = checkpoint(&checkpoints, 2, "null");
        assert_eq!(student_of(path).unwrap(), second);
        let third = checkpoint(&checkpoints, 3, r#"{"step": 2, "perplexity": 7.5}"#);
        assert_eq!((student_of(path).unwrap(), newest(&checkpoints).unwrap()), (second, Some(third)));
        // Another than the best is nobody's wish.
        checkpoint(&checkpoints, 3, r#"{"step": 1, "perplexity": 7.5}"#);
        let error = student_of(path).unwrap_err().to_string();
        assert!(error.contains("the best checkpoint, of step 1, is gone"), "{error}");
    }
}
