//! Tasks: files of questions, one JSON object a line, read, scored and reported.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use bitllama_formats::json;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokenizers::Tokenizer;

use super::layouts::{ChoiceText, Example};
use super::{Choice, Layout, LogitModel, Question, TaskScore, answer, split};
use crate::{Error, Result};

/// What `--task` names: a file, and its layout where that is not to be told from its fields. Written `FILE` or `LAYOUT=FILE`;
/// a file with a `=` in its name can be given as `./FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskFile {
    /// The layout, if named.
    pub layout: Option<Layout>,
    /// The file.
    pub path: PathBuf,
}

impl FromStr for TaskFile {
    type Err = Error;

    fn from_str(argument: &str) -> Result<Self> {
        let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
        match argument.split_once('=') {
            Some((name, path)) if is_name(name) => Ok(Self { layout: Some(name.parse()?), path: path.into() }),
            _ => Ok(Self { layout: None, path: argument.into() }),
        }
    }
}

/// The questions of a file, in text.
#[derive(Debug, Clone)]
pub struct Task {
    layout: Layout,
    path: PathBuf,
    /// With the number of each one's line.
    examples: Vec<(usize, Example)>,
}

/// What a model made of a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// How the file was read.
    pub task: Layout,
    /// As it was named.
    pub file: PathBuf,
    /// Its fields stand at the same level in JSON.
    #[serde(flatten)]
    pub score: TaskScore,
}

impl Task {
    /// Reads the first `limit` questions of a file, or all. Blank lines are left out.
    ///
    /// # Errors
    /// [`Error::Format`] if the file cannot be read or has no question, [`Error::Line`] for a line that is no JSON object, lacks
    /// a field or has an answer that is none of its choices, [`Error::Options`] for a limit of 0.
    pub fn read(TaskFile { layout, path }: &TaskFile, limit: Option<usize>) -> Result<Self> {
        if limit == Some(0) {
            return Err(Error::Options("at least one question must be answered".into()));
        }
        let text = bitllama_formats::text::read(path)?;
        let mut layout = *layout;
        let mut examples = Vec::new();
        let lines = text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty());
        for (text, line) in lines.take(limit.unwrap_or(usize::MAX)) {
            let at_line = |reason| at(path, line, reason);
            json::limit(text.as_bytes()).map_err(at_line)?;
            let fields: Map<String, Value> = serde_json::from_str(text)
                .map_err(|error| at_line(format!("no JSON object (column {})", error.column())))?;
            let known = layout.map_or_else(|| Layout::detect(&fields), Ok).map_err(at_line)?;
            layout = Some(known);
            let example = known.example(&fields).map_err(|reason| at_line(format!("{reason} (layout {known})")))?;
            examples.push((line, example));
        }
        match layout.filter(|_| !examples.is_empty()) {
            Some(layout) => Ok(Self { layout, path: path.clone(), examples }),
            None => Err(Error::Format(bitllama_formats::Error::invalid(path, "no question in this file"))),
        }
    }

    /// How the file was read.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Questions.
    pub fn len(&self) -> usize {
        self.examples.len()
    }

    /// Whether there is no question, which no file that could be read leads to.
    pub fn is_empty(&self) -> bool {
        self.examples.is_empty()
    }

    /// The questions as tokens for a model whose context takes `limit` tokens.
    ///
    /// # Errors
    /// [`Error::Line`] for a question with a choice that has no tokens, or more than fit.
    pub fn questions(&self, tokenizer: &Tokenizer, bos: Option<u32>, limit: usize) -> Result<Vec<Question>> {
        let encode = |ChoiceText { context, continuation, length }: &ChoiceText| {
            let (context, continuation) = split(tokenizer, bos, context, continuation)?;
            Choice::new(context, continuation, *length, limit)
        };
        let question = |(line, Example { choices, answer }): &(usize, Example)| {
            let choices: Result<Vec<Choice>> = choices.iter().map(encode).collect();
            let choices = choices.map_err(|error| at(&self.path, *line, error.to_string()))?;
            Ok(Question { choices, answer: *answer })
        };
        self.examples.iter().map(question).collect()
    }

    /// Has a model answer the questions: `bos` is what [`crate::text::own_bos`] tells, `limit` its longest context in tokens.
    /// `progress` is told the score so far after each question.
    ///
    /// # Errors
    /// As [`Task::questions`] and [`answer`].
    pub fn score(
        &self,
        model: &mut (impl LogitModel + ?Sized),
        tokenizer: &Tokenizer,
        bos: Option<u32>,
        limit: usize,
        progress: impl FnMut(&TaskScore),
    ) -> Result<TaskResult> {
        let questions = self.questions(tokenizer, bos, limit)?;
        let score = answer(model, &questions, progress)?;
        Ok(TaskResult { task: self.layout, file: self.path.clone(), score })
    }
}

fn at(path: &Path, line: usize, reason: String) -> Error {
    Error::Line { path: path.into(), line, reason }
}

