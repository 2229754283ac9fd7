//! From a recipe to the things a run works on: models on their devices, tokens, a bit plan.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bitllama_core::ModelConfig;
use bitllama_core::rounding::StoredScales;
use bitllama_formats::model::Role;
use bitllama_formats::text::files;
use bitllama_formats::{Companions, Model, TokenizerFiles, hf};
use bitllama_nn::Llama;
use bitllama_nn::linear::set_precision;
use bitllama_nn::weights::Weights;
use bitllama_runtime::memory;
use burn::tensor::Device;
use serde_json::Value;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

use super::cache_teacher::cache_of;
use super::identity;
use crate::data::batches::Rows;
use crate::data::documents::documents;
use crate::models::{self, ResolvedPlan};
use crate::ptq::gptq::Rounded;
use crate::ptq::kept::kept;
use crate::ptq::{self, reconstruct};
use crate::recipe::quant::in_stage;
use crate::recipe::{Recipe, SubNormInit};
use crate::sub_norm;
use crate::teacher_cache::TeacherCache;
use crate::training::checkpoint::{self, CheckpointState};
use crate::training::states::{Compared, Projections};
use crate::training::teacher::Teacher;

/// The files of a run, opened, and what they say.
pub struct Sources {
    /// The teacher's files.
    pub teacher: Option<Model>,
    /// The files whose weights the student starts from, where they are not the teacher's.
    start: Option<Model>,
    /// The student's architecture.
    pub config: ModelConfig,
    /// The blocks of the start weights that the student's blocks start from.
    layers: Vec<usize>,
    /// The student's tokenizer.
    pub tokenizer: Tokenizer,
    /// Files that belong to it.
    companions: Companions,
    /// The student's bit plan.
    pub plan: ResolvedPlan,
    /// Whether sub-norms have been put in whose weights are to be found ([`with_calibrated_sub_norms`]).
    pub calibrate_sub_norms: bool,
}

impl Sources {
    /// The student's tokenizer with its companions.
    pub fn tokenizer_files(&self) -> TokenizerFiles<'_> {
        TokenizerFiles { tokenizer: &self.tokenizer, companions: Some(&self.companions) }
    }

    /// Remarks on weights that a reader of the recipe may take for others: those of a checkpoint are rounded ones.
    pub fn notes(&self) -> Vec<String> {
        let students =
            [("the teacher's weights", &self.teacher, "teacher"), ("the start weights", &self.start, "student")];
        let students = students.into_iter().filter_map(|(what, model, key)| Some((what, model.as_ref()?, key)));
        let students = students.filter(|(_, model, _)| model.role == Role::Student);
        let note = |(what, model, key): (&str, &Model, &str)| {
            let path = model.path.display();
            format!("{what}: those of the student in {path}, rounded; latent ones by `{key}.latent_weights = true`")
        };
        students.map(note).collect()
    }
}

