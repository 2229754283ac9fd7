//! A decoder on packed or full-precision weights: its parts, loaded by name. [`crate::forward`] runs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bitllama_core::rope::Frequencies;
use bitllama_core::size::StoredSize;
use bitllama_core::weights::{self, BLOCK_SUB_NORMS, EMBEDDING, FINAL_NORM, HEAD, QK_NORMS, WeightSpec};
use bitllama_core::{ActivationPlan, DenseMatrix, LayerKind, ModelConfig, Rope};
use bitllama_formats::{Artifact, Model, StoredWeight};
use bitllama_kernels::attention::Scoring;
use bitllama_kernels::kv::KvKind;
use bitllama_kernels::{Isa, Matrix, Pool, Precision};

use crate::evaluate::LogitModel;
use crate::forward::Workspace;
use crate::kv_cache::KvCache;
use crate::{BoxError, Error, Result};

/// Positions whose logits [`Decoder::forward`] returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsOf {
    /// Every token of the batch.
    All,
    /// The tokens of the batch from this one on, counted within the batch; none if there are not so many.
    From(usize),
    /// The last token only: what generation needs.
    Last,
}

/// How a decoder computes.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How products with packed weights see their activations. `F32` is exact; `Int8` several times as fast.
    pub precision: Precision,
    /// Whether matrices that were trained with rounded inputs get them rounded so, whatever `precision` says: what the
    /// student was trained to do, which nothing else is.
    pub activations_as_trained: bool,
    /// How new caches keep keys and values.
    pub kv: KvKind,
    /// Whether a student that was trained with rounded keys and values keeps them so, whatever `kv` says.
    pub kv_as_trained: bool,
    /// The threads to compute on; `None` is [`Pool::global`].
    pub pool: Option<Arc<Pool>>,
    /// The instruction set, which this processor must have.
    pub isa: Isa,
}

impl Default for Settings {
    /// Exact: f32 activations and caches but for those that were rounded in training; all cores.
    fn default() -> Self {
        Self {
            precision: Precision::F32,
            activations_as_trained: true,
            kv: KvKind::F32,
            kv_as_trained: true,
            pool: None,
            isa: Isa::current(),
        }
    }
}

impl Settings {
    /// What `bitllama run` and `bench` use: activations in 8 bits, caches in f16, but for those that were rounded in
    /// training.
    pub fn fast() -> Self {
        Self { precision: Precision::Int8, kv: KvKind::F16, ..Self::default() }
    }
}

/// A decoder: embedding, blocks, final norm, head, as [`ModelConfig::arch`] says.
#[derive(Debug)]
pub struct Decoder {
    pub(crate) config: ModelConfig,
    pub(crate) settings: Settings,
    /// How activations, keys and values were rounded in training.
    pub(crate) activations: ActivationPlan,
    pub(crate) embedding: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Vec<f32>,
    /// `None` where the embedding is the head.
    pub(crate) head: Option<Matrix>,
    /// The rotary embeddings of its layers, each once.
    pub(crate) rotations: Vec<Rotation>,
    /// Memory of finished passes, for the next ones.
    pub(crate) workspaces: Mutex<Vec<Workspace>>,
}

/// A rotary embedding, for sequences of the short context and for longer ones.
#[derive(Debug)]
pub(crate) struct Rotation {
    pub short: Frequencies,
    pub long: Frequencies,
}

/// A matrix, and its bias where it has one.
#[derive(Debug)]
pub(crate) struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vec<f32>>,
}

/// A block. Norms that the model has not are `None`.
#[derive(Debug)]
pub(crate) struct Layer {
    pub attention_in: Option<Vec<f32>>,
    pub q_proj: Linear,
    pub k_proj: Linear,
    pub v_proj: Linear,
    /// Norms of queries and keys.
    pub qk_norms: Option<[Vec<f32>; 2]>,
    /// Index of its rotary embedding in [`Decoder::rotations`].
    pub rotation: Option<usize>,
    pub scoring: Scoring,
    /// In front of `o_proj`, where the model has sub-norms.
    pub attn_sub_norm: Option<Vec<f32>>,
    pub o_proj: Linear,
    pub attention_out: Option<Vec<f32>>,
    pub mlp_in: Option<Vec<f32>>,
    pub gate_proj: Linear,
    pub up_proj: Linear,
    /// In front of `down_proj`, where the model has sub-norms.
    pub ffn_sub_norm: Option<Vec<f32>>,
    pub down_proj: Linear,
    pub mlp_out: Option<Vec<f32>>,
}

