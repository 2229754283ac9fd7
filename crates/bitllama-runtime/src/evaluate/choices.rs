//! Multiple-choice questions, answered with the choice that is the likeliest behind its context: zero-shot and by the rules
//! of lm-evaluation-harness (`lm_eval` 0.4), so that figures can be compared with other people's.
//!
//! | rule | in the harness |
//! |---|---|
//! | Context and continuation are encoded as one text and cut where the tokens of the context alone end. Spaces at the end of the context belong to the continuation. | `api/model.py`, `_encode_pair` |
//! | A BOS stands in front where the tokenizer puts one by itself ([`crate::text::own_bos`]); so does the harness from 0.4.10 on, before that it had none unless told. | `models/huggingface.py`, `tok_encode` |
//! | Control tokens that a text spells are text ([`crate::text::for_corpus`], for the caller to apply); the harness parses them. | `models/huggingface.py`, `tok_encode` |
//! | What exceeds the model's context goes from the left. | `models/huggingface.py`, `_loglikelihood_tokens` |
//! | `acc` takes the choice with the largest log-likelihood, the first of several; `acc_norm` that with the largest log-likelihood over the choice's length, which are its characters (Unicode code points, where papers speak of bytes). | `api/task.py`, `process_results` |
//! | Standard errors are those of a mean, `sqrt(p (1 - p) / (n - 1))`. | `api/metrics.py`, `mean_stderr` |

use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::softmax::negative_log_likelihoods;
use super::{LogitModel, Mean, check_logits, check_tokens};
use crate::text::encode;
use crate::{Error, Result};

/// A question in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What there is to choose from.
    pub choices: Vec<Choice>,
    /// Which of them is right.
    pub answer: usize,
}

/// One of the answers to a question, in tokens, no more than a model's context takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The context but its last token.
    beginning: Vec<u32>,
    /// The last token of the context, and the continuation but its last: what stands in front of each token that is scored.
    ending: Vec<u32>,
    /// The tokens that are scored.
    continuation: Vec<u32>,
    /// What `acc_norm` divides by.
    length: usize,
}

impl Choice {
    /// A `continuation` of `length` characters behind a `context`, which is cut from the left where both exceed `limit`
    /// tokens. The last token is scored and never read, so it does not count.
    ///
    /// # Errors
    /// [`Error::Choice`] without a token in either, or if the continuation alone exceeds `limit`.
    pub fn new(mut context: Vec<u32>, continuation: Vec<u32>, length: usize, limit: usize) -> Result<Self> {
        let Some((_, read)) = continuation.split_last() else {
            return Err(Error::Choice("a choice adds no token to its context".into()));
        };
        if continuation.len() > limit {
            let tokens = continuation.len();
            return Err(Error::Choice(format!("a choice has {tokens} tokens, the model's context only {limit}")));
        }
        let excess = (context.len() + read.len()).saturating_sub(limit);
        context.drain(..excess.min(context.len()));
        let Some(last) = context.pop() else {
            return Err(Error::Choice("a choice has no context: nothing stands in front of what is scored".into()));
        };
        let ending = [&[last], read].concat();
        Ok(Self { beginning: context, ending, continuation, length })
    }
}

/// How well a model answers the questions of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskScore {
    /// Questions answered.
    pub questions: usize,
    /// Fraction answered rightly, by log-likelihood.
    pub acc: f64,
    /// Standard error of `acc`.
    pub acc_error: f64,
    /// Fraction answered rightly, by log-likelihood a character.
    pub acc_norm: f64,
    /// Standard error of `acc_norm`.
    pub acc_norm_error: f64,
}

/// Tokens of `context`, and those that `continuation` adds to them. The first are not always how the text of both begins in
/// tokens: a tokenizer may merge across the border, and the continuation then begins behind as many tokens as the context has.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses a text.
pub fn split(
    tokenizer: &Tokenizer,
    bos: Option<u32>,
    context: &str,
    continuation: &str,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let whole = encode(tokenizer, bos, &format!("{context}{continuation}"))?;
    let context = encode(tokenizer, bos, context.trim_end())?;
    let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
    Ok((context, continuation))
}

