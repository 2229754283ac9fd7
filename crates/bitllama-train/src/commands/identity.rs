//! What tells runs apart: by which a run may go on, and a teacher's cache be used.

use anyhow::Result;
use bitllama_core::ModelConfig;
use bitllama_formats::identity::Identity;
use bitllama_formats::{Model, checksums};
use serde_json::{Value, json};

use crate::models;
use crate::recipe::student::Student;
use crate::recipe::{Precision, Quant, Recipe};
use crate::teacher_cache::TeacherCache;
use crate::training::checkpoint::{Fingerprint, STUDENT_MODEL, TEACHER};

/// Origin of a run: recipe, code, data, and the identities of its teacher and of the model that the student starts from.
///
/// # Errors
/// A model that cannot be read.
pub fn provenance(recipe: &Recipe, teacher: Option<&Model>, hashes: Value) -> Result<Value> {
    let start =
        recipe.student.model.as_deref().map(|name| models::open(name, recipe.student.latent_weights)).transpose()?;
    Ok(json!({
        "recipe": serde_json::to_value(recipe)?,
        "version": env!("CARGO_PKG_VERSION"),
        "git_revision": env!("GIT_REVISION"),
        "teacher": teacher.map(Identity::of).transpose()?,
        "student": start.as_ref().map(Identity::of).transpose()?,
        "data_sha256": hashes,
    }))
}

/// Everything that must be the same for a run to go on: whatever the next batch, the loss, the figures and the meaning of
/// the weights depend on. Learning rate and length may change.
///
/// # Errors
/// None that a recipe that was read can cause.
pub fn fingerprint(
    recipe: &Recipe,
    provenance: &Value,
    config: &ModelConfig,
    cache: Option<&TeacherCache>,
) -> Result<Fingerprint> {
    let (train, data) = (&recipe.train, &recipe.data);
    let mut parts = vec![
        ("seed", json!(recipe.seed)),
        ("data", provenance["data_sha256"].clone()),
        ("data.valid_fraction", held_out(recipe)),
        ("data.sequence_length", json!(data.sequence_length)),
        ("train.batch_size", json!(train.batch_size)),
        ("train.grad_accumulation", json!(train.grad_accumulation)),
        (TEACHER, provenance["teacher"].clone()),
        (STUDENT_MODEL, provenance["student"].clone()),
        ("student", serde_json::to_value(config)?),
        ("bits", json!(recipe.bits)),
        ("quant", json!(Quant { cache: None, ..recipe.quant.clone() })),
        ("distill", json!(recipe.distill())),
        ("train.optimizer", json!(train.optimizer)),
        ("eval", protocol(recipe, &provenance["data_sha256"])),
    ];
    // Only where a recipe has them, so that runs of before they existed go on.
    parts.extend((!recipe.activations.is_empty()).then(|| ("activations", json!(recipe.activations))));
    parts.extend(recipe.student.sub_norm_init.map(|init| ("student.sub_norm_init", json!(init))));
    let products = [
        ("train.precision", Some(train.precision)),
        ("teacher.precision", (recipe.teacher.is_some() && cache.is_none()).then(|| recipe.teacher_precision())),
    ];
    let products = products.into_iter().filter_map(|(name, precision)| Some((name, precision?)));
    parts.extend(products.filter(|(_, precision)| *precision != Precision::F32).map(|(name, p)| (name, json!(p))));
    parts.extend(train.int8_forward.then(|| ("train.int8_forward", json!(true))));
    parts.extend(cache.map(|cache| ("teacher.cache", json!([cache.top_k(), cache.index.dtype]))));
    Ok(parts.into_iter().map(|(name, value)| (name.to_string(), value)).collect())
}

/// A name for the start that `quant.init` finds by calibration for a student of shape `config`: a hash of all that it
/// depends on. Models count by their content, not by their paths.
///
/// # Errors
/// None that a recipe that was read can cause.
pub fn start(recipe: &Recipe, provenance: &Value, config: &ModelConfig) -> Result<String> {
    let quant = &recipe.quant;
    let student =
        Student { model: None, latent_weights: false, config: None, tokenizer: None, ..recipe.student.clone() };
    let parts = json!([
        [quant.init.name(), env!("CARGO_PKG_VERSION")],
        quant.calibration_tokens,
        rows(recipe, &provenance["data_sha256"]),
        [&provenance["teacher"]["sha256"], &provenance["student"]["sha256"]],
        (config, student),
        recipe.bits,
    ]);
    Ok(checksums::of_bytes(&serde_json::to_vec(&parts)?).chars().take(16).collect())
}

/// What decides the training rows, of data with these hashes.
pub fn rows(recipe: &Recipe, hashes: &Value) -> Value {
    json!({
        "train": hashes["train"],
        "valid_fraction": held_out(recipe),
        "seed": recipe.seed,
        "sequence_length": recipe.data.sequence_length,
    })
}

/// What decides the perplexity of a model on the held-out documents.
pub fn protocol(recipe: &Recipe, hashes: &Value) -> Value {
    json!({ "valid": hashes["valid"], "ctx": recipe.eval_ctx(), "chunks": recipe.eval.chunks })
}

/// The share held out, where the recipe names no text for that.
fn held_out(recipe: &Recipe) -> Value {
    if recipe.data.valid.is_empty() { json!(recipe.data.valid_fraction) } else { Value::Null }
}
