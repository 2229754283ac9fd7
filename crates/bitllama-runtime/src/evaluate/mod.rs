//! Perplexity and divergence from a teacher, as llama.cpp's `perplexity` tool reports them
//! (`tools/perplexity/perplexity.cpp`), so that figures can be compared with other people's.
//!
//! Written once, over [`LogitModel`]: the runtime evaluates artifacts with it, and the trainer its Burn modules.
//!
//! The protocol: the text's tokens are cut into chunks of `ctx` that do not overlap; what is left over is not used. Each
//! chunk is a context of its own. Where the tokenizer puts a BOS token in front of a text ([`crate::text::own_bos`]), it
//! also takes the place of each chunk's first token. The logits of positions `ctx / 2 ..= ctx - 2` are scored against the token that follows each.
//!
//! Multiple-choice tasks follow lm-evaluation-harness: [`answer`] scores questions in tokens, [`Task`] reads them from files.

mod choices;
mod divergence;
mod layouts;
mod perplexity;
mod softmax;
mod tasks;

use crate::error::BoxError;
use crate::{Error, Result};

pub use choices::{Choice, Question, TaskScore, answer, log_likelihoods, split};
pub use divergence::{Comparison, Percentiles, compare};
pub use layouts::Layout;
pub use perplexity::{Perplexity, perplexity};
pub use tasks::{Task, TaskFile, TaskResult, table};

/// A causal language model seen from outside: tokens in, logits out.
pub trait LogitModel {
    /// Number of logits a position.
    fn vocab_size(&self) -> usize;

    /// Logits of every position of one fresh context, `[tokens, vocab_size]`, row-major.
    ///
    /// # Errors
    /// Whatever keeps the model from answering.
    fn logits(&mut self, tokens: &[u32]) -> std::result::Result<Vec<f32>, BoxError>;

    /// [`LogitModel::logits`] of the positions from `first` on only, `[tokens - first, vocab_size]`. Worth overriding
    /// where the head is costly: evaluation asks for half of the positions.
    ///
    /// # Errors
    /// As [`LogitModel::logits`].
    fn logits_from(&mut self, tokens: &[u32], first: usize) -> std::result::Result<Vec<f32>, BoxError> {
        let mut all = self.logits(tokens)?;
        all.drain(..(first * self.vocab_size()).min(all.len()));
        Ok(all)
    }

    /// Logits of every position of each of `endings`, `[ending, vocab_size]`, in fresh contexts that all begin with
    /// `beginning`. Worth overriding where the beginning can be computed once for all of them.
    ///
    /// # Errors
    /// As [`LogitModel::logits`].
    fn logits_of_endings(
        &mut self,
        beginning: &[u32],
        endings: &[&[u32]],
    ) -> std::result::Result<Vec<Vec<f32>>, BoxError> {
        endings.iter().map(|ending| self.logits_from(&[beginning, ending].concat(), beginning.len())).collect()
    }
}

/// Makes sure that all of `tokens` are in the vocabulary: the check in front of everything that looks tokens up.
///
/// # Errors
/// [`Error::Token`] with the first one that is not.
pub fn check_tokens<'a>(tokens: impl IntoIterator<Item = &'a u32>, vocab_size: usize) -> Result<()> {
    match tokens.into_iter().find(|token| **token as usize >= vocab_size) {
        Some(token) => Err(Error::Token { token: *token, vocab_size }),
        None => Ok(()),
    }
}

/// Whether a model gave as many logits as it was asked for.
fn check_logits(logits: &[f32], expected: usize) -> Result<()> {
    match logits.len() == expected {
        true => Ok(()),
        false => Err(Error::Model(format!("the model gave {} logits, {expected} were expected", logits.len()).into())),
    }
}

/// How a text is cut and scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Tokens a chunk, at least 4.
    pub ctx: usize,
    /// Score the first so many chunks only.
    pub chunks: Option<usize>,
    /// Token that replaces the first one of each chunk, if any; [`crate::text::own_bos`] tells as llama.cpp would.
    pub bos: Option<u32>,
}

impl Options {
    /// Tokens that are looked at, at most.
    pub fn tokens(&self) -> usize {
        self.chunks.map_or(usize::MAX, |chunks| chunks.saturating_mul(self.ctx))
    }
}

impl Default for Options {
    /// llama.cpp's context of 512 tokens, all chunks, no BOS.
    fn default() -> Self {
        Self { ctx: 512, chunks: None, bos: None }
    }
}

/// Told after each chunk.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Chunks done.
    pub chunk: usize,
    /// Chunks to do.
    pub chunks: usize,
    /// Perplexity so far (of the student, in a comparison).
    pub perplexity: f64,
}

/// Calls `score(model input, tokens that follow the scored positions)` for each chunk.
fn for_each_chunk(tokens: &[u32], options: Options, mut score: impl FnMut(Chunk<'_>) -> Result<()>) -> Result<()> {
    let chunks = chunk_count(tokens, options)?;
    for (index, chunk) in tokens.chunks_exact(options.ctx).take(chunks).enumerate() {
        let mut input = chunk.to_vec();
        if let Some(bos) = options.bos {
            input[0] = bos;
        }
        let first = options.ctx / 2;
        score(Chunk { index, chunks, input: &input, first, targets: &chunk[first + 1..] })?;
    }
    Ok(())
}

/// One context to evaluate.
struct Chunk<'a> {
    index: usize,
    chunks: usize,
    /// `[ctx]`, BOS in place.
    input: &'a [u32],
    /// The first position that is scored.
    first: usize,
    /// The tokens after each scored position, `[ctx - 1 - first]`.
    targets: &'a [u32],
}

