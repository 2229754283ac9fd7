//! Long texts to tokens, a window at a time: an encoding takes about a hundred times the memory of its text until its
//! ids are taken.
//!
//! Windows overlap. Two neighbours are joined where both have the same tokens, at the same bytes, over a run of
//! [`Sizes::run`]: what a window's own ends did to its tokens has worn off there, so the ids are those of the whole text.
//! If there is no such run (a word longer than the overlap, say), the window grows, up to the whole text.

use std::ops::{ControlFlow, Range};

use bitllama_formats::tokenizer::guarded;
use rayon::prelude::*;
use tokenizers::{ModelWrapper, Tokenizer};

use crate::{Error, Result};

/// How a text is cut, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes of a window.
    window: usize,
    /// Bytes that a window shares with the next.
    overlap: usize,
    /// Tokens in which two windows must agree.
    run: usize,
    /// Windows encoded at once, at most.
    at_once: usize,
}

impl Sizes {
    /// Windows start every 120 KiB. That is a multiple of many small numbers, so that windows agree on texts without an
    /// end to their words where tokens repeat evenly: runs of one letter, digits in threes.
    pub(super) const USUAL: Self = Self { window: 128 << 10, overlap: 8 << 10, run: 32, at_once: 8 };
}

/// Part of a text in tokens.
struct Window {
    bytes: Range<usize>,
    ids: Vec<u32>,
    /// Bytes of the whole text that each token stands for.
    places: Vec<(usize, usize)>,
    /// Whether the window may be joined with another in front of each token.
    joints: Vec<bool>,
}

/// Gives the ids of `text` to `each`, in order and as those of one encoding of it all, until it wants no more. Nothing is
/// put around the text.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer refuses the text, or panics.
pub(super) fn for_ids(
    tokenizer: &Tokenizer,
    text: &str,
    sizes: Sizes,
    each: &mut dyn FnMut(&[u32]) -> ControlFlow<()>,
) -> Result<()> {
    if text.len() <= sizes.window {
        let encoding = guarded(|| tokenizer.encode_fast(text, false)).map_err(Error::Tokenizer)?;
        let _ = each(encoding.get_ids());
        return Ok(());
    }
    let encode = |bytes| window(tokenizer, text, bytes);
    let mut left = encode(0..text.floor_char_boundary(sizes.window))?;
    // The first token of the window on the left that was not given yet.
    let mut next = 0;
    while left.bytes.end < text.len() {
        let following = following(text, left.bytes.end, sizes);
        let windows: Vec<Window> = following.into_par_iter().map(encode).collect::<Result<_>>()?;
        for right in windows {
            let Some((of_left, of_right)) = seam(&left, &right, sizes) else {
                let end = text.floor_char_boundary(left.bytes.start + 2 * left.bytes.len());
                let larger = encode(left.bytes.start..end)?;
                if !same_start(&left, &larger, next, sizes) {
                    let place = left.bytes.start;
                    return Err(Error::Tokenizer(format!(
                        "the text cannot be cut behind byte {place}: its tokens depend on what is far away"
                    )));
                }
                left = larger;
                break;
            };
            if each(&left.ids[next..of_left]).is_break() {
                return Ok(());
            }
            (left, next) = (right, of_right);
        }
    }
    let _ = each(&left.ids[next..]);
    Ok(())
}

/// The windows that come after one that ends at `end`.
fn following(text: &str, mut end: usize, sizes: Sizes) -> Vec<Range<usize>> {
    let mut windows = Vec::new();
    while end < text.len() && windows.len() < sizes.at_once.min(rayon::current_num_threads().max(1)) {
        let start = text.floor_char_boundary(end - sizes.overlap);
        end = text.floor_char_boundary(start + sizes.window);
        windows.push(start..end);
    }
    windows
}

fn window(tokenizer: &Tokenizer, text: &str, bytes: Range<usize>) -> Result<Window> {
    let encoding = guarded(|| tokenizer.encode(&text[bytes.clone()], false)).map_err(Error::Tokenizer)?;
    let places = encoding.get_offsets().iter().map(|(start, end)| (bytes.start + start, bytes.start + end)).collect();
    // Unigram weighs a whole word at once, and rounding decides between equals: a part of a word is no help.
    let anywhere = !matches!(tokenizer.get_model(), ModelWrapper::Unigram(_));
    let words = encoding.get_word_ids();
    let joints = (0..words.len()).map(|i| anywhere || i > 0 && words[i] != words[i - 1]).collect();
    Ok(Window { ids: encoding.get_ids().to_vec(), places, joints, bytes })
}

impl Window {
    fn token(&self, index: usize) -> (u32, (usize, usize)) {
        (self.ids[index], self.places[index])
    }
}

/// The same place in the tokens of two windows: within a run in which they agree, and away from the ends of both.
fn seam(left: &Window, right: &Window, sizes: Sizes) -> Option<(usize, usize)> {
    let margin = (left.bytes.end - right.bytes.start) / 4;
    let (first, last) = (right.bytes.start + margin, left.bytes.end - margin);
    let behind = |window: &Window| window.places.partition_point(|place| place.0 < first);
    let (mut i, mut j, mut run) = (behind(left), behind(right), 0);
    while i < left.ids.len() && j < right.ids.len() && left.places[i].1 <= last {
        let (of_left, of_right) = (left.token(i), right.token(j));
        run = if of_left == of_right { run + 1 } else { 0 };
        if run >= sizes.run {
            let (i, j) = (i - sizes.run / 2, j - sizes.run / 2);
            if left.joints[i] && right.joints[j] {
                return Some((i, j));
            }
        }
        // The one that is behind catches up.
        i += usize::from(of_left.1 <= of_right.1);
        j += usize::from(of_right.1 <= of_left.1);
    }
    None
}

/// Whether a window that has grown still begins as it did, as far as its tokens were given and half a run beyond.
fn same_start(old: &Window, new: &Window, given: usize, sizes: Sizes) -> bool {
    let count = if given == 0 { 0 } else { given + sizes.run / 2 };
    old.ids.len() >= count && new.ids.len() >= count && (0..count).all(|i| old.token(i) == new.token(i))
}

#[cfg(test)]
#[path = "windows_tests.rs"]
mod tests;
