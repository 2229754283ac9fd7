//! One generation under a grammar.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;

use crate::error::{Error, Result, one_line};
use crate::grammar::Grammar;
use crate::vocabulary::{Mask, Vocabulary};

/// Bytes of the stack on which grammars are compiled; only those that are used take memory. Rules of a grammar may be nested
/// through each other's names as deep as its text is long.
const STACK: usize = 64 << 20;

/// A generation under a grammar: which tokens may come next, and whether the text may end.
///
/// A clone goes on by itself from the same place. A generation that is computed again keeps its constraint, or makes a new one and
/// gives it the tokens chosen so far.
pub struct Constraint {
    matcher: Matcher,
    vocabulary: Arc<Vocabulary>,
}

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // Shallow clones would share a lock.
        Self { matcher: self.matcher.deep_clone(), vocabulary: Arc::clone(&self.vocabulary) }
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").field("is_over", &self.is_over()).finish_non_exhaustive()
    }
}

impl Constraint {
    /// The start of a generation. The grammar is compiled, which takes milliseconds; clones cost less.
    ///
    /// # Errors
    /// [`Error::Request`] if the grammar cannot be compiled, is too large, or admits no text.
    pub fn new(vocabulary: &Arc<Vocabulary>, grammar: &Grammar) -> Result<Self> {
        let compile = || vocabulary.factory.create_parser(grammar.source.clone());
        let parser = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, compile).map_err(|error| error.to_string())?;
            let parser = thread.join().map_err(|_| "the grammar cannot be compiled".to_string())?;
            parser.map_err(|error| one_line(&error.to_string()))
        });
        let parser = parser.map_err(|cause| grammar.error(&cause))?;
        let mut constraint = Self { matcher: Matcher::new(Ok(parser)), vocabulary: Arc::clone(vocabulary) };
        // The first mask shows whether there is any text, and whether its beginnings are too many.
        if constraint.may_end().is_ok_and(|ends| !ends) {
            constraint.matcher.compute_mask().map_err(|error| grammar.error(&cause(&error)))?;
        }
        Ok(constraint)
    }

    /// Sets the logits of all tokens that may not come next to negative infinity. Once [`is_over`](Self::is_over), these are all
    /// but the end tokens.
    ///
    /// # Errors
    /// [`Error::Generation`] if the state of the grammar grows beyond its bounds, or no token may come next.
    pub fn allow(&mut self, logits: &mut [f32]) -> Result<()> {
        let ends = self.may_end()?;
        let mut mask = match self.is_over() {
            true => Mask::alloc(self.vocabulary.size()),
            false => self.matcher.compute_mask().map_err(failed)?,
        };
        for end in self.vocabulary.end_tokens() {
            mask.set(*end as usize, ends);
        }
        let (known, beyond) = logits.split_at_mut(logits.len().min(self.vocabulary.size()));
        beyond.fill(f32::NEG_INFINITY);
        let mut any = false;
        for (logits, bits) in known.chunks_mut(32).zip(mask.as_slice()) {
            match *bits {
                0 => logits.fill(f32::NEG_INFINITY),
                u32::MAX => any = true,
                bits => {
                    for (place, logit) in logits.iter_mut().enumerate() {
                        let allowed = bits >> place & 1 == 1;
                        any |= allowed;
                        *logit = if allowed { *logit } else { f32::NEG_INFINITY };
                    }
                }
            }
        }
        if any { Ok(()) } else { Err(Error::Generation("no token of the model can go on here".into())) }
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// [`Error::Generation`] if the token was not allowed, or the state of the grammar grows beyond its bounds.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        if self.vocabulary.end_tokens().contains(&token) && self.is_over() {
            return Ok(());
        }
        if token as usize >= self.vocabulary.size() || self.is_over() {
            return Err(Error::Generation(format!("the token {token} is not allowed")));
        }
        self.matcher.consume_token(token).map_err(failed)
    }

    /// Whether the text may end here: end tokens are allowed.
    ///
    /// # Errors
    /// [`Error::Generation`] after another call failed.
    pub fn may_end(&mut self) -> Result<bool> {
        if self.is_over() { Ok(true) } else { self.matcher.is_accepting().map_err(failed) }
    }

    /// Whether nothing but an end token may follow, so that no further pass is needed.
    pub fn is_over(&self) -> bool {
        !self.matcher.is_error() && self.matcher.is_stopped()
    }
}

fn failed(error: impl fmt::Display) -> Error {
    Error::Generation(cause(&error))
}

/// The cause of an error, in one line. llguidance has only a name for a grammar without a text.
fn cause(error: &impl fmt::Display) -> String {
    match one_line(&error.to_string()).as_str() {
        "NoExtension" | "NoExtensionBias" => "no text of the grammar goes on here".into(),
        line => line.to_owned(),
    }
}
