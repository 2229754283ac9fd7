//! Tags that the template engine lacks or takes otherwise, rewritten before it compiles a template. White space and lines stay.
//!
//! - `generation` and `endgeneration`, which `transformers` adds to Jinja to find the text of the assistant, have no effect on
//!   the prompt but that variables set within stay within. So they become a block `with`.
//! - `for` iterates over nothing where Python refuses to iterate, over `none`. So what it iterates over goes through the filter
//!   [`ITERATED`].
//! - `set` lets a template nest values until the stack overflows. So what it sets goes through the filters [`SET`] and
//!   [`SET_ATTRIBUTE`], which bound the nesting.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};

/// The filter that refuses what Python does not iterate over and gives back everything else.
pub const ITERATED: &str = "_iterated";
/// The filter that refuses values for variables that are nested too deep and gives back all others.
pub const SET: &str = "_set";
/// The same for attributes of namespaces, which in addition may not hold namespaces, and so not themselves.
pub const SET_ATTRIBUTE: &str = "_set_attribute";

/// The longest template, in bytes.
const LENGTH: usize = 1 << 20;
/// The deepest nesting of brackets.
const BRACKETS: usize = 32;
/// The longest tag or expression, in words, signs and strings. The engine compiles a chain of filters by recursion.
const SYMBOLS: usize = 1000;
/// The most tags `elif`, which it compiles by recursion too.
const BRANCHES: usize = 500;

