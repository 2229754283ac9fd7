//! A teacher's likeliest tokens of training rows, on disk, so that training needs no teacher in memory.
//!
//! A folder: `index.json` says what was cached ([`Index`]); `rows-NNNNNN.bin` each hold `rows_per_shard` rows (the last one
//! those that are left), one array after the other, little-endian, over the positions of all its rows:
//!
//! | array | type, shape |
//! |---|---|
//! | the likeliest tokens, the likeliest first | u16 or u32, `[positions, top_k]` |
//! | natural logarithms of their probabilities | f16 or f32, `[positions, top_k]` |
//! | that of the probability of all other tokens together | f32, `[positions]` |
//! | SHA-256 of the arrays before it, which version 0.1.0 did not write | 32 bytes |
//!
//! Row `r` is the row `r` of the endless sequence of [`crate::data::batches::Rows`], which the hashes of the data, the
//! seed and the length of a row decide.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use bitllama_formats::identity::Identity;
use bitllama_formats::output::{Growing, Kind};
use bitllama_formats::{checksums, json, notes, version};
use bitllama_runtime::evaluate::Perplexity;
use clap::ValueEnum;
use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

/// No cache has so many rows, nor any other count of its index.
pub const MAX_ROWS: usize = 1 << 31;

/// The file that makes a folder a cache.
pub const INDEX: &str = "index.json";

/// Version of the layout; version 1, of 0.1.0, has no checksums.
pub const FORMAT_VERSION: u32 = 2;

/// Bytes of the checksum that ends a shard.
const CHECKSUM: usize = 32;

/// How logarithms are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// Half precision
    F16,
    /// Single precision
    F32,
}

/// What a cache holds, and of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Index {
    /// [`FORMAT_VERSION`], or 1.
    pub format_version: u32,
    /// Tokens of each position.
    pub top_k: usize,
    /// Of their logarithms.
    pub dtype: Dtype,
    /// At which the distributions were taken.
    pub temperature: f64,
    /// Size of the vocabulary: below 65,537, tokens are u16.
    pub vocab_size: usize,
    /// Positions of a row.
    pub sequence_length: usize,
    /// Rows in all shards.
    pub rows: usize,
    /// Rows of a shard.
    pub rows_per_shard: usize,
    /// SHA-256 of the tokenizer.
    pub tokenizer_sha256: String,
    /// What decides the rows: hashes of the data, seed, share held out.
    pub data: Value,
    /// The teacher.
    pub teacher: Identity,
    /// How the teacher does on the held-out documents, and by which protocol.
    pub evaluation: Evaluation,
}

/// The teacher's perplexity, so that it need not be taken again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Hashes of the text, tokens a chunk, chunks.
    pub protocol: Value,
    /// Of the teacher.
    pub perplexity: Perplexity,
}

/// A teacher's likeliest tokens of some positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Likeliest {
    /// `[positions, k]`.
    pub tokens: Vec<u32>,
    /// Natural logarithms of their probabilities and, last, of that of all others, `[positions, k + 1]`.
    pub log_p: Vec<f32>,
}

/// SHA-256 of a tokenizer.
///
/// # Errors
/// If it cannot be written out.
pub fn tokenizer_sha256(tokenizer: &Tokenizer) -> Result<String> {
    let text = tokenizer.to_string(false).map_err(|e| anyhow::anyhow!("the tokenizer cannot be hashed: {e}"))?;
    Ok(checksums::of_bytes(text.as_bytes()))
}

impl Index {
    /// Bytes of a token: `u16`, or `u32` for vocabularies that need it.
    fn token_bytes(&self) -> usize {
        if self.vocab_size <= 1 << 16 { 2 } else { 4 }
    }

    fn logarithm_bytes(&self) -> usize {
        match self.dtype {
            Dtype::F16 => 2,
            Dtype::F32 => 4,
        }
    }

    /// Bytes on disk for a position.
    pub fn bytes_per_token(&self) -> usize {
        self.top_k * (self.token_bytes() + self.logarithm_bytes()) + 4
    }

