//! Weights by name: in one safetensors file, or in the shards that an index names.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitllama_core::names::{Place, hf_place};
use bitllama_core::weights::{self, EMBEDDING, HEAD, Kind, WeightSpec};
use bitllama_core::{ModelConfig, PackedMatrix, excerpt};

use super::bitnet::{self, Packing, packed_shape};
use super::mapped::{MappedFile, Raw, Tensor};
use super::unpack::{Module, Parts, Quantization, has_bias, packs};
use super::{CONFIG, INDEX, WEIGHTS, advice};
use crate::{Error, Result, StoredWeight, WeightSource, finite, json, notes};

/// The weights of a directory.
pub(super) struct Weights {
    /// The one file or the index: what is named when a weight is missing.
    path: PathBuf,
    config: ModelConfig,
    files: Vec<MappedFile>,
    /// Position in `files` of each tensor's shard, where there is an index: it decides, not what shards hold beside.
    index: Option<HashMap<String, usize>>,
    /// True if the one tensor of a tied head and embedding is stored under the head's name.
    embedding_is_head: bool,
    /// Packed matrices of the blocks, where they are.
    stated: Option<Quantization>,
    stored_bytes: u64,
}

impl Weights {
    /// Maps the files of a folder and checks that they hold every weight of `config` in its shape. Where both are there,
    /// one file comes before an index, as in `transformers`.
    ///
    /// A head that differs from the embedding although `config` ties the two makes an untied model of it, as in
    /// `transformers` 5, and is told ([`notes`]).
    ///
    /// A config that does not say whether they are tied (`says_if_tied`) and whose files have no head means that they are.
    pub(super) fn open(
        folder: &Path,
        config: &mut ModelConfig,
        says_if_tied: bool,
        stated: Option<Quantization>,
    ) -> Result<Self> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        let mut weights = if single.exists() {
            Self::of(single.clone(), vec![single], None, config)?
        } else if index.exists() {
            let map = weight_map(&index)?;
            let names = shard_names(&map);
            let position = |name: &String| names.binary_search(&name.as_str()).unwrap_or_default();
            let positions = map.iter().map(|(tensor, file)| (tensor.clone(), position(file))).collect();
            let paths = names.iter().map(|name| folder.join(name)).collect();
            Self::of(index, paths, Some(positions), config)?
        } else {
            return Err(Error::invalid(folder, advice::weights(folder)));
        };

