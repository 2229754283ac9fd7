//! Recipes: one TOML file that says everything about a run.
//!
//! | module | subject |
//! |---|---|
//! | this one | the keys of a recipe, their meaning and defaults |
//! | [`student`], [`quant`], [`activations`], [`distill`], [`train`] | the sections of these names |
//! | [`load`] | reading a file and `--set` overrides, with errors that point at the line |
//! | [`dry_run`] | what a recipe would do: size, bits, memory |

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use bitllama_core::weights::Kind;
use bitllama_core::{Activation, BitPlan, Granularity, Method, ModelConfig, Rule, Scheme};
use indexmap::IndexMap;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::export::Format;
use crate::models::ResolvedPlan;
use crate::ptq;

pub mod activations;
pub mod distill;
pub mod dry_run;
pub mod load;
pub mod quant;
pub mod student;
pub mod train;

pub use activations::Activations;
pub use distill::{Distill, Divergence, Hidden, HiddenLoss, Loss, Relations};
pub use quant::{Quant, Stage};
pub use student::{Layers, Student, SubNormInit};
pub use train::{Optimizer, Precision, Recompute, Train};

/// More steps, rows or tokens than any run takes; sums of two are still whole numbers of 64 bits.
const MAX_COUNT: usize = 1 << 40;
/// More tokens in all than any run takes, and what an `f64` counts exactly.
const MAX_TOKENS: u128 = 1 << 53;

/// A run of `distill` or `pretrain`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Folder of the run: metrics, event files, checkpoints, artifact.
    pub output: PathBuf,
    /// Seed of every random choice: order of the data, held-out documents, start weights.
    #[serde(default)]
    pub seed: u64,
    /// `flex`, `ndarray`, `tch`, `cuda:N` or `wgpu`; `--device` overrides it.
    #[serde(default = "defaults::device")]
    pub device: String,
    /// The model to learn from; absent in `pretrain`.
    pub teacher: Option<Teacher>,
    /// The model that is trained.
    #[serde(default)]
    pub student: Student,
    /// Bit plan: glob over parameter paths = scheme, `f32`, or a table of scheme, method, group_size (or granularity =
    /// "tensor") and zero_point; the last rule that matches a weight decides. A name alone, such as `bits = "gguf:q4_k_m"`, is the
    /// rule of `*`.
    #[serde(default, deserialize_with = "rules")]
    pub bits: IndexMap<String, Rule>,
    /// Formats in which the student is written at the end, beside its artifact: `hf`, `gguf`, `gguf:q4_0` and the others of `export
    /// --to`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export: Vec<Format>,
    /// Rounding of activations, keys and values: glob over the matrices that `bits` rounds = `int8`, `int4`, `sign` or
    /// `f32`, and `kv_cache` = `int8` or `int4`.
    #[serde(default, skip_serializing_if = "Activations::is_empty")]
    pub activations: Activations,
    /// What the quantizers start from.
    #[serde(default)]
    pub quant: Quant,
    /// Losses; of `distill` only.
    pub distill: Option<Distill>,
    /// Text.
    pub data: Data,
    /// The loop.
    pub train: Train,
    /// Evaluation.
    #[serde(default)]
    pub eval: Eval,
}

/// `[teacher]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Teacher {
    /// Of the factors of its matrix products; that of `train.precision` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// A Hugging Face directory, a GGUF file, a hub id, a checkpoint, an artifact, or the folder of a run, which is its best
    /// student.
    pub model: String,
    /// Take the latent weights of a checkpoint, not the student that has them rounded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latent_weights: bool,
    /// Its `config.json`, if kept apart: lets `--dry-run` work before the weights are there.
    pub config: Option<PathBuf>,
    /// Folder that `cache-teacher` filled with its likeliest tokens: training takes them from there, and keeps no teacher in
    /// memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// `[data]`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Files of text or folders of them, as [`bitllama_formats::text`] reads them.
    pub train: Vec<PathBuf>,
    /// Held-out text; if absent, `valid_fraction` of the documents of `train` are held out.
    #[serde(default)]
    pub valid: Vec<PathBuf>,
    /// Share of the documents that is held out, at least one document.
    #[serde(default = "defaults::valid_fraction")]
    pub valid_fraction: f64,
    /// Field of a JSON object that has the text.
    #[serde(default = "defaults::text_field")]
    pub text_field: String,
    /// Control tokens that a text spells, like `</s>`, are read as such and not as text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub parse_special: bool,
    /// A line of a text file that starts with one of these begins a new document; empty: a file is one document.
    #[serde(default)]
    pub document_start: Vec<String>,
    /// Tokens a training row, the target of the last one not counted.
    #[serde(default = "defaults::sequence_length")]
    pub sequence_length: usize,
    /// Folder of the token cache.
    #[serde(default = "defaults::cache")]
    pub cache: PathBuf,
}

