//! A compiled template and its bounds.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::NaiveDateTime;
use minijinja::value::Serde;
use minijinja::{Environment, Value};

use crate::config::SpecialTokens;
use crate::conversation::Conversation;
use crate::error::{self, Error, Result};
use crate::{environment, tags};

/// The template that renders conversations with tools, if a model has several.
pub(crate) const TOOL_USE: &str = "tool_use";
/// The template that renders the others.
pub(crate) const DEFAULT: &str = "default";

/// Bounds of a rendering. A template beyond them is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Steps of the template engine, where 64 bytes that a step makes count as a step. What a conversation needs comes on top:
    /// four steps for each of its bytes and sixteen for each pair of messages.
    pub fuel: u64,
    /// Longest prompt, in bytes.
    pub output: usize,
}

impl Default for Limits {
    /// A million steps, which make at most some 64 MB, and 64 MiB of prompt.
    fn default() -> Self {
        Limits { fuel: 1_000_000, output: 64 << 20 }
    }
}

/// A chat template, compiled, with the special tokens of its model.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: SpecialTokens,
    limits: Limits,
    clock: Option<NaiveDateTime>,
    source: String,
}

impl ChatTemplate {
    /// Compiles `source`.
    ///
    /// # Errors
    ///
    /// If it is no template. The error names the line and the cause.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self> {
        Self::named([(DEFAULT, source)], special)
    }

    /// Compiles templates by name, of which `render` uses `default` and `tool_use`.
    pub(crate) fn named<'a>(
        sources: impl IntoIterator<Item = (&'a str, &'a str)>,
        special: SpecialTokens,
    ) -> Result<Self> {
        let mut environment = environment::new().map_err(|error| error::syntax(&error))?;
        let mut all = String::new();
        for (name, source) in sources {
            all.push_str(source);
            let source = tags::rewritten(source)?;
            environment.add_template_owned(name.to_owned(), source).map_err(|error| error::syntax(&error))?;
        }
        Ok(ChatTemplate { environment, special, limits: Limits::default(), clock: None, source: all })
    }

    /// The same template with other bounds.
    pub fn with_limits(self, limits: Limits) -> Self {
        ChatTemplate { limits, ..self }
    }

    /// The same template with `now` for the date that its function `strftime_now` tells, instead of that on the wall.
    pub fn with_clock(self, now: NaiveDateTime) -> Self {
        ChatTemplate { clock: Some(now), ..self }
    }

    /// The text of the template, of all of them where the model has several.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The special tokens that the template finds as variables.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    /// The prompt of `conversation`.
    ///
    /// # Errors
    ///
    /// If the template refuses the conversation ([`Error::Refused`]), fails on it or goes beyond the [`Limits`], or if the
    /// conversation has no messages or no final message to continue.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        conversation.check()?;
        let messages = Value::from(Serde(conversation.plain_messages()?));
        let special = self.special.iter().map(|(name, text)| (name.clone(), Value::from(text)));
        let variables = special.chain(conversation.variables()).chain([("messages".to_owned(), messages)]);
        let prompt = self.evaluate(Value::from_pairs(variables), conversation)?;
        conversation.cut(prompt)
    }

    fn evaluate(&self, variables: Value, conversation: &Conversation) -> Result<String> {
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(self.limits.fuel.saturating_add(conversation.fuel())));
        environment::set_clock(&mut environment, self.clock);
        let template = environment.get_template(self.choice(conversation)?).map_err(|error| error::render(&error))?;
        let mut out = Bounded { bytes: Vec::new(), limit: self.limits.output, over: false };
        // The engine is not free of panics, such as that of `loop.cycle()` without arguments.
        let rendered = catch_unwind(AssertUnwindSafe(|| template.render_captured_to(variables, &mut out).map(drop)));
        match rendered {
            Err(_) => Err(Error::Render { line: 1, cause: "the template engine fails".to_owned() }),
            Ok(Err(_)) if out.over => Err(Error::Output(self.limits.output)),
            Ok(Err(error)) => Err(error::render(&error)),
            Ok(Ok(())) => String::from_utf8(out.bytes).map_err(|error| Error::Conversation(error.to_string())),
        }
    }

    /// The name of the template for `conversation`.
    fn choice(&self, conversation: &Conversation) -> Result<&'static str> {
        let has = |name| self.environment.templates().any(|(known, _)| known == name);
        match conversation.tools {
            Some(_) if has(TOOL_USE) => Ok(TOOL_USE),
            _ if has(DEFAULT) => Ok(DEFAULT),
            _ => Err(Error::Config(
                "the model has a chat template for conversations with tools only; give tools".to_owned(),
            )),
        }
    }
}

/// A writer into memory that fails beyond a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    over: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.over |= bytes.len() > self.limit - self.bytes.len();
        if self.over {
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