/// Opens what a recipe names. With `resumed`, the student's weights are those of that folder.
///
/// # Errors
/// Files that are missing, damaged or do not fit each other or the recipe.
pub fn sources(recipe: &Recipe, resumed: Option<&Path>) -> Result<Sources> {
    let teacher = recipe.teacher.as_ref().map(|of| models::open(&of.model, of.latent_weights)).transpose()?;
    if let (Some(teacher), Some(path)) = (&teacher, recipe.teacher.as_ref().and_then(|t| t.config.as_ref())) {
        ensure!(
            same_architecture(&hf::read_config(path)?, &teacher.config),
            "{}: not the architecture of the weights in {}",
            path.display(),
            teacher.path.display()
        );
    }
    let start = match (resumed, &recipe.student.model) {
        (Some(folder), _) => Some(bitllama_formats::model::open_latent(folder)?),
        (None, Some(name)) => Some(models::open(name, recipe.student.latent_weights)?),
        (None, None) => None,
    };
    let (mut config, layers, tokenizer, companions) = match (start.as_ref(), &recipe.student.config, &teacher) {
        (Some(model), _, _) if resumed.is_some() => {
            let all = (0..model.config.num_hidden_layers).collect();
            (model.config.clone(), all, model.tokenizer.clone(), model.companions.clone())
        }
        (Some(model), _, _) | (None, None, Some(model)) => {
            let (config, layers) = recipe.student.shape(&model.config)?;
            (config, layers, model.tokenizer.clone(), model.companions.clone())
        }
        (None, Some(path), _) => {
            let mut config = hf::read_config(path)?;
            let (tokenizer, companions) = tokenizer(recipe, &config, teacher.as_ref())?;
            companions.complete(&mut config, &tokenizer)?;
            (config, Vec::new(), tokenizer, companions)
        }
        (None, None, None) => bail!("the recipe names no model: set `student.config` or `student.model`"),
    };
    if let Some(teacher) = &teacher {
        models::same_vocabulary(teacher, &tokenizer, config.vocab_size)?;
    }
    let inserted = recipe.student.sub_norm && !config.sub_norm;
    ensure!(
        inserted || resumed.is_some() || recipe.student.sub_norm_init.is_none(),
        "`student.sub_norm_init`: the student that the recipe names has sub-norms of its own"
    );
    let by_default =
        if recipe.student.config.is_none() || resumed.is_some() { SubNormInit::Calibrated } else { SubNormInit::Ones };
    let init = recipe.student.sub_norm_init.unwrap_or(by_default);
    let calibrate_sub_norms = inserted && init == SubNormInit::Calibrated;
    ensure!(
        !inserted || config.arch.is_llama(),
        "`student.sub_norm`: a {} student cannot get sub-norms, only a Llama without biases can",
        config.arch.family
    );
    config.sub_norm |= recipe.student.sub_norm;
    let plan = recipe.plan_for(&config)?;
    Ok(Sources { teacher, start, config, layers, tokenizer, companions, plan, calibrate_sub_norms })
}

/// The student of a run, with autodiff and fake-quantized: as it starts, or as the checkpoint `resumed` has it.
///
/// # Errors
/// A weight that is missing, damaged or has the wrong shape; trained scales that are not those of the bit plan.
pub fn student(
    recipe: &Recipe,
    sources: &Sources,
    resumed: Option<&(CheckpointState, PathBuf)>,
    device: &Device,
) -> Result<Llama> {
    let tracked = device.clone().autodiff();
    let source = match (&sources.start, &recipe.student.config) {
        (Some(start), _) => Some(start),
        (None, None) => sources.teacher.as_ref(),
        (None, Some(_)) => None,
    };
    let student = match source {
        Some(model) => models::to_device_as(model, &sources.config, &sources.layers, &tracked)?,
        None => models::random(&sources.config, recipe.seed, &tracked)?,
    };
    let Some((state, folder)) = resumed else {
        return models::quantized(student, &sources.plan, &recipe.activations, &StoredScales::new());
    };
    let plan = match state.stage {
        Some(stage) => in_stage(&sources.plan, stage),
        None => sources.plan.clone(),
    };
    models::quantized(student, &plan, &recipe.activations, &checkpoint::read_scales_of(folder, &plan)?)
}

/// The student as `[quant]` wants it to start: the weights of `student` (fake-quantized, in training), with scales and for
/// some methods other weights found on the first training `rows`.
///
/// # Errors
/// Those of [`ptq::calibrated`]; a `quant.cache` that cannot be written.
pub fn initialized(
    recipe: &Recipe,
    student: &Llama,
    plan: &ResolvedPlan,
    rows: &mut Rows,
    provenance: &Value,
    device: &Device,
) -> Result<Llama> {
    let mut find = || Ok(ptq::starts(plan, rounded(recipe, student, plan, rows, device)?));
    let (weights, scales) = match recipe.quant.cache.as_ref().filter(|_| recipe.quant.init.calibrates()) {
        Some(folder) => {
            kept(&folder.join(format!("{}.safetensors", identity::start(recipe, provenance, &student.config)?)), find)?
        }
        None => find()?,
    };
    let student = models::rebuilt(student, &weights, &device.clone().autodiff());
    models::quantized(student, plan, &recipe.activations, &scales)
}