impl Chunk<'_> {
    /// Logits of the scored positions, `[targets, vocab_size]`.
    fn logits(&self, model: &mut (impl LogitModel + ?Sized)) -> Result<Vec<f32>> {
        let vocab_size = model.vocab_size();
        check_tokens(self.targets.iter().chain(self.input), vocab_size)?;
        let mut logits = model.logits_from(self.input, self.first).map_err(Error::Model)?;
        check_logits(&logits, (self.input.len() - self.first) * vocab_size)?;
        logits.truncate(self.targets.len() * vocab_size);
        Ok(logits)
    }

    /// What to report once this chunk is scored.
    fn progress(&self, perplexity: f64) -> Progress {
        Progress { chunk: self.index + 1, chunks: self.chunks, perplexity }
    }
}

fn chunk_count(tokens: &[u32], options: Options) -> Result<usize> {
    if options.ctx < 4 {
        return Err(Error::Options(format!("a context of {} tokens is too short to score, at least 4", options.ctx)));
    }
    if options.chunks == Some(0) {
        return Err(Error::Options("at least one chunk must be scored".into()));
    }
    if tokens.is_empty() {
        return Err(Error::EmptyText);
    }
    let whole = tokens.len() / options.ctx;
    if whole == 0 {
        return Err(Error::TextTooShort { tokens: tokens.len(), ctx: options.ctx });
    }
    Ok(options.chunks.map_or(whole, |chunks| chunks.min(whole)))
}

/// A mean and its standard error, gathered one value at a time (`mean_and_uncertainty` of llama.cpp).
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    sum_of_squares: f64,
    count: usize,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.sum_of_squares += value * value;
        self.count += 1;
    }

    fn value(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// `sqrt((mean of squares - square of mean) / (count - 1))`; 0 where there are too few values to tell.
    fn error(&self) -> f64 {
        let variance = self.sum_of_squares / self.count as f64 - self.value().powi(2);
        // Rounding can take a variance of nothing below zero.
        if self.count > 1 && variance > 0.0 { (variance / (self.count - 1) as f64).sqrt() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the same distribution everywhere, and remembers what it was asked.
    pub(super) struct Fixed {
        pub row: Vec<f32>,
        pub asked: Vec<Vec<u32>>,
    }

    impl Fixed {
        pub fn new(row: &[f32]) -> Self {
            Self { row: row.to_vec(), asked: Vec::new() }
        }
    }

    impl LogitModel for Fixed {
        fn vocab_size(&self) -> usize {
            self.row.len()
        }

        fn logits(&mut self, tokens: &[u32]) -> std::result::Result<Vec<f32>, BoxError> {
            self.asked.push(tokens.to_vec());
            Ok(self.row.repeat(tokens.len()))
        }
    }

    #[test]
    fn chunks_do_not_overlap_and_begin_with_bos() {
        let mut model = Fixed::new(&[0.0; 12]);
        let tokens: Vec<u32> = (1..12).collect();
        let options = Options { ctx: 4, chunks: None, bos: Some(0) };
        let mut progress = Vec::new();
        let result = perplexity(&mut model, &tokens, options, |p| progress.push((p.chunk, p.chunks))).unwrap();
        assert_eq!(model.asked, [[0, 2, 3, 4], [0, 6, 7, 8]]);
        assert_eq!((result.chunks, result.tokens_scored), (2, 2));
        assert_eq!(progress, [(1, 2), (2, 2)]);

        model.asked.clear();
        perplexity(&mut model, &tokens, Options { chunks: Some(1), bos: None, ..options }, |_| ()).unwrap();
        assert_eq!(model.asked, [[1, 2, 3, 4]]);
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let refused = |tokens: &[u32], options| {
            let mut model = Fixed::new(&[0.0; 3]);
            perplexity(&mut model, tokens, options, |_| ()).unwrap_err().to_string()
        };
        let options = Options { ctx: 4, ..Options::default() };
        assert_eq!(refused(&[], options), "the text is empty");
        let message = refused(&[1, 2, 1], options);
        assert!(message.contains("3 tokens") && message.contains("chunk of 4"), "{message}");
        assert!(refused(&[1; 9], Options { ctx: 3, ..options }).contains("too short"));
        assert!(refused(&[1; 9], Options { chunks: Some(0), ..options }).contains("at least one chunk"));
        assert!(refused(&[1, 1, 1, 3], options).contains("token 3 is outside"));
        assert!(refused(&[1; 4], Options { bos: Some(9), ..options }).contains("token 9 is outside"));
    }

    #[test]
    fn a_mean_of_equal_values_has_no_error() {
        let mut mean = Mean::default();
        (0..7).for_each(|_| mean.add(0.1));
        assert!((mean.value() - 0.1).abs() < 1e-12 && mean.error() < 1e-8);
        let mut mean = Mean::default();
        mean.add(1.0);
        mean.add(3.0);
        assert_eq!((mean.value(), mean.error()), (2.0, 1.0));
    }
}