impl Decoder {
    /// Loads every weight of an artifact, and tells what had to be assumed of it ([`Artifact::tell_notes`]). Packed bytes
    /// stay in its memory map.
    ///
    /// # Errors
    /// [`Error`] if a weight is missing, damaged or of another shape.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self> {
        artifact.tell_notes();
        let weight = |spec: &WeightSpec| Ok(artifact.weight(spec)?);
        Self::trained(artifact.config.clone(), artifact.activations.clone(), weight)
    }

    /// Loads every weight of a model: packed where it is the student of a checkpoint; in panels where it is a matrix of a GGUF's
    /// blocks of codes, which are put there now; left in the memory map where it is a matrix of 16 bits or of other blocks; else in
    /// f32.
    ///
    /// # Errors
    /// [`Error`] if a weight is missing, damaged or of another shape.
    pub fn from_model(model: &Model) -> Result<Self> {
        let weight = |spec: &WeightSpec| {
            // The pages of the weight before, which has been copied by now.
            model.weights.release();
            Ok(model.weights.stored(spec)?)
        };
        let decoder = Self::trained(model.config.clone(), model.activations.clone(), weight)?;
        model.weights.release();
        Ok(decoder)
    }

    /// Builds a decoder of weights that `weight` supplies by name, one call each.
    ///
    /// # Errors
    /// [`Error::Config`] if the config describes no model, [`Error::Shape`] if a weight has another shape than the
    /// config asks for, and whatever `weight` fails with.
    pub fn new(config: ModelConfig, weight: impl FnMut(&WeightSpec) -> Result<StoredWeight>) -> Result<Self> {
        Self::trained(config, ActivationPlan::default(), weight)
    }

    /// [`Decoder::new`] of a student that was trained with the rounded `activations`.
    ///
    /// # Errors
    /// As [`Decoder::new`].
    pub fn trained(
        config: ModelConfig,
        activations: ActivationPlan,
        mut weight: impl FnMut(&WeightSpec) -> Result<StoredWeight>,
    ) -> Result<Self> {
        config.validate()?;
        let specs = weights::specs(&config).into_iter().map(|spec| (spec.name.clone(), spec)).collect();
        let mut loader = Loader { specs, activations: &activations, weight: &mut weight };
        let embedding = loader.matrix(EMBEDDING)?;
        let (mut ropes, mut layers) = (Vec::new(), Vec::with_capacity(config.num_hidden_layers));
        for index in 0..config.num_hidden_layers {
            layers.push(loader.layer(&config, index, &mut ropes)?);
        }
        let norm = loader.vector(FINAL_NORM)?;
        let head = if config.tie_word_embeddings { None } else { Some(loader.matrix(HEAD)?) };
        let (short, long) = (config.short_context(), config.max_position_embeddings);
        let rotation = |rope: Rope| Rotation {
            short: rope.frequencies(config.rotary_dim(), short),
            long: rope.frequencies(config.rotary_dim(), long),
        };
        let rotations = ropes.into_iter().map(rotation).collect();
        let (settings, workspaces) = (Settings::default(), Mutex::default());
        Ok(Self { config, settings, activations, embedding, layers, norm, head, rotations, workspaces })
    }

    /// The same decoder, computing in another way.
    pub fn with_settings(self, settings: Settings) -> Self {
        // What finished passes left is laid out for the settings of before.
        Self { settings, workspaces: Mutex::default(), ..self }
    }

    /// How it computes.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// How activations, keys and values were rounded in training.
    pub fn activations(&self) -> &ActivationPlan {
        &self.activations
    }

    /// How new caches keep keys and values.
    pub fn kv(&self) -> KvKind {
        let trained = self.activations.kv_cache.filter(|_| self.settings.kv_as_trained);
        trained.map_or(self.settings.kv, KvKind::from)
    }

    /// What products read, for reports: the precision, or how the student was trained where it keeps to that.
    pub fn activation_name(&self) -> &'static str {
        let mut kinds: Vec<_> = self.activations.inputs.values().collect();
        kinds.dedup();
        match kinds[..] {
            _ if !self.settings.activations_as_trained => self.settings.precision.name(),
            [] => self.settings.precision.name(),
            [one] => one.name(),
            _ => "mixed",
        }
    }

    /// Whether some of its products are sums in f32, whose last bits depend on how many tokens run together.
    pub fn computes_in_f32(&self) -> bool {
        let mut matrices = self.layers.iter().flat_map(Layer::matrices).chain([self.head()]);
        self.settings.precision == Precision::F32 || matrices.any(|matrix| !matches!(matrix, Matrix::Packed(_)))
    }

    /// An empty cache for one sequence, of at most [`ModelConfig::short_context`] positions.
    pub fn new_cache(&self) -> KvCache {
        self.new_cache_for(self.config.short_context())
    }

    /// An empty cache for one sequence that will have so many positions. It may have fewer, or more up to the context: the number
    /// decides between the two rotary embeddings of models with LongRoPE, which cannot change halfway.
    pub fn new_cache_for(&self, positions: usize) -> KvCache {
        KvCache::with_kind(&self.config, self.kv(), positions)
    }

    /// The threads that it computes on.
    pub fn pool(&self) -> &Pool {
        self.settings.pool.as_deref().unwrap_or_else(|| Pool::global())
    }

    /// Bytes of weights that a new token reads: every matrix but the embedding, of which it reads a row, and the norms.
    pub fn bytes_per_token(&self) -> usize {
        let row = self.embedding.bytes() / self.embedding.rows();
        let vectors = self.vectors() * size_of::<f32>();
        let layers: usize = self.layers.iter().flat_map(Layer::matrices).map(Matrix::bytes).sum();
        layers + vectors + row + self.head().bytes()
    }

    /// Parameters and bytes, everything counted; a tied head counts once.
    pub fn size(&self) -> StoredSize {
        let matrices = self.layers.iter().flat_map(Layer::matrices).chain([&self.embedding]).chain(&self.head);
        let vectors = self.vectors();
        let size = StoredSize { parameters: vectors, bytes: vectors * size_of::<f32>() };
        matrices.fold(size, |size, matrix| StoredSize {
            parameters: size.parameters + matrix.rows() * matrix.columns(),
            bytes: size.bytes + matrix.stored_bytes(),
        })
    }

    /// Elements of all norms and biases.
    fn vectors(&self) -> usize {
        weights::specs(&self.config).iter().filter(|spec| spec.kind.is_vector()).map(WeightSpec::len).sum()
    }

    /// The head, which may be the embedding.
    pub(crate) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl LogitModel for Decoder {
    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn logits(&mut self, tokens: &[u32]) -> std::result::Result<Vec<f32>, BoxError> {
        Ok(self.forward(tokens, &mut self.new_cache_for(tokens.len()), LogitsOf::All)?)
    }

    fn logits_from(&mut self, tokens: &[u32], first: usize) -> std::result::Result<Vec<f32>, BoxError> {
        Ok(self.forward(tokens, &mut self.new_cache_for(tokens.len()), LogitsOf::From(first))?)
    }

    fn logits_of_endings(
        &mut self,
        beginning: &[u32],
        endings: &[&[u32]],
    ) -> std::result::Result<Vec<Vec<f32>>, BoxError> {
        let longest = endings.iter().map(|ending| ending.len()).max().unwrap_or(0);
        let mut cache = self.new_cache_for(beginning.len() + longest);
        cache.hold(beginning.len());
        self.forward(beginning, &mut cache, LogitsOf::From(beginning.len()))?;
        let logits = |ending: &&[u32]| {
            cache.truncate(beginning.len());
            Ok(self.forward(ending, &mut cache, LogitsOf::All)?)
        };
        endings.iter().map(logits).collect()
    }
}

