//! Grammars for generation: which tokens may come next, and what a finished text says.
//!
//! A [`Grammar`] comes from a request, a [`Vocabulary`] from a model; a [`Constraint`] is one generation under both. [`Tools`] are
//! the functions that a model may call: they give a grammar in the format of the model's family, and parse its answers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use bitllama_structured::{Constraint, Grammar, Vocabulary};
//! use serde_json::json;
//!
//! let tokenizer = tokenizers::Tokenizer::from_file("../../models/nano/tokenizer.json")?;
//! let vocabulary = Arc::new(Vocabulary::new(&tokenizer, 1024, &[0])?);
//! let grammar = Grammar::of_response_format(&json!({
//!     "type": "json_schema",
//!     "json_schema": {"name": "answer", "schema": {"type": "string", "enum": ["yes", "no"]}},
//! }))?
//! .expect("the format is not text");
//!
//! let mut constraint = Constraint::new(&vocabulary, &grammar)?;
//! let mut tokens = Vec::new();
//! while !constraint.is_over() {
//!     // The model would compute these.
//!     let mut logits = vec![0.0; 1024];
//!     constraint.allow(&mut logits)?;
//!     let token = logits.iter().position(|logit| *logit == 0.0).expect("a token is allowed") as u32;
//!     constraint.accept(token)?;
//!     tokens.push(token);
//! }
//! let text = tokenizer.decode(&tokens, true)?;
//! assert!(["\"yes\"", "\"no\""].contains(&text.as_str()));
//! # Ok::<(), tokenizers::Error>(())
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`vocabulary`] | the tokens of a model, as grammars see them |
//! | [`bytes`] | the bytes of tokens |
//! | [`grammar`] | grammars out of requests |
//! | `schema` | JSON schemas: what is supported of them, and their bounds |
//! | [`constraint`] | one generation under a grammar |
//! | [`tools`] | functions that a model may call |
//! | [`families`] | the formats in which families of models write calls |
//! | `calls` | the grammar of answers with calls |
//! | [`splitter`] | answers in pieces: text and calls |
//!
//! Grammars come with requests and may be hostile: their size, the steps of their compilation and of each token, and the memory of
//! a generation are bounded, and what goes beyond is an error. llguidance does the work; its panics become errors.

#![forbid(unsafe_code)]

pub mod bytes;
mod calls;
pub mod constraint;
mod error;
pub mod families;
pub mod grammar;
mod schema;
pub mod splitter;
pub mod tools;
pub mod vocabulary;

pub use bytes::Spelling;
pub use constraint::Constraint;
pub use error::{Error, Result};
pub use families::{Family, family_of};
pub use grammar::Grammar;
pub use splitter::{Delta, Splitter};
pub use tools::{Answer, ToolCall, Tools};
pub use vocabulary::Vocabulary;
