//! What a run needs to go on, on disk: `checkpoints/step-NNNNNN/` with the latent weights as a Hugging Face directory
//! (f32), trained scales, the optimizer's moments and the state. Written under a temporary name and renamed, so that a folder that is
//! there is whole. A list of checksums (`SHA256SUMS`), written last, tells damage that came later.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use bitllama_formats::checkpoint::{SCALES, STATE};
use bitllama_formats::output::{self, Growing, Kind};
use bitllama_formats::{Error as FormatError, TokenizerFiles, atomic, checksums, hf, scales};
use bitllama_nn::Llama;
use bitllama_nn::weights::Weights;
use bitllama_runtime::one_line;
use burn::module::Module;

use super::states::Projections;
use super::step::Trainer;
use crate::export::write_hf_into;

pub use bitllama_formats::checkpoint::{
    Best, CheckpointState, FOLDER, FORMAT_VERSION, Fingerprint, STUDENT_MODEL, TEACHER, best, list, newest,
    newest_step, read_scales, read_scales_of,
};

const PROJECTIONS: &str = "projections.bpk";

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