    /// Number of shards.
    pub fn shards(&self) -> usize {
        self.rows.div_ceil(self.rows_per_shard)
    }

    /// The rows of a shard.
    pub fn rows_of(&self, shard: usize) -> std::ops::Range<usize> {
        let first = shard * self.rows_per_shard;
        first..(first + self.rows_per_shard).min(self.rows)
    }

    /// Bytes of the largest shard, if they can be counted.
    fn checked_shard_bytes(&self) -> Option<usize> {
        let per_token = self.top_k.checked_mul(self.token_bytes() + self.logarithm_bytes())?.checked_add(4)?;
        self.rows_per_shard.min(self.rows).checked_mul(self.sequence_length)?.checked_mul(per_token)
    }

    fn shard_bytes(&self, shard: usize) -> usize {
        self.rows_of(shard).len() * self.sequence_length * self.bytes_per_token()
    }

    /// The index of a folder, `None` if there is none.
    ///
    /// # Errors
    /// If it is there and cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(INDEX);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("{}", path.display())),
        };
        let json = json::parse(&path, &bytes)?;
        version::check(&path, &json, FORMAT_VERSION)?;
        let index: Self = serde_json::from_value(json).with_context(|| format!("{}", path.display()))?;
        let sound = index.top_k > 0
            && index.top_k < index.vocab_size
            && index.sequence_length > 0
            && index.rows > 0
            && index.rows_per_shard > 0
            && [index.vocab_size, index.sequence_length, index.rows, index.rows_per_shard]
                .iter()
                .all(|n| *n < MAX_ROWS)
            && index.checked_shard_bytes().is_some();
        ensure!(sound, "{}: damaged: its counts are those of no teacher cache", path.display());
        Ok(Some(index))
    }

    /// Writes the index of a folder that exists.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = format!("{:#}\n", serde_json::to_value(self)?);
        Ok(Growing::new(folder, Kind::TeacherCache).write(INDEX, text.as_bytes())?)
    }

    /// Whether the folder has a shard of the right length.
    pub fn has_shard(&self, folder: &Path, shard: usize) -> bool {
        let expected = self.shard_bytes(shard);
        let right = |bytes: u64| [expected, expected + CHECKSUM].contains(&(bytes as usize));
        fs::metadata(shard_path(folder, shard)).is_ok_and(|found| right(found.len()))
    }

    /// Whether the bytes of a shard, of the right length, are those that were written; of version 0.1.0 that is not known.
    fn is_sound(&self, shard: usize, bytes: &[u8]) -> bool {
        let (arrays, checksum) = bytes.split_at(self.shard_bytes(shard).min(bytes.len()));
        checksum.is_empty() || Sha256::digest(arrays)[..] == *checksum
    }

    /// The shards that the folder has not, or not whole. Those that are damaged are named on standard error.
    ///
    /// # Errors
    /// A shard that cannot be read.
    pub fn missing(&self, folder: &Path) -> Result<Vec<usize>> {
        let is_missing = |shard: usize| -> Result<bool> {
            let path = shard_path(folder, shard);
            if !self.has_shard(folder, shard) {
                return Ok(true);
            }
            let bytes = fs::read(&path).with_context(|| format!("{}", path.display()))?;
            let sound = self.is_sound(shard, &bytes);
            if !sound {
                notes::tell(&path, "damaged, its SHA-256 is not the one at its end; it is made again");
            }
            Ok(!sound)
        };
        let all = (0..self.shards()).into_par_iter();
        let found = all.map(|shard| Ok(is_missing(shard)?.then_some(shard))).collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Writes a shard: [`Likeliest`] of all positions of its rows.
    ///
    /// # Errors
    /// If the disk does not take it.
    pub fn write_shard(&self, folder: &Path, shard: usize, likeliest: &Likeliest) -> Result<()> {
        let mut bytes = Vec::with_capacity(self.shard_bytes(shard) + CHECKSUM);
        for token in &likeliest.tokens {
            bytes.extend_from_slice(&token.to_le_bytes()[..self.token_bytes()]);
        }
        let positions = likeliest.log_p.chunks_exact(self.top_k + 1);
        for log_p in positions.clone().flat_map(|position| &position[..self.top_k]) {
            match self.dtype {
                Dtype::F16 => bytes.extend(f16::from_f32(*log_p).to_le_bytes()),
                Dtype::F32 => bytes.extend(log_p.to_le_bytes()),
            }
        }
        bytes.extend(positions.flat_map(|position| position[self.top_k].to_le_bytes()));
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        Ok(Growing::new(folder, Kind::TeacherCache).rewrite(&shard_name(shard), &bytes)?)
    }
}

