//! Probabilities of tokens in OpenAI's two shapes.

use bitllama_runtime::text::decode;
use serde_json::{Map, Value, json};
use tokenizers::Tokenizer;

use crate::engine::{Engine, TokenLogprob};

/// The text of one token, special ones included; an ill-formed piece of a character as U+FFFD.
fn text(tokenizer: &Tokenizer, token: u32) -> String {
    match decode(tokenizer, &[token]) {
        Ok(text) if !text.is_empty() => text,
        _ => tokenizer.id_to_token(token).unwrap_or_default(),
    }
}

/// The lists of `/v1/completions`. A first token of a prompt has no probability: nothing stands in front of it.
pub struct Lists<'a> {
    tokenizer: &'a Tokenizer,
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Value>>,
    text_offset: Vec<usize>,
    /// Characters of all texts before.
    offset: usize,
}

impl<'a> Lists<'a> {
    /// Empty lists whose first token begins after so many characters.
    pub fn new(tokenizer: &'a Tokenizer, offset: usize) -> Self {
        let (tokens, token_logprobs) = (Vec::new(), Vec::new());
        Self { tokenizer, tokens, token_logprobs, top_logprobs: Vec::new(), text_offset: Vec::new(), offset }
    }

    /// Appends a token without a probability.
    pub fn push_first(&mut self, token: u32) {
        self.push_text(token);
        self.token_logprobs.push(None);
        self.top_logprobs.push(None);
    }

    /// Appends tokens with their probabilities.
    pub fn extend(&mut self, logprobs: &[TokenLogprob]) {
        for logprob in logprobs {
            self.push_text(logprob.token);
            self.token_logprobs.push(Some(logprob.logprob));
            let top: Map<String, Value> =
                // Later ones with the same text are less likely.
                logprob.top.iter().rev().map(|(token, value)| (text(self.tokenizer, *token), json!(value))).collect();
            self.top_logprobs.push(Some(Value::Object(top)));
        }
    }

    fn push_text(&mut self, token: u32) {
        let text = text(self.tokenizer, token);
        self.text_offset.push(self.offset);
        self.offset += text.chars().count();
        self.tokens.push(text);
    }

    /// Characters up to the end of the last token.
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.token_logprobs, "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// The list of `/v1/chat/completions`. A piece of a character has its own bytes, though its text is U+FFFD.
pub fn of_chat(engine: &Engine, logprobs: &[TokenLogprob]) -> Value {
    let tokenizer = engine.tokenizer();
    let one = |token: u32, logprob: f32| {
        let text = text(tokenizer, token);
        let is_whole = !text.contains(char::REPLACEMENT_CHARACTER);
        let spelled = if is_whole { None } else { tokenizer.id_to_token(token).zip(engine.spelling()) };
        let bytes = spelled.map_or_else(|| text.clone().into_bytes(), |(token, spelling)| spelling.bytes(&token));
        json!({ "token": text, "logprob": logprob, "bytes": bytes })
    };
    let content = logprobs.iter().map(|logprob| {
        let mut entry = one(logprob.token, logprob.logprob);
        entry["top_logprobs"] = logprob.top.iter().map(|(token, value)| one(*token, *value)).collect();
        entry
    });
    json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
}

#[cfg(test)]
mod tests {
    use bitllama_runtime::Decoder;

    use super::*;
    use crate::engine::Limits;
    use crate::testing;

    #[test]
    fn pieces_of_a_character_have_their_own_bytes() {
        let weight = |spec: &_| Ok(testing::random_weight(spec, None, 1));
        let decoder = Decoder::new(testing::tiny_config(), weight).unwrap();
        let engine = Engine::start(decoder, testing::byte_tokenizer(), None, Limits::default());
        let tokens = bitllama_runtime::text::encode(engine.tokenizer(), None, "é!").unwrap();
        let of = |token: &u32| TokenLogprob { token: *token, logprob: -1.0, top: vec![(tokens[0], -2.0)] };
        let list = of_chat(&engine, &tokens.iter().map(of).collect::<Vec<_>>());
        let content = list["content"].as_array().unwrap();
        let bytes: Vec<&Value> = content.iter().map(|entry| &entry["bytes"]).collect();
        assert_eq!(bytes, [&json!([0xc3]), &json!([0xa9]), &json!([b'!'])]);
        assert_eq!(content[2]["top_logprobs"][0]["bytes"], json!([0xc3]));
        assert_eq!((&content[0]["token"], &content[2]["token"]), (&json!("\u{fffd}"), &json!("!")));
    }
}
