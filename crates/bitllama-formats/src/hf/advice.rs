//! Advice for models whose weights or tokenizer are there in another form only: `transformers` turns them into the one that is
//! read.

use std::path::Path;

use super::{INDEX, TOKENIZER, WEIGHTS};
use crate::onnx::GRAPH;

/// Weights as PyTorch pickles them, which are not read: unpickling can run any code.
pub(crate) const PICKLED: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];
/// Vocabularies of which a `tokenizer.json` can be made.
pub(crate) const VOCABULARIES: [&str; 3] = ["tokenizer.model", "vocab.json", "tekken.json"];

/// The reason why a folder has no weights, with what to do where they are pickled.
pub(super) fn weights(folder: &Path) -> String {
    match PICKLED.into_iter().find(|name| folder.join(name).is_file()) {
        None if folder.join(GRAPH).is_file() => {
            format!("has {GRAPH}, which is written and not read; use the model that it was exported from")
        }
        None => format!("has neither {WEIGHTS} nor {INDEX}"),
        Some(found) => {
            let path = shown(folder);
            instead(WEIGHTS, found, &path, &path, folder.join(TOKENIZER).is_file())
        }
    }
}

/// The reason why there is no `tokenizer.json` at `path`, where it can be made of what lies beside it.
pub(crate) fn tokenizer(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    let found = VOCABULARIES.into_iter().find(|name| folder.join(name).is_file())?;
    let path = shown(folder);
    Some(format!("has only {found}, no {TOKENIZER}; {}", command(&path, &path, &["AutoTokenizer"])))
}

/// A sentence about `found` in place of `wanted`, and the line that makes the folder `to` of the model `from`, with a tokenizer
/// if there is none yet.
pub(crate) fn instead(wanted: &str, found: &str, from: &str, to: &str, has_tokenizer: bool) -> String {
    let classes: &[&str] =
        if has_tokenizer { &["AutoModelForCausalLM"] } else { &["AutoModelForCausalLM", "AutoTokenizer"] };
    format!("has only {found}, no {wanted}; {}", command(from, to, classes))
}

/// The line that saves `from` into the folder `to`, in the form that is read.
fn command(from: &str, to: &str, classes: &[&str]) -> String {
    let saved = classes.iter().map(|class| format!("t.{class}.from_pretrained('{from}').save_pretrained('{to}')"));
    let saved = saved.collect::<Vec<_>>().join("; ");
    format!("convert it with: python -c \"import transformers as t; {saved}\"")
}

/// A folder as Python's quotes hold it.
fn shown(folder: &Path) -> String {
    match folder.to_string_lossy() {
        path if path.is_empty() => ".".into(),
        path => path.replace('\\', "/").replace('\'', "\\'"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{CONFIG, open, read_tokenizer};
    use super::*;

    /// The error about models/nano with other files in place of weights and tokenizer.
    fn error(files: &[&str], tokenizer: bool) -> String {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/nano");
        let folder = tempfile::tempdir().unwrap();
        let copied = if tokenizer { &[CONFIG, TOKENIZER][..] } else { &[CONFIG, WEIGHTS] };
        for name in copied {
            fs::copy(nano.join(name), folder.path().join(name)).unwrap();
        }
        for name in files {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let message = open(folder.path()).err().unwrap().to_string();
        message.replace(&shown(folder.path()), "DIR")
    }

    #[test]
    fn pickled_weights_are_refused_with_the_line_that_converts_them() {
        let line = "has only pytorch_model.bin, no model.safetensors; convert it with: python -c \"import transformers as t; \
                    t.AutoModelForCausalLM.from_pretrained('DIR').save_pretrained('DIR')\"";
        assert_eq!(error(&["pytorch_model.bin"], true), format!("DIR: {line}"));
        assert!(error(&["pytorch_model.bin.index.json"], true).contains("has only pytorch_model.bin.index.json, no"));
        assert!(error(&["other.bin"], true).contains("has neither model.safetensors nor model.safetensors.index.json"));
        // One line for both.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("pytorch_model.bin"), "x").unwrap();
        let both = weights(folder.path());
        assert!(both.contains("t.AutoModelForCausalLM.from_") && both.contains("; t.AutoTokenizer.from_"), "{both}");
    }

    #[test]
    fn a_vocabulary_in_another_form_is_refused_with_the_line_that_converts_it() {
        let line = "no tokenizer.json; convert it with: python -c \"import transformers as t; \
                    t.AutoTokenizer.from_pretrained('DIR').save_pretrained('DIR')\"";
        assert_eq!(error(&["tokenizer.model"], false), format!("DIR: has only tokenizer.model, {line}"));
        assert_eq!(error(&["vocab.json", "merges.txt"], false), format!("DIR: has only vocab.json, {line}"));
        let neither = error(&[], false);
        assert!(neither.contains(TOKENIZER) && !neither.contains("convert"), "{neither}");
        assert!(read_tokenizer(Path::new("tokenizer.json")).unwrap_err().to_string().contains("tokenizer.json"));
    }

    #[test]
    fn folders_are_written_as_python_reads_them() {
        assert_eq!(shown(Path::new("")), ".");
        assert_eq!(shown(Path::new("it's")), "it\\'s");
        assert_eq!(shown(Path::new("a\\b")), "a/b");
    }
}
