//! Models by name: files, hub ids and checkpoints as Burn modules on a device.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use bitllama_core::ModelConfig;
use bitllama_core::rounding::StoredScales;
use bitllama_core::weights::{WeightSpec, specs};
use bitllama_formats::checkpoint::{CheckpointState, plan, read_scales, student_of};
use bitllama_formats::{Model, hf, hub, model};
use bitllama_nn::fake_quant;
use bitllama_nn::weights::{Storage, Weights, build, build_as};
use bitllama_nn::{Llama, SharedNumber};
use burn::tensor::Device;
use rand_distr::{Distribution, Normal};
use tokenizers::Tokenizer;

use crate::recipe::activations::Activations;
use crate::seeded;

pub use bitllama_core::bit_plan::ResolvedPlan;

/// Opens what a recipe or a flag names: a Hugging Face directory, a GGUF file, a hub id (fetched first), a checkpoint, an
/// artifact, or the folder of a run (then its best student). Of a checkpoint it opens the student, whose weights are rounded,
/// or its `latent` weights.
///
/// # Errors
/// One line: what is missing or damaged, and where; latent weights of what is no checkpoint.
pub fn open(name: &str, latent: bool) -> Result<Model> {
    let path = resolve(name)?;
    Ok(if latent { model::open_latent(&path)? } else { model::open(&path)? })
}

/// The architecture of a model; of a hub id only `config.json` is fetched.
///
/// # Errors
/// As [`open`].
pub fn config(name: &str) -> Result<ModelConfig> {
    let local = student_of(Path::new(name))?;
    if local.is_dir() {
        let path = local.join(hf::CONFIG);
        return if path.is_file() { Ok(hf::read_config(&path)?) } else { Ok(open(name, false)?.config) };
    }
    match hub::HubConfig::from_env().resolve_config(name)? {
        Some(path) => Ok(hf::read_config(&path)?),
        None => Ok(open(name, false)?.config),
    }
}

/// The local path of a model name.
///
/// # Errors
/// If it is neither a path nor a hub id that can be fetched.
pub fn resolve(name: &str) -> Result<PathBuf> {
    Ok(hub::resolve(name)?)
}

/// A model as a Burn module: of a student with its activations rounded, as it was trained.
///
/// # Errors
/// A weight that is missing, damaged or has the wrong shape.
pub fn to_device(model: &Model, device: &Device) -> Result<Llama> {
    to_device_in(Storage::F32, model, device)
}

/// [`to_device`] for inference: matrices have 16 bits where that loses nothing, and those of a quantized GGUF in any case
/// ([`Storage::Rounded16`]), which would take twice the memory in f32. One matrix at a time is in f32 meanwhile.
///
/// # Errors
/// As [`to_device`].
pub fn to_device_for_inference(model: &Model, device: &Device) -> Result<Llama> {
    to_device_in(if model.weights.quantized() { Storage::Rounded16 } else { Storage::Exact16 }, model, device)
}

fn to_device_in(storage: Storage, model: &Model, device: &Device) -> Result<Llama> {
    let llama = build_as(storage, &model.config, device, |spec| model.weights.read(spec))?;
    model.weights.release();
    Ok(match model.activations.is_empty() {
        true => llama,
        false => bitllama_nn::activations::quantize(llama, &model.activations),
    })
}

/// The weights of a model as a Burn module, for a `config` with some of the file's blocks only, `layers`, and maybe with sub-norms which the file has
/// not: their weights are 1.
///
/// # Errors
/// As [`to_device`].
pub fn to_device_as(model: &Model, config: &ModelConfig, layers: &[usize], device: &Device) -> Result<Llama> {
    let known: HashSet<String> = specs(&model.config).into_iter().map(|spec| spec.name).collect();
    let read = |spec: &WeightSpec| {
        let name = in_source(&spec.name, layers);
        match config.sub_norm && !known.contains(&name) {
            true => Ok(vec![1.0; spec.len()]),
            false => model.weights.read(&WeightSpec { name, ..spec.clone() }),
        }
    };
    let llama = build(config, device, read)?;
    model.weights.release();
    Ok(llama)
}