/// Log-likelihood of each choice's continuation in its context, in nats. Neighbours with the same context, as the choices
/// of most questions are, let the model compute it once; those that differ in their last token only are one pass altogether.
///
/// # Errors
/// [`Error::Token`] for a token outside the vocabulary, [`Error::Model`] if the model fails, [`Error::NotFinite`] if its
/// logits are no numbers.
pub fn log_likelihoods(model: &mut (impl LogitModel + ?Sized), choices: &[Choice]) -> Result<Vec<f64>> {
    let vocab_size = model.vocab_size();
    let mut found = Vec::with_capacity(choices.len());
    for alike in choices.chunk_by(|a, b| a.beginning == b.beginning) {
        let beginning = &alike[0].beginning;
        let mut endings: Vec<&[u32]> = alike.iter().map(|choice| &choice.ending[..]).collect();
        endings.sort_unstable();
        endings.dedup();
        let scored = alike.iter().flat_map(|choice| &choice.continuation);
        check_tokens(beginning.iter().chain(endings.iter().copied().flatten()).chain(scored), vocab_size)?;
        let logits = model.logits_of_endings(beginning, &endings).map_err(Error::Model)?;
        if logits.len() != endings.len() {
            let message = format!("the model answered {} of {} endings", logits.len(), endings.len());
            return Err(Error::Model(message.into()));
        }
        for (rows, ending) in logits.iter().zip(&endings) {
            check_logits(rows, ending.len() * vocab_size)?;
        }
        for choice in alike {
            let at = endings.partition_point(|ending| *ending < &choice.ending[..]);
            let scores = negative_log_likelihoods(&logits[at], vocab_size, &choice.continuation)?;
            found.push(-scores.iter().sum::<f64>());
        }
    }
    Ok(found)
}

/// Has `model` answer all questions; `progress` is told the score so far after each.
///
/// # Errors
/// As [`log_likelihoods`]; [`Error::Options`] without a question.
pub fn answer(
    model: &mut (impl LogitModel + ?Sized),
    questions: &[Question],
    mut progress: impl FnMut(&TaskScore),
) -> Result<TaskScore> {
    let (mut acc, mut acc_norm) = (Mean::default(), Mean::default());
    for Question { choices, answer } in questions {
        let found = log_likelihoods(model, choices)?;
        let of_length = found.iter().zip(choices).map(|(score, choice)| score / choice.length as f64);
        acc_norm.add((first_largest(of_length) == *answer).into());
        acc.add((first_largest(found.iter().copied()) == *answer).into());
        progress(&score(acc, acc_norm));
    }
    match questions.is_empty() {
        true => Err(Error::Options("there is no question to answer".into())),
        false => Ok(score(acc, acc_norm)),
    }
}

fn score(acc: Mean, acc_norm: Mean) -> TaskScore {
    TaskScore {
        questions: acc.count,
        acc: acc.value(),
        acc_error: acc.error(),
        acc_norm: acc_norm.value(),
        acc_norm_error: acc_norm.error(),
    }
}

