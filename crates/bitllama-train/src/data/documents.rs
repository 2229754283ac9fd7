//! Documents out of files: a text file is one document or is cut where a line begins with given words; each line of
//! a JSONL file is one document.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// The files of `sources` in a fixed order; folders are gone through for `.txt`, `.md` and `.jsonl` files.
///
/// # Errors
/// A source that does not exist, a folder without text.
pub fn files(sources: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for source in sources {
        let metadata = std::fs::metadata(source).with_context(|| format!("{}", source.display()))?;
        if metadata.is_dir() {
            let before = files.len();
            collect(source, &mut files)?;
            ensure!(files.len() > before, "{}: no .txt, .md or .jsonl file in this folder", source.display());
        } else {
            files.push(source.clone());
        }
    }
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))?;
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| ["txt", "md", "jsonl"].iter().any(|known| e == *known))
            && path.file_name() != Some("README.md".as_ref())
        {
            files.push(path);
        }
    }
    Ok(())
}

/// The documents of one file; blank ones are left out.
///
/// # Errors
/// A JSONL line that is no JSON object or lacks `text_field`, with its number; a file without any text.
pub fn split(path: &Path, text: &str, text_field: &str, document_start: &[String]) -> Result<Vec<String>> {
    let mut documents: Vec<String> = if is_jsonl(path) {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(i, line)| json_text(line, text_field).with_context(|| format!("{}:{}", path.display(), i + 1)))
            .collect::<Result<_>>()?
    } else {
        cut(text, document_start)
    };
    documents.retain(|document| !document.trim().is_empty());
    ensure!(!documents.is_empty(), "{}: no text in this file", path.display());
    Ok(documents)
}

/// A file as evaluations read it: as it is, or of a JSONL file the fields `text` of all lines, a blank line between them.
///
/// # Errors
/// As [`split`]; a file that cannot be read.
pub fn whole(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    let documents = split(path, &text, "text", &[])?;
    if !is_jsonl(path) {
        return Ok(text);
    }
    Ok(documents.iter().map(|document| document.trim()).collect::<Vec<_>>().join("\n\n"))
}

fn is_jsonl(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "jsonl")
}

fn json_text(line: &str, field: &str) -> Result<String> {
    let value: serde_json::Value = serde_json::from_str(line).context("not a JSON object")?;
    match value.get(field) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(_) => bail!("field `{field}` is no string"),
        None => bail!("no field `{field}`; set `data.text_field` to the one that has the text"),
    }
}

fn cut(text: &str, document_start: &[String]) -> Vec<String> {
    let mut documents = vec![String::new()];
    for line in text.split_inclusive('\n') {
        if document_start.iter().any(|start| line.starts_with(start.as_str())) {
            documents.push(String::new());
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
        }
    }
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_file_is_cut_where_a_line_starts_a_document() {
        let text = "Title\n\nChapter 1\na Chapter b\n\nChapter 2\nc\n";
        let cut = split("a.txt".as_ref(), text, "text", &["Chapter".into()]).unwrap();
        assert_eq!(cut, ["Title\n\n", "Chapter 1\na Chapter b\n\n", "Chapter 2\nc\n"]);
        assert_eq!(split("a.txt".as_ref(), text, "text", &[]).unwrap(), [text]);
    }

    #[test]
    fn jsonl_lines_are_documents_and_faults_name_the_line() {
        let good = "{\"text\": \"one\"}\n\n{\"text\": \"two\", \"id\": 3}\n";
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            whole(&path).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(write("a.jsonl", good).unwrap(), "one\n\ntwo");
        assert_eq!(write("a.txt", "one\n").unwrap(), "one\n");
        assert!(write("b.txt", " \n").unwrap_err().ends_with("b.txt: no text in this file"));
        assert_eq!(split("a.jsonl".as_ref(), good, "text", &[]).unwrap(), ["one", "two"]);
        for bad in [
            "{\"text\": \"one\"}\n{\"body\": 1}\n",
            "{\"text\": \"one\"}\n{\"text\": 1}\n",
            "{\"text\": \"one\"}\nno\n",
        ] {
            let message = format!("{:#}", split("a.jsonl".as_ref(), bad, "text", &[]).unwrap_err());
            assert!(message.starts_with("a.jsonl:2:"), "{message}");
        }
    }

    #[test]
    fn empty_and_missing_sources_are_errors() {
        assert!(split("a.txt".as_ref(), " \n", "text", &[]).is_err());
        assert!(files(&["no/such".into()]).is_err());
        let folder = tempfile::tempdir().unwrap();
        assert!(files(&[folder.path().into()]).is_err());
        std::fs::write(folder.path().join("b.txt"), "b").unwrap();
        std::fs::write(folder.path().join("a.jsonl"), "{}").unwrap();
        let found = files(&[folder.path().into()]).unwrap();
        assert_eq!(found.iter().map(|f| f.file_name().unwrap()).collect::<Vec<_>>(), ["a.jsonl", "b.txt"]);
    }
}
