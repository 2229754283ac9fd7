//! Documents to tokens. Each source file becomes one shard in the cache, named by the hash of everything its tokens
//! depend on, so that it is tokenized once and a changed file is noticed.
//!
//! A shard is `KEY.tokens` (u32, one document after the other) and `KEY.json` (document lengths, and a checksum of both). One that
//! is damaged, or has no checksum as those of version 0.1.0, is made anew.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use bitllama_core::ModelConfig;
use bitllama_formats::text::{Kind, files};
use bitllama_formats::{Error as FormatError, atomic, checksums, output};
use bitllama_runtime::text::{for_corpus, for_tokens, own_bos, tokens_of_all};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::documents::documents;
use crate::recipe::Data;

/// Part of a shard's key: to be counted up when the same text comes to other tokens than before.
const VERSION: &str = "tokens 2";

/// Bytes of documents that are tokenized together; larger documents are written while they are tokenized.
const BATCH: usize = 1 << 20;

/// Tokenized documents.
#[derive(Clone)]
pub struct Corpus {
    shards: Vec<Arc<Shard>>,
    /// Shard, first token and number of tokens of each document.
    documents: Vec<(usize, usize, usize)>,
    /// Keys of the shards: what the run trained on.
    pub hashes: Vec<String>,
}

struct Shard {
    /// `None` where there is nothing to map.
    map: Option<Mmap>,
}

#[derive(Serialize, Deserialize)]
struct ShardIndex {
    source: String,
    document_lengths: Vec<usize>,
    /// [`checksum`].
    sha256: String,
}

impl Corpus {
    /// Tokenizes `sources`, or finds their tokens in `options.cache`. Each document ends with the
    /// tokenizer's EOS (the first of `eos_token_ids`), and begins with the BOS that the tokenizer puts in front by itself, if any.
    ///
    /// # Errors
    /// A source that cannot be read or holds no text, with its path; a cache that cannot be written.
    pub fn load(sources: &[PathBuf], options: &Data, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Self> {
        let vocabulary = tokenizer.to_string(false).map_err(|e| anyhow!("the tokenizer cannot be hashed: {e}"))?;
        let (bos, eos) = (own_bos(tokenizer)?, config.eos_token_ids.first().copied());
        output::recover(&options.cache)?;
        let mut corpus = Corpus { shards: Vec::new(), documents: Vec::new(), hashes: Vec::new() };
        let tokenizer = for_corpus(tokenizer, options.parse_special)?;
        for file in files(sources)? {
            let reading = (Kind::of(&file)?, &options.text_field, &options.document_start, options.parse_special);
            let parts = [VERSION, &vocabulary, &format!("{bos:?} {eos:?}"), &format!("{reading:?}")];
            let key = key(parts, &file).with_context(|| format!("{}", file.display()))?;
            let (shard, lengths) = match open_shard(&options.cache, &key, config.vocab_size) {
                Some(found) => found,
                None => {
                    write_shard(&options.cache, &key, &file, options, &tokenizer, [bos, eos], config.vocab_size)?;
                    open_shard(&options.cache, &key, config.vocab_size)
                        .with_context(|| format!("{}: the token cache cannot be read back", options.cache.display()))?
                }
            };
            let mut start = 0;
            for length in lengths {
                corpus.documents.push((corpus.shards.len(), start, length));
                start += length;
            }
            corpus.shards.push(Arc::new(shard));
            corpus.hashes.push(key);
        }
        Ok(corpus)
    }

    /// Number of documents.
    pub fn document_count(&self) -> usize {
        self.documents.len()
    }

    /// Number of tokens in all documents.
    pub fn token_count(&self) -> usize {
        self.documents.iter().map(|(_, _, length)| length).sum()
    }

    /// The tokens of one document.
    pub fn document(&self, index: usize) -> &[u32] {
        let (shard, start, length) = self.documents[index];
        &self.shards[shard].tokens()[start..start + length]
    }

    /// All tokens, document after document.
    pub fn all_tokens(&self) -> Vec<u32> {
        (0..self.document_count()).flat_map(|i| self.document(i).iter().copied()).collect()
    }

    /// The corpus of some of the documents.
    pub fn select(&self, documents: &[usize]) -> Self {
        Self { documents: documents.iter().map(|i| self.documents[*i]).collect(), ..self.clone() }
    }
}

impl Shard {
    fn tokens(&self) -> &[u32] {
        self.map.as_deref().map_or(&[], bytemuck::cast_slice)
    }
}

/// SHA-256 of what a shard holds.
fn checksum(tokens: &[u32], document_lengths: &[usize]) -> String {
    let mut hash = Sha256::new();
    hash.update(bytemuck::cast_slice::<u32, u8>(tokens));
    with_lengths(hash, document_lengths)
}

/// The end of [`checksum`]: `hash` has the tokens.
fn with_lengths(mut hash: Sha256, document_lengths: &[usize]) -> String {
    document_lengths.iter().for_each(|length| hash.update((*length as u64).to_le_bytes()));
    checksums::hex(&hash.finalize())
}

/// A shard and its document lengths, if the cache has it as it was written and all its tokens are in the vocabulary.
fn open_shard(cache: &Path, key: &str, vocab_size: usize) -> Option<(Shard, Vec<usize>)> {
    let index: ShardIndex = serde_json::from_slice(&std::fs::read(cache.join(format!("{key}.json"))).ok()?).ok()?;
    let file = File::open(cache.join(format!("{key}.tokens"))).ok()?;
    let total = index.document_lengths.iter().try_fold(0usize, |sum, n| sum.checked_add(*n))?;
    if file.metadata().ok()?.len() != (total as u64).checked_mul(4)? {
        return None;
    }
    // SAFETY: shards are written under another name and renamed, never changed in place.
    let map = if total > 0 { Some(unsafe { Mmap::map(&file) }.ok()?) } else { None };
    let shard = Shard { map };
    let known = shard.tokens().iter().all(|token| (*token as usize) < vocab_size);
    (known && checksum(shard.tokens(), &index.document_lengths) == index.sha256)
        .then_some((shard, index.document_lengths))
}

/// Hash of `parts` and of the content of a file.
fn key(parts: [&str; 4], file: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    std::io::copy(&mut File::open(file)?, &mut hash)?;
    Ok(hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect())
}

fn write_shard(
    cache: &Path,
    key: &str,
    file: &Path,
    options: &Data,
    tokenizer: &Tokenizer,
    around: [Option<u32>; 2],
    vocab_size: usize,
) -> Result<()> {
    atomic::create_folders(cache)?;
    let path = cache.join(format!("{key}.tokens"));
    let (mut document_lengths, mut hash, mut failed) = (Vec::new(), Sha256::new(), None);
    let written = atomic::write_file(&path, |out| {
        let (lengths, hash) = (&mut document_lengths, &mut hash);
        let mut shard = ShardWriter { out, path: &path, source: file, vocab_size, document_lengths: lengths, hash };
        let filled = fill(&mut shard, options, tokenizer, around);
        // Under this name for `write_file` to undo; the error with its causes comes out below.
        filled.map_err(|error| {
            let told = FormatError::invalid(file, format!("{error:#}"));
            failed = Some(error);
            told
        })
    });
    match failed {
        Some(error) => return Err(error),
        None => written?,
    }
    let sha256 = with_lengths(hash, &document_lengths);
    let index = serde_json::to_vec(&ShardIndex { source: file.display().to_string(), document_lengths, sha256 })?;
    atomic::write_bytes(&cache.join(format!("{key}.json")), &index)?;
    Ok(())
}

/// A shard's file of tokens, being written.
struct ShardWriter<'a> {
    out: &'a mut BufWriter<File>,
    path: &'a Path,
    source: &'a Path,
    vocab_size: usize,
    document_lengths: &'a mut Vec<usize>,
    /// Hash of the tokens so far.
    hash: &'a mut Sha256,
}

