//! What can go wrong between a model file and its answer.

use std::path::PathBuf;

use bitllama_core::excerpt::printable;

/// Result of loading, running or evaluating a model.
pub type Result<T> = std::result::Result<T, Error>;

/// Any error, for code behind a trait that this crate does not write.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A model that could not be loaded, run or evaluated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or understood.
    #[error(transparent)]
    Format(#[from] bitllama_formats::Error),
    /// The config describes no model.
    #[error(transparent)]
    Config(#[from] bitllama_core::Error),
    /// A weight whose size is not the one that the config asks for.
    #[error("weight {name} has {found}, the config asks for {expected}")]
    Shape {
        /// Name of the weight.
        name: String,
        /// What the file holds.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// More positions than the model was made for.
    #[error("{positions} tokens do not fit into the model's context of {limit} (max_position_embeddings)")]
    Context {
        /// Tokens cached and to come.
        positions: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A token that the model has no embedding for.
    #[error("token {token} is outside the vocabulary of {vocab_size} tokens")]
    Token {
        /// The token.
        token: u32,
        /// `vocab_size`.
        vocab_size: usize,
    },
    /// More memory than the machine has, asked for by what is named in front of this.
    #[error("takes about {:.1} GB of memory, this machine has {:.1} GB", *needed as f64 / 1e9, *there as f64 / 1e9)]
    Memory {
        /// Bytes asked for.
        needed: u128,
        /// Bytes of memory and swap.
        there: u64,
    },
    /// No token to start from.
    #[error("the prompt is empty and the model has no BOS token to start from")]
    EmptyPrompt,
    /// The tokenizer refused.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A sampling parameter out of its range.
    #[error("{name} = {value} is not {expected}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: String,
        /// Its range.
        expected: &'static str,
    },
    /// A draft model with other tokens than the model that it is to guess for.
    #[error("the tokenizers of model and draft differ: token `{0}` is not the same in both")]
    Draft(String),
    /// Logits that are no numbers: the weights are damaged, or training diverged.
    #[error("the model's logits are not finite ({0})")]
    NotFinite(String),
    /// Nothing to evaluate.
    #[error("the text is empty")]
    EmptyText,
    /// Less than one chunk.
    #[error("the text has {tokens} tokens, fewer than one chunk of {ctx}; choose a smaller context or a longer text")]
    TextTooShort {
        /// Tokens of the text.
        tokens: usize,
        /// Tokens a chunk.
        ctx: usize,
    },
    /// Evaluation options that score nothing.
    #[error("{0}")]
    Options(String),
    /// A choice of a question that cannot be scored.
    #[error("{0}")]
    Choice(String),
    /// A line of a task's file that is no question, or none that can be scored.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The cause.
        reason: String,
    },
    /// The two models of a comparison do not speak of the same tokens.
    #[error("the student's vocabulary has {student} tokens, the teacher's {teacher}")]
    Vocabularies {
        /// Vocabulary of the student.
        student: usize,
        /// Vocabulary of the teacher.
        teacher: usize,
    },
    /// The evaluated model failed.
    #[error(transparent)]
    Model(BoxError),
}

/// An error and its causes for a person, outermost first, on one line. A cause that the error above it already tells is
/// left out. Messages of other libraries quote what they found: quotations of more than 80 characters are cut, and control
/// characters are escaped.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(if line.is_empty() { "" } else { ": " });
            line.push_str(&text);
        }
        next = error.source();
    }
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    printable(&short_quotations(&line, &['`', '"'])).into_owned()
}

/// `line` with quotations between two of the same `marks` of at most [`QUOTATION`] characters, and in all no longer than
/// [`LINE`].
pub fn short_quotations(line: &str, marks: &[char]) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some((start, mark)) = rest.char_indices().find(|(_, c)| marks.contains(c)) {
        let inside = start + mark.len_utf8();
        out.push_str(&rest[..inside]);
        rest = &rest[inside..];
        let Some(length) = rest.find(mark) else { break };
        match rest[..length].char_indices().nth(QUOTATION) {
            Some((cut, _)) => out.extend([&rest[..cut], ".."]),
            None => out.push_str(&rest[..length]),
        }
        out.push(mark);
        rest = &rest[length + mark.len_utf8()..];
    }
    out.push_str(rest);
    match out.char_indices().nth(LINE) {
        Some((end, _)) => format!("{}..", &out[..end]),
        None => out,
    }
}

const QUOTATION: usize = 80;
const LINE: usize = 2000;

#[cfg(test)]
mod tests {
    #[test]
    fn errors_take_one_line_and_say_nothing_twice() {
        let source = bitllama_formats::Error::io("a/b")(std::io::Error::other("no\nspace"));
        assert_eq!(super::one_line(&super::Error::Format(source)), "a/b: no space");
    }

    #[test]
    fn quotations_are_cut_and_control_characters_escaped() {
        let said = |text: String| super::one_line(&std::io::Error::other(text));
        let long = "x".repeat(1 << 20);
        assert_eq!(
            said(format!("unknown `{long}`, \"{long}\" or `y`")),
            format!("unknown `{0}..`, \"{0}..\" or `y`", &long[..80])
        );
        assert_eq!(said("a\x1b[2J `b".into()), "a\\u{1b}[2J `b");
        assert_eq!(said(long.clone()), format!("{}..", &long[..2000]));
    }
}
