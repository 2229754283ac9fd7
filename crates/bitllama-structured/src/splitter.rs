//! Answers in pieces: which part is text to read, and which is a call.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::families::Facts;
use crate::tools::ToolCall;

/// A part that a piece adds to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delta {
    /// Text to read.
    Content(String),
    /// A call, with its arguments as far as they are there.
    Call(ToolCall),
    /// More of the arguments of the last call.
    Arguments(String),
}

/// An answer that arrives in pieces. Text is held back as long as it may be the beginning of a call; white space before a call is
/// no content. A call is told as soon as its name is known, if the name comes before the arguments, and the arguments as they come.
#[derive(Debug, Clone)]
pub struct Splitter {
    facts: &'static Facts,
    /// The functions; none where nothing is a call.
    names: Vec<String>,
    held: String,
    place: Place,
    /// The search for brackets in the call that is being read.
    brackets: Brackets,
    /// Whether a call was looked for at the beginning of the first inner object.
    looked: bool,
    /// Text before the call that is read, since the last thing that was told.
    before: String,
    /// White space between the last content and a call. It is told if more content comes.
    gap: String,
    /// Whether a call was told.
    called: bool,
    /// Whether content was told.
    spoken: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Content,
    /// Behind the mark that begins calls, between them or at the beginning of one.
    Calls,
    /// In the arguments of a call that was told.
    Arguments,
    /// Behind them, before the end of the call.
    Tail,
}

/// The next step with the text that is held.
enum Step {
    Again,
    Wait,
}

/// A call as models write it.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: &'a RawValue,
}

impl Splitter {
    pub(crate) fn new(facts: &'static Facts, names: Vec<String>) -> Self {
        let text = String::new;
        let (place, brackets) = (Place::Content, Brackets::default());
        let (looked, called, spoken) = (false, false, false);
        Self { facts, names, held: text(), place, brackets, looked, before: text(), gap: text(), called, spoken }
    }

    /// Takes a piece and tells what it adds.
    pub fn push(&mut self, piece: &str) -> Vec<Delta> {
        let mut deltas = Vec::new();
        self.held.push_str(piece);
        while let Step::Again = self.step(&mut deltas) {}
        deltas
    }

    /// Tells what is left at the end. A call that was cut off before its arguments is content.
    pub fn finish(mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        if self.place == Place::Calls && self.held.trim_start().starts_with(['{', '[']) {
            self.before.push_str(&self.held);
            let rest = std::mem::take(&mut self.before);
            self.tell(&rest, &mut deltas);
        } else if self.place == Place::Content {
            let rest = std::mem::take(&mut self.held);
            self.tell(&rest, &mut deltas);
        }
        deltas
    }

    fn tell(&mut self, text: &str, deltas: &mut Vec<Delta>) {
        if !text.is_empty() {
            self.spoken = true;
            deltas.push(Delta::Content(std::mem::take(&mut self.gap) + text));
        }
    }

    fn step(&mut self, deltas: &mut Vec<Delta>) -> Step {
        if self.held.is_empty() {
            return Step::Wait;
        }
        match self.place {
            Place::Content => self.content(deltas),
            Place::Calls => self.calls(deltas),
            Place::Arguments => self.arguments(deltas),
            Place::Tail => self.tail(),
        }
    }

    fn content(&mut self, deltas: &mut Vec<Delta>) -> Step {
        if self.names.is_empty() {
            let text = std::mem::take(&mut self.held);
            self.tell(&text, deltas);
            return Step::Wait;
        }
        let start = self.held.trim_start();
        if self.facts.bare && !self.called && !self.spoken {
            if start.is_empty() {
                return Step::Wait;
            }
            if start.starts_with('{') {
                self.place = Place::Calls;
                return Step::Again;
            }
        }
        let Some(mark) = self.facts.begin else {
            let text = std::mem::take(&mut self.held);
            self.tell(&text, deltas);
            return Step::Wait;
        };
        let (keep, step) = match self.held.find(mark) {
            Some(at) => (at, Step::Again),
            None => (self.held.len() - beginning(&self.held, mark), Step::Wait),
        };
        let rest = self.held.split_off(keep);
        let content = self.held.trim_end().len();
        let text: String = self.held.drain(..content).collect();
        self.tell(&text, deltas);
        // White space before a mark, or what may become one, is kept with it.
        self.held.push_str(&rest);
        if matches!(step, Step::Again) {
            let end = self.held.len() - rest.len() + mark.len();
            self.before.extend(self.held.drain(..end));
            self.place = Place::Calls;
        }
        step
    }

    fn calls(&mut self, deltas: &mut Vec<Delta>) -> Step {
        let text = self.held.trim_start();
        let skipped = self.held.len() - text.len();
        if text.starts_with('{') {
            self.brackets.seen = self.brackets.seen.max(skipped);
            return self.object(deltas);
        }
        let marks = [self.facts.begin, self.facts.end];
        let signs = marks
            .into_iter()
            .flatten()
            .chain(if self.facts.list { ["[", ",", "]"].as_slice() } else { &[";"] }.iter().copied());
        for sign in signs {
            if text.starts_with(sign) {
                self.before.extend(self.held.drain(..skipped + sign.len()));
                return Step::Again;
            }
            if sign.starts_with(text) {
                return Step::Wait;
            }
        }
        // Behind the calls, or instead of them.
        let before = std::mem::take(&mut self.before);
        let behind = |mark| before.trim_start().strip_prefix(mark).map(str::trim_start);
        let open = self.facts.end.and_then(behind).unwrap_or(&before);
        if self.facts.begin.is_some_and(|mark| open.trim_start().starts_with(mark)) {
            self.tell(open, deltas);
        } else {
            self.held.drain(..skipped);
        }
        self.place = Place::Content;
        Step::Again
    }

