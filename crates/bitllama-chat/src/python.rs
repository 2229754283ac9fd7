//! Python's text of numbers, its white space, its lines and its printable characters.

use minijinja::Value;

/// `str.isspace` of one character.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `str.strip`.
pub fn strip(text: &str) -> &str {
    strip_of(text, None, true, true)
}

/// `str.rstrip`.
pub fn strip_end(text: &str) -> &str {
    strip_of(text, None, false, true)
}

/// `text` without the characters of `set`, or without white space, at its start and its end.
pub fn strip_of<'a>(text: &'a str, set: Option<&str>, start: bool, end: bool) -> &'a str {
    let within = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if start { text.trim_start_matches(within) } else { text };
    if end { text.trim_end_matches(within) } else { text }
}

/// `str.rsplit` by white space into at most `most` parts, last to first.
pub fn rsplit_spaces(text: &str, most: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip_end(text);
    while !rest.is_empty() {
        let start = match rest.char_indices().rev().find(|&(_, c)| is_space(c)) {
            Some((at, c)) if parts.len() + 1 < most => at + c.len_utf8(),
            _ => rest.len() - strip_of(rest, None, true, false).len(),
        };
        parts.push(&rest[start..]);
        rest = strip_end(&rest[..start]);
    }
    parts
}

/// `str.splitlines`.
pub fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|&(_, c)| is_line_end(c)) {
        let end = if rest[at..].starts_with("\r\n") { at + 2 } else { at + c.len_utf8() };
        lines.push(&rest[..if keep_ends { end } else { at }]);
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `str.isprintable` of one character.
pub fn is_printable(c: char) -> bool {
    match c {
        ' '..='~' => true,
        // Rust escapes what Python does; after a letter it leaves marks that combine with it.
        _ => String::from_iter(['a', c]).escape_debug().count() == 2,
    }
}

/// `repr` of a number.
pub fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        _ if value.is_integer() => value.to_string(),
        Ok(number) if number.is_nan() => "nan".to_owned(),
        Ok(number) if number.is_finite() => float(number),
        _ => value.to_string(),
    }
}

/// `repr` of a finite float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
pub fn float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if (-4..16).contains(&exponent) => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        Ok(exponent) => format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs()),
        Err(_) => scientific,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        let cases = [(0.5, "0.5"), (3.0, "3.0"), (-0.0, "-0.0"), (1e16, "1e+16"), (1e15, "1000000000000000.0")];
        let far = [(1e-4, "0.0001"), (1.5e-5, "1.5e-05"), (1e-100, "1e-100"), (f64::MAX, "1.7976931348623157e+308")];
        for (value, text) in cases.into_iter().chain(far) {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn printable_characters_are_those_of_python() {
        assert!(" aé日\u{301}🦙\u{fe0f}\"\\'".chars().all(is_printable));
        assert!(!"\0\n\u{7f}\u{a0}\u{ad}\u{200b}\u{2028}\u{3000}\u{e000}\u{feff}".chars().any(is_printable));
    }

    #[test]
    fn white_space_includes_the_separators_of_ascii() {
        assert_eq!(strip("\u{1c}\u{a0} a \u{1f}\u{3000}"), "a");
        assert_eq!(strip_end(" a\u{85}"), " a");
        assert_eq!(strip_of("xyaxbyx", Some("xy"), true, true), "axb");
    }

    #[test]
    fn parts_from_the_end_are_at_most_as_many_as_asked_for() {
        assert_eq!(rsplit_spaces("  a b  c ", usize::MAX), ["c", "b", "a"]);
        assert_eq!(rsplit_spaces("  a b  c ", 2), ["c", "a b"]);
        assert!(rsplit_spaces("  ", 2).is_empty());
    }

    #[test]
    fn lines_end_where_python_ends_them() {
        assert_eq!(lines("a\r\nb\rc\n\nd\u{2028}e", false), ["a", "b", "c", "", "d", "e"]);
        assert_eq!(lines("a\r\nb\n", true), ["a\r\n", "b\n"]);
        assert!(lines("", true).is_empty());
    }
}
