//! Keys and values of texts that were computed, kept for the next request that begins the same way.

use super::positions::Positions;

/// Texts with their positions, the least recently used first to go.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: Vec<Entry>,
    clock: u64,
}

struct Entry {
    /// The tokens of the positions.
    tokens: Vec<u32>,
    positions: Positions,
    used: u64,
}

/// Shared tokens below which it is not worth it.
const LEAST: usize = 16;

impl Prefixes {
    /// Tokens at the beginning of `tokens` that some text has too and whose positions can be had.
    pub fn shared(&self, tokens: &[u32]) -> usize {
        self.best(tokens).map_or(0, |(_, shared)| shared)
    }

    /// The positions of the longest beginning of `tokens` that is kept, all but the last token's at most; their memory stays shared.
    pub fn take(&mut self, tokens: &[u32]) -> Option<Positions> {
        let (index, shared) = self.best(tokens)?;
        self.clock += 1;
        let entry = &mut self.entries[index];
        entry.used = self.clock;
        let mut positions = entry.positions.clone();
        positions.truncate(shared);
        Some(positions)
    }

    fn best(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        // Logits behind the last token are wanted, so it is computed in any case.
        let most = tokens.len().saturating_sub(1);
        let of = |(index, entry): (usize, &Entry)| {
            let shared = common(&entry.tokens, &tokens[..most]);
            (shared >= LEAST && entry.positions.can_truncate(shared)).then_some((index, shared))
        };
        self.entries.iter().enumerate().filter_map(of).max_by_key(|(_, shared)| *shared)
    }

    /// Keeps the positions of a text.
    pub fn keep(&mut self, mut tokens: Vec<u32>, positions: Positions) {
        tokens.truncate(positions.len());
        if tokens.len() < LEAST || self.entries.iter().any(|entry| entry.tokens.starts_with(&tokens)) {
            return;
        }
        self.entries.retain(|entry| !tokens.starts_with(&entry.tokens));
        self.clock += 1;
        self.entries.push(Entry { tokens, positions, used: self.clock });
    }

    /// Their share of the bytes of all texts.
    pub fn share_of_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.positions.share_of_bytes()).sum()
    }

    /// Forgets the text that was not used for the longest time. Says whether there was one.
    pub fn forget_one(&mut self) -> bool {
        let oldest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.used);
        let Some((index, _)) = oldest else { return false };
        self.entries.swap_remove(index);
        true
    }
}

/// Tokens that two texts begin with.
pub(super) fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