        weights.stated = stated;
        // Before the list of weights is made, which a damaged layer count could make huge.
        let tensors: usize = weights.files.iter().map(MappedFile::tensor_count).sum();
        if config.num_hidden_layers > tensors {
            let reason = format!("has {tensors} tensors, too few for {} layers", config.num_hidden_layers);
            return Err(Error::invalid(&weights.path, reason));
        }
        if !config.tie_word_embeddings
            && weights.under_either(HEAD, &[config.vocab_size, config.hidden_size])?.is_none()
        {
            if says_if_tied {
                let reason = format!("tie_word_embeddings is not true, but the weights have no {HEAD}");
                return Err(Error::invalid(folder.join(CONFIG), reason));
            }
            config.tie_word_embeddings = true;
        }
        if config.tie_word_embeddings {
            weights.tie(config)?;
        }
        weights.config = config.clone();
        let mut packed = weights.stated.as_ref().is_none_or(|stated| stated.bitnet().is_some());
        for spec in weights::specs(config) {
            packed |= weights.parts(&spec)?.is_some();
            weights.stored_bytes += match (weights.packed(&spec)?, weights.parts(&spec)?) {
                (Some((bytes, ..)), _) => bytes.len() as u64,
                (None, Some(parts)) => parts.bytes(),
                (None, None) => weights.find(&spec)?.bytes.len() as u64,
            };
        }
        match packed {
            true => Ok(weights),
            false => {
                Err(Error::invalid(&weights.path, "has no packed tensors, although quantization_config states some"))
            }
        }
    }

    fn of(
        path: PathBuf,
        files: Vec<PathBuf>,
        index: Option<HashMap<String, usize>>,
        config: &ModelConfig,
    ) -> Result<Self> {
        let files = files.into_iter().map(MappedFile::open).collect::<Result<Vec<_>>>()?;
        Ok(Weights {
            path,
            config: config.clone(),
            files,
            index,
            embedding_is_head: false,
            stated: None,
            stored_bytes: 0,
        })
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

    /// The tensor, or the rows of one, that are a weight; shapes are checked.
    fn find(&self, spec: &WeightSpec) -> Result<Tensor<'_>> {
        let place = match self.embedding_is_head && spec.name == EMBEDDING {
            true => Place { tensor: HEAD.into(), shape: spec.shape.clone(), first_row: 0 },
            false => hf_place(&self.config, spec),
        };
        let [first, second] = tensor_names(&place.tensor);
        let tensor = self.under_either(&place.tensor, &place.shape)?;
        let tensor = tensor.ok_or_else(|| Error::invalid(&self.path, format!("has no tensor {first} or {second}")))?;
        Ok(tensor.part(place.offset(), spec.len()))
    }

    fn packing(&self, spec: &WeightSpec) -> Option<Packing> {
        self.stated.as_ref()?.bitnet()?.of(spec)
    }

    /// The packed tensors of a weight that is stored so, but for a BitNet's.
    fn parts(&self, spec: &WeightSpec) -> Result<Option<Parts<'_>>> {
        let Some(stated) = self.stated.as_ref().filter(|_| packs(spec)) else { return Ok(None) };
        let place = hf_place(&self.config, spec);
        let module = place.tensor.strip_suffix(".weight").unwrap_or(&place.tensor);
        let tensor = |part: &str| tensor_names(&format!("{module}.{part}")).iter().find_map(|name| self.raw(name));
        let module = Module {
            name: format!("model.{module}"),
            shape: [place.shape[0], spec.shape[1]],
            rows: place.first_row..place.first_row + spec.shape[0],
            has_bias: has_bias(&self.config, spec),
            tensor: &tensor,
        };
        stated.parts(&module).map_err(|reason| Error::invalid(&self.path, reason))
    }

    /// The tensor `name` of any type, where the index or the one file has it.
    fn raw(&self, name: &str) -> Option<Raw<'_>> {
        match &self.index {
            None => self.files.iter().find_map(|file| file.raw(name)),
            Some(index) => self.files.get(*index.get(name)?)?.raw(name),
        }
    }

    /// The bytes of a packed matrix, its scale, and whether that is a divisor; `None` for a weight that is stored as numbers.
    fn packed(&self, spec: &WeightSpec) -> Result<Option<(&[u8], f32, bool)>> {
        let Some(Packing::Offline { divides }) = self.packing(spec) else { return Ok(None) };
        let file = self.files.iter().find(|file| tensor_names(&spec.name).iter().any(|name| file.has(name)));
        let file = file.ok_or_else(|| Error::invalid(&self.path, format!("has no tensor model.{}", spec.name)))?;
        let name = tensor_names(&spec.name).into_iter().find(|name| file.has(name)).unwrap_or_default();
        let bytes = file.bytes(&name, &packed_shape(&spec.shape))?;
        let scale = self.under_either(&format!("{}_scale", spec.name), &[1])?;
        let scale = scale.ok_or_else(|| Error::invalid(&self.path, format!("has no tensor {name}_scale")))?;
        let scale = scale.values().first().copied().unwrap_or(f32::NAN);
        Ok(Some((bytes, scale, divides)))
    }

    /// The matrix of codes that a weight is, if it is one.
    fn codes(&self, spec: &WeightSpec) -> Result<Option<PackedMatrix>> {
        if let Some(parts) = self.parts(spec)? {
            let matrix =
                parts.matrix().and_then(|matrix| match matrix.scales().iter().all(|scale| scale.is_finite()) {
                    true => Ok(Some(matrix)),
                    false => Err("has a scale that is not finite".into()),
                });
            return matrix.map_err(|reason| Error::invalid(&self.path, format!("{}: {reason}", spec.name)));
        }
        let matrix = match self.packed(spec)? {
            Some((bytes, scale, divides)) => bitnet::unpack(spec, bytes, scale, divides),
            None if self.packing(spec) == Some(Packing::Online) => bitnet::round(spec, self.find(spec)?.values()),
            None => return Ok(None),
        };
        matrix.map(Some).map_err(|reason| Error::invalid(&self.path, reason))
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
        if let Some(matrix) = self.codes(spec)? {
            return Ok(matrix.dequantize().data);
        }
        let tensor = self.find(spec)?;
        let mut values = tensor.values();
        let offset = self.config.arch.family.family().norm_offset;
        if spec.kind == Kind::Norm && offset != 0.0 {
            values.iter_mut().for_each(|value| *value += offset);
        }
        match finite::fault(&spec.shape, &values) {
            Some(fault) => Err(Error::invalid(tensor.path, format!("{} {fault}", spec.name))),
            None => Ok(values),
        }
    }

    fn stored(&self, spec: &WeightSpec) -> Result<StoredWeight> {
        if let Some(matrix) = self.codes(spec)? {
            return Ok(StoredWeight::Packed(matrix));
        }
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