/// The name of a weight of a student in the files that it starts from.
fn in_source(name: &str, layers: &[usize]) -> String {
    let of_block = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match of_block.and_then(|(layer, rest)| Some((layers.get(layer.parse::<usize>().ok()?)?, rest))) {
        Some((layer, rest)) => format!("layers.{layer}.{rest}"),
        None => name.to_string(),
    }
}

/// A model in full precision on `device`: the weights of `other` by name, and where it has none the latent ones of `model`.
pub fn rebuilt(model: &Llama, other: &HashMap<String, Vec<f32>>, device: &Device) -> Llama {
    let stored = Weights::of(model);
    let read = |spec: &WeightSpec| other.get(&spec.name).cloned().unwrap_or_else(|| stored.read(spec));
    let built = build(&model.config, device, |spec| Ok::<_, Infallible>(read(spec)));
    built.unwrap_or_else(|never| match never {})
}

/// A model with random weights: norms 1, biases 0, matrices normal with standard deviation 0.02, those that write into the
/// residual stream smaller by `sqrt(2 * layers)` (GPT-2's rule).
pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Result<Llama> {
    let narrow = 0.02 / (2.0 * config.num_hidden_layers as f32).sqrt();
    build(config, device, |spec| {
        if spec.kind.is_vector() {
            return Ok(vec![spec.kind.neutral(); spec.len()]);
        }
        let writes_residual = ["o_proj", "down_proj"].iter().any(|name| spec.name.contains(name));
        let normal = Normal::new(0.0, if writes_residual { narrow } else { 0.02 })?;
        let mut rng = seeded(seed, &spec.name, 0);
        Ok((0..spec.len()).map(|_| normal.sample(&mut rng)).collect())
    })
}

/// A model to evaluate: the Burn module and what goes with it.
pub struct Loaded {
    /// Fake-quantized where it was a checkpoint of a low-bit student.
    pub llama: Llama,
    /// The files it came from.
    pub source: Model,
    /// Bit plan of a checkpoint.
    pub plan: Option<ResolvedPlan>,
}

/// Loads anything that [`open`] opens. The student of a checkpoint is rounded on the device, by its bit plan.
///
/// # Errors
/// As [`open`]; a weight that is missing or damaged.
pub fn load(name: &str, latent: bool, device: &Device) -> Result<Loaded> {
    let path = student_of(&resolve(name)?)?;
    let state = CheckpointState::read(&path)?.filter(|_| !latent);
    let source = if latent || state.is_some() { model::open_latent(&path)? } else { model::open(&path)? };
    let llama = to_device(&source, device)?;
    let Some(state) = state else { return Ok(Loaded { llama, source, plan: None }) };
    let plan = plan(&path, &state, &source.config)?;
    let llama = quantized(llama, &plan, &state.activations, &read_scales(&path, &plan)?)?;
    Ok(Loaded { llama, source, plan: Some(plan) })
}

/// A student: a model in full precision with its bit plan attached, trained scales in `stored`, and its activations
/// rounded.
///
/// # Errors
/// A rule of `activations` that reaches nothing.
pub fn quantized(llama: Llama, plan: &ResolvedPlan, activations: &Activations, stored: &StoredScales) -> Result<Llama> {
    quantized_by(llama, plan, activations, stored, &SharedNumber::new(1.0))
}

/// As [`quantized`], where `strength` can fade the rounding of weights in.
///
/// # Errors
/// As [`quantized`].
pub fn quantized_by(
    llama: Llama,
    plan: &ResolvedPlan,
    activations: &Activations,
    stored: &StoredScales,
    strength: &SharedNumber,
) -> Result<Llama> {
    let activations = activations.plan_for(plan)?;
    let llama = fake_quant::quantize_by(llama, plan, stored, strength);
    Ok(bitllama_nn::activations::quantize(llama, &activations))
}

/// Teacher and student must mean the same by a token.
///
/// # Errors
/// If their vocabularies differ in size or in any token.
pub fn same_vocabulary(teacher: &Model, tokenizer: &Tokenizer, vocab_size: usize) -> Result<()> {
    ensure!(
        teacher.config.vocab_size == vocab_size && teacher.tokenizer.get_vocab(true) == tokenizer.get_vocab(true),
        "the tokenizer of the teacher {} ({} tokens) is not the student's ({vocab_size}): distillation compares \
         distributions over the same tokens",
        teacher.path.display(),
        teacher.config.vocab_size,
    );
    Ok(())
}