/// `[eval]`: perplexity of the held-out documents by llama.cpp's protocol.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Tokens a chunk; `data.sequence_length` if absent.
    pub ctx: Option<usize>,
    /// Chunks scored; all if absent.
    pub chunks: Option<usize>,
}

impl Recipe {
    /// The bit plan of `[bits]`.
    ///
    /// # Errors
    /// A glob or scheme name that cannot be read.
    pub fn bit_plan(&self) -> Result<BitPlan, bitllama_core::Error> {
        BitPlan::new(self.bits.iter().map(|(glob, rule)| (glob.as_str(), *rule)))
    }

    /// The losses, by default those of [`Distill`].
    pub fn distill(&self) -> Distill {
        self.distill.clone().unwrap_or_default()
    }

    /// Tokens an evaluation chunk.
    pub fn eval_ctx(&self) -> usize {
        self.eval.ctx.unwrap_or(self.data.sequence_length)
    }

    /// Tokens that one optimizer step sees.
    pub fn tokens_per_step(&self) -> usize {
        self.train.batch_size * self.train.grad_accumulation * self.data.sequence_length
    }

    /// Checks the values that types cannot.
    ///
    /// # Errors
    /// A list of `key` and what it must be; empty never.
    pub fn check(&self) -> Result<(), BTreeMap<&'static str, String>> {
        let mut faults = BTreeMap::new();
        let mut require = |holds: bool, key: &'static str, must: &str| {
            if !holds {
                faults.insert(key, must.to_string());
            }
        };
        let (train, data, distill) = (&self.train, &self.data, self.distill());
        for (key, count) in self.counts() {
            require(count <= MAX_COUNT, key, &format!("is {count}, more than {MAX_COUNT}"));
        }
        let product = [train.steps.max(1), train.batch_size, train.grad_accumulation, data.sequence_length];
        let tokens = product.iter().try_fold(1, |tokens: u128, n| tokens.checked_mul(*n as u128));
        require(
            tokens.is_some_and(|tokens| tokens <= MAX_TOKENS),
            "train.steps",
            "times train.batch_size, train.grad_accumulation and data.sequence_length is more than 2^53 tokens",
        );
        require((0.0..=1.0).contains(&distill.alpha), "distill.alpha", "must be between 0 and 1");
        require(
            distill.temperature > 0.0 && distill.temperature.is_finite(),
            "distill.temperature",
            "must be positive",
        );
        require(distill.beta.is_none_or(|beta| beta > 0.0 && beta < 1.0), "distill.beta", "must be between 0 and 1");
        require(distill.beta.is_none() || distill.loss == Loss::Jsd, "distill.beta", "is of `loss = \"jsd\"` only");
        require(distill.top_k != Some(0), "distill.top_k", "must be at least 1");
        let weights = [
            ("distill.hidden.weight", distill.hidden.as_ref().map(|term| term.weight)),
            ("distill.relations.weight", distill.relations.as_ref().map(|term| term.weight)),
        ];
        for (key, weight) in weights {
            require(weight.is_none_or(|weight| weight > 0.0 && weight.is_finite()), key, "must be positive");
        }
        let quant = &self.quant;
        let prepared = quant.delay_steps.saturating_add(quant.warmup_steps).max(quant.stage_steps());
        require(
            prepared < train.steps || prepared == 0,
            "quant",
            "leaves no step with all of the rounding: \
            delay_steps + warmup_steps, and the steps of all stages, must be less than train.steps",
        );
        require(quant.stages.iter().all(|stage| stage.steps > 0), "quant.stages", "must each have at least 1 step");
        require(
            quant.stages.is_empty() || quant.init == ptq::Method::Rtn,
            "quant.stages",
            "cannot stand beside `quant.init`: each stage starts from the scales that its weights give",
        );
        require(train.scale_lr.is_none_or(|lr| lr > 0.0 && lr.is_finite()), "train.scale_lr", "must be positive");
        let enough = self.quant.calibration_tokens >= data.sequence_length;
        require(enough, "quant.calibration_tokens", "must be at least data.sequence_length");
        require(!data.train.is_empty(), "data.train", "must name at least one text file or folder");
        require(
            data.valid_fraction > 0.0 && data.valid_fraction < 1.0,
            "data.valid_fraction",
            "must be between 0 and 1",
        );
        require(data.sequence_length >= 8, "data.sequence_length", "must be at least 8");
        require(
            train.steps > 0 || self.teacher.is_some(),
            "train.steps",
            "must be at least 1 without a teacher; with one, 0 rounds the student and leaves it at that",
        );
        require(train.batch_size > 0, "train.batch_size", "must be at least 1");
        require(train.grad_accumulation > 0, "train.grad_accumulation", "must be at least 1");
        require(
            train.recompute_layers.is_none() || train.recompute == Recompute::Block,
            "train.recompute_layers",
            "needs train.recompute = \"block\"",
        );
        require(train.recompute_layers != Some(0), "train.recompute_layers", "must be at least 1");
        require(train.lr > 0.0 && train.lr.is_finite(), "train.lr", "must be positive");
        require((0.0..=1.0).contains(&train.lr_final_fraction), "train.lr_final_fraction", "must be between 0 and 1");
        require(train.weight_decay >= 0.0, "train.weight_decay", "must not be negative");
        require((0.0..1.0).contains(&train.beta1), "train.beta1", "must be at least 0 and less than 1");
        require((0.0..1.0).contains(&train.beta2), "train.beta2", "must be at least 0 and less than 1");
        require(train.epsilon > 0.0, "train.epsilon", "must be positive");
        require(train.max_grad_norm >= 0.0, "train.max_grad_norm", "must not be negative");
        require(train.log_every > 0, "train.log_every", "must be at least 1");
        require(train.checkpoint_every > 0, "train.checkpoint_every", "must be at least 1");
        require(train.keep_checkpoints > 0, "train.keep_checkpoints", "must be at least 1");
        require(self.eval.ctx.is_none_or(|ctx| ctx >= 8), "eval.ctx", "must be at least 8");
        require(self.eval.chunks.is_none_or(|n| n > 0), "eval.chunks", "must be at least 1");
        require(
            self.student.model.is_none() || self.student.config.is_none(),
            "student.config",
            "cannot stand beside student.model: start weights come from one of them",
        );
        require(
            self.student.model.is_some() || !self.student.latent_weights,
            "student.latent_weights",
            "needs student.model: the checkpoint that they are of",
        );
        require(
            self.student.tokenizer.is_none() || self.student.config.is_some(),
            "student.tokenizer",
            "needs student.config: a student with start weights has its own tokenizer",
        );
        require(
            self.student.layers.is_none() || self.student.config.is_none(),
            "student.layers",
            "chooses blocks of start weights, and student.config has none",
        );
        let cached = self.teacher.as_ref().is_some_and(|teacher| teacher.cache.is_some());
        require(
            !cached || (distill.hidden.is_none() && distill.relations.is_none()),
            "teacher.cache",
            "has likeliest tokens only: distill.hidden and distill.relations need the teacher itself",
        );
        require(
            self.student.sub_norm || self.student.sub_norm_init.is_none(),
            "student.sub_norm_init",
            "needs student.sub_norm = true",
        );
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    /// Every count of steps, rows or tokens by its key.
    fn counts(&self) -> Vec<(&'static str, usize)> {
        let (train, data, quant, eval) = (&self.train, &self.data, &self.quant, &self.eval);
        vec![
            ("train.steps", train.steps),
            ("train.batch_size", train.batch_size),
            ("train.grad_accumulation", train.grad_accumulation),
            ("train.warmup_steps", train.warmup_steps),
            ("train.log_every", train.log_every),
            ("train.checkpoint_every", train.checkpoint_every),
            ("train.keep_checkpoints", train.keep_checkpoints),
            ("train.recompute_layers", train.recompute_layers.unwrap_or(0)),
            ("data.sequence_length", data.sequence_length),
            ("quant.calibration_tokens", quant.calibration_tokens),
            ("quant.delay_steps", quant.delay_steps),
            ("quant.warmup_steps", quant.warmup_steps),
            ("quant.freeze_scales_steps", quant.freeze_scales_steps),
            ("quant.stages", quant.stages.iter().map(|stage| stage.steps).max().unwrap_or(0)),
            ("distill.top_k", self.distill.as_ref().and_then(|distill| distill.top_k).unwrap_or(0)),
            ("eval.ctx", eval.ctx.unwrap_or(0)),
            ("eval.chunks", eval.chunks.unwrap_or(0)),
        ]
    }

    /// Checks what only some devices have.
    ///
    /// # Errors
    /// A precision that the device would not compute in.
    pub fn check_device(&self) -> anyhow::Result<()> {
        let of_teacher = self.teacher.as_ref().and_then(|teacher| teacher.precision);
        for (key, precision) in [("train.precision", Some(self.train.precision)), ("teacher.precision", of_teacher)] {
            ensure!(
                precision != Some(Precision::Bfp12) || self.device == "flex",
                "`{key}` = \"bfp12\" is of the device `flex`; on `{}` choose f32 or bf16",
                self.device
            );
        }
        ensure!(
            !self.train.int8_forward || self.device == "flex",
            "`train.int8_forward` is of the device `flex`, not of `{}`",
            self.device
        );
        Ok(())
    }

    /// The precision of the teacher's products: its own, or that of the student's.
    pub fn teacher_precision(&self) -> Precision {
        self.teacher.as_ref().and_then(|teacher| teacher.precision).unwrap_or(self.train.precision)
    }

    /// The bit plan resolved for a model, after checks of what the recipe asks of that model.
    ///
    /// # Errors
    /// A rule that reaches no weight, rows or chunks longer than the model's context, a key of trained scales without any.
    pub fn plan_for(&self, config: &ModelConfig) -> anyhow::Result<ResolvedPlan> {
        let limit = config.max_position_embeddings;
        for (key, tokens) in [("data.sequence_length", self.data.sequence_length), ("eval.ctx", self.eval_ctx())] {
            ensure!(tokens <= limit, "`{key}` = {tokens} is longer than the model's context of {limit} tokens");
        }
        let (layers, again) = (config.num_hidden_layers, self.train.recompute_layers);
        ensure!(
            again.is_none_or(|again| again <= layers),
            "`train.recompute_layers` = {} is more than the {layers} blocks of the student",
            again.unwrap_or_default()
        );
        let plan = self.bit_plan()?.resolve(config)?;
        let inputs = self.activations.plan_for(&plan)?.inputs;
        let in_codes = plan.iter().any(|(weight, quantizer)| {
            let whole = quantizer.is_some_and(|q| {
                matches!(q.scheme, Scheme::Ternary | Scheme::Binary) && !matches!(q.granularity, Granularity::Group(_))
            });
            whole && weight.kind == Kind::Linear && inputs.get(&weight.name) == Some(&Activation::Int8)
        });
        ensure!(
            in_codes || !self.train.int8_forward,
            "`train.int8_forward` is of ternary and binary layers that read `int8` activations, with one scale a row or a matrix, \
            and the student has none"
        );
        let of_means = plan.iter().find(|(_, quantizer)| {
            quantizer.is_some_and(|quantizer| matches!(quantizer.method, Method::Absmean | Method::Twn))
        });
        if let (Some((weight, _)), false) = (of_means, self.quant.init == ptq::Method::Rtn) {
            bail!(
                "`quant.init` = \"{}\" gives scales to start from, and {} has none of its own: those of `absmean` and `twn` are \
                computed from the weights, and those of rounded weights are others; give its rule in `[bits]` the method `lsq` \
                (binary: `elastic`)",
                self.quant.init.name(),
                weight.name
            );
        }
        let trains_scales = plan.iter().any(|(_, quantizer)| quantizer.is_some_and(|q| q.method.trains_scales()));
        let of_scales = [
            ("train.scale_lr", self.train.scale_lr.is_some()),
            ("quant.freeze_scales_steps", self.quant.freeze_scales_steps > 0),
        ];
        for (key, given) in of_scales {
            ensure!(trains_scales || !given, "`{key}` is of trained scales, and no method in `[bits]` trains any");
        }
        Ok(plan)
    }
}

/// A bit plan: a table of rules, or the one rule of all matrices.
fn rules<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IndexMap<String, Rule>, D::Error> {
    struct Plan;

    impl<'de> Visitor<'de> for Plan {
        type Value = IndexMap<String, Rule>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table of globs and schemes, or the name of a scheme")
        }

        fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
            Ok(IndexMap::from([("*".to_string(), name.parse().map_err(E::custom)?)]))
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            IndexMap::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_any(Plan)
}

mod defaults {
    use std::path::PathBuf;

    pub fn device() -> String {
        bitllama_nn::device::default_name().to_string()
    }
    pub fn valid_fraction() -> f64 {
        0.05
    }
    pub fn text_field() -> String {
        "text".into()
    }
    pub fn sequence_length() -> usize {
        256
    }
    pub fn cache() -> PathBuf {
        "runs/cache".into()
    }
}
