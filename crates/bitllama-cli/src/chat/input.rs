//! Messages and commands of a person, line by line.

use std::io::{self, BufRead};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

/// A message or a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Message(String),
    System(String),
    Reset,
    Save(PathBuf),
    Load(PathBuf),
    Help,
    Exit,
    /// A command that there is not.
    Unknown(String),
}

/// Standard input: lines that are edited, with a history of them, where a person sits at a terminal.
pub struct Input {
    editor: Option<DefaultEditor>,
}

/// Quotation marks around a message of several lines.
const QUOTES: &str = "\"\"\"";

impl Input {
    /// Standard input, which is a terminal or not.
    pub fn new(interactive: bool) -> anyhow::Result<Self> {
        Ok(Self { editor: interactive.then(DefaultEditor::new).transpose()? })
    }

    /// The next message or command; none at the end of the input.
    pub fn next(&mut self) -> anyhow::Result<Option<Said>> {
        let said = next_of(|prompt| self.line(prompt))?;
        if let (Some(editor), Some(text)) = (&mut self.editor, &said) {
            editor.add_history_entry(text)?;
        }
        Ok(said.map(|text| parsed(&text)))
    }

    fn line(&mut self, prompt: &str) -> anyhow::Result<Option<String>> {
        let Some(editor) = &mut self.editor else {
            let mut line = String::new();
            let read = io::stdin().lock().read_line(&mut line)?;
            return Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()));
        };
        match editor.readline(prompt) {
            Ok(line) => Ok(Some(line)),
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The next text of one or several lines that is not empty.
fn next_of(mut line: impl FnMut(&str) -> anyhow::Result<Option<String>>) -> anyhow::Result<Option<String>> {
    loop {
        let Some(first) = line("> ")? else { return Ok(None) };
        let text = match first.strip_prefix(QUOTES) {
            Some(rest) => quoted(rest.to_owned(), &mut line)?,
            None => continued(first, &mut line)?,
        };
        if !text.trim().is_empty() {
            return Ok(Some(text));
        }
    }
}

/// Lines up to closing quotation marks, or to the end of the input.
fn quoted(mut text: String, line: &mut impl FnMut(&str) -> anyhow::Result<Option<String>>) -> anyhow::Result<String> {
    loop {
        if let Some(whole) = text.trim_end().strip_suffix(QUOTES) {
            return Ok(whole.trim_matches('\n').to_owned());
        }
        let Some(next) = line("... ")? else { return Ok(text) };
        text.push('\n');
        text.push_str(&next);
    }
}

/// Lines that end with a backslash, and the one after them.
fn continued(
    mut text: String,
    line: &mut impl FnMut(&str) -> anyhow::Result<Option<String>>,
) -> anyhow::Result<String> {
    while text.ends_with('\\') {
        text.pop();
        let Some(next) = line("... ")? else { break };
        text.push('\n');
        text.push_str(&next);
    }
    Ok(text)
}

fn parsed(text: &str) -> Said {
    let Some(command) = text.strip_prefix('/') else { return Said::Message(text.to_owned()) };
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    match (name, rest) {
        ("system", text) => Said::System(text.to_owned()),
        ("reset", "") => Said::Reset,
        ("save", path) if !path.is_empty() => Said::Save(path.into()),
        ("load", path) if !path.is_empty() => Said::Load(path.into()),
        ("help", "") => Said::Help,
        ("exit" | "quit" | "bye", "") => Said::Exit,
        _ => Said::Unknown(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[&str]) -> Vec<String> {
        let mut lines = lines.iter();
        let mut line = |_: &str| Ok(lines.next().map(|line| line.to_string()));
        let mut out = Vec::new();
        while let Some(text) = next_of(&mut line).unwrap() {
            out.push(text);
        }
        out
    }

    #[test]
    fn messages_take_one_or_several_lines() {
        assert_eq!(texts(&["a", "", "  ", "b"]), ["a", "b"]);
        assert_eq!(texts(&["a\\", "b\\", "c", "d"]), ["a\nb\nc", "d"]);
        assert_eq!(texts(&["\"\"\"", "a", "", "b", "\"\"\"", "c"]), ["a\n\nb", "c"]);
        assert_eq!(texts(&["\"\"\"a", "b\"\"\""]), ["a\nb"]);
        assert_eq!(texts(&["\"\"\"a\"\"\"", "\"\"\"open", "end"]), ["a", "open\nend"]);
    }

    #[test]
    fn commands_begin_with_a_slash() {
        assert_eq!(parsed("hello /reset"), Said::Message("hello /reset".into()));
        assert_eq!(parsed("/system You are terse."), Said::System("You are terse.".into()));
        assert_eq!(parsed("/save a b.json"), Said::Save("a b.json".into()));
        assert_eq!((parsed("/reset"), parsed("/exit")), (Said::Reset, Said::Exit));
        assert_eq!(parsed("/save"), Said::Unknown("/save".into()));
        assert_eq!(parsed("/path/to/x"), Said::Unknown("/path/to/x".into()));
    }
}
