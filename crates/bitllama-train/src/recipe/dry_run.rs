//! What a recipe would do, without doing it: the resolved recipe, parameters, true bits per weight, memory.

use anyhow::{Context, Result, anyhow, bail};
use bitllama_core::ModelConfig;
use bitllama_core::size::StoredSize;
use bitllama_core::weights::parameter_count;
use bitllama_formats::hf;
use bitllama_runtime::memory::ensure;
use serde_json::json;

use super::{Optimizer, Recipe};
use crate::models::{self, ResolvedPlan};

/// Prints the answer. Reads configs only; fetches none that the recipe gives a `config` for.
///
/// # Errors
/// A config that is missing, a bit plan that does not fit the model.
pub fn print(recipe: &Recipe, as_json: bool) -> Result<()> {
    let teacher = match &recipe.teacher {
        Some(teacher) => Some(match &teacher.config {
            Some(path) => hf::read_config(path)?,
            None => models::config(&teacher.model)?,
        }),
        None => None,
    };
    let mut student = match (&recipe.student.config, &recipe.student.model, &teacher) {
        (Some(path), _, _) => hf::read_config(path)?,
        (None, Some(name), _) => recipe.student.shape(&models::config(name)?)?.0,
        (None, None, Some(teacher)) => recipe.student.shape(teacher)?.0,
        (None, None, None) => bail!("the recipe names no model: set `student.config` or `student.model`"),
    };
    student.sub_norm |= recipe.student.sub_norm;
    let plan = recipe.plan_for(&student)?;
    let activations = recipe.activations.plan_for(&plan)?;
    let size = StoredSize::of(&plan);
    let memory = memory(recipe, &plan, &student, teacher.as_ref());
    let bytes = u64::try_from(memory.total()).context("a step would take more memory than 64 bits can count")?;
    let tokens = recipe.tokens_per_step() * recipe.train.steps;
    if as_json {
        let answer = json!({
            "recipe": recipe,
            "parameters": size.parameters,
            "teacher_parameters": teacher.as_ref().map(parameter_count),
            "bits_per_weight": size.bits_per_weight(),
            "activations": activations.to_string(),
            "artifact_bytes": size.bytes,
            "memory_bytes": bytes,
            "training_tokens": tokens,
            "remarks": recipe.bit_plan()?.remarks(&student),
        });
        println!("{answer}");
        return Ok(());
    }
    println!("{}", toml::to_string(recipe).context("the recipe cannot be printed")?);
    println!(
        "# student: {} parameters, {:.3} bits per weight, {} bytes packed",
        size.parameters,
        size.bits_per_weight(),
        size.bytes
    );
    for remark in recipe.bit_plan()?.remarks(&student) {
        println!("# {remark}");
    }
    if !activations.is_empty() {
        println!("# activations: {activations}");
    }
    if let Some(teacher) = &teacher {
        println!("# teacher: {} parameters", parameter_count(teacher));
    }
    println!("# training: {} steps of {} tokens, {tokens} tokens in all", recipe.train.steps, recipe.tokens_per_step());
    println!(
        "# memory: about {} (weights and teacher {}, gradients and moments {}, activations {}, logits {})",
        gigabytes(memory.total()),
        gigabytes(memory.weights),
        gigabytes(memory.optimizer),
        gigabytes(memory.activations),
        gigabytes(memory.logits),
    );
    Ok(())
}

/// Bytes that a step holds at once, estimated from the shapes.
struct Memory {
    weights: u128,
    optimizer: u128,
    activations: u128,
    logits: u128,
}

impl Memory {
    fn total(&self) -> u128 {
        self.weights + self.optimizer + self.activations + self.logits
    }
}

/// Refuses a run whose steps the machine has no memory for, which would end in an abort or take the machine down. The estimate
/// is rough and some of it may be swapped, so it may be twice what there is.
///
/// # Errors
/// The memory that a step takes, and the keys that lower it.
pub fn ensure_memory(
    recipe: &Recipe,
    plan: &ResolvedPlan,
    student: &ModelConfig,
    teacher: Option<&ModelConfig>,
) -> Result<()> {
    // Other devices have memory of their own.
    if !matches!(recipe.device.as_str(), "flex" | "ndarray") {
        return Ok(());
    }
    let fits = ensure(memory(recipe, plan, student, teacher).total(), 2);
    fits.map_err(|e| {
        anyhow!("a step {e}; lower `train.batch_size` or `data.sequence_length`, or set `train.recompute` = \"block\"")
    })
}

/// About, of `bitllama_nn::ops::loss`.
const LOGITS_OF_A_CHUNK: u128 = bitllama_nn::ops::loss::CHUNK as u128;

fn memory(recipe: &Recipe, plan: &ResolvedPlan, student: &ModelConfig, teacher: Option<&ModelConfig>) -> Memory {
    const F32: u128 = 4;
    let cached = recipe.teacher.as_ref().is_some_and(|teacher| teacher.cache.is_some());
    let teacher = teacher.filter(|_| !cached);
    let n = |x: usize| x as u128;
    let positions = n(recipe.train.batch_size) * n(recipe.data.sequence_length);
    let scales = plan.iter().filter_map(|(spec, quantizer)| {
        let quantizer = quantizer.filter(|quantizer| quantizer.method.trains_scales())?;
        Some(spec.len() / quantizer.group_len([spec.shape[0], spec.shape[1]]))
    });
    let parameters = n(parameter_count(student) + scales.sum::<usize>());
    let fused = recipe.device == "flex";
    // Tensors that are kept for the backward pass of one block, per position, counted from the operators of `bitllama-nn`:
    // norms and residuals, projections, the gate; composed operators keep their rotations, scores and probabilities too.
    let (hidden, qkv) = (n(student.hidden_size), n(student.q_size() + 2 * student.kv_size()));
    let block = match fused {
        true => 4 * hidden + qkv + n(student.q_size()) + 3 * n(student.intermediate_size),
        false => {
            12 * hidden
                + 6 * qkv
                + 4 * n(student.num_attention_heads) * n(recipe.data.sequence_length)
                + 6 * n(student.intermediate_size)
        }
    };
    // What goes into the blocks that are computed again, and one of them; all others at once. The same of rounded weights.
    let layers = n(student.num_hidden_layers).max(1);
    let again = n(recipe.train.recomputed(student.num_hidden_layers));
    let whole = (layers - again).max(1);
    let (activations, rounded) = (hidden * again + block * whole, parameters * whole / layers);
    // Composed: student logits, their log-softmax and its gradient; the teacher's logits, probabilities and logarithms. Fused:
    // a chunk of both sides' logits.
    let all = positions * n(student.vocab_size);
    let logits = match (fused, teacher.is_some()) {
        (true, true) => 2 * all.min(LOGITS_OF_A_CHUNK),
        (true, false) => all.min(LOGITS_OF_A_CHUNK),
        (false, true) => 8 * all,
        (false, false) => 4 * all,
    };
    Memory {
        // Latent weights, their rounded copies, the teacher (half of it if its file has 16 bits a weight).
        weights: (parameters + rounded + teacher.map_or(0, |t| n(parameter_count(t)))) * F32,
        // Gradients, and the moments that the optimizer keeps.
        optimizer: match recipe.train.optimizer {
            Optimizer::Adamw => 3,
            Optimizer::Muon => 2,
            Optimizer::Adafactor => 1,
        } * parameters
            * F32,
        activations: positions * activations * F32,
        logits: logits * F32,
    }
}

fn gigabytes(bytes: u128) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}
