//! The tokens of a model, as grammars see them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, toktrie};
use tokenizers::Tokenizer;

use crate::bytes::Spelling;
use crate::error::{Error, Result, one_line};

/// Bytes of the longest token that can be generated under a grammar; the trie takes 1024.
const LONGEST: usize = 1000;
/// Bytes of all tokens together; the trie takes four million nodes.
const MOST_BYTES: usize = 4_000_000;

/// The tokens of a model and their texts: made once per model, shared by all its generations.
pub struct Vocabulary {
    pub(crate) factory: ParserFactory,
    size: usize,
    end_tokens: Vec<u32>,
    /// Texts of special tokens. They are no text to a grammar.
    special: HashMap<u32, String>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("size", &self.size).field("end_tokens", &self.end_tokens).finish()
    }
}

impl Vocabulary {
    /// The vocabulary of a tokenizer, for logits of `vocab_size` entries; those without a token are never allowed. `end_tokens` end
    /// a text and are special, whatever the tokenizer says.
    ///
    /// # Errors
    /// [`Error::Vocabulary`] if the tokenizer's decoder does not join the texts of tokens as byte-level BPE and SentencePiece do, an
    /// end token is outside the logits, or there are too many tokens.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize, end_tokens: &[u32]) -> Result<Self> {
        if let Some(end) = end_tokens.iter().find(|end| **end as usize >= vocab_size) {
            return Err(Error::Vocabulary(format!("the end token {end} is outside the {vocab_size} logits")));
        }
        let ends: HashSet<u32> = end_tokens.iter().copied().collect();
        let (words, special) = words(tokenizer, vocab_size, &ends)?;
        let environment = environment(words, end_tokens)?;
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &SlicedBiasComputer::general_slices())
                .map_err(|error| Error::Vocabulary(one_line(&error.to_string())))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let mut end_tokens: Vec<u32> = ends.into_iter().collect();
        end_tokens.sort_unstable();
        Ok(Self { factory, size: vocab_size, end_tokens, special })
    }

    /// Entries of the logits.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The tokens that end a text.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end_tokens
    }

    /// The text of a special token, which a decoder leaves out.
    pub fn special_text(&self, token: u32) -> Option<&str> {
        self.special.get(&token).map(String::as_str)
    }

    /// The special token with a text.
    pub(crate) fn special(&self, text: &str) -> Option<u32> {
        self.special.iter().filter(|(_, own)| own.as_str() == text).map(|(token, _)| *token).min()
    }

    /// The special tokens that end no text, in their order.
    pub(crate) fn special_within(&self) -> Vec<u32> {
        let within = self.special.keys().filter(|token| !self.end_tokens.contains(token));
        let mut within: Vec<u32> = within.copied().collect();
        within.sort_unstable();
        within
    }
}

/// Bounds of what a grammar may cost, since it comes with a request.
fn limits() -> ParserLimits {
    ParserLimits { max_lexer_states: 50_000, verbose_errors: false, ..ParserLimits::default() }
}

type Words = (Vec<Vec<u8>>, HashMap<u32, String>);

/// The bytes of each token, with a mark before special ones, and the texts of these.
fn words(tokenizer: &Tokenizer, vocab_size: usize, ends: &HashSet<u32>) -> Result<Words> {
    let spelling = Spelling::of(tokenizer)?;
    let added = tokenizer.get_added_tokens_decoder();
    let (mut words, mut special) = (vec![Vec::new(); vocab_size], HashMap::new());
    for (text, token) in tokenizer.get_vocab(true) {
        let Some(word) = words.get_mut(token as usize) else { continue };
        let is_special = ends.contains(&token) || added.get(&token).is_some_and(|added| added.special);
        let bytes = match is_special {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], text.as_bytes()].concat(),
            false => spelling.bytes(&text),
        };
        // Without bytes, a token is never allowed.
        if bytes.len() <= LONGEST && (is_special || bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER)) {
            *word = bytes;
        }
        if is_special {
            special.insert(token, text);
        }
    }
    if words.iter().map(Vec::len).sum::<usize>() > MOST_BYTES {
        return Err(Error::Vocabulary(format!("all tokens together have more than {MOST_BYTES} bytes")));
    }
    Ok((words, special))
}

/// The trie of all tokens. A model without end tokens gets one beyond its logits, since the trie must have one.
fn environment(mut words: Vec<Vec<u8>>, end_tokens: &[u32]) -> Result<TokEnv> {
    let first = end_tokens.first().copied().map_or_else(
        || {
            words.push(b"\xff<end>".to_vec());
            u32::try_from(words.len() - 1)
        },
        Ok,
    );
    let (Ok(first), Ok(size)) = (first, u32::try_from(words.len())) else {
        return Err(Error::Vocabulary(format!("{} tokens are too many", words.len())));
    };
    if size >= 1 << 24 {
        return Err(Error::Vocabulary(format!("{size} tokens are too many")));
    }
    let trie = TokTrie::from(&TokRxInfo::new(size, first), &words);
    let ends = if end_tokens.is_empty() { vec![first] } else { end_tokens.to_vec() };
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie.with_eos_tokens(&ends)));
    Ok(environment)
}

/// The tokens that a mask allows.
pub(crate) type Mask = toktrie::SimpleVob;