impl Layer {
    fn matrices(&self) -> [&Matrix; 7] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj].map(|linear| &linear.weight)
    }
}

/// Weights by name, each asked for once.
struct Loader<'a, F> {
    specs: HashMap<String, WeightSpec>,
    activations: &'a ActivationPlan,
    weight: &'a mut F,
}

impl<F: FnMut(&WeightSpec) -> Result<StoredWeight>> Loader<'_, F> {
    /// Layer `index`. Rotary embeddings that are not in `ropes` yet are added to them.
    fn layer(&mut self, config: &ModelConfig, index: usize, ropes: &mut Vec<Rope>) -> Result<Layer> {
        let name = |part: &str| format!("layers.{index}.{part}");
        let weight = |part: &str| name(&format!("{part}.weight"));
        let (norms, kind) = (config.arch.norms.names(), config.arch.layer(index));
        let qk_norms = match config.arch.qk_norm {
            Some(_) => Some([self.vector(&weight(QK_NORMS[0]))?, self.vector(&weight(QK_NORMS[1]))?]),
            None => None,
        };
        let norm = |loader: &mut Self, part: Option<&str>| part.map(|part| loader.vector(&weight(part))).transpose();
        let sub_norms = BLOCK_SUB_NORMS.map(|part| config.sub_norm.then_some(part));
        Ok(Layer {
            attention_in: norm(self, norms.attention_in)?,
            q_proj: self.linear(&name("self_attn.q_proj"))?,
            k_proj: self.linear(&name("self_attn.k_proj"))?,
            v_proj: self.linear(&name("self_attn.v_proj"))?,
            qk_norms,
            rotation: rotation_of(config, kind, ropes),
            scoring: Scoring {
                scale: config.attention_scale(),
                cap: config.arch.attention_cap.map(|cap| cap as f32),
                window: config.window_of(kind),
            },
            attn_sub_norm: norm(self, sub_norms[0])?,
            o_proj: self.linear(&name("self_attn.o_proj"))?,
            attention_out: norm(self, norms.attention_out)?,
            mlp_in: norm(self, norms.mlp_in)?,
            gate_proj: self.linear(&name("mlp.gate_proj"))?,
            up_proj: self.linear(&name("mlp.up_proj"))?,
            ffn_sub_norm: norm(self, sub_norms[1])?,
            down_proj: self.linear(&name("mlp.down_proj"))?,
            mlp_out: norm(self, norms.mlp_out)?,
        })
    }

    /// A linear layer; `name` is that of its weight and bias without what they end with.
    fn linear(&mut self, name: &str) -> Result<Linear> {
        let bias = format!("{name}.bias");
        let bias = self.specs.contains_key(&bias).then(|| self.vector(&bias)).transpose()?;
        Ok(Linear { weight: self.matrix(&format!("{name}.weight"))?, bias })
    }

    fn matrix(&mut self, name: &str) -> Result<Matrix> {
        let (spec, stored) = self.take(name)?;
        let activation = self.activations.inputs.get(name).copied();
        Ok(matrix(spec, stored)?.with_activation(activation))
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        vector(self.take(name)?)
    }

    fn take(&mut self, name: &str) -> Result<(WeightSpec, StoredWeight)> {
        let spec = self.specs.remove(name);
        let spec = spec.ok_or_else(|| bitllama_core::Error::Config(format!("it has no weight {name}")))?;
        let stored = (self.weight)(&spec)?;
        Ok((spec, stored))
    }
}

