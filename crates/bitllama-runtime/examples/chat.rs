//! Answers questions, each with all before it in mind: `cargo run --release -p bitllama-runtime --example chat -- MODEL "Hello" "And now?"`.

use std::error::Error;
use std::ops::ControlFlow;
use std::path::Path;

use bitllama_chat::{ChatTemplate, Conversation, message};
use bitllama_runtime::text::encode;
use bitllama_runtime::{GenerationOptions, Session, Settings, generate_in, open};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: chat MODEL QUESTION ...")?;
    let model = open(Path::new(&path))?;
    let template =
        ChatTemplate::from_files(|name| model.companions.get(name))?.ok_or("the model has no chat template")?;
    let decoder = model.decoder.with_settings(Settings::fast());
    // Keys and values of the conversation so far stay in the session.
    let mut session = Session::new(&decoder, decoder.config().short_context());
    let mut conversation = Conversation { add_generation_prompt: true, ..Conversation::default() };
    for question in arguments {
        println!("> {question}");
        conversation.messages.push(message("user", &question));
        // The template writes the BOS itself.
        let prompt = encode(&model.tokenizer, None, &template.render(&conversation)?)?;
        let options = GenerationOptions { max_tokens: 200, ..GenerationOptions::default() };
        let answer = generate_in(&mut session, &model.tokenizer, &prompt, &options, |piece| {
            print!("{piece}");
            ControlFlow::Continue(())
        })?;
        println!();
        conversation.messages.push(message("assistant", &answer.text));
    }
    Ok(())
}
