//! Rotations and masks of the layers of a model for rows of one length.

use std::sync::Arc;

use bitllama_core::{LayerKind, ModelConfig};

use crate::mask::Mask;
use crate::rotary::Rotary;

/// A kind of layer that a model has.
#[derive(Debug)]
struct Kind {
    kind: LayerKind,
    rotary: Option<Rotary>,
    window: Option<usize>,
}

/// The rotary embedding and the mask of each kind of layer.
#[derive(Debug, Clone)]
pub struct Positions {
    kinds: Arc<[Kind]>,
    /// In the order of `kinds`.
    masks: Vec<Mask>,
    whole: Mask,
}

impl Positions {
    /// Those of a model's layers for the rows of `mask`, in which every token sees all that it may see in a layer without a window.
    pub fn new(config: &ModelConfig, mask: Mask) -> Self {
        let (seq, device) = (mask.seq(), mask.device());
        let mut kinds: Vec<LayerKind> = (0..config.num_hidden_layers).map(|index| config.arch.layer(index)).collect();
        kinds.sort_by_key(|kind| (kind.window, kind.rotary));
        kinds.dedup();
        let of_kind = |kind: LayerKind| {
            let rope = config.rope_of(kind).map(|rope| rope.frequencies(config.rotary_dim(), seq));
            let rotary = rope.map(|frequencies| Rotary::new(&frequencies, seq, device));
            Kind { kind, rotary, window: config.window_of(kind) }
        };
        let kinds: Vec<_> = kinds.into_iter().map(of_kind).collect();
        Self { kinds: kinds.into(), masks: Vec::new(), whole: mask.clone() }.with_mask(mask)
    }

    /// The same for other rows of the same length.
    pub fn with_mask(&self, mask: Mask) -> Self {
        let masks = self.kinds.iter().map(|kind| match kind.window {
            Some(window) => mask.within_window(window),
            None => mask.clone(),
        });
        Self { kinds: self.kinds.clone(), masks: masks.collect(), whole: mask }
    }

    /// The mask of layers without a window.
    pub fn mask(&self) -> &Mask {
        &self.whole
    }

    /// The rotary embedding, if any, and the mask of layers of a kind.
    ///
    /// # Panics
    /// If the model has no layer of the kind.
    pub fn of(&self, kind: LayerKind) -> (Option<&Rotary>, &Mask) {
        let found = self.kinds.iter().zip(&self.masks).find(|(known, _)| known.kind == kind);
        let Some((found, mask)) = found else { panic!("the model has no layer of kind {kind:?}") };
        (found.rotary.as_ref(), mask)
    }
}
