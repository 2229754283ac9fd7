//! Text to tokens, and tokens back to text while they arrive.

use std::ops::{ControlFlow, Deref};

use bitllama_formats::tokenizer::guarded;
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::{Error, Result};

mod reading;
mod spelling;
mod stops;
mod windows;

pub use reading::Reading;
pub use spelling::for_corpus;
pub use stops::StopStrings;

/// Tokens of `text` with `bos` in front, if there is one; only once where the text itself begins with it.
///
/// Nothing comes behind the text, even where the tokenizer's template has an EOS or a separator there: a text that is scored
/// or continued has no end yet.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the text, or panics.
pub fn encode(tokenizer: &Tokenizer, bos: Option<u32>, text: &str) -> Result<Vec<u32>> {
    encode_start(tokenizer, bos, text, usize::MAX)
}

/// The first tokens of [`encode`], `wanted` or some more, if the text has them; what stands behind them is hardly looked at.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the text.
pub fn encode_start(tokenizer: &Tokenizer, bos: Option<u32>, text: &str, wanted: usize) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    let mut begun = false;
    windows::for_ids(tokenizer, text, windows::Sizes::USUAL, &mut |ids| {
        if !begun && !ids.is_empty() {
            begun = true;
            tokens.extend(bos.filter(|bos| ids.first() != Some(bos)));
        }
        tokens.extend_from_slice(ids);
        if tokens.len() < wanted { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if !begun {
        tokens.extend(bos);
    }
    Ok(tokens)
}

/// Gives the tokens of a document to `each`, in pieces and without any around them, until it wants no more. Memory beyond
/// the document's is bounded.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the text.
pub fn for_tokens(
    tokenizer: &Tokenizer,
    document: &str,
    mut each: impl FnMut(&[u32]) -> ControlFlow<()>,
) -> Result<()> {
    windows::for_ids(tokenizer, document, windows::Sizes::USUAL, &mut each)
}

/// The tokens of several documents, as [`for_tokens`] gives them.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses a text.
pub fn tokens_of_all(tokenizer: &Tokenizer, documents: &[impl AsRef<str> + Sync]) -> Result<Vec<Vec<u32>>> {
    let tokens = |document: &str| {
        let mut tokens = Vec::new();
        for_tokens(tokenizer, document, |ids| {
            tokens.extend_from_slice(ids);
            ControlFlow::Continue(())
        })?;
        Ok(tokens)
    };
    documents.par_iter().map(|document| tokens(document.as_ref())).collect()
}

/// The token that the tokenizer puts in front of a text by itself, if any.
///
/// It alone decides in training, evaluation and generation, as in llama.cpp (`add_bos_token`) and `transformers` (the template
/// in `tokenizer.json`): a config may name a BOS that the model never saw in front of a text, another one, or none.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer fails, or puts several tokens there.
pub fn own_bos(tokenizer: &Tokenizer) -> Result<Option<u32>> {
    bitllama_formats::tokenizer::own_bos(tokenizer).map_err(Error::Tokenizer)
}

/// The text of `tokens`; special ones have none.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer cannot decode, or panics.
pub fn decode(tokenizer: &Tokenizer, tokens: &[u32]) -> Result<String> {
    guarded(|| tokenizer.decode(tokens, true)).map_err(Error::Tokenizer)
}

/// Text that is whole so far, out of tokens that may end in the middle of a character.
///
/// Tokens cannot be decoded one by one: a character may take several, and some decoders drop a leading space. So the
/// tokens since the last emission are decoded together with those before them, and what they add is emitted once it
/// ends in a whole character. (The method of text-generation-inference's `prefix_offset` and `read_offset`.)
#[derive(Debug, Clone)]
pub struct TextStream<T> {
    tokenizer: T,
    tokens: Vec<u32>,
    /// `tokens[context..emitted]` is decoded as context.
    context: usize,
    /// The text of `tokens[..emitted]` is out.
    emitted: usize,
}

/// Tokens of a prompt that serve as context for the first piece.
const PROMPT_CONTEXT: usize = 6;

impl<T: Deref<Target = Tokenizer>> TextStream<T> {
    /// A stream that goes on after the tokens of `prompt`.
    pub fn new(tokenizer: T, prompt: &[u32]) -> Self {
        let tokens = prompt[prompt.len().saturating_sub(PROMPT_CONTEXT)..].to_vec();
        Self { tokenizer, emitted: tokens.len(), tokens, context: 0 }
    }

    /// Takes one token and returns the text that is whole with it, if any. Special tokens have no text.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot decode.
    pub fn push(&mut self, token: u32) -> Result<Option<String>> {
        self.tokens.push(token);
        let (before, all) = self.texts()?;
        match all.strip_prefix(&before) {
            Some(new) if !new.is_empty() && !new.ends_with(char::REPLACEMENT_CHARACTER) => {
                let new = new.to_string();
                (self.context, self.emitted) = (self.emitted, self.tokens.len());
                Ok(Some(new))
            }
            _ => Ok(None),
        }
    }

    /// What is left at the end, broken characters included (as U+FFFD).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot decode.
    pub fn finish(self) -> Result<Option<String>> {
        let (before, all) = self.texts()?;
        let shared = all.char_indices().zip(before.chars()).take_while(|((_, a), b)| a == b).last();
        let rest = &all[shared.map_or(0, |((at, c), _)| at + c.len_utf8())..];
        Ok(Some(rest).filter(|rest| !rest.is_empty()).map(str::to_string))
    }

    /// The text of the context, and of the context with the tokens not yet emitted.
    fn texts(&self) -> Result<(String, String)> {
        let text = |tokens: &[u32]| decode(&self.tokenizer, tokens);
        Ok((text(&self.tokens[self.context..self.emitted])?, text(&self.tokens[self.context..])?))
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::processors::template::TemplateProcessing;

    use super::*;
    use crate::testing::byte_tokenizer;

    fn pieces(tokenizer: &Tokenizer, prompt: &str, text: &str) -> Vec<Option<String>> {
        let prompt = encode(tokenizer, None, prompt).unwrap();
        let mut stream = TextStream::new(tokenizer, &prompt);
        let ids = encode(tokenizer, None, text).unwrap();
        let mut pieces: Vec<_> = ids.into_iter().map(|id| stream.push(id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    #[test]
    fn characters_of_several_tokens_come_out_whole() {
        let tokenizer = byte_tokenizer();
        let expected = ["a", "", "é", "", "", "", "🦙", " ", "b", ""];
        let got = pieces(&tokenizer, "x", "aé🦙 b");
        let got: Vec<&str> = got.iter().map(|piece| piece.as_deref().unwrap_or("")).collect();
        assert_eq!(got, expected);
        // Even where the context begins in the middle of a character.
        let text: String = pieces(&tokenizer, "é🦙🦙🦙", "éß🦙").into_iter().flatten().collect();
        assert_eq!(text, "éß🦙");
    }

    #[test]
    fn a_broken_end_is_marked() {
        let tokenizer = byte_tokenizer();
        let mut stream = TextStream::new(&tokenizer, &[]);
        let llama = encode(&tokenizer, None, "a🦙").unwrap();
        assert_eq!(stream.push(llama[0]).unwrap().as_deref(), Some("a"));
        assert_eq!(stream.push(llama[1]).unwrap(), None);
        assert_eq!(stream.push(llama[2]).unwrap(), None);
        assert_eq!(stream.finish().unwrap().as_deref(), Some("\u{fffd}"));
    }

    #[test]
    fn broken_bytes_in_the_middle_do_not_hold_up_the_rest() {
        let tokenizer = byte_tokenizer();
        let mut stream = TextStream::new(&tokenizer, &[]);
        let (llama, b) = (encode(&tokenizer, None, "🦙").unwrap(), encode(&tokenizer, None, "b").unwrap());
        assert_eq!(stream.push(llama[0]).unwrap(), None);
        assert_eq!(stream.push(b[0]).unwrap().as_deref(), Some("\u{fffd}b"));
    }

    #[test]
    fn bos_stands_in_front_once() {
        let tokenizer = byte_tokenizer();
        let plain = encode(&tokenizer, None, "ab").unwrap();
        assert_eq!(plain.len(), 2);
        let with = encode(&tokenizer, Some(256), "ab").unwrap();
        assert_eq!(with, [&[256], plain.as_slice()].concat());
        assert_eq!(encode(&tokenizer, Some(256), "<s>ab").unwrap(), with);
    }

    #[test]
    fn only_a_tokenizer_with_a_template_has_a_bos_of_its_own() {
        let mut tokenizer = byte_tokenizer();
        assert_eq!(own_bos(&tokenizer).unwrap(), None);
        let mut with = |template: &str| {
            let specials = vec![("<s>", 256), ("</s>", 257)];
            let template = TemplateProcessing::builder().try_single(template).unwrap().special_tokens(specials).build();
            tokenizer.with_post_processor(Some(template.unwrap()));
            (own_bos(&tokenizer), encode(&tokenizer, Some(256), "ab").unwrap().len())
        };
        assert!(matches!(with("<s> $A"), (Ok(Some(256)), 3)));
        assert!(matches!(with("<s> $A </s>"), (Ok(Some(256)), 3)), "no EOS behind a text that goes on");
        assert!(matches!(with("$A </s>"), (Ok(None), 3)));
        assert!(with("<s> </s> $A").0.unwrap_err().to_string().contains("2 tokens in front of a text"));
    }
}