/// The file of a shard.
pub fn shard_path(folder: &Path, shard: usize) -> PathBuf {
    folder.join(shard_name(shard))
}

fn shard_name(shard: usize) -> String {
    format!("rows-{shard:06}.bin")
}

/// An open cache.
pub struct TeacherCache {
    folder: PathBuf,
    /// What it holds.
    pub index: Index,
    shards: Vec<Mmap>,
    /// Tokens of a position that are given, at most `index.top_k`.
    top_k: usize,
}

impl TeacherCache {
    /// Opens a whole cache, to give `top_k` tokens of each position, or all that it has.
    ///
    /// # Errors
    /// If it is none, is not whole, or has fewer tokens a position.
    pub fn open(folder: &Path, top_k: Option<usize>) -> Result<Self> {
        let at = folder.display();
        let Some(index) = Index::read(folder)? else { bail!("{at}: no teacher cache; `cache-teacher` makes one") };
        let top_k = top_k.unwrap_or(index.top_k);
        ensure!(
            top_k <= index.top_k,
            "{at}: holds the {} likeliest tokens of each position, fewer than distill.top_k = {top_k}",
            index.top_k
        );
        let mut shards = Vec::new();
        for shard in 0..index.shards() {
            ensure!(
                index.has_shard(folder, shard),
                "{at}: holds {shard} of {} parts; `cache-teacher` goes on where it stopped",
                index.shards()
            );
            let path = shard_path(folder, shard);
            let file = File::open(&path).with_context(|| format!("{}", path.display()))?;
            // SAFETY: like every map of this project: whoever changes the file meanwhile gets other numbers.
            shards.push(unsafe { Mmap::map(&file) }.with_context(|| format!("{}", path.display()))?);
        }
        Ok(Self { folder: folder.to_path_buf(), index, shards, top_k })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Holds the shards of the first `rows` rows against their checksums.
    ///
    /// # Errors
    /// The first that is damaged.
    pub fn verify(&self, rows: usize) -> Result<()> {
        let shards = rows.div_ceil(self.index.rows_per_shard).min(self.shards.len());
        let damaged =
            (0..shards).into_par_iter().find_first(|shard| !self.index.is_sound(*shard, &self.shards[*shard]));
        match damaged {
            None => Ok(()),
            Some(shard) => bail!(
                "{}: damaged, its SHA-256 is not the one at its end; `cache-teacher` with this recipe makes it again",
                shard_path(&self.folder, shard).display()
            ),
        }
    }

    /// Tokens that [`TeacherCache::rows`] gives of each position.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The likeliest tokens of the rows `first .. first + count`.
    ///
    /// # Errors
    /// If there are fewer rows, or a token is outside of the vocabulary, or a logarithm is that of no probability.
    pub fn rows(&self, first: usize, count: usize) -> Result<Likeliest> {
        let at = self.folder.display();
        ensure!(first + count <= self.index.rows, "{at}: has {} rows, not {}", self.index.rows, first + count);
        let mut all = Likeliest { tokens: Vec::new(), log_p: Vec::new() };
        for row in first..first + count {
            self.push_row(row, &mut all);
        }
        let outside = all.tokens.iter().find(|token| **token as usize >= self.index.vocab_size);
        ensure!(outside.is_none(), "{at}: damaged: token {} is outside of the vocabulary", outside.unwrap_or(&0));
        // Rounding may take one a little above 0.
        let wrong = all.log_p.iter().find(|log_p| log_p.is_nan() || **log_p > 0.1);
        ensure!(wrong.is_none(), "{at}: damaged: {} is no logarithm of a probability", wrong.unwrap_or(&0.0));
        Ok(all)
    }

    fn push_row(&self, row: usize, all: &mut Likeliest) {
        let index = &self.index;
        let (shard, seq, stored) = (row / index.rows_per_shard, index.sequence_length, index.top_k);
        let rows = index.rows_of(shard);
        let (within, positions) = (row - rows.start, rows.len() * seq);
        let (tokens, rest) = self.shards[shard].split_at(positions * stored * index.token_bytes());
        let (logarithms, rests) = rest.split_at(positions * stored * index.logarithm_bytes());
        let of_row = |bytes: &'_ [u8], width: usize| bytes[within * seq * width..(within + 1) * seq * width].to_vec();

        let tokens = of_row(tokens, stored * index.token_bytes());
        let tokens: Vec<u32> = match index.token_bytes() {
            2 => tokens.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b).into()).collect(),
            _ => tokens.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect(),
        };
        let logarithms = of_row(logarithms, stored * index.logarithm_bytes());
        let mut logarithms: Vec<f32> = match index.dtype {
            Dtype::F16 => {
                let halves: Vec<f16> = logarithms.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)).collect();
                let mut wide = vec![0.0; halves.len()];
                halves.convert_to_f32_slice(&mut wide);
                wide
            }
            Dtype::F32 => logarithms.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        };
        let rests = of_row(rests, 4);
        for (position, rest) in rests.as_chunks().0.iter().enumerate() {
            let of = position * stored..(position + 1) * stored;
            all.tokens.extend(&tokens[of.clone()][..self.top_k]);
            let rest = f32::from_le_bytes(*rest);
            if index.dtype == Dtype::F16 {
                normalize(&mut logarithms[of.clone()], rest);
            }
            let (kept, dropped) = logarithms[of].split_at(self.top_k);
            all.log_p.extend(kept);
            let mass: f32 = dropped.iter().map(|log_p| log_p.exp()).sum();
            all.log_p.push(if dropped.is_empty() { rest } else { (rest.exp() + mass).ln() });
        }
    }
}

