//! Text to batches: documents, cached tokens, a held-out split, packed rows.
//!
//! | module | subject |
//! |---|---|
//! | [`documents`] | text files cut into documents |
//! | [`tokens`] | documents to tokens, cached on disk by content and memory-mapped |
//! | [`batches`] | tokens to training rows, in an order fixed by the seed |

use anyhow::{Result, ensure};
use bitllama_core::ModelConfig;
use rand::seq::SliceRandom;
use tokenizers::Tokenizer;

use crate::recipe::Recipe;
use crate::seeded;

pub mod batches;
pub mod documents;
pub mod tokens;

use tokens::Corpus;

/// Training and held-out documents of a recipe.
pub struct Split {
    /// Documents to train on.
    pub train: Corpus,
    /// Documents held out.
    pub valid: Corpus,
}

/// Tokenizes (or finds in the cache) the text of a recipe and splits it by document.
///
/// # Errors
/// A source that is missing, unreadable or empty; too few documents to hold any out.
pub fn load(recipe: &Recipe, tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Split> {
    let all = Corpus::load(&recipe.data.train, &recipe.data, tokenizer, config)?;
    if !recipe.data.valid.is_empty() {
        let valid = Corpus::load(&recipe.data.valid, &recipe.data, tokenizer, config)?;
        return Ok(Split { train: all, valid });
    }
    let count = all.document_count();
    ensure!(
        count >= 2,
        "data.train has {count} document, so none can be held out: name held-out text in `data.valid`, or set \
         `data.document_start` to the words that begin a document"
    );
    let mut order: Vec<usize> = (0..count).collect();
    order.shuffle(&mut seeded(recipe.seed, "held-out documents", 0));
    let held_out = ((count as f64 * recipe.data.valid_fraction).ceil() as usize).clamp(1, count - 1);
    let (mut valid, mut train) = (order[..held_out].to_vec(), order[held_out..].to_vec());
    valid.sort_unstable();
    train.sort_unstable();
    Ok(Split { train: all.select(&train), valid: all.select(&valid) })
}
