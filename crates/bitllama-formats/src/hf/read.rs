//! Weights by name: in one safetensors file, or in the shards that an index names.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitllama_core::weights::{self, EMBEDDING, HEAD, WeightSpec};
use bitllama_core::{ModelConfig, excerpt};

use super::mapped::{MappedFile, Tensor};
use super::{CONFIG, INDEX, WEIGHTS};
use crate::{Error, Result, StoredWeight, WeightSource, finite, json, notes};

/// The weights of a directory.
pub(super) struct Weights {
    /// The one file or the index: what is named when a weight is missing.
    path: PathBuf,
    files: Vec<MappedFile>,
    /// Position in `files` of each tensor's shard, where there is an index: it decides, not what shards hold beside.
    index: Option<HashMap<String, usize>>,
    /// True if the one tensor of a tied head and embedding is stored under the head's name.
    embedding_is_head: bool,
    stored_bytes: u64,
}

impl Weights {
    /// Maps the files of a folder and checks that they hold every weight of `config` in its shape. Where both are there,
    /// one file comes before an index, as in `transformers`.
    ///
    /// A head that differs from the embedding although `config` ties the two makes an untied model of it, as in
    /// `transformers` 5, and is told ([`notes`]).
    pub(super) fn open(folder: &Path, config: &mut ModelConfig) -> Result<Self> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        let mut weights = if single.exists() {
            Self::of(single.clone(), vec![single], None)?
        } else if index.exists() {
            let map = weight_map(&index)?;
            let names = shard_names(&map);
            let position = |name: &String| names.binary_search(&name.as_str()).unwrap_or_default();
            let positions = map.iter().map(|(tensor, file)| (tensor.clone(), position(file))).collect();
            let paths = names.iter().map(|name| folder.join(name)).collect();
            Self::of(index, paths, Some(positions))?
        } else {
            return Err(Error::invalid(folder, format!("has neither {WEIGHTS} nor {INDEX}")));
        };

        // Before the list of weights is made, which a damaged layer count could make huge.
        let tensors: usize = weights.files.iter().map(MappedFile::tensor_count).sum();
        if config.num_hidden_layers > tensors {
            let reason = format!("has {tensors} tensors, too few for {} layers", config.num_hidden_layers);
            return Err(Error::invalid(&weights.path, reason));
        }
        if config.tie_word_embeddings {
            weights.tie(config)?;
        }
        for spec in weights::specs(config) {
            let found = weights.under_either(&spec.name, &spec.shape)?;
            if spec.name == HEAD && found.is_none() {
                let reason = format!("tie_word_embeddings is not true, but the weights have no {HEAD}");
                return Err(Error::invalid(folder.join(CONFIG), reason));
            }
            weights.stored_bytes += weights.find(&spec)?.bytes.len() as u64;
        }
        Ok(weights)
    }

    fn of(path: PathBuf, files: Vec<PathBuf>, index: Option<HashMap<String, usize>>) -> Result<Self> {
        let files = files.into_iter().map(MappedFile::open).collect::<Result<Vec<_>>>()?;
        Ok(Weights { path, files, index, embedding_is_head: false, stored_bytes: 0 })
    }

    /// Finds out what a tied model's files mean by head and embedding.
    fn tie(&mut self, config: &mut ModelConfig) -> Result<()> {
        let shape = [config.vocab_size, config.hidden_size];
        match (self.under_either(EMBEDDING, &shape)?, self.under_either(HEAD, &shape)?) {
            (None, Some(_)) => self.embedding_is_head = true,
            (Some(embedding), Some(head)) if !embedding.equals(&head) => {
                config.tie_word_embeddings = false;
                let remark =
                    format!("{HEAD} differs from the embedding, so it is used, although {CONFIG} says they are tied");
                notes::tell(&self.path, &remark);
            }
            _ => {}
        }
        Ok(())
    }

    /// The tensor of a weight, its shape checked.
    fn find(&self, spec: &WeightSpec) -> Result<Tensor<'_>> {
        let name = if self.embedding_is_head && spec.name == EMBEDDING { HEAD } else { &spec.name };
        let [first, second] = tensor_names(name);
        self.under_either(name, &spec.shape)?
            .ok_or_else(|| Error::invalid(&self.path, format!("has no tensor {first} or {second}")))
    }

    /// The tensor that stands under either of the names of a weight.
    fn under_either(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor<'_>>> {
        let [first, second] = tensor_names(name);
        match (self.tensor(&first, shape)?, self.tensor(&second, shape)?) {
            (Some(one), Some(other)) if !one.equals(&other) => {
                let reason = format!("tensors {first} and {second} are one weight, but hold different numbers");
                Err(Error::invalid(&self.path, reason))
            }
            (one, other) => Ok(one.or(other)),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor<'_>>> {
        let file = match &self.index {
            None => self.files.iter().find(|file| file.has(name)),
            Some(index) => index.get(name).and_then(|position| self.files.get(*position)),
        };
        let Some(file) = file else { return Ok(None) };
        let found = file.tensor(name, shape)?;
        if found.is_none() {
            let shard = file.path().file_name().unwrap_or_default().to_string_lossy();
            let reason = format!("says that tensor {name} is in {}, which does not hold it", excerpt(&shard));
            return Err(Error::invalid(&self.path, reason));
        }
        Ok(found)
    }
}

impl WeightSource for Weights {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>> {
        let tensor = self.find(spec)?;
        let values = tensor.values();
        match finite::fault(&spec.shape, &values) {
            Some(fault) => Err(Error::invalid(tensor.path, format!("{} {fault}", spec.name))),
            None => Ok(values),
        }
    }

    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        let tensor = self.find(spec)?;
        let Some(rows) = tensor.rows(&spec.shape) else { return self.read(spec).map(StoredWeight::Full) };
        match rows.fault() {
            Some(fault) => Err(Error::invalid(tensor.path, format!("{} {fault}", spec.name))),
            None => Ok(StoredWeight::Rows(Arc::new(rows))),
        }
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    fn release(&self) {
        self.files.iter().for_each(MappedFile::release);
    }
}

/// The names that a weight has in files: below `model.` by rule, and without it where a bare decoder was saved.
fn tensor_names(name: &str) -> [String; 2] {
    [format!("model.{name}"), name.to_string()]
}

/// The files that an index names, each once.
pub(crate) fn shards(index: &Path) -> Result<Vec<String>> {
    Ok(shard_names(&weight_map(index)?).into_iter().map(str::to_string).collect())
}

/// The values of a weight map, each once, in order.
fn shard_names(map: &BTreeMap<String, String>) -> Vec<&str> {
    let mut names: Vec<&str> = map.values().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The file name of each tensor, by an index.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let json = json::read(index)?;
    let map = json.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| Error::invalid(index, "has no object weight_map"))?;
    let entry = |(tensor, file): (&String, &serde_json::Value)| {
        let name = file.as_str().filter(|name| is_file_name(name)).ok_or_else(|| {
            let (tensor, file) = (excerpt(tensor), file.to_string());
            Error::invalid(index, format!("weight_map.{tensor} = {} is no file name", excerpt(&file)))
        })?;
        Ok((tensor.clone(), name.to_string()))
    };
    map.iter().map(entry).collect()
}

/// Whether an index may name it: a shard lies beside its index, nowhere else.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "." && name != ".."
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
