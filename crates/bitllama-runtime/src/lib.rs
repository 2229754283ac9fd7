//! Inference on packed low-bit artifacts, and on full-precision models for comparison. No Burn.
//!
//! | module | subject |
//! |---|---|
//! | [`memory`] | how much this process took |
//! | [`mod@open`] | an artifact, a checkpoint, a run, a Hugging Face directory or a GGUF file, by its path |
//! | [`model`] | the decoder: what it is made of, and how it computes |
//! | [`forward`] | one pass: tokens to logits, for one sequence or several |
//! | [`kv_cache`] | keys and values of the positions seen so far |
//! | [`session`] | a sequence that keeps what it has computed |
//! | [`sampling`] | the choice of the next token |
//! | [`speculate`] | tokens that a smaller model guesses and the model checks |
//! | [`text`] | text to tokens and back, while they arrive |
//! | [`mod@generate`] | text generation |
//! | [`mod@generate_batch`] | several sequences in step, for corpora |
//! | [`evaluate`] | perplexity and divergence from a teacher, by llama.cpp's protocol; multiple-choice tasks, by lm-evaluation-harness's |
//! | [`bench`] | tokens per second, and random models to time |
//!
//! A decoder computes on a [`bitllama_kernels::Pool`], the evaluation of its logits on the current rayon pool; results
//! do not depend on the size of either.

#![forbid(unsafe_code)]

pub mod bench;
mod error;
pub mod evaluate;
pub mod forward;
pub mod generate;
pub mod generate_batch;
pub mod kv_cache;
pub mod memory;
pub mod model;
pub mod open;
pub mod sampling;
pub mod session;
pub mod speculate;
#[cfg(test)]
mod testing;
pub mod text;

pub use error::{BoxError, Error, Result, one_line, short_quotations};
pub use forward::Sequence;
pub use generate::{Generation, GenerationOptions, Stop, generate, generate_in, generate_with_draft};
pub use kv_cache::KvCache;
pub use model::{Decoder, LogitsOf, Settings};
pub use open::{Opened, open, open_latent, open_quantized};
pub use sampling::{Proposal, Sampler, Sampling};
pub use session::Session;
