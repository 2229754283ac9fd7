//! Foreign text in messages: names and values out of files and flags, which may be of any length and hold anything.

use std::borrow::Cow;

/// Longest excerpt, in characters.
const LENGTH: usize = 60;

/// `text` as a message may show it: at most 60 characters, then `..`, and control characters as escapes.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LENGTH) {
        Some((end, _)) => Cow::Owned(format!("{}..", printable(&text[..end]))),
        None => printable(text),
    }
}

/// `text` with control characters, which could move a terminal's cursor or break a line, as escapes.
pub fn printable(text: &str) -> Cow<'_, str> {
    match text.chars().any(escaped) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(text.chars().fold(String::new(), |mut out, c| {
            if escaped(c) {
                out.extend(c.escape_default())
            } else {
                out.push(c)
            }
            out
        })),
    }
}

/// Control characters, and those that make text run the other way.
fn escaped(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_and_control_characters_are_escaped() {
        assert_eq!(excerpt("model.embed_tokens"), "model.embed_tokens");
        assert_eq!(excerpt(&"ä".repeat(60)), "ä".repeat(60));
        assert_eq!(excerpt(&"ä".repeat(61)), "ä".repeat(60) + "..");
        assert_eq!(excerpt("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(excerpt("\u{202e}gpj.exe"), "\\u{202e}gpj.exe");
    }
}