/// The results for people, accuracies in percent.
pub fn table(results: &[TaskResult]) -> String {
    let mut out = String::new();
    let names: Vec<String> = results.iter().map(|result| result.file.display().to_string()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).max(4);
    let percent = |value: f64, error: f64| format!("{:.2} ± {:.2}", 100.0 * value, 100.0 * error);
    let mut line = |cells: [&str; 5]| {
        let [task, file, questions, acc, acc_norm] = cells;
        // Writing to a string cannot fail.
        let _ = writeln!(out, "| {task:<10} | {file:<width$} | {questions:>9} | {acc:>14} | {acc_norm:>14} |");
    };
    line(["task", "file", "questions", "acc (%)", "acc_norm (%)"]);
    line([&"-".repeat(10), &"-".repeat(width), &"-".repeat(9), &"-".repeat(14), &"-".repeat(14)]);
    for (TaskResult { task, score, .. }, name) in results.iter().zip(&names) {
        let acc = percent(score.acc, score.acc_error);
        let acc_norm = percent(score.acc_norm, score.acc_norm_error);
        line([task.name(), name, &score.questions.to_string(), &acc, &acc_norm]);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::Fixed;
    use super::*;
    use crate::testing::byte_tokenizer;

    const PIQA: &str = r#"{ "goal": "x", "sol1": "a", "sol2": "bb", "label": 0 }"#;

    fn file(text: &str) -> (tempfile::TempDir, TaskFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.jsonl");
        fs::write(&path, text).unwrap();
        (folder, TaskFile { layout: None, path })
    }

    #[test]
    fn what_task_names() {
        let parse = |argument: &str| argument.parse::<TaskFile>();
        let of = |layout, path: &str| TaskFile { layout, path: path.into() };
        assert_eq!(parse("a/b.jsonl").unwrap(), of(None, "a/b.jsonl"));
        assert_eq!(parse("arc=a/b.jsonl").unwrap(), of(Some(Layout::Arc), "a/b.jsonl"));
        assert_eq!(parse("./arc=b").unwrap(), of(None, "./arc=b"));
        assert!(parse("arx=b").unwrap_err().to_string().contains("unknown layout `arx`"));
    }

    #[test]
    fn a_file_is_scored() {
        let (_folder, file) = file(&format!("{PIQA}\n\n{}\n{PIQA}", PIQA.replace(": 0", ": 1")));
        let task = Task::read(&file, None).unwrap();
        assert_eq!((task.layout, task.len(), task.is_empty()), (Layout::Piqa, 3, false));
        assert_eq!(Task::read(&file, Some(2)).unwrap().len(), 2);
        // Every byte is as likely as any other, so the shorter choice wins, and by character neither.
        let mut model = Fixed::new(&[0.0; 258]);
        let mut seen = 0;
        let result = task.score(&mut model, &byte_tokenizer(), None, 64, |score| seen = score.questions).unwrap();
        assert_eq!((result.task, result.score.questions, seen), (Layout::Piqa, 3, 3));
        assert!((result.score.acc - 2.0 / 3.0).abs() < 1e-12, "{result:?}");
        let json = serde_json::to_value(&result).unwrap();
        assert!(json["task"] == "piqa" && json["acc"].is_number() && json["questions"] == 3, "{json}");
        assert_eq!(serde_json::from_value::<TaskResult>(json).unwrap(), result);
        let table = table(&[result]);
        assert!(table.contains("| piqa ") && table.contains("|  66.67 ± 33.33 |"), "{table}");
    }

    #[test]
    fn bad_lines_are_named() {
        let refused = |text: &str, layout| {
            let (_folder, file) = file(text);
            Task::read(&TaskFile { layout, ..file }, None).unwrap_err().to_string()
        };
        let ends = |message: String, end: &str| assert!(message.ends_with(end), "{message}");
        ends(refused("", None), "t.jsonl: no question in this file");
        ends(refused(" \n", Some(Layout::Arc)), "t.jsonl: no question in this file");
        ends(refused(&format!("{PIQA}\n{{"), None), "t.jsonl:2: no JSON object (column 1)");
        ends(refused("[1]", None), "t.jsonl:1: no JSON object (column 0)");
        ends(refused(PIQA, Some(Layout::Arc)), "t.jsonl:1: no field `choices` (layout arc)");
        let label = refused(&format!("{PIQA}\n\n{}", PIQA.replace(": 0", ": 2")), None);
        ends(label, "t.jsonl:3: label 2 is none of the 2 choices, 0 to 1 (layout piqa)");
        ends(refused(r#"{ "a": 1 }"#, None), "boolq has `passage`");
        let gone = TaskFile { layout: None, path: "no/such.jsonl".into() };
        assert!(Task::read(&gone, None).unwrap_err().to_string().starts_with("no/such.jsonl: "));
        assert!(Task::read(&gone, Some(0)).unwrap_err().to_string().contains("at least one question"));
    }

    #[test]
    fn choices_that_do_not_fit_are_named_by_their_line() {
        let (_folder, file) = file(&format!("{PIQA}\n{}", PIQA.replace("bb", "a long way round")));
        let task = Task::read(&file, None).unwrap();
        let message = task.questions(&byte_tokenizer(), None, 8).unwrap_err().to_string();
        assert!(message.ends_with("t.jsonl:2: a choice has 17 tokens, the model's context only 8"), "{message}");
    }
}
