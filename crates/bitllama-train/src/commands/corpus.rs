//! The file that `generate-data` writes, a JSON line for each document, and beside it `FILE.origin.json`: the settings that decide
//! what is in it, and how much of it is on record as written by this program.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bitllama_formats::identity::{Identity, Likeness};
use bitllama_formats::{atomic, checksums, notes, output};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A line of the file.
#[derive(Debug, Serialize, Deserialize)]
pub struct Document {
    /// The document.
    pub text: String,
    /// Tokens of the text, as the model gave them.
    pub tokens: usize,
}

/// The keys of a model in the file of settings: where it was, and which it is.
const MODEL: [&str; 3] = ["model", "model_bytes", "model_sha256"];
/// The key of [`Written`] in the file of settings.
const WRITTEN: &str = "written";

/// The record of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Written {
    /// Bytes that have been written.
    bytes: u64,
    /// Their SHA-256.
    sha256: String,
    /// Bytes of the file once the group of documents is in it that is being written.
    pending: u64,
}

/// The file, open to be added to.
pub struct Corpus {
    output: PathBuf,
    origin: Value,
    file: File,
    hash: Sha256,
    bytes: u64,
    /// Documents in it.
    pub documents: usize,
    /// Tokens in it.
    pub tokens: usize,
}

impl Corpus {
    /// Opens `output` to go on with it, or begins it. `origin`, an object, is what decides its content, in groups of `group`
    /// documents; what a group that was cut short left is taken away.
    ///
    /// # Errors
    /// A file that this program did not write, or that has changed since; one of another `origin`, unless `overwrite`.
    pub fn open(output: &Path, origin: Value, group: usize, overwrite: bool) -> Result<Self> {
        // A link stays, and so its target has the settings beside it.
        let output = &output::followed(output)?;
        let earlier = earlier(output)?;
        if output.symlink_metadata().is_ok() {
            let Some((found, written)) = earlier else {
                bail!(
                    "{}: not on record as written by `generate-data` ({} is missing), so it is not replaced; move it away or \
                     name another output",
                    output.display(),
                    beside(output).display()
                )
            };
            if !overwrite {
                ensure_same(output, found, &origin)?;
            }
            match &written {
                Some(written) => written.check(output)?,
                // Version 0.1.0 kept no such record.
                None => ensure!(
                    !overwrite,
                    "{}: there is no record of what was written into it, so it is not replaced; move it away or name another \
                     output",
                    output.display()
                ),
            }
            if !overwrite {
                return Self::resumed(output, origin, group);
            }
            fs::remove_file(output).with_context(|| at(output))?;
        }
        if let Some(parent) = output.parent() {
            atomic::create_folders(parent)?;
        }
        note(output, &origin, &Sha256::new(), 0, 0)?;
        atomic::write_bytes(output, b"")?;
        Self::resumed(output, origin, group)
    }

    /// Opens the file to go on after its last whole group.
    fn resumed(output: &Path, origin: Value, group: usize) -> Result<Self> {
        let text = fs::read_to_string(output).with_context(|| at(output))?;
        let mut lines: Vec<(&str, usize)> = text
            .split_inclusive('\n')
            .map_while(|line| Some((line, serde_json::from_str::<Document>(line).ok()?.tokens)))
            .filter(|(line, _)| line.ends_with('\n'))
            .collect();
        lines.truncate(lines.len() / group * group);
        let kept: usize = lines.iter().map(|(line, _)| line.len()).sum();
        let file = OpenOptions::new().append(true).open(output).with_context(|| at(output))?;
        file.set_len(kept as u64).with_context(|| at(output))?;
        Ok(Self {
            output: output.to_path_buf(),
            origin,
            file,
            hash: Sha256::new_with_prefix(&text.as_bytes()[..kept]),
            bytes: kept as u64,
            documents: lines.len(),
            tokens: lines.iter().map(|(_, tokens)| tokens).sum(),
        })
    }

    /// Adds a group of documents.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn append(&mut self, group: &[Document]) -> Result<()> {
        let mut lines = Vec::new();
        for document in group {
            serde_json::to_writer(&mut lines, document)?;
            lines.push(b'\n');
            self.tokens += document.tokens;
        }
        self.documents += group.len();
        let bytes = self.bytes + lines.len() as u64;
        note(&self.output, &self.origin, &self.hash, self.bytes, bytes)?;
        // On the disk before the next note says so.
        self.file.write_all(&lines).and_then(|()| self.file.sync_data()).with_context(|| at(&self.output))?;
        self.hash.update(&lines);
        self.bytes = bytes;
        Ok(())
    }

    /// Puts all of the file on record.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn finish(self) -> Result<()> {
        note(&self.output, &self.origin, &self.hash, self.bytes, self.bytes)
    }
}

impl Written {
    /// Makes sure that the file `output` is what was written, but for the end of a group that was cut short.
    fn check(&self, output: &Path) -> Result<()> {
        let file = File::open(output).with_context(|| at(output))?;
        let length = file.metadata().with_context(|| at(output))?.len();
        let (mut hash, mut buffer, mut rest) = (Sha256::new(), vec![0; 1 << 16], file.take(self.bytes));
        loop {
            match rest.read(&mut buffer).with_context(|| at(output))? {
                0 => break,
                count => hash.update(&buffer[..count]),
            }
        }
        ensure!(
            (self.bytes..=self.pending).contains(&length) && hex(&hash) == self.sha256,
            "{}: has changed since this program wrote it, so it is neither replaced nor added to; move it away or name another \
             output",
            output.display()
        );
        Ok(())
    }
}