/// The matrices of the plan, as `quant.init` rounds them.
fn rounded(
    recipe: &Recipe,
    student: &Llama,
    plan: &ResolvedPlan,
    rows: &mut Rows,
    device: &Device,
) -> Result<HashMap<String, Rounded>> {
    let method = recipe.quant.init;
    if method.calibrates() {
        let rows = calibration_rows(recipe, student.config.hidden_size, rows)?;
        let options = ptq::Options {
            block: reconstruct::Options { seed: recipe.seed, ..Default::default() },
            ..Default::default()
        };
        let plain = models::rebuilt(student, &HashMap::new(), device);
        return ptq::calibrated(method, plain, plan, &rows, options, device, |_, _| ());
    }
    let (stored, mut rounded) = (Weights::of(student), HashMap::new());
    for (spec, quantizer) in plan {
        let Some(quantizer) = quantizer else { continue };
        let weight = stored.read(spec);
        let packed = ptq::round(method, quantizer, spec, weight.clone())?;
        rounded.insert(spec.name.clone(), Rounded { packed, weight });
    }
    Ok(rounded)
}

/// The student with the weights of its sub-norms found on the first training `rows`, as `student.sub_norm_init` wants it.
///
/// # Errors
/// If the device does not give its sums back.
pub fn with_calibrated_sub_norms(
    recipe: &Recipe,
    student: &Llama,
    plan: &ResolvedPlan,
    rows: &mut Rows,
    device: &Device,
) -> Result<Llama> {
    let plain = models::rebuilt(student, &HashMap::new(), device);
    let weights = sub_norm::calibrated(plain, &calibration_rows(recipe, student.config.hidden_size, rows)?, device)?;
    let student = models::rebuilt(student, &weights, &device.clone().autodiff());
    models::quantized(student, plan, &recipe.activations, &HashMap::new())
}

/// The first rows of the training text, `quant.calibration_tokens` in all. The inputs of a block for all of them, `width` numbers
/// a token, are kept while it is gone through.
fn calibration_rows(recipe: &Recipe, width: usize, rows: &mut Rows) -> Result<Vec<Vec<u32>>> {
    let (seq, tokens) = (recipe.data.sequence_length, recipe.quant.calibration_tokens);
    memory::ensure(tokens as u128 * (width * size_of::<f32>()) as u128, 1)
        .with_context(|| format!("`quant.calibration_tokens` = {tokens}"))?;
    let batch = rows.batch(0, tokens / seq);
    Ok(batch.inputs.chunks_exact(seq).map(<[u32]>::to_vec).collect())
}

/// Where a run has its teacher's distributions from, opened.
pub enum Lesson {
    /// Nowhere: it has no teacher, or follows the text alone.
    Absent,
    /// The model, for inference.
    Model(Box<Llama>),
    /// The folder that `cache-teacher` filled.
    Cache(Box<TeacherCache>),
}

impl Lesson {
    /// The cache that a recipe names, if it has a teacher that it needs; nothing is loaded yet.
    ///
    /// # Errors
    /// Those of [`cache_of`].
    pub fn cache(recipe: &Recipe, sources: &Sources, provenance: &Value) -> Result<Option<TeacherCache>> {
        match sources.teacher.is_some() && recipe.distill().needs_teacher() {
            true => cache_of(recipe, &sources.tokenizer, &sources.config, provenance),
            false => Ok(None),
        }
    }

    /// That of a recipe: its `cache`, or the model on `device`, without autodiff, its products in the precision that the recipe
    /// wants, its matrices in 16 bits where [`models::to_device_for_inference`] keeps them so.
    ///
    /// # Errors
    /// A weight that is missing or damaged.
    pub fn of(recipe: &Recipe, sources: &Sources, cache: Option<TeacherCache>, device: &Device) -> Result<Self> {
        let Some(teacher) = sources.teacher.as_ref().filter(|_| recipe.distill().needs_teacher()) else {
            return Ok(Self::Absent);
        };
        if let Some(cache) = cache {
            return Ok(Self::Cache(Box::new(cache)));
        }
        let mut llama = models::to_device_for_inference(teacher, device)?;
        set_precision(&mut llama, recipe.teacher_precision().into(), false);
        Ok(Self::Model(Box::new(llama)))
    }

