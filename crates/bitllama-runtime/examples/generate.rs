//! Continues a text: `cargo run --release -p bitllama-runtime --example generate -- runs/quickstart/artifact "It is a truth"`.

use std::error::Error;
use std::io::{Write, stdout};
use std::ops::ControlFlow;
use std::path::Path;

use bitllama_runtime::{GenerationOptions, Sampling, Settings, generate, open};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(prompt)) = (arguments.next(), arguments.next()) else {
        return Err("usage: generate MODEL PROMPT".into());
    };
    let model = open(Path::new(&path))?;
    let decoder = model.decoder.with_settings(Settings::fast());
    let sampling = Sampling { temperature: 0.8, min_p: Some(0.05), seed: 1, ..Sampling::default() };
    let options = GenerationOptions { max_tokens: 100, sampling, stop: vec!["\n\n".into()] };
    print!("{prompt}");
    let generation = generate(&decoder, &model.tokenizer, &prompt, &options, |piece| {
        print!("{piece}");
        match stdout().flush() {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    println!("\n{:?}, {:.1} tokens/s", generation.stop, generation.decode_tokens_per_second);
    Ok(())
}
