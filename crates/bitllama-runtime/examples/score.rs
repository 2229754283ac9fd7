//! Scores texts, likeliest first: `cargo run --release -p bitllama-runtime --example score -- MODEL "It is a truth" "Truth a is it"`.

use std::error::Error;
use std::path::Path;

use bitllama_runtime::text::{encode, own_bos};
use bitllama_runtime::{LogitsOf, open};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: score MODEL TEXT ...")?;
    let model = open(Path::new(&path))?;
    let vocab = model.decoder.config().vocab_size;
    let mut scored = Vec::new();
    for text in arguments {
        let tokens = encode(&model.tokenizer, own_bos(&model.tokenizer)?, &text)?;
        let mut cache = model.decoder.new_cache_for(tokens.len());
        let logits = model.decoder.forward(&tokens, &mut cache, LogitsOf::All)?;
        let followed = logits.chunks_exact(vocab).zip(tokens.iter().skip(1));
        let score: f64 = followed.map(|(logits, token)| log_probability(logits, *token)).sum();
        scored.push((score / tokens.len().saturating_sub(1).max(1) as f64, text));
    }
    scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    scored.iter().for_each(|(score, text)| println!("{score:8.3} per token  {text}"));
    Ok(())
}

/// The natural logarithm of a token's probability.
fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}
