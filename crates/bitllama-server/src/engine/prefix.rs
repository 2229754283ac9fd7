//! Keys and values of texts that were computed, kept for the next request that begins the same way.

use bitllama_runtime::KvCache;

/// Texts with their caches, the least recently used first to go.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: Vec<Entry>,
    clock: u64,
}

struct Entry {
    /// The tokens of the positions in `cache`.
    tokens: Vec<u32>,
    cache: KvCache,
    used: u64,
}

/// Shared tokens below which a copy is not worth it.
const LEAST: usize = 16;

impl Prefixes {
    /// Tokens at the beginning of `tokens` that some text has too and whose positions can be had.
    pub fn shared(&self, tokens: &[u32]) -> usize {
        self.best(tokens).map_or(0, |(_, shared)| shared)
    }

    /// A copy of the positions that the longest beginning of `tokens` has, all but the last token's at most.
    pub fn take(&mut self, tokens: &[u32]) -> Option<KvCache> {
        let (index, shared) = self.best(tokens)?;
        self.clock += 1;
        let entry = &mut self.entries[index];
        entry.used = self.clock;
        let mut cache = entry.cache.clone();
        cache.truncate(shared);
        Some(cache)
    }

    fn best(&self, tokens: &[u32]) -> Option<(usize, usize)> {
        // Logits behind the last token are wanted, so it is computed in any case.
        let most = tokens.len().saturating_sub(1);
        let of = |(index, entry): (usize, &Entry)| {
            let shared = common(&entry.tokens, &tokens[..most]);
            (shared >= LEAST && entry.cache.can_truncate(shared)).then_some((index, shared))
        };
        self.entries.iter().enumerate().filter_map(of).max_by_key(|(_, shared)| *shared)
    }

    /// Keeps the positions of a text.
    pub fn keep(&mut self, mut tokens: Vec<u32>, cache: KvCache) {
        tokens.truncate(cache.len());
        if tokens.len() < LEAST || self.entries.iter().any(|entry| entry.tokens.starts_with(&tokens)) {
            return;
        }
        self.entries.retain(|entry| !tokens.starts_with(&entry.tokens));
        self.clock += 1;
        self.entries.push(Entry { tokens, cache, used: self.clock });
    }

    /// Bytes of all caches.
    pub fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.cache.bytes()).sum()
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