/// The settings that an earlier command left beside `output`, and what it put on record; `None` if there are none.
fn earlier(output: &Path) -> Result<Option<(Value, Option<Written>)>> {
    let path = beside(output);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).with_context(|| at(&path)),
    };
    let foreign = || format!("{}: no record of `generate-data`; move it away or name another output", path.display());
    let mut origin: Value = serde_json::from_slice(&bytes).with_context(foreign)?;
    let settings = origin.as_object_mut().filter(|settings| settings.contains_key("model")).with_context(foreign)?;
    let written = settings.remove(WRITTEN).map(serde_json::from_value).transpose().with_context(foreign)?;
    Ok(Some((origin, written)))
}

/// Makes sure that what decides the file is still the same. A model is known by its content; in a file of version 0.1.0, by path
/// and size.
fn ensure_same(output: &Path, found: Value, origin: &Value) -> Result<()> {
    let ((earlier, found), (now, origin)) = (parted(found), parted(origin.clone()));
    let likeness = earlier.compare(&now);
    let other = match likeness {
        Likeness::Different => "by another model than this is now",
        _ if found != origin => "with other settings",
        Likeness::Same => return Ok(()),
        Likeness::Unproven => {
            let remark = "begun by version 0.1.0, which knew its model by path and size only; nothing tells if its content has \
                          changed since";
            notes::tell(output, remark);
            return Ok(());
        }
    };
    bail!("{}: was made {other} ({}); `--overwrite` replaces it", output.display(), beside(output).display())
}

/// The model of settings, and all else.
fn parted(mut origin: Value) -> (Identity, Value) {
    let [path, bytes, sha256] = MODEL.map(|key| origin.as_object_mut().and_then(|settings| settings.remove(key)));
    let text = |value: Option<Value>| value.as_ref().and_then(Value::as_str).map(str::to_string);
    let bytes = bytes.as_ref().and_then(Value::as_u64).unwrap_or_default();
    (Identity { path: text(path).unwrap_or_default(), bytes, sha256: text(sha256) }, origin)
}

fn note(output: &Path, origin: &Value, hash: &Sha256, bytes: u64, pending: u64) -> Result<()> {
    let mut origin = origin.clone();
    origin[WRITTEN] = serde_json::to_value(Written { bytes, sha256: hex(hash), pending })?;
    Ok(atomic::write_bytes(&beside(output), format!("{origin:#}\n").as_bytes())?)
}

fn hex(hash: &Sha256) -> String {
    checksums::hex(&hash.clone().finalize())
}

/// The file of settings.
fn beside(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".origin.json");
    name.into()
}

fn at(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn documents(texts: &[&str]) -> Vec<Document> {
        texts.iter().map(|text| Document { text: text.to_string(), tokens: 3 }).collect()
    }

    fn message(result: Result<Corpus>) -> String {
        format!("{:#}", result.err().expect("it should be refused"))
    }

    #[test]
    fn a_file_goes_on_only_as_it_was_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/corpus.jsonl");
        let open = |seed: u64, overwrite| Corpus::open(&path, json!({ "model": "m", "seed": seed }), 2, overwrite);
        let mut corpus = open(1, false).unwrap();
        corpus.append(&documents(&["a", "b"])).unwrap();
        let one = fs::read(&path).unwrap();
        corpus.append(&documents(&["c", "d"])).unwrap();
        drop(corpus);
        // Killed within the second group, at any byte of it.
        let two = fs::read(&path).unwrap();
        for length in one.len()..=two.len() {
            fs::write(&path, &two[..length]).unwrap();
            let corpus = open(1, false).unwrap();
            let whole = length == two.len();
            assert_eq!((corpus.documents, corpus.tokens), if whole { (4, 12) } else { (2, 6) });
            assert_eq!(fs::read(&path).unwrap(), if whole { &two[..] } else { &one[..] });
        }
        let mut corpus = open(1, false).unwrap();
        corpus.append(&documents(&["e", "f"])).unwrap();
        corpus.finish().unwrap();
        let three = fs::read(&path).unwrap();
        assert!(message(open(2, false)).contains("other settings"));
        // A line of the user's own, at the end or in the middle.
        for changed in [[&three[..], b"{\"text\":\"g\",\"tokens\":1}\n"].concat(), three[..one.len()].to_vec()] {
            fs::write(&path, &changed).unwrap();
            for (seed, overwrite) in [(1, false), (1, true), (2, true)] {
                assert!(message(open(seed, overwrite)).contains("has changed since this program wrote it"));
                assert_eq!(fs::read(&path).unwrap(), changed);
            }
        }
        fs::write(&path, &three).unwrap();
        assert_eq!(open(2, true).unwrap().documents, 0);
        #[cfg(unix)]
        {
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            Corpus::open(&link, json!({ "model": "m", "seed": 3 }), 2, true).unwrap();
            assert!(link.is_symlink() && fs::read(&path).unwrap().is_empty());
        }
    }

    #[test]
    fn a_file_without_a_record_is_the_users() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus.jsonl");
        let open = |overwrite| Corpus::open(&path, json!({ "model": "m" }), 1, overwrite);
        fs::write(&path, "{\"text\":\"mine\",\"tokens\":1}\n").unwrap();
        for overwrite in [false, true] {
            assert!(message(open(overwrite)).contains("not on record"));
        }
        // Version 0.1.0 left the settings alone: its file goes on, and is not replaced.
        fs::write(beside(&path), "{\"model\":\"m\"}").unwrap();
        assert!(message(open(true)).contains("no record of what was written into it"));
        assert_eq!(open(false).unwrap().documents, 1);
        fs::remove_file(&path).unwrap();
        fs::write(beside(&path), "{\"mine\":1}").unwrap();
        assert!(message(open(true)).contains("corpus.jsonl.origin.json: no record of `generate-data`"));
    }
}