/// Place of the largest value, the first of several; 0 where all are minus infinity, as for NumPy.
fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let larger = |best: (usize, f64), next: (usize, f64)| if next.1 > best.1 { next } else { best };
    values.enumerate().fold((0, f64::NEG_INFINITY), larger).0
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixed;
    use super::*;
    use crate::testing::byte_tokenizer;

    fn choice(context: &[u32], continuation: &[u32]) -> Choice {
        Choice::new(context.to_vec(), continuation.to_vec(), 1, 100).unwrap()
    }

    fn bytes(text: &str) -> Vec<u32> {
        encode(&byte_tokenizer(), None, text).unwrap()
    }

    #[test]
    fn spaces_belong_to_the_continuation() {
        let tokenizer = byte_tokenizer();
        assert_eq!(split(&tokenizer, None, "ab", " cd").unwrap(), (bytes("ab"), bytes(" cd")));
        assert_eq!(split(&tokenizer, None, "ab \n", "cd").unwrap(), (bytes("ab"), bytes(" \ncd")));
        let (context, continuation) = split(&tokenizer, Some(256), "ab ", " cd").unwrap();
        assert_eq!((context[0], &context[1..], continuation), (256, &bytes("ab")[..], bytes("  cd")));
        assert!(split(&tokenizer, None, "ab", "").unwrap().1.is_empty());
    }

    /// Letters, and one token for `b c`.
    fn merging_tokenizer() -> Tokenizer {
        let vocab = serde_json::json!({ "a": 0, "b": 1, "c": 2, "d": 3, "bc": 4 });
        let model = serde_json::json!({ "type": "BPE", "vocab": vocab, "merges": ["b c"] });
        Tokenizer::from_bytes(serde_json::json!({ "version": "1.0", "model": model }).to_string()).unwrap()
    }

    #[test]
    fn a_merge_across_the_border_is_cut_by_count() {
        let tokenizer = merging_tokenizer();
        // Together `a bc d`; the context alone is `a b`, so its two tokens stand in front of the third.
        assert_eq!(split(&tokenizer, None, "ab", "cd").unwrap(), (vec![0, 1], vec![3]));
        let (context, continuation) = split(&tokenizer, None, "ab", "c").unwrap();
        assert_eq!((&context[..], &continuation[..]), (&[0, 1][..], &[][..]));
        let message = Choice::new(context, continuation, 1, 9).unwrap_err().to_string();
        assert!(message.contains("adds no token"), "{message}");
    }

    #[test]
    fn what_is_too_long_goes_from_the_left() {
        let parts = |limit| {
            let Choice { beginning, ending, .. } = Choice::new(vec![1, 2, 3, 4], vec![5, 6], 1, limit).unwrap();
            [beginning, ending]
        };
        assert_eq!(parts(9), [vec![1, 2, 3], vec![4, 5]]);
        assert_eq!(parts(5), [vec![1, 2, 3], vec![4, 5]]);
        assert_eq!(parts(4), [vec![2, 3], vec![4, 5]]);
        assert_eq!(parts(2), [vec![], vec![4, 5]]);
        let message = Choice::new(vec![1], vec![5, 6], 1, 1).unwrap_err().to_string();
        assert!(message.contains("has 2 tokens") && message.contains("only 1"), "{message}");
        assert!(Choice::new(vec![], vec![5], 1, 9).unwrap_err().to_string().contains("no context"));
    }

    #[test]
    fn log_likelihoods_by_hand() {
        // Probabilities 1/2, 1/4, 1/4.
        let mut model = Fixed::new(&[2f32.ln(), 0.0, 0.0]);
        let choices = [choice(&[2, 2], &[0, 1]), choice(&[2, 2], &[0]), choice(&[1], &[1])];
        let found = log_likelihoods(&mut model, &choices).unwrap();
        for (found, expected) in found.iter().zip([-8f64.ln(), -2f64.ln(), -4f64.ln()]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let outside = log_likelihoods(&mut model, &[choice(&[2], &[3])]).unwrap_err();
        assert!(outside.to_string().contains("token 3 is outside"), "{outside}");
        let nan = log_likelihoods(&mut Fixed::new(&[f32::NAN; 3]), &choices).unwrap_err();
        assert!(nan.to_string().contains("not finite"), "{nan}");
    }

    #[test]
    fn choices_of_one_token_are_one_pass() {
        let mut model = Fixed::new(&[0.0, 1.0, 2.0]);
        let choices = [choice(&[1, 2], &[0]), choice(&[1, 2], &[1]), choice(&[1, 2], &[2, 0]), choice(&[1], &[2])];
        let found = log_likelihoods(&mut model, &choices).unwrap();
        assert_eq!(model.asked, [&[1, 2][..], &[1, 2, 2], &[1]]);
        assert!((found[1] - found[0] - 1.0).abs() < 1e-6 && found[3] > found[1]);
    }

    #[test]
    fn accuracy_with_and_without_length() {
        let mut model = Fixed::new(&[1.0, 0.0]);
        let of = |lengths: [usize; 2]| {
            let choice = |(tokens, length): (&[u32], usize)| Choice::new(vec![0], tokens.to_vec(), length, 9).unwrap();
            [(&[0][..], lengths[0]), (&[0, 0][..], lengths[1])].map(choice).to_vec()
        };
        // The first choice is likelier; a character of the second is, where it has more than twice as many.
        let question = |lengths, answer| Question { choices: of(lengths), answer };
        let questions = [question([1, 3], 0), question([1, 1], 0), question([1, 3], 1), question([1, 3], 1)];
        let mut seen = Vec::new();
        let score = answer(&mut model, &questions, |score| seen.push((score.questions, score.acc))).unwrap();
        assert_eq!((score.questions, score.acc, score.acc_norm), (4, 0.5, 0.75));
        assert!((score.acc_error - (0.25f64 / 3.0).sqrt()).abs() < 1e-12);
        assert!((score.acc_norm_error - (0.1875f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(seen, [(1, 1.0), (2, 1.0), (3, 2.0 / 3.0), (4, 0.5)]);
        assert_eq!(answer(&mut model, &questions[..1], |_| ()).unwrap().acc_error, 0.0);
        assert!(answer(&mut model, &[], |_| ()).unwrap_err().to_string().contains("no question"));
    }

    #[test]
    fn the_first_of_equals_is_taken() {
        assert_eq!(first_largest([-2.0, -1.0, -1.0].into_iter()), 1);
        assert_eq!(first_largest([f64::NEG_INFINITY; 2].into_iter()), 0);
    }

    #[test]
    fn field_names_in_json() {
        let score = TaskScore { questions: 2, acc: 0.5, acc_error: 0.5, acc_norm: 1.0, acc_norm_error: 0.0 };
        let json = serde_json::to_value(score).unwrap();
        let names: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["questions", "acc", "acc_error", "acc_norm", "acc_norm_error"]);
        assert_eq!(serde_json::from_value::<TaskScore>(json).unwrap(), score);
    }
}
