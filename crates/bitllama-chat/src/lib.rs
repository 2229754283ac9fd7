//! Messages to a prompt, as `transformers` renders the chat templates of models.
//!
//! ```
//! use bitllama_chat::{ChatTemplate, Conversation, TemplateFiles, message};
//!
//! let config = serde_json::json!({
//!     "bos_token": "<s>",
//!     "eos_token": {"content": "</s>"},
//!     "chat_template": "{{ bos_token }}{% for message in messages %}[{{ message.role }}] {{ message.content }}{{ eos_token }}\n\
//!         {% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}",
//! });
//! let template = ChatTemplate::from_config(&config, &TemplateFiles::default())?.expect("the config has a template");
//! let conversation = Conversation {
//!     messages: vec![message("user", "How many bits has a trit?")],
//!     add_generation_prompt: true,
//!     ..Conversation::default()
//! };
//! assert_eq!(template.render(&conversation)?, "<s>[user] How many bits has a trit?</s>\n[assistant] ");
//! # Ok::<(), bitllama_chat::Error>(())
//! ```
//!
//! | module | subject |
//! |---|---|
//! | [`template`] | a compiled template and its bounds |
//! | [`conversation`] | messages, tools and further variables |
//! | [`config`] | the template and special tokens of a model's files |
//! | `environment` | filters, functions and tests that templates find |
//! | `methods` | Python's methods of strings, lists and dicts |
//! | `json` | Python's `json.dumps` |
//! | `nesting` | bounds on the nesting of values |
//! | `text` | Python's `str` and `repr` of values |
//! | `python` | Python's text of numbers, its white space, its lines |
//! | `date` | Python's `strftime` |
//! | `tags` | tags that the template engine lacks or takes otherwise |
//!
//! A template comes with a model and may be hostile: it reads nothing but the conversation, the special tokens and the date, and
//! [`Limits`] bound its steps, its memory and its output. Steps over long text take longer than others.
//!
//! Prompts of published models are compared with those of `transformers`. Templates that go beyond them may find these differences
//! from Jinja in Python:
//!
//! - Missing: the operator `%` of strings, the filters `truncate`, `wordcount`, `center`, `urlencode`, `xmlattr` and others of web
//!   pages, the test `callable`, `include` and `import`. A template with them is an error, at the latest where it reaches them.
//! - More lenient: comparisons of values of different types, slices of `none` and undefined values, `in` of a number in a string,
//!   and JSON of iterators give a result instead of an error. An attribute of a namespace cannot be a namespace or a function.
//! - Text marked by `safe` does not escape what is added to it by `+`.
//! - The operator `~` writes floats from 1e16 on and below 1e-4 without an exponent.

#![forbid(unsafe_code)]

pub mod config;
pub mod conversation;
mod date;
mod environment;
mod error;
mod json;
mod methods;
mod nesting;
mod python;
mod tags;
pub mod template;
mod text;

pub use chrono::NaiveDateTime;

pub use config::{SpecialTokens, TemplateFiles};
pub use conversation::{Conversation, Message, message};
pub use error::{Error, Result};
pub use template::{ChatTemplate, Limits};
