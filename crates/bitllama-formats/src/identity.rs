//! Identity of a model: a SHA-256 of its content. Path, size and time of its files say where it is, not which it is.
//!
//! The hash is that of a list: a line `SHA-256  NAME` for each file that decides the model's numbers or its tokens, by
//! name. A file that is hashed is remembered in the user's cache folder (`memo.rs`), so it is read again only after it changed.

mod memo;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::companions::{GENERATION_CONFIG, SPECIAL_TOKENS, TOKENIZER_CONFIG};
use crate::model::Role;
use crate::{Error, Model, Result, checksums, gguf, hf};
use memo::Memo;

/// Path, size and content hash of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The folder or file that it was read from.
    pub path: String,
    /// Bytes that its weights take in the file.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal; `None` in records of version 0.1.0, which did not take it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

/// Result of comparing a model with one on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Likeness {
    /// Its content is the same.
    Same,
    /// The record, of version 0.1.0, has path and size only, and those are the same.
    Unproven,
    /// It is another one.
    Different,
}

impl Identity {
    /// The identity of an open model.
    ///
    /// # Errors
    /// [`Error`] if one of its files cannot be read.
    pub fn of(model: &Model) -> Result<Self> {
        Ok(Self {
            path: model.path.display().to_string(),
            bytes: model.weights.stored_bytes(),
            sha256: Some(match model.role {
                Role::Latent => checksums::of_bytes(format!("latent weights of {}", content(&model.path)?).as_bytes()),
                Role::Whole | Role::Student => content(&model.path)?,
            }),
        })
    }

    /// Compares `found` with this record.
    pub fn compare(&self, found: &Identity) -> Likeness {
        match &self.sha256 {
            Some(_) if self.sha256 == found.sha256 => Likeness::Same,
            None if (&self.path, self.bytes) == (&found.path, found.bytes) => Likeness::Unproven,
            _ => Likeness::Different,
        }
    }
}

/// SHA-256 of the content of a model: of a Hugging Face directory (a checkpoint included), an artifact, or a GGUF file with
/// all parts of its split. Its place and the name of a lone file do not matter.
///
/// # Errors
/// [`Error`] if a file cannot be read.
pub fn content(path: &Path) -> Result<String> {
    let mut memo = Memo::of_user();
    let content = content_by(path, &mut memo)?;
    memo.save();
    Ok(content)
}

fn content_by(path: &Path, memo: &mut Memo) -> Result<String> {
    let mut files = files(path)?;
    files.sort();
    let mut list = String::new();
    for (name, file) in files {
        list += &format!("{}  {name}\n", memo.sha256(&file)?);
    }
    Ok(checksums::of_bytes(list.as_bytes()))
}

/// The files that decide a model's numbers or its tokens, by the names under which they are hashed.
fn files(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    if path.is_dir() {
        return if path.join(hf::CONFIG).is_file() { of_directory(path) } else { below(path, "") };
    }
    let parts = split_parts(path).unwrap_or_else(|| vec![path.to_path_buf()]);
    Ok(parts.into_iter().enumerate().map(|(part, file)| (format!("part-{part}"), file)).collect())
}

/// The deciding files of a Hugging Face directory. Other files in it do not count.
fn of_directory(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    /// The last two are a checkpoint's: its bit plan and its trained scales.
    const DECIDING: [&str; 10] = [
        hf::CONFIG,
        hf::TOKENIZER,
        TOKENIZER_CONFIG,
        SPECIAL_TOKENS,
        GENERATION_CONFIG,
        "added_tokens.json",
        hf::WEIGHTS,
        hf::INDEX,
        "state.json",
        "scales.safetensors",
    ];
    let index = folder.join(hf::INDEX);
    let shards = if index.is_file() { hf::shards(&index)? } else { Vec::new() };
    let mut files: Vec<PathBuf> = DECIDING.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect();
    files.extend(shards.iter().map(|name| folder.join(name)));
    files.sort();
    files.dedup();
    Ok(files.into_iter().map(|path| (file_name(&path), path)).collect())
}

/// All files of an artifact, those in folders below it too, hidden ones left out.
fn below(folder: &Path, prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let entry = entry.map_err(Error::io(folder))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(folder))?);
        let name = format!("{prefix}{}", file_name(&path));
        if file_name(&path).starts_with('.') {
            continue;
        }
        // A link is followed to a file only: to a folder it may lead in a circle.
        if kind.is_dir() {
            files.extend(below(&path, &format!("{name}/"))?);
        } else if path.is_file() {
            files.push((name, path));
        }
    }
    Ok(files)
}

