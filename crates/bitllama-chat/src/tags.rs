//! Tags that the template engine lacks or takes otherwise, rewritten before it compiles a template. White space and lines stay.
//!
//! - `generation` and `endgeneration`, which `transformers` adds to Jinja to find the text of the assistant, have no effect on
//!   the prompt but that variables set within stay within. So they become a block `with`.
//! - `for` iterates over nothing where Python refuses to iterate, over `none`. So what it iterates over goes through the filter
//!   [`ITERATED`], which refuses.

use std::borrow::Cow;
use std::ops::Range;

/// The filter that refuses what Python does not iterate over and gives back everything else.
pub const ITERATED: &str = "_iterated";

/// `source` with its tags rewritten, not what looks like tags in text, comments, strings or raw blocks.
pub fn rewritten(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = next_opening(rest) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let (tag, after) = tag.split_at(length(tag));
        out.push_str(&rewritten_tag(tag));
        rest = after;
    }
    out + rest
}

/// Where the next expression, tag or comment starts.
fn next_opening(text: &str) -> Option<usize> {
    text.match_indices('{')
        .map(|(at, _)| at)
        .find(|&at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// The length of the expression, tag or comment at the start of `text`; a raw block is one with its content.
fn length(text: &str) -> usize {
    if text.starts_with("{#") {
        return text.find("#}").map_or(text.len(), |end| end + 2);
    }
    let end = code_end(text, if text.starts_with("{%") { "%}" } else { "}}" });
    match content(&text[..end]) {
        Some("raw") => raw_end(text, end),
        _ => end,
    }
}

/// Where the code at the start of `text` ends, after `closing`; strings may contain it.
fn code_end(text: &str, closing: &str) -> usize {
    let mut at = 2;
    while let Some(c) = text[at..].chars().next() {
        if text[at..].starts_with(closing) {
            return at + closing.len();
        }
        at += if matches!(c, '"' | '\'') { string_length(&text[at..]) } else { c.len_utf8() };
    }
    text.len()
}

/// Where the raw block of which the first tag ends at `from` ends.
fn raw_end(text: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        let end = text[at..].find("%}").map_or(text.len(), |end| at + end + 2);
        if content(&text[at..end]) == Some("endraw") {
            return end;
        }
        at += 2;
    }
    text.len()
}

/// What stands between the delimiters of a tag.
fn content(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

fn rewritten_tag(tag: &str) -> Cow<'_, str> {
    match content(tag) {
        Some("generation") => tag.replace("generation", "with").into(),
        Some("endgeneration") => tag.replace("endgeneration", "endwith").into(),
        Some(content) if content.starts_with("for") => match iterated(content) {
            Some(items) => {
                let (before, after) = (&content[..items.start], &content[items.end..]);
                tag.replacen(content, &format!("{before} ({})|{ITERATED} {after}", &content[items]), 1).into()
            }
            None => tag.into(),
        },
        _ => tag.into(),
    }
}

/// What a tag `for` iterates over: after its `in`, up to an `if` or `recursive` outside of brackets.
fn iterated(content: &str) -> Option<Range<usize>> {
    let words = words(content);
    let start = words.iter().find(|(word, _)| *word == "in").map(|(word, at)| at + word.len())?;
    let end = words
        .iter()
        .find(|&&(word, at)| at >= start && matches!(word, "if" | "recursive"))
        .map_or(content.len(), |&(_, at)| at);
    (words.first() == Some(&("for", 0))).then_some(start..end)
}

/// The words of a tag outside of brackets and strings, with their places.
fn words(content: &str) -> Vec<(&str, usize)> {
    let mut words = Vec::new();
    let (mut depth, mut at) = (0usize, 0);
    while let Some(c) = content[at..].chars().next() {
        let length = match c {
            '"' | '\'' => string_length(&content[at..]),
            c if is_word(c) => content[at..].find(|c| !is_word(c)).unwrap_or(content.len() - at),
            c => c.len_utf8(),
        };
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            c if is_word(c) && depth == 0 => words.push((&content[at..at + length], at)),
            _ => {}
        }
        at += length;
    }
    words
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

/// The length of the string at the start of `text`, with its quotes.
fn string_length(text: &str) -> usize {
    let quote = text.chars().next();
    let mut characters = text.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => drop(characters.next()),
            c if Some(c) == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_becomes_with_and_keeps_its_white_space_control() {
        let source = "a\n{%- generation -%}\n{{ x }}{%+ endgeneration%}";
        assert_eq!(rewritten(source), "a\n{%- with -%}\n{{ x }}{%+ endwith%}");
    }

    #[test]
    fn loops_refuse_what_python_does() {
        for (source, expected) in [
            ("{% for x in xs %}", "{% for x in ( xs)|_iterated  %}"),
            (
                "{%- for k, v in m.items() if k not in ks -%}",
                "{%- for k, v in ( m.items() )|_iterated if k not in ks -%}",
            ),
            (
                "{% for (a, b) in f(')' if x in y) recursive %}",
                "{% for (a, b) in ( f(')' if x in y) )|_iterated recursive %}",
            ),
            ("{%for\ni\nin\n'%}\\' if '~[1]%}", "{%for\ni\nin (\n'%}\\' if '~[1])|_iterated %}"),
        ] {
            assert_eq!(rewritten(source), expected);
        }
    }

    #[test]
    fn what_is_no_such_tag_stays() {
        for source in [
            "generation {x} {% set generation = 1 %}{{ generation }} for x in y",
            "{# {% generation %}{% for x in y %} #}",
            "{{ '{% generation %}' }}{{ \"\\\"{% for x in y %}\" }}",
            "{% raw %}{% generation %}{% for x in y %}{{ ' }}{%- endraw -%}",
            "{% if x == \"%}{% generation %}\" %}{% endif %}{% set form = 1 if 2 in y %}",
            "{% generation",
            "{% for %}{% for x %}{% for",
            "{{ '",
            "{",
        ] {
            assert_eq!(rewritten(source), source);
        }
    }

    #[test]
    fn a_tag_after_what_is_no_tag_is_found() {
        let source = "{% raw %}'{% endraw %}{# ' #}{{ 'it\\'s' }}{% generation %}";
        assert_eq!(rewritten(source), "{% raw %}'{% endraw %}{# ' #}{{ 'it\\'s' }}{% with %}");
    }
}
