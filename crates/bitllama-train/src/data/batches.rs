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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::data::tokens::tests::{EOS, corpus};

    /// Documents of 1 to 12 words, numbered so that a token tells its document and place.
    fn numbered() -> (tempfile::TempDir, Corpus) {
        let words = |d: usize| (0..1 + d * 5 % 12).map(move |i| (d * 20 + i).to_string()).collect::<Vec<_>>();
        let text: Vec<String> = (0..30).map(|d| format!("# \n{}\n", words(d).join(" "))).collect();
        corpus(&text.concat())
    }

    #[test]
    fn rows_keep_documents_apart_and_see_each_token_once() {
        let (_folder, corpus) = numbered();
        let mut rows = Rows::new(corpus.clone(), 16, 0).unwrap();
        let count = rows.rows_per_epoch();
        let epoch = rows.batch(0, count);
        assert_eq!(epoch.inputs.len(), count * 16);
        let mut seen = HashSet::new();
        for at in 0..epoch.inputs.len() {
            let (input, target) = (epoch.inputs[at], epoch.targets[at]);
            assert_eq!(epoch.scored[at], input != EOS, "the last token of a document has no target in it");
            if at % 16 != 15 {
                assert_eq!(epoch.inputs[at + 1], target);
                assert_eq!(epoch.documents[at] == epoch.documents[at + 1], epoch.scored[at]);
            }
            assert!(input == EOS || seen.insert(input), "token {input} twice");
            assert!(input == EOS || target == EOS || target == input + 1, "a target is what follows in the document");
        }
        assert!(seen.len() + 30 + 16 > corpus.token_count(), "only the rest of the last row is left out");
    }

    #[test]
    fn any_step_can_be_asked_for_and_the_seed_decides() {
        let (_folder, corpus) = numbered();
        let rows = |seed| Rows::new(corpus.clone(), 8, seed).unwrap();
        let n = rows(0).rows_per_epoch() as u64;
        let mut straight = rows(0);
        let all: Vec<Batch> = (0..3 * n).map(|row| straight.batch(row, 1)).collect();
        assert_eq!(rows(0).batch(2 * n + 1, 1), all[2 * n as usize + 1], "without the steps before");
        assert_ne!(all[0..n as usize], all[n as usize..2 * n as usize], "every epoch has its own order");
        assert_ne!(rows(1).batch(0, 4), rows(0).batch(0, 4));
        let mut across = rows(0);
        assert_eq!(across.batch(n - 1, 2).inputs[8..], all[n as usize].inputs[..]);
    }

    #[test]
    fn too_little_text_is_refused() {
        let (_folder, corpus) = corpus("one two three");
        let message = Rows::new(corpus, 16, 0).err().unwrap().to_string();
        assert!(message.contains("fewer than one row of 16"), "{message}");
    }
}
