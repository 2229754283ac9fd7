//! Training rows: documents are laid end to end in a shuffled order and cut into rows of equal length; each token
//! remembers its document, so that attention and targets stay inside it.
//!
//! Every epoch has its own order, a function of the seed and the epoch alone: any step can be asked for directly,
//! which is what makes a resumed run see what an uninterrupted one would.

use anyhow::{Result, ensure};
use rand::seq::SliceRandom;

use super::tokens::Corpus;
use crate::seeded;

/// One forward pass of training rows; all fields `[rows, sequence_length]`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Tokens in.
    pub inputs: Vec<u32>,
    /// The token after each.
    pub targets: Vec<u32>,
    /// Number of each token's document within the epoch.
    pub documents: Vec<u32>,
    /// Whether the target belongs to the same document as its input.
    pub scored: Vec<bool>,
}

/// Rows of a corpus, epoch after epoch.
pub struct Rows {
    corpus: Corpus,
    sequence_length: usize,
    seed: u64,
    epoch: Epoch,
}

/// The order of one epoch.
struct Epoch {
    number: u64,
    /// Documents in the order they are laid out.
    documents: Vec<usize>,
    /// First token of each of them in the epoch's stream.
    starts: Vec<usize>,
    /// Rows in the order they are seen.
    rows: Vec<usize>,
}

impl Rows {
    /// Prepares rows of `sequence_length` tokens.
    ///
    /// # Errors
    /// If the corpus is shorter than one row and its last target.
    pub fn new(corpus: Corpus, sequence_length: usize, seed: u64) -> Result<Self> {
        let tokens = corpus.token_count();
        ensure!(
            tokens > sequence_length,
            "the training text has {tokens} tokens, fewer than one row of {sequence_length} and its last target; add \
             text or lower `data.sequence_length`"
        );
        let epoch = epoch(&corpus, sequence_length, seed, 0);
        Ok(Self { corpus, sequence_length, seed, epoch })
    }

    /// Rows an epoch.
    pub fn rows_per_epoch(&self) -> usize {
        (self.corpus.token_count() - 1) / self.sequence_length
    }

    /// The rows `first .. first + count` of the endless sequence of epochs.
    pub fn batch(&mut self, first: u64, count: usize) -> Batch {
        let mut batch = Batch { inputs: vec![], targets: vec![], documents: vec![], scored: vec![] };
        for row in first..first + count as u64 {
            let (number, within) = (row / self.rows_per_epoch() as u64, row % self.rows_per_epoch() as u64);
            if self.epoch.number != number {
                self.epoch = epoch(&self.corpus, self.sequence_length, self.seed, number);
            }
            self.push_row(self.epoch.rows[within as usize], &mut batch);
        }
        batch
    }

    fn push_row(&self, row: usize, batch: &mut Batch) {
        let first = row * self.sequence_length;
        let mut document = self.epoch.starts.partition_point(|start| *start <= first) - 1;
        let mut tokens = Vec::with_capacity(self.sequence_length + 1);
        let mut owners = Vec::with_capacity(self.sequence_length + 1);
        while tokens.len() <= self.sequence_length {
            let within = first + tokens.len() - self.epoch.starts[document];
            let rest = &self.corpus.document(self.epoch.documents[document])[within..];
            let take = rest.len().min(self.sequence_length + 1 - tokens.len());
            tokens.extend_from_slice(&rest[..take]);
            owners.resize(tokens.len(), document as u32);
            document += 1;
        }
        batch.inputs.extend_from_slice(&tokens[..self.sequence_length]);
        batch.targets.extend_from_slice(&tokens[1..]);
        batch.documents.extend_from_slice(&owners[..self.sequence_length]);
        batch.scored.extend(owners.windows(2).map(|pair| pair[0] == pair[1]));
    }
}

fn epoch(corpus: &Corpus, sequence_length: usize, seed: u64, number: u64) -> Epoch {
    let mut documents: Vec<usize> = (0..corpus.document_count()).collect();
    documents.shuffle(&mut seeded(seed, "order of documents", number));
    let mut total = 0;
    let mut starts = Vec::with_capacity(documents.len());
    for document in &documents {
        starts.push(total);
        total += corpus.document(*document).len();
    }
    let mut rows: Vec<usize> = (0..(total - 1) / sequence_length).collect();
    rows.shuffle(&mut seeded(seed, "order of rows", number));
    Epoch { number, documents, starts, rows }
}
