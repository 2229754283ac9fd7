//! Inference on packed low-bit artifacts, and on full-precision models for comparison. No Burn.
//!
//! | module | subject |
//! |---|---|
//! | [`mod@open`] | an artifact, a Hugging Face directory or a GGUF file, by its path |
//! | [`model`] | the decoder: tokens to logits |
//! | [`matrix`] | a weight in the form that is multiplied with |
//! | [`kv_cache`] | keys and values of the positions seen so far |
//! | [`sampling`] | choosing the next token |
//! | [`text`] | text to tokens and back, while they arrive |
//! | [`mod@generate`] | text generation |
//! | [`evaluate`] | perplexity and divergence from a teacher, by llama.cpp's protocol |
//!
//! Work is spread over the current rayon pool; results do not depend on its size.

#![forbid(unsafe_code)]

mod error;
pub mod evaluate;
pub mod generate;
pub mod kv_cache;
pub mod matrix;
pub mod model;
pub mod open;
mod operators;
pub mod sampling;
#[cfg(test)]
mod testing;
pub mod text;

pub use error::{BoxError, Error, Result, one_line};
pub use generate::{Generation, Stop, generate};
pub use kv_cache::KvCache;
pub use matrix::Matrix;
pub use model::{Decoder, LogitsOf};
pub use open::open;
pub use sampling::{Sampler, Sampling};
