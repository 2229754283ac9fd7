//! Functions that a model may call: OpenAI's `tools`, `tool_choice` and `parallel_tool_calls`.

use bitllama_core::excerpt::excerpt;
use serde::ser::{Serialize, SerializeStruct, Serializer};
use serde_json::{Map, Value, json};

use crate::error::{Result, request};
use crate::families::Family;
use crate::grammar::Grammar;
use crate::splitter::{Delta, Splitter};
use crate::vocabulary::Vocabulary;
use crate::{calls, schema};

/// Most functions of a request.
const MOST: usize = 128;

/// The rule for calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    None,
    Auto,
    Required,
    Named(String),
}

/// A function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub name: String,
    /// The schema of its arguments.
    pub parameters: Value,
}

/// Functions that a model may call, and the format in which it does.
#[derive(Debug, Clone)]
pub struct Tools {
    pub(crate) functions: Vec<Function>,
    pub(crate) choice: Choice,
    pub(crate) parallel: bool,
    pub(crate) family: Family,
}

/// A call. As JSON, it is an entry of OpenAI's `tool_calls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// A name for the call that no other call has: nine random letters and digits, the form that Mistral's templates demand.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments: a JSON object, as the model wrote it, which ends early if the answer does.
    pub arguments: String,
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut call = serializer.serialize_struct("ToolCall", 3)?;
        call.serialize_field("id", &self.id)?;
        call.serialize_field("type", "function")?;
        call.serialize_field("function", &json!({"name": self.name, "arguments": self.arguments}))?;
        call.end()
    }
}

/// A finished text: what it says to the reader, and its calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// The text without the calls; none where it is empty.
    pub content: Option<String>,
    /// The calls.
    pub tool_calls: Vec<ToolCall>,
}

impl Tools {
    /// The functions of a request. Without a `choice`, the model may call them or not. Calls that follow each other are allowed where
    /// `parallel` and the family has them.
    ///
    /// # Errors
    /// [`Error::Request`](crate::Error::Request) if the tools or the choice are not as OpenAI has them, or a schema is not supported.
    pub fn new(tools: &Value, choice: Option<&Value>, parallel: bool, family: Family) -> Result<Self> {
        let entries = tools.as_array().ok_or_else(|| request("tools", "they must be a list"))?;
        if entries.len() > MOST {
            return Err(request("tools", format!("there are more than {MOST}")));
        }
        let mut functions: Vec<Function> = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let own = function(entry).map_err(|cause| request("tools", format!("entry {index}: {cause}")))?;
            if functions.iter().any(|other| other.name == own.name) {
                return Err(request("tools", format!("there are two functions `{}`", own.name)));
            }
            functions.push(own);
        }
        let choice = self::choice(choice, &functions).map_err(|cause| request("tool_choice", cause))?;
        Ok(Self { functions, choice, parallel, family })
    }

    /// The grammar of an answer: calls, where one is required; where not, any text in which calls are well formed; none where there
    /// are no calls.
    ///
    /// Special tokens are free in the latter, as they are without a grammar, save for the family's own.
    pub fn grammar(&self, vocabulary: &Vocabulary) -> Option<Grammar> {
        calls::grammar(self, vocabulary)
    }

    /// The text of a token that a decoder leaves out and the calls need: a special token which is one of the family's marks.
    pub fn mark<'a>(&self, vocabulary: &'a Vocabulary, token: u32) -> Option<&'a str> {
        let facts = self.family.facts();
        let text = vocabulary.special_text(token).filter(|_| self.choice != Choice::None)?;
        [facts.begin, facts.end].contains(&Some(text)).then_some(text)
    }

    /// The start of an answer that arrives in pieces.
    pub fn splitter(&self) -> Splitter {
        let names = match self.choice {
            Choice::None => Vec::new(),
            _ => self.functions.iter().map(|function| function.name.clone()).collect(),
        };
        Splitter::new(self.family.facts(), names)
    }

    /// Parses a finished text, in which the family's marks are there as text (see [`mark`](Self::mark)). What looks like a call
    /// and is none stays in the content.
    pub fn parse(&self, text: &str) -> Answer {
        let mut splitter = self.splitter();
        let mut deltas = splitter.push(text);
        deltas.extend(splitter.finish());
        let mut answer = Answer::default();
        deltas.into_iter().for_each(|delta| answer.add(delta));
        answer
    }
}

impl Answer {
    /// Adds a part of an answer that arrives in pieces.
    pub fn add(&mut self, delta: Delta) {
        match delta {
            Delta::Content(text) => self.content.get_or_insert_default().push_str(&text),
            Delta::Call(call) => self.tool_calls.push(call),
            Delta::Arguments(text) => {
                if let Some(call) = self.tool_calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}

fn function(entry: &Value) -> Result<Function, String> {
    if entry.get("type").and_then(Value::as_str) != Some("function") {
        return Err("`type` must be \"function\"".into());
    }
    let function = entry.get("function").and_then(Value::as_object).ok_or("`function` must be an object")?;
    let name = function.get("name").and_then(Value::as_str).ok_or("`function.name` must be a text")?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        return Err(format!("the name `{}` must be 1 to 64 of a-z, A-Z, 0-9, `_` and `-`", excerpt(name)));
    }
    let parameters = parameters(function.get("parameters")).map_err(|cause| format!("`{name}`: {cause}"))?;
    Ok(Function { name: name.to_owned(), parameters })
}

/// The schema of arguments: that of an object, closed unless it says otherwise.
fn parameters(given: Option<&Value>) -> Result<Value, String> {
    let mut object = match given {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(object)) => object.clone(),
        Some(_) => return Err("`parameters` must be an object".into()),
    };
    match object.get("type") {
        None => drop(object.insert("type".into(), "object".into())),
        Some(kind) if kind == "object" => {}
        Some(_) => return Err("`parameters` must have the type \"object\"".into()),
    }
    if ["anyOf", "oneOf", "allOf", "$ref"].iter().all(|key| !object.contains_key(*key)) {
        object.entry("properties").or_insert_with(|| Map::new().into());
    }
    schema::checked(&object.into(), true)
}

fn choice(choice: Option<&Value>, functions: &[Function]) -> Result<Choice, String> {
    let bad = "it must be \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": ..}}";
    let choice = match choice {
        None | Some(Value::Null) if functions.is_empty() => Choice::None,
        None | Some(Value::Null) => Choice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => Choice::None,
            "auto" if functions.is_empty() => Choice::None,
            "auto" => Choice::Auto,
            "required" if functions.is_empty() => return Err("a call is required, and there are no tools".into()),
            "required" => Choice::Required,
            _ => return Err(bad.into()),
        },
        Some(choice) => {
            let name = choice.get("function").and_then(|function| function.get("name")).and_then(Value::as_str);
            let kind = choice.get("type").and_then(Value::as_str);
            let name = name.filter(|_| kind == Some("function")).ok_or(bad)?;
            if functions.iter().all(|function| function.name != name) {
                return Err(format!("there is no function `{}` among the tools", excerpt(name)));
            }
            Choice::Named(name.to_owned())
        }
    };
    Ok(choice)
}
