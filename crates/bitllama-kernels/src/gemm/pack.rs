//! Copies a block of a factor into panels, in the order in which the micro-kernel reads them.

use std::ops::Range;

use super::encode::{Encode, Exact, Number, Pairs, Rounded};
use super::view::{Elements, View};
use super::{Words, scaled};
use crate::isa::Isa;

/// A block of a factor: `lanes` (rows of the left factor, columns of the right one) times a range of `k`.
#[derive(Clone, Copy)]
pub(super) struct Block<'a, T> {
    pub data: &'a [T],
    pub lanes: [usize; 2],
    pub k: [usize; 2],
    /// Numbers from a lane to the next, and from a `k` to the next.
    pub strides: [usize; 2],
}

impl<T: Number> Block<'_, T> {
    /// The number of a lane of the block, at a `k` of the block.
    #[inline(always)]
    pub(super) fn get(&self, lane: usize, k: usize) -> f32 {
        self.data[(self.lanes[0] + lane) * self.strides[0] + (self.k[0] + k) * self.strides[1]].get()
    }

    pub(super) fn count(&self) -> usize {
        self.lanes[1] - self.lanes[0]
    }

    pub(super) fn depth(&self) -> usize {
        self.k[1] - self.k[0]
    }

    /// The words of the lanes `lanes` at the steps `steps`, one by one; zeros past the end of the block.
    pub(super) fn one_by_one<E: Encode>(
        &self,
        encode: E,
        lanes: Range<usize>,
        steps: Range<usize>,
        mut put: impl FnMut(usize, usize, u32),
    ) {
        // Known for all of them, this costs nothing for each.
        let inside = lanes.end <= self.count() && steps.end * E::PER_WORD <= self.depth();
        let get = |lane, k| match inside || (lane < self.count() && k < self.depth()) {
            true => self.get(lane, k),
            false => 0.0,
        };
        for step in steps {
            for lane in lanes.clone() {
                let k = step * E::PER_WORD;
                put(
                    lane,
                    step,
                    encode.word(lane, [get(lane, k), if E::PER_WORD > 1 { get(lane, k + 1) } else { 0.0 }]),
                );
            }
        }
    }
}

/// Where the words of a block go: panels of `width` lanes, each `[total, width]`, of which they take the steps from
/// `first` on.
#[derive(Clone, Copy)]
pub(super) struct Panels {
    pub width: usize,
    pub total: usize,
    pub first: usize,
}

impl Panels {
    /// Where the word of a lane at a step is.
    #[inline(always)]
    pub fn at(self, lane: usize, step: usize) -> usize {
        (lane / self.width * self.total + self.first + step) * self.width + lane % self.width
    }

    /// Lanes of panels that have so many words. Every panel is filled, the last one also beyond the lanes of the block.
    pub fn lanes(self, words: usize) -> usize {
        words / self.total
    }
}

/// Packs a range of the lanes of a factor, times a range of its `k`, into `out`: panels of `width` lanes, each
/// `[steps, width]`. `factor` is `[lanes, k]`: the left factor, or the right one transposed. Lanes and numbers past the
/// end of the factor become zeros.
pub(super) fn pack(
    isa: Isa,
    words: Words,
    factor: View,
    lanes: Range<usize>,
    k: Range<usize>,
    width: usize,
    out: &mut [u32],
) {
    let steps = words.steps(k.len());
    assert!(lanes.end <= factor.rows() && k.end <= factor.columns(), "a block is outside its factor");
    assert_eq!(out.len(), lanes.len().div_ceil(width) * width * steps, "the panels are not of the block");
    let (lanes, k, strides) = ([lanes.start, lanes.end], [k.start, k.end], factor.strides());
    match factor.elements() {
        Elements::F32(data) => pack_from(isa, words, Block { data, lanes, k, strides }, width, out),
        Elements::Bf16(data) => pack_from(isa, words, Block { data, lanes, k, strides }, width, out),
    }
}

#[cfg(target_arch = "x86_64")]
use super::pack_avx512 as avx512;

#[cfg(not(target_arch = "x86_64"))]
pub(super) use super::encode::{Encode as Vectors, Number as Load};
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::{Load, Vectors};

fn pack_from<T: Load>(isa: Isa, words: Words, block: Block<T>, width: usize, out: &mut [u32]) {
    let panels = Panels { width, total: words.steps(block.depth()), first: 0 };
    if panels.total == 0 {
        return;
    }
    match words {
        Words::Exact => pack_as(isa, Exact, block, panels, out),
        Words::Rounded => pack_as(isa, Rounded, block, panels, out),
        Words::Pairs => pack_as(isa, Pairs, block, panels, out),
        Words::Scaled => scaled::pack(isa, block, panels, out),
        Words::Codes => unreachable!("a view has numbers"),
    }
}

/// Packs all lanes of a block into some steps of their panels.
pub(super) fn pack_as<T: Load, E: Vectors>(isa: Isa, encode: E, block: Block<T>, panels: Panels, out: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: who chose this instruction set has made sure of it (`blocks::run` asserts it).
        return unsafe { avx512::pack(encode, block, panels, out) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    let steps = block.depth().div_ceil(E::PER_WORD);
    for first in (0..panels.lanes(out.len())).step_by(panels.width) {
        block.one_by_one(encode, first..first + panels.width, 0..steps, |lane, step, word| {
            out[panels.at(lane, step)] = word;
        });
    }
}
