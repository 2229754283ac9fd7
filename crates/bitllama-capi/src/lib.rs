//! The runtime as a shared library that any language with a C interface can load: `libbitllama.so`, `bitllama.dll` or
//! `libbitllama.dylib`, described by `include/bitllama.h`.
//!
//! | module | subject |
//! |---|---|
//! | [`matmul`] | the interface of earlier tools: products of one matrix with one vector |
//! | [`model`] | whole models: open, tokenize, feed |
//! | [`error`] | error codes and messages |
//! | `rows` | products with rows in the layouts of the earlier tools |
//! | `threads` | the `threads` argument |
//! | `memory` | what callers point to, checked |
//!
//! No panic leaves a function: it becomes [`error::BITLLAMA_ERROR_INTERNAL`].

pub mod error;
pub mod matmul;
mod memory;
pub mod model;
mod rows;
mod threads;
