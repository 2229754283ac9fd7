//! Errors of this crate.

use bitllama_core::excerpt::printable;

/// A failed reading of a request or a failed generation. Each message is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A tokenizer whose tokens have no texts of their own.
    #[error("tokenizer: {0}")]
    Vocabulary(String),
    /// A parameter of a request that cannot be followed.
    #[error("{parameter}: {cause}")]
    Request {
        /// The name of the parameter, such as `response_format`.
        parameter: &'static str,
        /// The cause, in one line.
        cause: String,
    },
    /// A generation that cannot go on.
    #[error("constrained generation: {0}")]
    Generation(String),
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error of a parameter.
pub(crate) fn request(parameter: &'static str, cause: impl AsRef<str>) -> Error {
    Error::Request { parameter, cause: one_line(cause.as_ref()) }
}

/// The longest cause, in characters.
const LENGTH: usize = 200;

/// The first line of `text`, with the error that it announces, at most 200 characters, as a message may show it.
pub(crate) fn one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && *line != "<non-verbose/>");
    let first = lines.next().unwrap_or_default();
    let line = match lines.find_map(|line| line.strip_prefix("error: ")).filter(|_| first.ends_with(':')) {
        Some(error) => format!("{first} {error}"),
        None => first.to_owned(),
    };
    match line.char_indices().nth(LENGTH) {
        Some((end, _)) => format!("{}..", printable(&line[..end])),
        None => printable(&line).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_one_line() {
        assert_eq!(one_line("a\u{1b}b \nc"), "a\\u{1b}b");
        assert_eq!(
            one_line("regex parse error:\n  (\n  ^\nerror: unclosed group\n<non-verbose/>"),
            "regex parse error: unclosed group"
        );
        assert_eq!(one_line(&"ä".repeat(201)), "ä".repeat(200) + "..");
        assert_eq!(one_line(""), "");
    }
}
