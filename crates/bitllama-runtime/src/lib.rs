//! Inference on packed low-bit artifacts, and on full-precision models for comparison. No Burn.
//!
//! | module | subject |
//! |---|---|
//! | [`evaluate`] | perplexity and divergence from a teacher, by llama.cpp's protocol |

#![forbid(unsafe_code)]

mod error;
pub mod evaluate;

pub use error::{BoxError, Error, Result};
