//! Documents to train on: those of the reader of text, a plain text file cut where a line begins with given words.

use std::path::Path;

use anyhow::Result;
use bitllama_formats::text::{self, Kind};

use crate::recipe::Data;

/// Gives the documents of a file to `each`, in order; blank ones are left out.
///
/// # Errors
/// Those of [`text::documents`], and of `each`.
pub fn documents(path: &Path, options: &Data, mut each: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let plain = Kind::of(path)? == Kind::Text;
    text::documents(path, &options.text_field, |document| match plain {
        true => cut(&document, &options.document_start).filter(|part| !part.trim().is_empty()).try_for_each(&mut each),
        false => each(&document),
    })
}

/// The parts of a text whose first lines start with one of `starts`, and what stands in front of them.
fn cut<'a>(text: &'a str, starts: &[String]) -> impl Iterator<Item = &'a str> {
    let mut rest = text;
    let begins = |line: &str| starts.iter().any(|start| line.starts_with(start.as_str()));
    std::iter::from_fn(move || {
        let mut end = rest.find('\n').map_or(rest.len(), |at| at + 1);
        while end < rest.len() && !(end > 0 && begins(&rest[end..])) {
            end += rest[end..].find('\n').map_or(rest.len() - end, |at| at + 1);
        }
        let (part, after) = rest.split_at(end);
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, text: &str, starts: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let options = toml::from_str(&format!("train = []\ndocument_start = [{starts}]")).unwrap();
        let mut found = Vec::new();
        let push = |document: &str| {
            found.push(document.to_string());
            Ok(())
        };
        documents(&path, &options, push).unwrap();
        found
    }

    #[test]
    fn a_text_file_is_cut_where_a_line_starts_a_document() {
        let text = "Title\n\nChapter 1\na Chapter b\n\n \nChapter 2\nc\r\n";
        let parts = ["Title\n\n", "Chapter 1\na Chapter b\n\n \n", "Chapter 2\nc\r\n"];
        assert_eq!(of("a.txt", text, "\"Chapter\", \"CHAPTER\""), parts);
        assert_eq!(of("a.txt", &parts[1..].concat(), "\"Chapter\""), parts[1..]);
        assert_eq!(of("a.txt", "\n\nChapter", "\"Chapter\""), ["Chapter"]);
        assert_eq!(of("a.md", text, ""), [text]);
    }

    #[test]
    fn a_document_of_json_is_not_cut() {
        assert_eq!(of("a.jsonl", "{\"text\": \"Chapter 1\\nChapter 2\"}", "\"Chapter\""), ["Chapter 1\nChapter 2"]);
    }
}
