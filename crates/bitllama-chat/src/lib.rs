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
//! | `text` | Python's `str` and `repr` of values |
//! | `python` | Python's text of numbers, its white space, its lines |
//! | `date` | Python's `strftime` |
//! | `tags` | tags that the template engine lacks or takes otherwise |
//!
//! A template comes with a model and may be hostile: it reads nothing but the conversation, the special tokens and the date, and
//! [`Limits`] bound its steps, its memory and its output.

#![forbid(unsafe_code)]

pub mod config;
pub mod conversation;
mod date;
mod environment;
mod error;
mod json;
mod methods;
mod python;
mod tags;
pub mod template;
mod text;

pub use chrono::NaiveDateTime;

pub use config::{SpecialTokens, TemplateFiles};
pub use conversation::{Conversation, Message, message};
pub use error::{Error, Result};
pub use template::{ChatTemplate, Limits};
