//! The figures of a finished run: its artifact as the runtime computes it, beside the teacher.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use bitllama_core::weights::parameter_count;
use bitllama_formats::Artifact;
use bitllama_formats::output::RECORD;
use bitllama_runtime::Decoder;
use bitllama_runtime::evaluate::{Comparison, LogitModel, Options, compare, perplexity};
use bitllama_runtime::memory;
use bitllama_runtime::text::{encode_start, own_bos};
use burn::tensor::Device;
use indexmap::IndexMap;

use super::config::Eval;
use super::results;
use crate::evaluate::{Remembering, Scored};
use crate::models;
use crate::recipe::Teacher;

/// The teacher with the texts, ready to be compared with. Its logits are kept, up to a quarter of the memory that is free.
pub struct Reference {
    model: Remembering<Scored>,
    /// Tokens of each text.
    texts: IndexMap<String, Vec<u32>>,
    options: Options,
    /// What the report says of it.
    pub teacher: results::Teacher,
}

impl Reference {
    /// Opens the teacher of a recipe and scores it on all texts.
    ///
    /// # Errors
    /// A model or a text that is missing, damaged or too short.
    pub fn open(of: &Teacher, eval: &Eval, device: &Device) -> Result<Self> {
        let (name, loaded) = (&of.model, models::load(&of.model, of.latent_weights, device)?);
        let (config, tokenizer) = (&loaded.source.config, &loaded.source.tokenizer);
        ensure!(
            eval.ctx <= config.max_position_embeddings,
            "`eval.ctx` = {} is longer than the context of {name}, {} tokens",
            eval.ctx,
            config.max_position_embeddings
        );
        let bos = own_bos(tokenizer)?;
        let reading = eval.reading();
        let tokenizer = reading.tokenizer(tokenizer)?;
        let options = Options { ctx: eval.ctx, chunks: eval.chunks, bos };
        let room = memory::available().map_or(0, |bytes| bytes / 4);
        let mut model = Remembering::new(Scored::new(&loaded.llama, device), room);
        let (mut texts, mut perplexities) = (IndexMap::new(), IndexMap::new());
        for (text, path) in &eval.texts {
            let at = || format!("{}", path.display());
            let tokens = encode_start(&tokenizer, bos, &reading.text(path)?, options.tokens()).with_context(at)?;
            let result = perplexity(&mut model, &tokens, options, |_| ()).with_context(at)?;
            perplexities.insert(text.clone(), result);
            texts.insert(text.clone(), tokens);
        }
        let bytes = loaded.source.weights.stored_bytes();
        let teacher = results::Teacher {
            name: name.to_string(),
            bits_per_weight: bytes as f64 * 8.0 / parameter_count(config) as f64,
            bytes,
            texts: perplexities,
        };
        Ok(Self { model, texts, options, teacher })
    }

    /// Chunks of all texts together.
    pub fn chunks(&self) -> usize {
        let of = |tokens: &Vec<u32>| {
            let all = tokens.len() / self.options.ctx;
            self.options.chunks.map_or(all, |chunks| chunks.min(all))
        };
        self.texts.values().map(of).sum()
    }

    /// An artifact on all texts; `progress` is told of each chunk.
    ///
    /// # Errors
    /// An artifact that is missing, damaged, or of another vocabulary.
    pub fn compare(&mut self, artifact: &Path, mut progress: impl FnMut()) -> Result<IndexMap<String, Comparison>> {
        let mut student: Box<dyn LogitModel> = Box::new(Decoder::from_artifact(&Artifact::open(artifact)?)?);
        let mut all = IndexMap::new();
        for (text, tokens) in &self.texts {
            let result = compare(&mut *student, &mut self.model, tokens, self.options, |_| progress())
                .with_context(|| format!("{} on `{text}`", artifact.display()))?;
            all.insert(text.clone(), result);
        }
        Ok(all)
    }
}

/// Bytes of the files in a folder, without the record of what was written.
///
/// # Errors
/// If it cannot be read.
pub fn bytes_of(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let entry = entry?;
        let meta = entry.metadata()?;
        bytes += if meta.is_file() && entry.file_name() != RECORD { meta.len() } else { 0 };
    }
    Ok(bytes)
}