/// All parts of a GGUF split, `NAME-00001-of-00003.gguf` and so on, if `path` is one of them.
fn split_parts(path: &Path) -> Option<Vec<PathBuf>> {
    let names = gguf::part_names(path.file_name()?.to_str()?)?;
    Some(names.into_iter().map(|name| path.with_file_name(name)).collect())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(path: &Path) -> String {
        content_by(path, &mut Memo::forgetful()).unwrap()
    }

    fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    /// True if writing `text` into the file `name` of a folder makes it another model.
    fn matters(folder: &Path, name: &str, text: &str) -> bool {
        let path = folder.join(name);
        let (before, old) = (hash(folder), fs::read(&path).ok());
        fs::write(&path, text).unwrap();
        let changed = hash(folder) != before;
        match old {
            Some(old) => fs::write(&path, old).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        assert_eq!(hash(folder), before, "the same content is the same model");
        changed
    }

    #[test]
    fn a_directory_is_its_weights_its_config_and_its_tokenizer() {
        let files = [("config.json", "{}"), ("model.safetensors", "weights"), ("tokenizer.json", "{}")];
        let folder = folder_of(&files);
        let mut list: Vec<String> =
            files.iter().map(|(name, text)| format!("{}  {name}\n", checksums::of_bytes(text.as_bytes()))).collect();
        list.sort_by_key(|line| line[66..].to_string());
        assert_eq!(hash(folder.path()), checksums::of_bytes(list.concat().as_bytes()));
        assert_eq!(hash(folder.path()), hash(folder_of(&files).path()), "the place does not matter");
        for name in ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "state.json"] {
            assert!(matters(folder.path(), name, "weightz"), "{name}");
        }
        for name in ["README.md", "optimizer.bpk", "SHA256SUMS"] {
            assert!(!matters(folder.path(), name, "anything"), "{name}");
        }
    }

    #[test]
    fn every_shard_counts() {
        let index = r#"{"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}}"#;
        let files = [("config.json", "{}"), (hf::INDEX, index), ("x-1.safetensors", "1"), ("x-2.safetensors", "2")];
        let folder = folder_of(&files);
        for name in ["x-1.safetensors", "x-2.safetensors"] {
            assert!(matters(folder.path(), name, "3"), "{name}");
        }
        assert!(!matters(folder.path(), "x-3.safetensors", "3"));
        fs::remove_file(folder.path().join("x-2.safetensors")).unwrap();
        assert!(content_by(folder.path(), &mut Memo::forgetful()).unwrap_err().to_string().contains("x-2.safetensors"));
    }

    #[test]
    fn an_artifact_is_all_its_files() {
        let folder = folder_of(&[("manifest.json", "{}"), ("weights.npz", "w"), ("loose/q.u8", "q")]);
        assert!(matters(folder.path(), "loose/q.u8", "p") && matters(folder.path(), "weights.npz", "v"));
        assert!(!matters(folder.path(), ".written", "p"), "hidden files are the program's own");
    }

    #[test]
    fn a_gguf_is_all_its_parts_under_any_name() {
        let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        let folder = folder_of(&[(parts[0], "1"), (parts[1], "2"), ("one.gguf", "1"), ("n-00001-of-00001.gguf", "1")]);
        let of = |name: &str| hash(&folder.path().join(name));
        assert_eq!(of(parts[0]), of(parts[1]), "a split is named by any of its parts");
        assert_ne!(of(parts[0]), of("one.gguf"));
        assert_eq!(of("n-00001-of-00001.gguf"), of("one.gguf"), "a name does not matter");
        let before = of(parts[0]);
        fs::write(folder.path().join(parts[1]), "3").unwrap();
        assert_ne!(of(parts[0]), before);
    }

    #[test]
    fn records_of_0_1_0_go_by_path_and_size() {
        let now = Identity { path: "m".into(), bytes: 8, sha256: Some("a".into()) };
        let moved = Identity { path: "elsewhere/m".into(), ..now.clone() };
        let replaced = Identity { sha256: Some("b".into()), ..now.clone() };
        let old: Identity = serde_json::from_str(r#"{"path": "m", "bytes": 8}"#).unwrap();
        assert_eq!((now.compare(&moved), now.compare(&replaced)), (Likeness::Same, Likeness::Different));
        assert_eq!((old.compare(&now), old.compare(&moved)), (Likeness::Unproven, Likeness::Different));
        assert_eq!(old.compare(&Identity { bytes: 9, ..now }), Likeness::Different);
    }
}
