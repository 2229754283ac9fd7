//! A right factor that is packed once and multiplied often.

use std::ops::Range;

use rayon::prelude::*;

use super::blocks::depths;
use super::{Precision, View, Words, pack, tile};
use crate::aligned::Aligned;
use crate::isa::Isa;

/// A right factor `[k, n]` in the order in which [`gemm_packed`](super::gemm_packed) reads it: a weight as it is or, as a
/// transposed view, its transpose. In [`Precision::Bf16`] and [`Precision::Bfp12`] it takes 2 bytes a number, else 4; up to 47 columns are added.
#[derive(Debug, Clone)]
pub struct PackedB {
    isa: Isa,
    words: Words,
    shape: [usize; 2],
    data: Data,
}

#[derive(Debug, Clone)]
enum Data {
    /// Panels as the micro-kernel reads them, all panels of a range of `k` before those of the next.
    Words(Aligned<u32>),
    /// The upper halves of such words; the lower ones are zeros.
    Halves(Aligned<u16>),
}

impl PackedB {
    /// Packs `b`, `[k, n]`, for products with this instruction set and in this precision.
    ///
    /// # Panics
    /// If the processor lacks `isa`.
    pub fn new(isa: Isa, precision: Precision, b: View) -> Self {
        Self::with(isa, Words::of(isa, precision), b)
    }

    pub(super) fn with(isa: Isa, words: Words, b: View) -> Self {
        assert!(isa.is_available(), "this processor has no {isa}");
        let (k, n) = (b.rows(), b.columns());
        let [_, width] = tile::lanes(isa);
        let padded = n.next_multiple_of(width);
        let (mut all, mut halves) = (Aligned::new(), Aligned::new());
        match words {
            Words::Rounded => halves.grow(k * padded),
            _ => all.grow(words.steps(k) * padded),
        }
        let mut panel = Vec::new();
        for k in depths(words, k) {
            let steps = words.steps(k.len());
            for first in (0..n).step_by(width) {
                let lanes = first..n.min(first + width);
                let at = words.steps(k.start) * padded + first * steps..;
                match words {
                    Words::Rounded => {
                        panel.resize(steps * width, 0);
                        pack::pack(isa, words, b.transposed(), lanes, k.clone(), width, &mut panel);
                        for (half, word) in halves.as_mut_slice()[at].iter_mut().zip(&panel) {
                            *half = (word >> 16) as u16;
                        }
                    }
                    _ => {
                        let to = &mut all.as_mut_slice()[at][..steps * width];
                        pack::pack(isa, words, b.transposed(), lanes, k.clone(), width, to);
                    }
                }
            }
        }
        let data = match words {
            Words::Rounded => Data::Halves(halves),
            _ => Data::Words(all),
        };
        Self { isa, words, shape: [k, n], data }
    }

    /// Rows: `k`.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Columns: `n`.
    pub fn columns(&self) -> usize {
        self.shape[1]
    }

    /// Bytes of memory held.
    pub fn bytes(&self) -> usize {
        match &self.data {
            Data::Words(words) => words.bytes(),
            Data::Halves(halves) => halves.bytes(),
        }
    }

    /// The instruction set that it was packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn words(&self) -> Words {
        self.words
    }

    /// Whether the micro-kernel can read the panels where they are.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.data, Data::Words(_))
    }

    /// Where the panels of one of the ranges of `k` and of some columns are, which begin with a panel.
    fn range(&self, k: &Range<usize>, columns: &Range<usize>) -> Range<usize> {
        let [_, width] = tile::lanes(self.isa);
        let steps = self.words.steps(k.len());
        let from = self.words.steps(k.start) * self.columns().next_multiple_of(width) + columns.start * steps;
        from..from + columns.len().next_multiple_of(width) * steps
    }

    /// Panels as the micro-kernel reads them.
    pub(super) fn panels(&self, k: &Range<usize>, columns: &Range<usize>) -> &[u32] {
        match &self.data {
            Data::Words(words) => &words.as_slice()[self.range(k, columns)],
            Data::Halves(_) => unreachable!("asked for only if ready"),
        }
    }

    /// Writes the panels as the micro-kernel reads them to `to`.
    pub(super) fn widen(&self, k: &Range<usize>, columns: &Range<usize>, to: &mut [u32]) {
        /// Numbers of a task.
        const TASK: usize = 1 << 14;
        let range = self.range(k, columns);
        match &self.data {
            Data::Words(words) => to.copy_from_slice(&words.as_slice()[range]),
            Data::Halves(halves) => {
                let halves = halves.as_slice()[range].par_chunks(TASK);
                to.par_chunks_mut(TASK).zip(halves).for_each(|(to, halves)| {
                    for (to, half) in to.iter_mut().zip(halves) {
                        *to = u32::from(*half) << 16;
                    }
                });
            }
        }
    }
}
