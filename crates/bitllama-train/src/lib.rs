//! Distils a Llama-family model into a low-bit student.
//!
//! A recipe ([`recipe`]) names a teacher, a student, text and a bit plan. [`data`] turns the text into batches,
//! [`training`] runs the loop, [`monitor`] tells how it goes, [`ptq`] rounds without training, [`evaluate`] scores models, [`export`] writes the
//! artifact. [`commands`] holds one file for each command of the binary.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

#[macro_use]
mod print;

pub mod commands;
pub mod data;
pub mod evaluate;
pub mod export;
pub mod grid;
pub mod models;
pub mod monitor;
pub mod ptq;
pub mod recipe;
pub mod sub_norm;
pub mod teacher_cache;
pub mod training;

/// A random stream of its own for each purpose and number, all from one seed.
pub fn seeded(seed: u64, purpose: &str, number: u64) -> ChaCha8Rng {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(number.to_le_bytes());
    hash.update(purpose.as_bytes());
    ChaCha8Rng::from_seed(hash.finalize().into())
}
