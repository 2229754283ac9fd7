//! Weights in safetensors files, memory-mapped: one file, or shards named by an index.

use std::path::{Path, PathBuf};

use bitllama_core::weights::{self, HEAD, WeightSpec};
use bitllama_core::{ModelConfig, excerpt};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata};

use super::{CONFIG, INDEX, WEIGHTS};
use crate::vectors::MAX_HEADER;
use crate::{Error, Result, WeightSource, json};

/// The weights of a directory.
pub(super) struct Weights {
    /// The folder, or the one file: what is named when a weight is missing.
    path: PathBuf,
    files: Vec<MappedFile>,
    stored_bytes: u64,
}

struct MappedFile {
    path: PathBuf,
    map: Mmap,
    /// Where the tensors start.
    data: usize,
    header: Metadata,
}

impl Weights {
    /// Maps the files of a folder and checks that they hold every weight of `config` in its shape.
    pub(super) fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let single = folder.join(WEIGHTS);
        let index = folder.join(INDEX);
        let (path, names) = if single.exists() {
            (single.clone(), vec![single])
        } else if index.exists() {
            (index.clone(), shards(folder, &index)?)
        } else {
            return Err(Error::invalid(folder, format!("has neither {WEIGHTS} nor {INDEX}")));
        };
        let files = names.into_iter().map(MappedFile::open).collect::<Result<Vec<_>>>()?;
        let mut weights = Weights { path, files, stored_bytes: 0 };

        // Before the list of weights is made, which a damaged layer count could make huge.
        let tensors: usize = weights.files.iter().map(|f| f.header.offset_keys().len()).sum();
        if config.num_hidden_layers > tensors {
            let reason = format!("has {tensors} tensors, too few for {} layers", config.num_hidden_layers);
            return Err(Error::invalid(&weights.path, reason));
        }
        for spec in weights::specs(config) {
            let found = weights.find(&spec);
            if spec.name == HEAD && found.is_err() && !weights.has(HEAD) {
                let reason = format!("tie_word_embeddings is not true, but the weights have no {HEAD}");
                return Err(Error::invalid(folder.join(CONFIG), reason));
            }
            weights.stored_bytes += found?.1.len() as u64;
        }
        Ok(weights)
    }

    fn has(&self, name: &str) -> bool {
        self.files.iter().any(|f| f.header.info(name).is_some())
    }

    /// Type and bytes of a weight, its shape checked.
    fn find(&self, spec: &WeightSpec) -> Result<(Dtype, &[u8])> {
        let prefixed = format!("model.{}", spec.name);
        for name in [prefixed.as_str(), spec.name.as_str()] {
            for file in &self.files {
                if let Some(found) = file.tensor(name, &spec.shape)? {
                    return Ok(found);
                }
            }
        }
        Err(Error::invalid(&self.path, format!("has no tensor {prefixed} or {}", spec.name)))
    }
}

impl WeightSource for Weights {
    fn read(&self, spec: &WeightSpec) -> Result<Vec<f32>> {
        let (dtype, bytes) = self.find(spec)?;
        let values = match dtype {
            Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        Ok(values)
    }

    fn stored_bytes(&self) -> u64 {
        self.stored_bytes
    }

    fn release(&self) {
        self.files.iter().for_each(|file| crate::map::release(&file.map));
    }
}

/// The files that an index names, each once.
pub(crate) fn shards(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let json = json::read(index)?;
    let map = json.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| Error::invalid(index, "has no object weight_map"))?;
    let mut names = Vec::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_file_name(name));
        let name = name.ok_or_else(|| {
            let (tensor, file) = (excerpt(tensor), file.to_string());
            Error::invalid(index, format!("weight_map.{tensor} = {} is no file name", excerpt(&file)))
        })?;
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// Whether an index may name it: a shard lies beside its index, nowhere else.
pub(crate) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', ':', '\0']) && name != "." && name != ".."
}

impl MappedFile {
    fn open(path: PathBuf) -> Result<Self> {
        let map = crate::map::open(&path)?;
        let invalid = |reason: String| Error::invalid(&path, reason);
        let size = map.len();
        let length = map.first_chunk().map(|b| u64::from_le_bytes(*b));
        let length =
            length.ok_or_else(|| invalid(format!("is {size} bytes long, a safetensors file has at least 8")))?;
        let data = usize::try_from(length).ok().and_then(|n| n.checked_add(8)).filter(|end| *end <= size);
        let data = data.ok_or_else(|| invalid(format!("the header takes {length} bytes, the file has only {size}")))?;
        if data > MAX_HEADER {
            return Err(invalid(format!("the header takes {length} bytes, more than any model's")));
        }
        let header: Metadata =
            serde_json::from_slice(&map[8..data]).map_err(|e| invalid(format!("damaged header: {e}")))?;
        if header.data_len() != size - data {
            let (expected, found) = (header.data_len(), size - data);
            return Err(invalid(format!("tensors take {expected} bytes by the header, the file has {found}")));
        }
        Ok(MappedFile { path, map, data, header })
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Option<(Dtype, &[u8])>> {
        let Some(info) = self.header.info(name) else { return Ok(None) };
        if info.shape != shape {
            let found = format!("{:?}", info.shape);
            let reason = format!("tensor {name} has shape {}, expected {shape:?} by {CONFIG}", excerpt(&found));
            return Err(Error::invalid(&self.path, reason));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let reason = format!("tensor {name} is of type {:?}; F32, F16 and BF16 are supported", info.dtype);
            return Err(Error::invalid(&self.path, reason));
        }
        let (start, end) = info.data_offsets;
        let bytes = self.map.get(self.data + start..self.data + end);
        let bytes = bytes.ok_or_else(|| Error::invalid(&self.path, format!("tensor {name} ends beyond the file")))?;
        Ok(Some((info.dtype, bytes)))
    }
}