impl ShardWriter<'_> {
    /// Writes tokens of the last document.
    fn add(&mut self, tokens: &[u32]) -> Result<(), FormatError> {
        if let Some(token) = tokens.iter().find(|token| **token as usize >= self.vocab_size) {
            let reason = format!("token {token} is outside the model's vocabulary of {}", self.vocab_size);
            return Err(FormatError::invalid(self.source, reason));
        }
        // In the byte order of the machine, in which `cast_slice` reads it back: a cache is not for carrying around.
        let bytes: &[u8] = bytemuck::cast_slice(tokens);
        self.out.write_all(bytes).map_err(FormatError::io(self.path))?;
        self.hash.update(bytes);
        if let Some(length) = self.document_lengths.last_mut() {
            *length += tokens.len();
        }
        Ok(())
    }
}

/// Tokenizes the documents of the shard's source. Of `around`, the first stands in front of each and the second behind it.
fn fill(shard: &mut ShardWriter, options: &Data, tokenizer: &Tokenizer, around: [Option<u32>; 2]) -> Result<()> {
    let [bos, eos] = around.map(|token| token.map(|token| vec![token]).unwrap_or_default());
    let refused = |source: &Path, error| anyhow!("{}: cannot be tokenized: {error}", source.display());
    let (mut batch, mut bytes) = (Vec::new(), 0);
    let write = |shard: &mut ShardWriter, batch: &mut Vec<String>| {
        for tokens in tokens_of_all(tokenizer, batch).map_err(|e| refused(shard.source, e))? {
            shard.document_lengths.push(0);
            [&bos, &tokens, &eos].into_iter().try_for_each(|tokens| shard.add(tokens))?;
        }
        batch.clear();
        Ok::<_, anyhow::Error>(())
    };
    documents(shard.source, options, |document| {
        if document.len() < BATCH {
            batch.push(document.to_string());
            bytes += document.len();
            if bytes < BATCH {
                return Ok(());
            }
        }
        write(shard, &mut batch)?;
        bytes = 0;
        if document.len() >= BATCH {
            shard.document_lengths.push(0);
            shard.add(&bos)?;
            let mut written = Ok(());
            let told = for_tokens(tokenizer, document, |tokens| {
                written = shard.add(tokens);
                if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            told.map_err(|e| refused(shard.source, e))?;
            written?;
            shard.add(&eos)?;
        }
        Ok(())
    })?;
    write(shard, &mut batch)?;
    if shard.document_lengths.iter().all(|length| *length == 0) {
        return Err(FormatError::invalid(shard.source, "no tokens in this file").into());
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use tokenizers::models::wordlevel::WordLevel;
    use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

    use super::*;

    /// Ends every document of [`corpus`].
    pub(crate) const EOS: u32 = 999;

    /// A vocabulary of the numbers 0 to 997, each its own token, and `?` for all other words.
    fn tokenizer() -> Tokenizer {
        let vocab = (0..998).map(|i| (i.to_string(), i)).chain([("?".to_string(), 998)]).collect();
        let model = WordLevel::builder().vocab(vocab).unk_token("?".into()).build().unwrap();
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(WhitespaceSplit));
        tokenizer
    }

    fn config() -> ModelConfig {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/nano.json");
        let nano = bitllama_formats::hf::read_config(&path).unwrap();
        ModelConfig { vocab_size: 1000, bos_token_id: None, eos_token_ids: vec![EOS], ..nano }
    }

    fn load(folder: &Path) -> Result<Corpus> {
        let options = format!("train = []\ndocument_start = [\"#\"]\ncache = {:?}", folder.join("cache"));
        Corpus::load(&[folder.join("text.txt")], &toml::from_str(&options).unwrap(), &tokenizer(), &config())
    }

    /// The tokens of a text in which lines that start with `#` begin documents. `#` itself is no word of them.
    pub(crate) fn corpus(text: &str) -> (tempfile::TempDir, Corpus) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("text.txt"), text.replace("# \n", "#\n")).unwrap();
        let corpus = load(folder.path()).unwrap();
        // The `#` of a document is its first token, `?`; tests count without it.
        let documents =
            corpus.documents.iter().map(|(shard, start, length)| match corpus.shards[*shard].tokens()[*start] {
                998 => (*shard, start + 1, length - 1),
                _ => (*shard, *start, *length),
            });
        let documents = documents.collect();
        (folder, Corpus { documents, ..corpus })
    }

    #[test]
    fn a_source_is_tokenized_once_and_a_changed_one_anew() {
        let (folder, first) = corpus("# \n1 2 3\n# \n4 5\n");
        assert_eq!((first.document(0), first.document(1)), (&[1, 2, 3, EOS][..], &[4, 5, EOS][..]));
        assert_eq!((first.token_count(), first.all_tokens().len()), (7, 7));
        let cache = folder.path().join("cache");
        let modified = |key: &str| fs::metadata(cache.join(format!("{key}.tokens"))).unwrap().modified().unwrap();
        let before = modified(&first.hashes[0]);
        let again = load(folder.path()).unwrap();
        assert_eq!((again.hashes.clone(), modified(&first.hashes[0])), (first.hashes.clone(), before));

        fs::write(folder.path().join("text.txt"), "#\n1 2 4\n").unwrap();
        let changed = load(folder.path()).unwrap();
        assert_ne!(changed.hashes, first.hashes);
        assert_eq!(changed.document(0), [998, 1, 2, 4, EOS]);
        let key = changed.hashes[0].clone();
        drop(changed);

        // A shard that a kill or a full disk cut short is made anew.
        fs::write(cache.join(format!("{key}.tokens")), [0; 6]).unwrap();
        assert_eq!(load(folder.path()).unwrap().document(0), [998, 1, 2, 4, EOS]);

        // So is one with a token or a length changed, of the same size; or without a checksum.
        let (tokens, index) = (cache.join(format!("{key}.tokens")), cache.join(format!("{key}.json")));
        let spoiled = |path: &Path, from: &str, to: &str| {
            let text = fs::read(path).unwrap();
            let at = text.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            fs::write(path, [&text[..at], to.as_bytes(), &text[at + from.len()..]].concat()).unwrap();
            assert_eq!(load(folder.path()).unwrap().document(0), [998, 1, 2, 4, EOS], "{from}");
        };
        spoiled(&tokens, "\x02", "\x03");
        spoiled(&index, "[5]", "[4]");
        spoiled(&index, "\"sha256\"", "\"sha512\"");
    }

    #[test]
    fn tokens_of_a_larger_vocabulary_are_not_taken_from_the_cache() {
        let (folder, _) = corpus("# \n1 2 997\n");
        let options = format!("train = []\ndocument_start = [\"#\"]\ncache = {:?}", folder.path().join("cache"));
        // The tokenizer and the text are those of the shard, so its key is too.
        let smaller = ModelConfig { vocab_size: 998, ..config() };
        let load =
            Corpus::load(&[folder.path().join("text.txt")], &toml::from_str(&options).unwrap(), &tokenizer(), &smaller);
        let message = load.err().unwrap().to_string();
        assert!(message.contains("token 998 is outside the model's vocabulary of 998"), "{message}");
    }
}
