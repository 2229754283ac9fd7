//! The tags `generation` and `endgeneration`, which `transformers` adds to Jinja to find the text of the assistant.
//!
//! They have no effect on the prompt but that variables set within stay within, as in a `with` block. So they become one
//! before the template is compiled; white space, lines and everything else stay as they are.

use std::borrow::Cow;

/// `source` with `{% generation %}` as `{% with %}`, wherever it is a tag: not in text, comments, strings or raw blocks.
pub fn as_with_blocks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = next_opening(rest) {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let (tag, after) = tag.split_at(length(tag));
        out.push_str(&renamed(tag));
        rest = after;
    }
    Cow::Owned(out + rest)
}

/// Where the next expression, tag or comment starts.
fn next_opening(text: &str) -> Option<usize> {
    text.match_indices('{').map(|(at, _)| at).find(|&at| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')))
}

/// The length of the expression, tag or comment at the start of `text`; a raw block is one with its content.
fn length(text: &str) -> usize {
    if text.starts_with("{#") {
        return text.find("#}").map_or(text.len(), |end| end + 2);
    }
    let end = code_end(text, if text.starts_with("{%") { "%}" } else { "}}" });
    match name(&text[..end]) {
        Some("raw") => raw_end(text, end),
        _ => end,
    }
}

/// Where the code at the start of `text` ends, after `closing`; strings may contain it.
fn code_end(text: &str, closing: &str) -> usize {
    let mut quote = None;
    let mut characters = text.char_indices().skip(2);
    while let Some((at, c)) = characters.next() {
        match quote {
            None if text[at..].starts_with(closing) => return at + closing.len(),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(_) if c == '\\' => drop(characters.next()),
            Some(open) if c == open => quote = None,
            _ => {}
        }
    }
    text.len()
}

/// Where the raw block of which the first tag ends at `from` ends.
fn raw_end(text: &str, from: usize) -> usize {
    let mut at = from;
    while let Some(next) = text[at..].find("{%") {
        at += next;
        let end = text[at..].find("%}").map_or(text.len(), |end| at + end + 2);
        if name(&text[at..end]) == Some("endraw") {
            return end;
        }
        at += 2;
    }
    text.len()
}

/// The name of a tag that consists of it alone.
fn name(tag: &str) -> Option<&str> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    Some(inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim())
}

fn renamed(tag: &str) -> Cow<'_, str> {
    match name(tag) {
        Some("generation") => tag.replace("generation", "with").into(),
        Some("endgeneration") => tag.replace("endgeneration", "endwith").into(),
        _ => tag.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_renamed_with_their_white_space_control() {
        let source = "a\n{%- generation -%}\n{{ x }}{%+ endgeneration%}";
        assert_eq!(as_with_blocks(source), "a\n{%- with -%}\n{{ x }}{%+ endwith%}");
    }

    #[test]
    fn what_is_no_tag_stays() {
        for source in [
            "generation {x} {% set generation = 1 %}{{ generation }}",
            "{# {% generation %} #}",
            "{{ '{% generation %}' }}{{ \"\\\"{% generation %}\" }}",
            "{% raw %}{% generation %}{{ ' }}{%- endraw -%}",
            "{% if x == \"%}{% generation %}\" %}{% endif %}",
            "{% generation",
            "{{ '",
            "{",
        ] {
            assert_eq!(as_with_blocks(source), source);
        }
    }

    #[test]
    fn a_tag_after_what_is_no_tag_is_found() {
        let source = "{% raw %}'{% endraw %}{# ' #}{{ 'it\\'s' }}{% generation %}";
        assert_eq!(as_with_blocks(source), "{% raw %}'{% endraw %}{# ' #}{{ 'it\\'s' }}{% with %}");
    }
}