/// `source` with its tags rewritten, not what looks like tags in text, comments, strings or raw blocks.
///
/// # Errors
///
/// If it is longer than 1 MiB, or an expression in it too long or too deep for the engine.
pub fn rewritten(source: &str) -> Result<String> {
    if source.len() > LENGTH {
        return Err(Error::Syntax { line: 1, cause: "the template is longer than 1 MiB".to_owned() });
    }
    let mut out = String::with_capacity(source.len());
    let (mut rest, mut branches) = (source, 0);
    while let Some(at) = next_opening(rest) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let (length, code) = extent(tag);
        let (tag, after) = tag.split_at(length);
        branches += usize::from(content(tag).is_some_and(|content| content.starts_with("elif")));
        match excess(tag, branches) {
            Some(cause) if code => {
                return Err(Error::Syntax { line: 1 + out.matches('\n').count(), cause: cause.to_owned() });
            }
            _ if code => out.push_str(&rewritten_tag(tag)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    Ok(out + rest)
}

/// Start of the next expression, tag or comment.
fn next_opening(text: &str) -> Option<usize> {
    text.match_indices('{')
        .map(|(at, _)| at)
        .find(|&at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// The length of the expression, tag or comment at the start of `text`, a raw block being one with its content, and whether it is
/// code.
fn extent(text: &str) -> (usize, bool) {
    if text.starts_with("{#") {
        return (text.find("#}").map_or(text.len(), |end| end + 2), false);
    }
    let end = code_end(text, if text.starts_with("{%") { "%}" } else { "}}" });
    match content(&text[..end]) {
        Some("raw") => (raw_end(text, end), false),
        _ => (end, true),
    }
}

/// End of the code at the start of `text`, after `closing`; strings and dicts may contain it.
fn code_end(text: &str, closing: &str) -> usize {
    let (mut at, mut braces) = (2, 0usize);
    while let Some(c) = text[at..].chars().next() {
        match c {
            _ if braces == 0 && text[at..].starts_with(closing) => return at + closing.len(),
            '{' => braces += 1,
            '}' => braces = braces.saturating_sub(1),
            _ => {}
        }
        at += if matches!(c, '"' | '\'') { string_length(&text[at..]) } else { c.len_utf8() };
    }
    text.len()
}

/// End of the raw block whose first tag ends at `from`.
fn raw_end(text: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        match text[at..].find("%}").map(|end| at + end + 2) {
            Some(end) if content(&text[at..end]) == Some("endraw") => return end,
            Some(_) => at += 2,
            None => break,
        }
    }
    text.len()
}

/// The text between the delimiters of a tag.
fn content(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

/// The part of a tag or expression that is too long or too deep, the last of `branches`.
fn excess(tag: &str, branches: usize) -> Option<&'static str> {
    match words(tag.get(2..).unwrap_or_default()) {
        _ if branches > BRANCHES => Some("the template has more than 500 branches `elif`"),
        Words { deepest, .. } if deepest > BRACKETS => Some("brackets have more than 32 levels"),
        Words { symbols, .. } if symbols > SYMBOLS => Some("an expression has more than 1000 words and signs"),
        _ => None,
    }
}

fn rewritten_tag(tag: &str) -> Cow<'_, str> {
    let Some(content) = content(tag) else { return tag.into() };
    let (expression, filter) = match content {
        "generation" => return tag.replace("generation", "with").into(),
        "endgeneration" => return tag.replace("endgeneration", "endwith").into(),
        _ if content.starts_with("for") => (iterated(content), ITERATED),
        _ if content.starts_with("set") => assigned(content),
        _ => return tag.into(),
    };
    match expression {
        Some(Range { start, end }) => {
            let (before, expression, after) = (&content[..start], &content[start..end], &content[end..]);
            tag.replacen(content, &format!("{before} ({expression})|{filter} {after}"), 1).into()
        }
        None => tag.into(),
    }
}

/// The expression that a tag `for` iterates over: after its `in`, up to an `if` or `recursive` outside of brackets.
fn iterated(content: &str) -> Option<Range<usize>> {
    let words = words(content).outer;
    let start = words.iter().find(|(word, _)| *word == "in").map(|(word, at)| at + word.len())?;
    let end = words
        .iter()
        .find(|&&(word, at)| at >= start && matches!(word, "if" | "recursive"))
        .map_or(content.len(), |&(_, at)| at);
    (words.first() == Some(&("for", 0))).then_some(start..end)
}

/// The value of a tag `set`, after its `=`, and the filter for it.
fn assigned(content: &str) -> (Option<Range<usize>>, &'static str) {
    let words = words(content).outer;
    let start = words
        .iter()
        .find(|(word, _)| *word == "=")
        .map(|&(_, at)| at + 1)
        .filter(|_| words.first() == Some(&("set", 0)));
    let attribute = start.is_some_and(|start| content[..start].contains('.'));
    (start.map(|start| start..content.len()), if attribute { SET_ATTRIBUTE } else { SET })
}

/// The code of a tag or expression.
struct Words<'a> {
    /// Words and equals signs outside of brackets and strings, with their places.
    outer: Vec<(&'a str, usize)>,
    /// The deepest nesting of brackets.
    deepest: usize,
    /// How many words, signs and strings there are.
    symbols: usize,
}

fn words(code: &str) -> Words<'_> {
    let mut words = Words { outer: Vec::new(), deepest: 0, symbols: 0 };
    let (mut depth, mut at) = (0usize, 0);
    while let Some(c) = code[at..].chars().next() {
        let length = match c {
            '"' | '\'' => string_length(&code[at..]),
            c if is_word(c) => code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at),
            c => c.len_utf8(),
        };
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            c if depth == 0 && (c == '=' || is_word(c)) => words.outer.push((&code[at..at + length], at)),
            _ => {}
        }
        words.deepest = words.deepest.max(depth);
        words.symbols += usize::from(!c.is_whitespace());
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
        assert_eq!(rewritten(source).unwrap(), "a\n{%- with -%}\n{{ x }}{%+ endwith%}");
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
            assert_eq!(rewritten(source).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_set_goes_through_a_filter() {
        for (source, expected) in [
            ("{% set x = 1 %}", "{% set x = ( 1)|_set  %}"),
            ("{%- set a, b = 1, x == 2 -%}", "{%- set a, b = ( 1, x == 2)|_set  -%}"),
            ("{% set ns.x = 'a.b' if y else f(z=1) %}", "{% set ns.x = ( 'a.b' if y else f(z=1))|_set_attribute  %}"),
            ("{% set x %}{% set x | f(y=1) %}", "{% set x %}{% set x | f(y=1) %}"),
        ] {
            assert_eq!(rewritten(source).unwrap(), expected);
        }
    }

    #[test]
    fn brackets_and_templates_have_limits() {
        let nested = |levels| format!("a\n{{{{ {}1{} }}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(rewritten(&nested(32)).is_ok());
        let error = rewritten(&nested(33)).unwrap_err().to_string();
        assert_eq!(error, "chat template, line 2: brackets have more than 32 levels; correct the template");
        assert!(rewritten(&format!("{{{{ 1{} }}}}", "+1".repeat(498))).is_ok());
        let error = rewritten(&format!("{{{{ 1{} }}}}", "+1".repeat(499))).unwrap_err().to_string();
        assert_eq!(
            error,
            "chat template, line 1: an expression has more than 1000 words and signs; correct the template"
        );
        let strings = format!(
            "{{{{ '{}' }}}}{{# {} #}}{{% raw %}}{}{{% endraw %}}",
            "(".repeat(3000),
            "(".repeat(3000),
            "(".repeat(3000)
        );
        assert_eq!(rewritten(&strings).unwrap(), strings);
        assert!(rewritten(&"{% elif x %}".repeat(500)).is_ok());
        assert!(rewritten(&"{% elif x %}".repeat(501)).unwrap_err().to_string().contains("more than 500 branches"));
        assert!(rewritten(&" ".repeat(LENGTH)).is_ok());
        assert!(rewritten(&" ".repeat(LENGTH + 1)).unwrap_err().to_string().contains("longer than 1 MiB"));
    }

    #[test]
    fn what_is_no_such_tag_stays() {
        for source in [
            "generation {x} {% if generation %}{{ generation }} for x in y",
            "{# {% generation %}{% for x in y %} #}",
            "{{ '{% generation %}' }}{{ \"\\\"{% for x in y %}\" }}",
            "{% raw %}{% generation %}{% for x in y %}{{ ' }}{%- endraw -%}",
            "{% if x == \"%}{% generation %}\" %}{% endif %}{% formal in y %}{% settle = 1 %}",
            "{{ {'a': {'b': 1}}}}{{ {'a': {'b': '{% generation %}'}} }}",
            "{% raw %}{% x {% {% %",
            "{% generation",
            "{% for %}{% for x %}{% for",
            "{{ '",
            "{",
        ] {
            assert_eq!(rewritten(source).unwrap(), source);
        }
    }

    #[test]
    fn a_tag_after_what_is_no_tag_is_found() {
        let source = "{% raw %}'{% endraw %}{# ' #}{{ 'it\\'s' }}{% generation %}";
        assert_eq!(rewritten(source).unwrap(), "{% raw %}'{% endraw %}{# ' #}{{ 'it\\'s' }}{% with %}");
    }
}