    /// An object in the place of a call: a call from the beginning of its arguments on, or what it is when it is whole.
    fn object(&mut self, deltas: &mut Vec<Delta>) -> Step {
        while let Some(Bracket { end, depth, opens }) = self.brackets.next(&self.held) {
            if opens && depth == 2 && !self.looked {
                self.looked = true;
                let start = end - 1;
                if let Some(mut call) = self.call(&format!("{}{{}}}}", &self.held[..start])) {
                    call.arguments.clear();
                    self.begin(call, deltas);
                    self.drop_held(start);
                    self.place = Place::Arguments;
                    return Step::Again;
                }
            }
            if depth == 0 {
                let value: String = self.held.drain(..end).collect();
                self.end_of_object();
                match self.call(&value) {
                    Some(call) => self.begin(call, deltas),
                    None => {
                        let text = std::mem::take(&mut self.before) + &value;
                        self.tell(&text, deltas);
                        self.place = Place::Content;
                    }
                }
                return Step::Again;
            }
        }
        Step::Wait
    }

    /// Tells a call.
    fn begin(&mut self, call: ToolCall, deltas: &mut Vec<Delta>) {
        let before = std::mem::take(&mut self.before);
        let gap = &before[..before.len() - before.trim_start().len()];
        if self.spoken && !gap.is_empty() {
            self.gap = gap.to_owned();
        }
        self.called = true;
        deltas.push(Delta::Call(call));
    }

    fn arguments(&mut self, deltas: &mut Vec<Delta>) -> Step {
        // The brace that opens them was seen.
        let end = self.brackets.find(&self.held, 1);
        deltas.push(Delta::Arguments(self.held[..end.unwrap_or(self.held.len())].to_owned()));
        self.drop_held(end.unwrap_or(self.held.len()));
        if end.is_some() {
            self.place = Place::Tail;
        }
        Step::Again
    }

    fn tail(&mut self) -> Step {
        let end = self.brackets.find(&self.held, 0);
        self.drop_held(end.unwrap_or(self.held.len()));
        if end.is_some() {
            self.end_of_object();
            self.place = Place::Calls;
        }
        Step::Again
    }

    fn end_of_object(&mut self) {
        self.brackets = Brackets::default();
        self.looked = false;
    }

    /// Drops text that was read from the beginning of what is held.
    fn drop_held(&mut self, length: usize) {
        self.held.drain(..length);
        self.brackets.seen -= length;
    }

    /// A call, if the text is one of a function that there is.
    fn call(&self, text: &str) -> Option<ToolCall> {
        let Written { name, arguments } = serde_json::from_str(text).ok()?;
        let arguments = arguments.get().to_owned();
        let known = self.names.contains(&name) && arguments.starts_with('{');
        known.then(|| ToolCall { id: id(), name, arguments })
    }
}

/// Bytes at the end of `text` with which `mark` begins.
fn beginning(text: &str, mark: &str) -> usize {
    let begins = |length: &usize| mark.is_char_boundary(*length) && text.ends_with(&mark[..*length]);
    (1..mark.len()).rev().find(begins).unwrap_or(0)
}

/// Nine random letters and digits.
fn id() -> String {
    const DIGITS: &[u8; 62] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    // The standard library seeds each of these at random.
    let mut left = RandomState::new().build_hasher().finish();
    let mut digit = || {
        let digit = DIGITS[(left % 62) as usize];
        left /= 62;
        char::from(digit)
    };
    (0..9).map(|_| digit()).collect()
}

/// The search for brackets of a JSON object that arrives in pieces, not for those in its strings.
#[derive(Debug, Clone, Default)]
struct Brackets {
    /// Bytes of the held text that were searched.
    seen: usize,
    depth: usize,
    text: bool,
    escaped: bool,
}

struct Bracket {
    /// The place behind it.
    end: usize,
    /// Levels that are open behind it.
    depth: usize,
    /// True for a brace that opens an object.
    opens: bool,
}

impl Brackets {
    /// The next bracket of `held`.
    fn next(&mut self, held: &str) -> Option<Bracket> {
        while let Some(byte) = held.as_bytes().get(self.seen) {
            self.seen += 1;
            match (self.text, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (_, b'"') => self.text = !self.text,
                (false, b'{' | b'[' | b'}' | b']') => {
                    let more = matches!(byte, b'{' | b'[');
                    self.depth = if more { self.depth + 1 } else { self.depth.saturating_sub(1) };
                    return Some(Bracket { end: self.seen, depth: self.depth, opens: *byte == b'{' });
                }
                _ => {}
            }
        }
        None
    }

    /// The place behind the next bracket that leaves `depth` levels open or fewer.
    fn find(&mut self, held: &str, depth: usize) -> Option<usize> {
        while let Some(bracket) = self.next(held) {
            if bracket.depth <= depth {
                return Some(bracket.end);
            }
        }
        None
    }
}
