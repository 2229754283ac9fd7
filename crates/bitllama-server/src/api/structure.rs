//! Answers that follow a grammar: JSON schemas, regular expressions, calls of functions.

use std::sync::Arc;

use bitllama_structured::{Constraint, Error, Grammar, Tools};
use serde::Deserialize;
use serde_json::Value;

use super::error::{ApiError, Result};
use crate::models::Served;

/// Keys of [`Structure`].
pub const KEYS: [&str; 3] = ["response_format", "guided_regex", "guided_grammar"];

/// Parameters of a request that ask for a grammar; the guided ones are vLLM's.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Structure {
    response_format: Option<Value>,
    guided_regex: Option<String>,
    guided_grammar: Option<String>,
}

impl Structure {
    /// The grammar that was asked for, if any.
    ///
    /// # Errors
    /// Two of them, or one that is not supported.
    fn grammar(&self) -> Result<Option<Grammar>> {
        let format =
            self.response_format.as_ref().map(Grammar::of_response_format).transpose().map_err(fault)?.flatten();
        let regex = self.guided_regex.as_deref().map(Grammar::regex).transpose().map_err(fault)?;
        let lark = self.guided_grammar.as_deref().map(Grammar::lark).transpose().map_err(fault)?;
        let mut all = [format, regex, lark].into_iter().flatten();
        match (all.next(), all.next()) {
            (_, Some(_)) => Err(ApiError::invalid("give one of response_format, guided_regex and guided_grammar")),
            (grammar, None) => Ok(grammar),
        }
    }
}

/// The constraint of a request, at the start of its answer; none where the answer is free.
///
/// # Errors
/// A grammar that is not supported, together with another one.
pub fn constraint(model: &Served, structure: &Structure, tools: Option<&Tools>) -> Result<Option<Constraint>> {
    let asked = structure.grammar()?;
    if asked.is_none() && tools.is_none() {
        return Ok(None);
    }
    let vocabulary = model.engine.vocabulary().map_err(fault)?;
    let of_tools = tools.and_then(|tools| tools.grammar(&vocabulary));
    let grammar = match (asked, of_tools) {
        (Some(_), Some(_)) => {
            return Err(ApiError::parameter(
                "tools",
                "tools and a grammar of the answer exclude each other; give one of them",
            ));
        }
        (Some(grammar), None) | (None, Some(grammar)) => grammar,
        (None, None) => return Ok(None),
    };
    Constraint::new(&vocabulary, &grammar).map(Some).map_err(fault)
}

/// The functions of a request; none where it has none.
///
/// # Errors
/// Functions that are ill-formed.
pub fn tools(model: &Served, tools: &Value, choice: Option<&Value>, parallel: bool) -> Result<Arc<Tools>> {
    Tools::new(tools, choice, parallel, model.family).map(Arc::new).map_err(fault)
}

fn fault(error: Error) -> ApiError {
    match &error {
        Error::Request { parameter, .. } => ApiError::parameter(parameter, error.to_string()),
        Error::Vocabulary(_) | Error::Generation(_) => ApiError::invalid(error.to_string()),
    }
}