/// The index in `ropes` of the rotary embedding of a layer, if it has one.
fn rotation_of(config: &ModelConfig, kind: LayerKind, ropes: &mut Vec<Rope>) -> Option<usize> {
    let rope = config.rope_of(kind)?;
    let known = ropes.iter().position(|known| *known == rope);
    Some(known.unwrap_or_else(|| {
        ropes.push(rope);
        ropes.len() - 1
    }))
}

fn matrix(spec: WeightSpec, stored: StoredWeight) -> Result<Matrix> {
    let wrong = |found| Error::Shape { name: spec.name.clone(), found, expected: format!("{:?}", spec.shape) };
    let matrix = match stored {
        StoredWeight::Packed(packed) if spec.shape == [packed.rows(), packed.columns()] => Ok(packed.into()),
        StoredWeight::Packed(packed) => Err(wrong(format!("[{}, {}]", packed.rows(), packed.columns()))),
        StoredWeight::Full(data) => match spec.shape.as_slice() {
            [_, columns] if data.len() == spec.len() => Ok(Matrix::Full(DenseMatrix { data, columns: *columns })),
            _ => Err(wrong(format!("{} numbers", data.len()))),
        },
        StoredWeight::Rows(rows) if spec.shape == [rows.rows(), rows.columns()] => Ok(rows.into()),
        StoredWeight::Rows(rows) => Err(wrong(format!("[{}, {}]", rows.rows(), rows.columns()))),
    };
    matrix.inspect(Matrix::prefer_large_pages)
}

fn vector((spec, stored): (WeightSpec, StoredWeight)) -> Result<Vec<f32>> {
    let expected = format!("{:?}", spec.shape);
    match stored {
        StoredWeight::Full(data) if data.len() == spec.len() => Ok(data),
        StoredWeight::Full(data) => {
            Err(Error::Shape { name: spec.name, found: format!("{} numbers", data.len()), expected })
        }
        StoredWeight::Packed(_) => Err(Error::Shape { name: spec.name, found: "low-bit codes".into(), expected }),
        StoredWeight::Rows(_) => Err(Error::Shape { name: spec.name, found: "a matrix".into(), expected }),
    }
}
