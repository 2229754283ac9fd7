//! A Llama-family decoder on packed or full-precision weights.

use bitllama_core::ModelConfig;
use bitllama_core::weights::{self, Kind, WeightSpec};
use bitllama_formats::{Artifact, Model, StoredWeight};

use crate::evaluate::LogitModel;
use crate::kv_cache::{KvCache, LayerCache};
use crate::matrix::Matrix;
use crate::operators::{add, attention, rms_norm, rotate, swiglu};
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

/// A decoder: embedding, blocks of RMSNorm, rotary grouped-query attention and SwiGLU, final norm, head.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: ModelConfig,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None` where the embedding is the head.
    head: Option<Matrix>,
}

#[derive(Debug, Clone)]
struct Layer {
    input_layernorm: Vec<f32>,
    q_proj: Matrix,
    k_proj: Matrix,
    v_proj: Matrix,
    o_proj: Matrix,
    post_attention_layernorm: Vec<f32>,
    gate_proj: Matrix,
    up_proj: Matrix,
    down_proj: Matrix,
}

impl Decoder {
    /// Loads every weight of an artifact. Packed bytes stay in its memory map.
    ///
    /// # Errors
    /// [`Error`] if a weight is missing, damaged or of another shape.
    pub fn from_artifact(artifact: &Artifact) -> Result<Self> {
        Self::new(artifact.config.clone(), |spec| Ok(artifact.weight(spec)?))
    }

    /// Loads every weight of a full-precision model, in f32.
    ///
    /// # Errors
    /// [`Error`] if a weight is missing, damaged or of another shape.
    pub fn from_model(model: &Model) -> Result<Self> {
        Self::new(model.config.clone(), |spec| Ok(StoredWeight::Full(model.weights.read(spec)?)))
    }

    /// Builds a decoder of weights that `weight` supplies by name, one call each.
    ///
    /// # Errors
    /// [`Error::Config`] if the config describes no model, [`Error::Shape`] if a weight has another shape than the
    /// config asks for, and whatever `weight` fails with.
    pub fn new(config: ModelConfig, mut weight: impl FnMut(&WeightSpec) -> Result<StoredWeight>) -> Result<Self> {
        config.validate()?;
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
            let mut linear = || next(Kind::Linear).and_then(matrix);
            layers.push(Layer {
                input_layernorm,
                q_proj: linear()?,
                k_proj: linear()?,
                v_proj: linear()?,
                o_proj: linear()?,
                post_attention_layernorm,
                gate_proj: linear()?,
                up_proj: linear()?,
                down_proj: linear()?,
            });
        }
        let norm = next(Kind::Norm).and_then(vector)?;
        let head = if config.tie_word_embeddings { None } else { Some(next(Kind::Head).and_then(matrix)?) };
        Ok(Self { config, embedding, layers, norm, head })
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// An empty cache for one sequence.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(&self.config)
    }

    /// Runs `tokens`, which follow the positions in `cache`, as one batch, and appends them to `cache`. Returns the
    /// logits asked for, `[positions, vocab_size]`, row-major.
    ///
    /// # Errors
    /// [`Error::Token`] for a token outside the vocabulary, [`Error::Context`] if the tokens do not fit into the model's
    /// context; `cache` is as before then.
    ///
    /// # Panics
    /// If `cache` was made for a model of another shape.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache, logits: LogitsOf) -> Result<Vec<f32>> {
        let ModelConfig { hidden_size, vocab_size, .. } = self.config;
        if let Some(token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(Error::Token { token: *token, vocab_size });
        }
        assert_eq!(cache.layers.len(), self.layers.len(), "the cache was made for another model");
        cache.reserve(&self.config, tokens.len())?;
        if tokens.is_empty() {
            return Ok(Vec::new());
        }
        let mut x = vec![0.0; tokens.len() * hidden_size];
        for (row, token) in x.chunks_exact_mut(hidden_size).zip(tokens) {
            self.embedding.row_into(*token as usize, row);
        }
        let rotary = Rotary { first: cache.len(), cos: &cache.cos, sin: &cache.sin };
        for (layer, layer_cache) in self.layers.iter().zip(&mut cache.layers) {
            layer.forward(&self.config, tokens.len(), &mut x, layer_cache, rotary);
        }
        cache.advance(tokens.len());
        let first = match logits {
            LogitsOf::All => 0,
            LogitsOf::From(first) => first.min(tokens.len()),
            LogitsOf::Last => tokens.len() - 1,
        };
        let scored = rms_norm(&x[first * hidden_size..], &self.norm, self.config.rms_norm_eps as f32);
        Ok(self.head.as_ref().unwrap_or(&self.embedding).apply(tokens.len() - first, &scored))
    }
}

/// Rotary tables, and the position of the batch's first token.
#[derive(Clone, Copy)]
struct Rotary<'a> {
    first: usize,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Layer {
    /// Adds the block's contributions to the residual stream `x` (`[n, hidden_size]`).
    fn forward(&self, config: &ModelConfig, n: usize, x: &mut [f32], cache: &mut LayerCache, rotary: Rotary) {
        let (heads, kv_heads, head_dim) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let eps = config.rms_norm_eps as f32;

        let normed = rms_norm(x, &self.input_layernorm, eps);
        let mut q = self.q_proj.apply(n, &normed);
        let mut k = self.k_proj.apply(n, &normed);
        let v = self.v_proj.apply(n, &normed);
        rotate(&mut q, heads, head_dim, rotary.first, rotary.cos, rotary.sin);
        rotate(&mut k, kv_heads, head_dim, rotary.first, rotary.cos, rotary.sin);
        LayerCache::append(&mut cache.keys, &k, head_dim);
        LayerCache::append(&mut cache.values, &v, head_dim);
        add(x, &self.o_proj.apply(n, &attention(&q, cache, heads, head_dim)));

        let normed = rms_norm(x, &self.post_attention_layernorm, eps);
        let mut gate = self.gate_proj.apply(n, &normed);
        swiglu(&mut gate, &self.up_proj.apply(n, &normed));
        add(x, &self.down_proj.apply(n, &gate));
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
}

fn matrix((spec, stored): (WeightSpec, StoredWeight)) -> Result<Matrix> {
    Matrix::new(&spec, stored)
}

fn vector((spec, stored): (WeightSpec, StoredWeight)) -> Result<Vec<f32>> {
    let expected = format!("{:?}", spec.shape);
    match stored {
        StoredWeight::Full(data) if data.len() == spec.len() => Ok(data),
        StoredWeight::Full(data) => {
            Err(Error::Shape { name: spec.name, found: format!("{} numbers", data.len()), expected })
        }
        StoredWeight::Packed(_) => Err(Error::Shape { name: spec.name, found: "low-bit codes".into(), expected }),
    }
}
