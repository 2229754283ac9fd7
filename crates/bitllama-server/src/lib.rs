//! An OpenAI-compatible HTTP server over the runtime.
//!
//! | module | subject |
//! |---|---|
//! | [`engine`] | continuous batching: many generations with one model in step |
//! | [`models`] | the models of a server |
//! | [`api`] | the HTTP interface |
//! | [`mod@listen`] | connections |

#![forbid(unsafe_code)]

pub mod api;
pub mod engine;
pub mod listen;
pub mod models;
#[cfg(test)]
#[path = "../../bitllama-runtime/src/testing.rs"]
mod testing;

pub use api::{Http, Server, router};
pub use engine::Limits;
pub use listen::{Connections, listen};
pub use models::{Models, Served};