    /// As a step takes it.
    pub fn teacher(&self) -> Teacher<'_> {
        match self {
            Self::Absent => Teacher::Absent,
            Self::Model(llama) => Teacher::Model(llama),
            Self::Cache(cache) => Teacher::Cache(cache),
        }
    }
}

/// Which blocks of student and teacher are compared, and projections between them where their widths differ.
///
/// # Errors
/// Those of [`Compared::new`].
pub fn compared(recipe: &Recipe, sources: &Sources, tracked: &Device) -> Result<(Compared, Projections)> {
    let own = &sources.config;
    let (compared, width) = match &sources.teacher {
        Some(teacher) => (Compared::new(&recipe.distill(), own, &teacher.config)?, teacher.config.hidden_size),
        None => (Compared::default(), own.hidden_size),
    };
    let projections = Projections::new(&compared, own.hidden_size, width, recipe.seed, tracked);
    Ok((compared, projections))
}

/// The checkpoint that `--resume` goes on from, if the run has one: the newest that is not damaged.
///
/// # Errors
/// Those of [`checkpoint::newest`].
pub fn resume_point(recipe: &Recipe) -> Result<Option<(CheckpointState, PathBuf)>> {
    let checkpoints = recipe.output.join(checkpoint::FOLDER);
    let Some(folder) = checkpoint::newest(&checkpoints)? else { return Ok(None) };
    let state = CheckpointState::read(&folder)?
        .with_context(|| format!("{}: this checkpoint has no state.json", folder.display()))?;
    Ok(Some((state, folder)))
}

/// Shapes and rotary constants; special tokens and the longest context may be told apart in different files.
fn same_architecture(a: &ModelConfig, b: &ModelConfig) -> bool {
    bitllama_core::weights::specs(a) == bitllama_core::weights::specs(b)
        && (a.num_attention_heads, a.head_dim) == (b.num_attention_heads, b.head_dim)
        && a.rope() == b.rope()
        && a.arch.computes_as(&b.arch)
}

/// The tokenizer of a student made from a `config`: its own with what lies beside it, the teacher's, or a new one.
fn tokenizer(recipe: &Recipe, config: &ModelConfig, teacher: Option<&Model>) -> Result<(Tokenizer, Companions)> {
    let (tokenizer, companions) = match (&recipe.student.tokenizer, teacher) {
        (Some(path), _) => (hf::read_tokenizer(path)?, Companions::read(path.parent().unwrap_or(Path::new("")))?),
        (None, Some(teacher)) => (teacher.tokenizer.clone(), teacher.companions.clone()),
        (None, None) => (train_tokenizer(recipe, config)?, Companions::default()),
    };
    if let Some(reason) = bitllama_formats::model::beyond(&tokenizer, config.vocab_size) {
        bail!("student.config: the tokenizer has {reason}");
    }
    Ok((tokenizer, companions))
}

/// Byte-level BPE (as GPT-2's) on the text of `data.train`, held-out documents included, with one special token that
/// ends documents.
fn train_tokenizer(recipe: &Recipe, config: &ModelConfig) -> Result<Tokenizer> {
    let mut texts = Vec::new();
    for file in files(&recipe.data.train)? {
        documents(&file, &recipe.data, |document| {
            texts.push(document.to_string());
            Ok(())
        })?;
    }
    ensure!(
        config.eos_token_ids == [0] && config.bos_token_id.is_none_or(|bos| bos == 0),
        "a tokenizer that is trained here has one special token, of id 0: set eos_token_id (and bos_token_id, if any) to 0 \
         in student.config, or name a `student.tokenizer`"
    );
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(None::<tokenizers::PostProcessorWrapper>)
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|e| anyhow!("tokenizer: {e}"))?;
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(config.vocab_size)
        .special_tokens(vec![AddedToken::from("<|endoftext|>", true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    tokenizer.train(&mut trainer, texts.into_iter()).map_err(|e| anyhow!("tokenizer: {e}"))?;
    Ok(tokenizer.into())
}
