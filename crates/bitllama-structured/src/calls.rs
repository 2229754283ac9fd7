//! The grammar of answers with calls.

use std::fmt::Write;

use serde_json::Value;

use crate::families::Facts;
use crate::grammar::Grammar;
use crate::tools::{Choice, Function, Tools};
use crate::vocabulary::Vocabulary;

/// White space that models put between the parts of a call.
const GAP: &str = r"[ \n]{0,2}";

/// The grammar of the answers that `tools` allow; none where there are no calls.
pub(crate) fn grammar(tools: &Tools, vocabulary: &Vocabulary) -> Option<Grammar> {
    let facts = tools.family.facts();
    let (functions, forced): (Vec<&Function>, bool) = match &tools.choice {
        Choice::None => return None,
        Choice::Auto => (tools.functions.iter().collect(), false),
        Choice::Required => (tools.functions.iter().collect(), true),
        Choice::Named(name) => (tools.functions.iter().filter(|function| function.name == *name).collect(), true),
    };
    let several = facts.several && tools.parallel && !matches!(tools.choice, Choice::Named(_));
    let mark = |text: Option<&'static str>| text.map(|text| Mark { text, token: vocabulary.special(text) });
    let marks = Marks { begin: mark(facts.begin), end: mark(facts.end) };
    let mut rules = match forced {
        true => forced_rules(&marks, facts, several),
        false => free_rules(&marks, facts, several, &others(vocabulary, &marks)),
    };
    rules.push_str(&section(&marks, facts, several));
    rules.push_str(&calls(&functions, facts));
    let schemas = functions.iter().enumerate();
    let schemas = schemas.map(|(index, function)| (arguments(index), function.parameters.clone()));
    Some(Grammar::of_tools(rules, schemas.collect::<Vec<(String, Value)>>()))
}

/// A mark of the family, and the token that it is, if it is a special one.
struct Mark {
    text: &'static str,
    token: Option<u32>,
}

struct Marks {
    begin: Option<Mark>,
    end: Option<Mark>,
}

/// A mark as an element of a rule.
fn element(mark: &Mark) -> String {
    match mark.token {
        Some(token) => format!("<[{token}]>"),
        None => Value::from(mark.text).to_string(),
    }
}

/// The special tokens that free text may have, as an element of a rule.
fn others(vocabulary: &Vocabulary, marks: &Marks) -> Option<String> {
    let own: Vec<u32> = [&marks.begin, &marks.end].into_iter().flatten().filter_map(|mark| mark.token).collect();
    let others = vocabulary.special_within().into_iter().filter(|token| !own.contains(token));
    let others: Vec<String> = others.map(|token| token.to_string()).collect();
    if others.is_empty() { None } else { Some(format!("<[{}]>", others.join(","))) }
}

/// The start of an answer that must call.
fn forced_rules(marks: &Marks, facts: &Facts, several: bool) -> String {
    let begin = match &marks.begin {
        // A bare call needs no mark.
        Some(mark) if !facts.bare => element(mark),
        _ => String::new(),
    };
    let again = if several && !facts.list { "(BETWEEN? section)*" } else { "" };
    format!("start: section {again}\nsection: {begin} rest\nBETWEEN: /[ \\n]{{1,2}}/\n")
}

/// The start of an answer that may call.
fn free_rules(marks: &Marks, facts: &Facts, several: bool, others: &Option<String>) -> String {
    let (other, free) = match others {
        Some(others) => (format!("other: {others}\n"), "(other TEXT?)*"),
        None => (String::new(), ""),
    };
    let again = several && !facts.list;
    match &marks.begin {
        // Text that begins like a call is one.
        begin if facts.bare => {
            let marked = match begin {
                Some(mark @ Mark { token: Some(_), .. }) => format!("| TEXT? {free} {} rest", element(mark)),
                _ => String::new(),
            };
            let text = r#"TEXT: /(?s:.+)/ & ~/[ \n]*\{[ \n]*"name"(?s:.*)/"#;
            format!("start: TEXT? {free} | rest {marked}\n{other}{text}\n")
        }
        Some(mark @ Mark { token: Some(_), .. }) => {
            let calls = match again {
                true if others.is_some() => "((other | section) TEXT?)*".to_string(),
                true => "(section TEXT?)*".to_string(),
                false => format!("{free} section?"),
            };
            format!("start: TEXT? {calls}\nsection: {} rest\n{other}TEXT: /(?s:.+)/\n", element(mark))
        }
        // A mark of several tokens ends the text before it as soon as it is whole.
        Some(Mark { text, token: None }) => {
            let quoted = escaped(text);
            let item = if others.is_some() { "(TEXT? other)*" } else { "" };
            let start = match (again, others.is_some()) {
                (true, true) => "(section | TEXT? other)* TEXT?".to_string(),
                (true, false) => "section* TEXT?".to_string(),
                (false, _) => format!("{item} (TEXT | section)?"),
            };
            format!(
                "start: {start}\nsection: head rest\nhead[lazy]: /(?s:.*){quoted}/\n{other}\
                 TEXT: /(?s:.+)/ & ~/(?s:.*){quoted}(?s:.*)/\n"
            )
        }
        None => String::new(),
    }
}

/// `rest`: all that follows the mark.
fn section(marks: &Marks, facts: &Facts, several: bool) -> String {
    let end = marks.end.as_ref().map(element).unwrap_or_default();
    match facts.list {
        true => {
            let more = if several { "(SEPARATOR call)*" } else { "" };
            format!("rest: OPEN call {more} CLOSE {end}\nOPEN: /{GAP}\\[/\nSEPARATOR: /{GAP},/\nCLOSE: /{GAP}\\]/\n",)
        }
        false => format!("rest: call {end}\n"),
    }
}

/// `call`: one of the functions.
fn calls(functions: &[&Function], facts: &Facts) -> String {
    let names: Vec<String> = (0..functions.len()).map(|index| format!("call_{index}")).collect();
    let mut rules = format!("call: {}\n", names.join(" | "));
    let id = if facts.ids { format!(r#"({GAP},{GAP}"id"{GAP}:{GAP}"[a-zA-Z0-9]{{9}}")?"#) } else { String::new() };
    // Behind the brace, white space stands before a mark only.
    let behind = if facts.list || facts.end.is_none() { "" } else { GAP };
    for (index, (Function { name, .. }, rule)) in functions.iter().zip(names).enumerate() {
        let (key, arguments) = (facts.arguments, arguments(index));
        let head = format!(r#"{GAP}\{{{GAP}"name"{GAP}:{GAP}"{}"{GAP},{GAP}"{key}"{GAP}:{GAP}"#, escaped(name));
        // Writing to a string cannot fail.
        let _ = writeln!(rules, "{rule}: HEAD_{index} @{arguments} TAIL\nHEAD_{index}: /{head}/");
    }
    rules + &format!("TAIL: /{id}{GAP}\\}}{behind}/\n")
}

/// The name of the schema of a function's arguments.
fn arguments(index: usize) -> String {
    format!("arguments_{index}")
}

/// `text` in a regular expression between slashes.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c.is_ascii_alphanumeric() {
        true => c.to_string(),
        false => format!("\\x{{{:x}}}", u32::from(c)),
    };
    text.chars().map(escape).collect()
}
