//! Errors of this crate.

use std::error::Error as _;
use std::fmt;

use bitllama_core::excerpt::printable;
use minijinja::ErrorKind;

/// A failed reading or rendering of a chat template. Each message is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A template that cannot be compiled.
    #[error("chat template, line {line}: {cause}; correct the template")]
    Syntax {
        /// The line in the template, from 1.
        line: usize,
        /// The cause, in one line.
        cause: String,
    },
    /// A template that fails on a conversation.
    #[error("chat template, line {line}: {cause}; the template may not be made for such a conversation")]
    Render {
        /// The line in the template, from 1.
        line: usize,
        /// The cause, in one line.
        cause: String,
    },
    /// A conversation that the template refuses by `raise_exception`, with the template's own words.
    #[error("the chat template refuses the conversation: \"{}\"", printable(.0))]
    Refused(String),
    /// A template that takes more steps or memory than [`Limits::fuel`](crate::Limits::fuel) allows.
    #[error(
        "chat template, line {0}: the limit of steps and memory is reached; shorten the conversation or raise the limit"
    )]
    Fuel(usize),
    /// A prompt that is longer than [`Limits::output`](crate::Limits::output).
    #[error("chat template: the prompt is longer than {0} bytes; shorten the conversation or raise the limit")]
    Output(usize),
    /// Values that a conversation cannot have.
    #[error("conversation: {0}")]
    Conversation(String),
    /// Entries of a model's files that are no chat template.
    #[error("{0}")]
    Config(String),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The words of a template that calls `raise_exception`.
#[derive(Debug)]
pub(crate) struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// The error of a template that cannot be compiled.
pub(crate) fn syntax(error: &minijinja::Error) -> Error {
    Error::Syntax { line: error.line().unwrap_or(1), cause: cause(error) }
}

/// The error of a template that fails on a conversation.
pub(crate) fn render(error: &minijinja::Error) -> Error {
    match chain(error).find_map(|error| error.downcast_ref::<Raised>()) {
        Some(Raised(words)) => Error::Refused(words.clone()),
        None if out_of_fuel(error) => Error::Fuel(error.line().unwrap_or(1)),
        None => Error::Render { line: error.line().unwrap_or(1), cause: cause(error) },
    }
}

fn out_of_fuel(error: &minijinja::Error) -> bool {
    chain(error).any(|error| error.downcast_ref().is_some_and(|e: &minijinja::Error| e.kind() == ErrorKind::OutOfFuel))
}

/// `error` and its sources.
fn chain(error: &minijinja::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    let first: &(dyn std::error::Error + 'static) = error;
    std::iter::successors(Some(first), |&error| error.source())
}

/// The message of the innermost error, in one line.
fn cause(error: &minijinja::Error) -> String {
    let inner = chain(error).filter_map(|error| error.downcast_ref::<minijinja::Error>()).last().unwrap_or(error);
    match (inner.detail(), inner.source()) {
        (Some(detail), None) => cut(detail),
        (Some(detail), Some(source)) => cut(&format!("{detail}: {source}")),
        (None, _) => inner.kind().to_string(),
    }
}

/// `text` in one line of at most 120 characters.
fn cut(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}..", printable(&text[..end])),
        None => printable(text).into_owned(),
    }
}
