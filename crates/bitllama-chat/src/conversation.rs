//! The input of a template: messages, tools and further variables.

use minijinja::Value;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::Map;

use crate::error::{Error, Result};

/// A message: `role`, `content` (text, a list of parts, or null), and whatever else the template reads, such as `tool_calls`,
/// `tool_call_id`, `name` or `reasoning_content`. The template sees all keys, in this order.
pub type Message = Map<String, serde_json::Value>;

/// A message of text.
pub fn message(role: &str, content: &str) -> Message {
    Message::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content.into())])
}

/// The input of a template.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conversation {
    /// The messages, first to last.
    pub messages: Vec<Message>,
    /// Schemas of functions that the model may call.
    pub tools: Option<Vec<serde_json::Value>>,
    /// Documents for templates that read them.
    pub documents: Option<Vec<serde_json::Value>>,
    /// Whether the prompt ends with the start of an answer.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, so that the model continues it.
    pub continue_final_message: bool,
    /// Further variables of the template, such as `enable_thinking`. They come before special tokens of the same name.
    pub extra: Map<String, serde_json::Value>,
}

/// The names of a message's reasoning; the first that is there gives the others.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Marks the end of the message to continue in the prompt.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl Conversation {
    /// The messages as templates see them: without keys that are null, which most templates take for values, and with
    /// the reasoning under the names that templates read.
    ///
    /// # Errors
    ///
    /// If the final message is to be continued and has no text.
    pub(crate) fn plain_messages(&self) -> Result<Vec<Message>> {
        let mut messages: Vec<Message> = self.messages.iter().map(without_nulls).map(with_reasoning).collect();
        if self.continue_final_message {
            let last = messages.last_mut().and_then(|message| message.get_mut("content")).and_then(last_text);
            let text = last.ok_or_else(|| invalid("the final message has no text to continue; give it a content"))?;
            text.push_str(CONTINUE_TAG);
        }
        Ok(messages)
    }

    /// Checks what no template can render.
    ///
    /// # Errors
    ///
    /// If there are no messages, or the final message is to be continued and a generation prompt added.
    pub(crate) fn check(&self) -> Result<()> {
        if self.messages.is_empty() {
            return Err(invalid("there are no messages; give at least one"));
        }
        if self.continue_final_message && self.add_generation_prompt {
            return Err(invalid("continue_final_message and add_generation_prompt exclude each other; choose one"));
        }
        Ok(())
    }

    /// `prompt` up to the end of the message to continue.
    ///
    /// # Errors
    ///
    /// If the template leaves out or changes that message.
    pub(crate) fn cut(&self, mut prompt: String) -> Result<String> {
        if !self.continue_final_message {
            return Ok(prompt);
        }
        let text = self.messages.last().and_then(|message| message.get("content")).cloned().unwrap_or_default();
        let text = Some(text).as_mut().and_then(last_text).map(std::mem::take).unwrap_or_default();
        match prompt.rfind(CONTINUE_TAG.trim_end()) {
            Some(at) if prompt.contains(crate::python::strip(&text)) => {
                let whole = prompt[at..].starts_with(CONTINUE_TAG);
                prompt.truncate(at);
                Ok(if whole { prompt } else { crate::python::strip_end(&prompt).to_owned() })
            }
            _ => Err(invalid("the prompt does not have the final message as it is; the template cannot continue it")),
        }
    }

    /// The steps that a template may take for its length: four for each byte and, as some templates look at all messages for each,
    /// sixteen for each pair of messages.
    pub(crate) fn fuel(&self) -> u64 {
        let lists = self.tools.iter().chain(&self.documents).flatten();
        let maps = self.messages.iter().chain([&self.extra]).flatten();
        let bytes = lists.map(size).sum::<u64>() + maps.map(|(key, value)| key.len() as u64 + size(value)).sum::<u64>();
        let messages = self.messages.len() as u64;
        bytes.saturating_mul(4).saturating_add(messages.saturating_mul(messages).saturating_mul(16))
    }

    /// The variables of the conversation, without its messages.
    pub(crate) fn variables(&self) -> impl Iterator<Item = (String, Value)> {
        let own = [
            ("tools".to_owned(), Value::from(Serde(&self.tools))),
            ("documents".to_owned(), Value::from(Serde(&self.documents))),
            ("add_generation_prompt".to_owned(), Value::from(self.add_generation_prompt)),
        ];
        own.into_iter().chain(self.extra.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value)))))
    }
}

fn invalid(cause: &str) -> Error {
    Error::Conversation(cause.to_owned())
}

fn without_nulls(message: &Message) -> Message {
    message.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn with_reasoning(message: Message) -> Message {
    let Some(reasoning) = REASONING.iter().find_map(|name| message.get(*name)).cloned() else { return message };
    let mut all = Message::from_iter([("thinking".to_owned(), reasoning.clone())]);
    all.extend(message);
    all.insert(REASONING[0].to_owned(), reasoning);
    all
}

/// The bytes of a value: those of its texts, and 16 for each value in it.
fn size(value: &serde_json::Value) -> u64 {
    16 + match value {
        serde_json::Value::String(text) => text.len() as u64,
        serde_json::Value::Array(items) => items.iter().map(size).sum(),
        serde_json::Value::Object(items) => items.iter().map(|(key, value)| key.len() as u64 + size(value)).sum(),
        _ => 0,
    }
}

/// The text of a content: itself, or its last part of text.
fn last_text(content: &mut serde_json::Value) -> Option<&mut String> {
    match content {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Array(parts) => parts.iter_mut().rev().find_map(|part| match part.get_mut("text") {
            Some(serde_json::Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    }
}