/// Gives tokens whose logarithms were rounded the mass again that the others leave them. Without it the mass that rounding
/// makes or takes counts in a divergence at first order, where all else is of second.
fn normalize(log_p: &mut [f32], rest: f32) {
    let mass: f64 = log_p.iter().map(|log_p| (*log_p as f64).exp()).sum();
    let correction = ((1.0 - (rest as f64).exp()) / mass).ln() as f32;
    if correction.is_finite() {
        log_p.iter_mut().for_each(|log_p| *log_p += correction);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn index(dtype: Dtype, vocab_size: usize) -> Index {
        let perplexity = Perplexity { perplexity: 2.0, error: 0.1, nll: 0.7, tokens_scored: 10, chunks: 1 };
        Index {
            format_version: FORMAT_VERSION,
            top_k: 3,
            dtype,
            temperature: 1.0,
            vocab_size,
            sequence_length: 4,
            rows: 5,
            rows_per_shard: 2,
            tokenizer_sha256: String::new(),
            data: json!(null),
            teacher: Identity { path: String::new(), bytes: 0, sha256: None },
            evaluation: Evaluation { protocol: json!(null), perplexity },
        }
    }

    fn likeliest(rows: std::ops::Range<usize>) -> Likeliest {
        let positions = rows.start * 4..rows.end * 4;
        let tokens = positions.clone().flat_map(|p| (0..3).map(move |k| (p * 3 + k) as u32)).collect();
        let log_p = positions.flat_map(|p| {
            let second = 0.2 + p as f32 / 997.0;
            [0.5, second, 0.1, 0.4 - second].map(f32::ln)
        });
        let log_p = log_p.collect();
        Likeliest { tokens, log_p }
    }

    #[test]
    fn rows_come_back_from_any_shard() {
        for (dtype, vocab, bytes) in [(Dtype::F16, 65_536, 16), (Dtype::F32, 65_537, 28)] {
            let folder = tempfile::tempdir().unwrap();
            let index = index(dtype, vocab);
            assert_eq!(index.bytes_per_token(), bytes);
            index.write(folder.path()).unwrap();
            for shard in 0..3 {
                let message = TeacherCache::open(folder.path(), None).err().unwrap().to_string();
                assert!(message.contains(&format!("holds {shard} of 3 parts")), "{message}");
                index.write_shard(folder.path(), shard, &likeliest(index.rows_of(shard))).unwrap();
            }
            let cache = TeacherCache::open(folder.path(), None).unwrap();
            assert_eq!(cache.index, index);
            let (found, written) = (cache.rows(1, 4).unwrap(), likeliest(1..5));
            assert_eq!(found.tokens, written.tokens);
            for (found, written) in found.log_p.iter().zip(&written.log_p) {
                assert!((found - written).abs() <= if dtype == Dtype::F16 { 1e-3 } else { 0.0 }, "{found} {written}");
            }
            assert!(cache.rows(4, 2).unwrap_err().to_string().contains("has 5 rows, not 6"));

            let fewer = TeacherCache::open(folder.path(), Some(1)).unwrap().rows(0, 1).unwrap();
            assert_eq!(fewer.tokens[1], 3);
            assert!((fewer.log_p[2] - 0.5f32.ln()).abs() < 1e-3 && (fewer.log_p[1] - 0.5f32.ln()).abs() < 1e-3);
            let message = TeacherCache::open(folder.path(), Some(4)).err().unwrap().to_string();
            assert!(message.contains("fewer than distill.top_k = 4"), "{message}");
        }
    }

    #[test]
    fn damage_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index { vocab_size: 50, ..index(Dtype::F16, 50) };
        index.write(folder.path()).unwrap();
        for shard in 0..3 {
            index.write_shard(folder.path(), shard, &likeliest(index.rows_of(shard))).unwrap();
        }
        let cache = TeacherCache::open(folder.path(), None).unwrap();
        assert!(cache.rows(4, 1).unwrap_err().to_string().contains("outside of the vocabulary"));
        assert!(index.missing(folder.path()).unwrap().is_empty());
        cache.verify(5).unwrap();

        // A bit of the second shard.
        let (path, of_second) = (shard_path(folder.path(), 1), likeliest(index.rows_of(1)));
        let mut bytes = fs::read(&path).unwrap();
        bytes[3] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let cache = TeacherCache::open(folder.path(), None).unwrap();
        cache.verify(2).unwrap();
        for rows in [3, 5] {
            let message = cache.verify(rows).unwrap_err().to_string();
            assert!(message.contains("rows-000001.bin: damaged") && message.contains("`cache-teacher`"), "{message}");
        }
        assert_eq!(index.missing(folder.path()).unwrap(), [1]);

        // Version 0.1.0 wrote no checksum; what is no probability is noticed there too.
        index.write_shard(folder.path(), 1, &of_second).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - CHECKSUM);
        fs::write(&path, &bytes).unwrap();
        assert!(index.missing(folder.path()).unwrap().is_empty());
        let nan = f32::NAN.to_le_bytes();
        let end = bytes.len() - nan.len();
        bytes[end..].copy_from_slice(&nan);
        fs::write(&path, &bytes).unwrap();
        let cache = TeacherCache::open(folder.path(), None).unwrap();
        assert!(cache.rows(2, 1).is_ok());
        assert!(cache.rows(3, 1).unwrap_err().to_string().contains("NaN is no logarithm"));

        fs::write(shard_path(folder.path(), 1), [0]).unwrap();
        assert!(TeacherCache::open(folder.path(), None).is_err());
        fs::write(folder.path().join(INDEX), serde_json::to_vec(&Index { rows: 0, ..index }).unwrap()).unwrap();
        assert!(TeacherCache::open(folder.path(), None).is_err());
    }
}
