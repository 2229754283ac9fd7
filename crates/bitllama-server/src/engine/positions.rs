//! Keys and values of a text, in a model and in its draft.

use bitllama_runtime::KvCache;

use super::Model;

/// Keys and values of a text. A clone shares their memory.
#[derive(Debug, Clone)]
pub(super) struct Positions {
    /// Those of the model.
    pub model: KvCache,
    /// Those of its draft, which may have read less of the text.
    pub draft: Option<KvCache>,
}

impl Positions {
    /// None yet, for a text of so many positions.
    pub fn new(model: &Model, positions: usize) -> Self {
        let draft = model.draft.as_ref().map(|draft| draft.new_cache_for(positions));
        Self { model: model.decoder.new_cache_for(positions), draft }
    }

    /// Bytes that so many positions take.
    pub fn bytes_for(model: &Model, positions: usize) -> usize {
        let of = |decoder: &bitllama_runtime::Decoder| KvCache::bytes_for(decoder.config(), decoder.kv(), positions);
        of(&model.decoder) + model.draft.as_ref().map_or(0, of)
    }

    /// Positions that the model has computed.
    pub fn len(&self) -> usize {
        self.model.len()
    }

    /// Bytes held, those that other texts share included.
    pub fn bytes(&self) -> usize {
        self.each().map(KvCache::bytes).sum()
    }

    /// Its share of the bytes of all texts.
    pub fn share_of_bytes(&self) -> usize {
        self.each().map(KvCache::share_of_bytes).sum()
    }

    fn each(&self) -> impl Iterator<Item = &KvCache> {
        std::iter::once(&self.model).chain(&self.draft)
    }

    /// Whether the next position lies in memory that other texts share.
    pub fn copies_next(&self) -> bool {
        self.each().any(KvCache::copies_next)
    }

    /// Takes memory for so many positions.
    pub fn reserve(&mut self, positions: usize) {
        self.model.reserve(positions);
        if let Some(draft) = &mut self.draft {
            draft.reserve(positions);
        }
    }

    /// Whether [`Positions::truncate`] can go back so far.
    pub fn can_truncate(&self, len: usize) -> bool {
        self.model.can_truncate(len)
    }

    /// Forgets positions from `len` on. A draft that cannot go back so far begins anew.
    pub fn truncate(&mut self, len: usize) {
        self.model.truncate(len);
        if let Some(draft) = &mut self.draft
            && draft.len() > len
        {
            draft.truncate(if draft.can_truncate(len) { len } else { 0 });
        }
    }
}
