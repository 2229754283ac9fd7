//! A Llama-family decoder on packed or full-precision weights: what it is made of. [`crate::forward`] runs it.

use std::sync::{Arc, Mutex};

use bitllama_core::size::StoredSize;
use bitllama_core::weights::{self, Kind, WeightSpec};
use bitllama_core::{ActivationPlan, DenseMatrix, ModelConfig, rope};
use bitllama_formats::{Artifact, Model, StoredWeight};
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

/// A decoder: embedding, blocks of RMSNorm, rotary grouped-query attention and SwiGLU (with sub-norms, if the config has
/// them), final norm, head.
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
    /// Radians a position of each pair of a head.
    pub(crate) inverse_frequencies: Vec<f32>,
    /// Memory of finished passes, for the next ones.
    pub(crate) workspaces: Mutex<Vec<Workspace>>,
}

#[derive(Debug)]
pub(crate) struct Layer {
    pub input_layernorm: Vec<f32>,
    pub q_proj: Matrix,
    pub k_proj: Matrix,
    pub v_proj: Matrix,
    /// In front of `o_proj`, where the model has sub-norms.
    pub attn_sub_norm: Option<Vec<f32>>,
    pub o_proj: Matrix,
    pub post_attention_layernorm: Vec<f32>,
    pub gate_proj: Matrix,
    pub up_proj: Matrix,
    /// In front of `down_proj`, where the model has sub-norms.
    pub ffn_sub_norm: Option<Vec<f32>>,
    pub down_proj: Matrix,
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

    /// Loads every weight of a model: packed where it is the student of a checkpoint, left in the memory map where it is a matrix
    /// of 16 bits or of a GGUF's blocks, else in f32.
    ///
    /// # Errors
    /// [`Error`] if a weight is missing, damaged or of another shape.
    pub fn from_model(model: &Model) -> Result<Self> {
        let weight = |spec: &WeightSpec| Ok(model.weights.stored(spec)?);
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
        let matrix = |(spec, stored): (WeightSpec, StoredWeight)| {
            let activation = activations.inputs.get(&spec.name).copied();
            matrix(spec, stored).map(|matrix| matrix.with_activation(activation))
        };
        let mut specs = weights::specs(&config).into_iter();
        // `specs` lists a model in the order of computation, which is the order of the fields below.
        let mut next =
            |kind: Kind| match specs.next() {
                Some(spec) if spec.kind == kind => weight(&spec).map(|stored| (spec, stored)),
                _ => Err(bitllama_core::Error::Config("its weights are not listed in the order of computation".into())
                    .into()),
            };
        let embedding = next(Kind::Embedding).and_then(matrix)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for _ in 0..config.num_hidden_layers {
            let input_layernorm = next(Kind::Norm).and_then(vector)?;
            let post_attention_layernorm = next(Kind::Norm).and_then(vector)?;
            let mut sub_norm = || config.sub_norm.then(|| next(Kind::Norm).and_then(vector)).transpose();
            let (attn_sub_norm, ffn_sub_norm) = (sub_norm()?, sub_norm()?);
            let mut linear = || next(Kind::Linear).and_then(matrix);
            layers.push(Layer {
                input_layernorm,
                q_proj: linear()?,
                k_proj: linear()?,
                v_proj: linear()?,
                attn_sub_norm,
                o_proj: linear()?,
                post_attention_layernorm,
                gate_proj: linear()?,
                up_proj: linear()?,
                ffn_sub_norm,
                down_proj: linear()?,
            });
        }
        let norm = next(Kind::Norm).and_then(vector)?;
        let head = if config.tie_word_embeddings { None } else { Some(next(Kind::Head).and_then(matrix)?) };
        let inverse_frequencies = rope::inverse_frequencies(&config);
        let (settings, workspaces) = (Settings::default(), Mutex::default());
        Ok(Self { config, settings, activations, embedding, layers, norm, head, inverse_frequencies, workspaces })
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

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::with_kind(&self.config, self.kv())
    }

    /// The threads that it computes on.
    pub fn pool(&self) -> &Pool {
        self.settings.pool.as_deref().unwrap_or_else(|| Pool::global())
    }

    /// Bytes of weights that a new token reads: every matrix but the embedding, of which it reads a row, and the norms.
    pub fn bytes_per_token(&self) -> usize {
        let row = self.embedding.bytes() / self.embedding.rows();
        let norms = self.norms() * size_of::<f32>();
        let layers: usize = self.layers.iter().flat_map(Layer::matrices).map(Matrix::bytes).sum();
        layers + norms + row + self.head().bytes()
    }

    /// Parameters and bytes, everything counted; a tied head counts once.
    pub fn size(&self) -> StoredSize {
        let matrices = self.layers.iter().flat_map(Layer::matrices).chain([&self.embedding]).chain(&self.head);
        let norms = self.norms();
        let size = StoredSize { parameters: norms, bytes: norms * size_of::<f32>() };
        matrices.fold(size, |size, matrix| StoredSize {
            parameters: size.parameters + matrix.rows() * matrix.columns(),
            bytes: size.bytes + matrix.stored_bytes(),
        })
    }

    /// Elements of all norms.
    fn norms(&self) -> usize {
        weights::specs(&self.config).iter().filter(|spec| spec.kind == Kind::Norm).map(WeightSpec::len).sum()
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
        Ok(self.forward(tokens, &mut self.new_cache(), LogitsOf::All)?)
    }

    fn logits_from(&mut self, tokens: &[u32], first: usize) -> std::result::Result<Vec<f32>, BoxError> {
        Ok(self.forward(tokens, &mut self.new_cache(), LogitsOf::From(first))?)
    }

    fn logits_of_endings(
        &mut self,
        beginning: &[u32],
        endings: &[&[u32]],
    ) -> std::result::Result<Vec<Vec<f32>>, BoxError> {
        let mut cache = self.new_cache();
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
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }
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
        StoredWeight::Rows(rows) if spec.shape == [rows.rows(), rows.columns()] => Ok(Matrix::Stored(rows)),
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
