//! Answers as they come: the events of one or several generations.

use tokio::sync::mpsc::UnboundedReceiver;

use super::error::{ApiError, Result};
use crate::engine::{Done, Event, Generated, Prompt, TokenLogprob};

/// Tokens of prompts and answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of all prompts.
    pub prompt: usize,
    /// Those of them that were not computed anew.
    pub cached: usize,
    /// Tokens of all answers.
    pub completion: usize,
}

impl Usage {
    /// As OpenAI has it.
    pub fn to_json(self) -> serde_json::Value {
        serde_json::json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Whole {
    /// Its prompt, computed.
    pub prompt: Prompt,
    /// The text.
    pub text: String,
    /// Probabilities of its tokens, where they were asked for.
    pub logprobs: Vec<TokenLogprob>,
    /// Its end.
    pub done: Done,
}

/// Waits for a whole answer.
///
/// # Errors
/// A generation that fails.
pub async fn whole(mut events: UnboundedReceiver<Event>) -> Result<Whole> {
    let (mut prompt, mut text, mut logprobs) = (Prompt::default(), String::new(), Vec::new());
    loop {
        match events.recv().await {
            Some(Event::Prompt(computed)) => prompt = computed,
            Some(Event::Token(Generated { text: piece, logprob, .. })) => {
                text.push_str(&piece);
                logprobs.extend(logprob);
            }
            Some(Event::Done(done)) => {
                text.push_str(&done.text);
                return Ok(Whole { prompt, text, logprobs, done });
            }
            Some(Event::Failed(error)) => return Err(ApiError::internal(error)),
            None => return Err(ApiError::internal("the generation was ended by the server")),
        }
    }
}

/// The reason for an end, in OpenAI's words.
pub fn finish_reason(stop: bitllama_runtime::Stop) -> &'static str {
    use bitllama_runtime::Stop;
    match stop {
        Stop::EndOfText | Stop::StopString | Stop::Interrupted => "stop",
        Stop::MaxTokens | Stop::ContextFull => "length",
    }
}
