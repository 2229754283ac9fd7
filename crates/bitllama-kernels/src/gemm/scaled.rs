//! Blocks of whole numbers with a common scale: what [`Precision::Bfp12`](super::Precision::Bfp12) packs.
//!
//! A lane's numbers are taken [`SPAN`] at a time. In a panel they are words of two whole numbers each, and after them a
//! row of the lanes' scales, which are `f32`: a panel of a block of `k` is such a sequence of words and scales for each
//! [`SPAN`] that the block has.

use std::ops::Range;

use super::encode::{Encode, Number};
use super::pack::{Block, Load, Panels, pack_as};
use crate::isa::Isa;

/// Numbers of a lane with one scale, but for the last ones of a lane. Even, and few enough for a sum of products to fit
/// into 32 bits. With 512, products of a layer were 1 to 2 % faster, but an outlier takes digits from twice as many.
pub(super) const SPAN: usize = 256;
const _: () = assert!(SPAN.is_multiple_of(32) && SPAN as i64 * (MOST as i64 * MOST as i64) < 1 << 31);

/// The largest whole number.
pub(super) const MOST: u16 = 2047;

/// Words of a lane that `depth` numbers take, from the start of a span on: two numbers each, and the scales.
pub(super) fn steps(depth: usize) -> usize {
    depth.div_ceil(2) + depth.div_ceil(SPAN)
}

/// Lanes that are packed at a time: a multiple of every width of panels, and few enough for a span of them to stay in the
/// second cache from the search for the largest to the packing.
pub(super) const LANES_AT_ONCE: usize = 96;

/// The scale of numbers the largest of which has these bits, its sign being clear, and what to multiply them with. The
/// smallest scale is the smallest normal number, for its inverse to be finite.
#[inline(always)]
fn scale(largest: u32) -> [f32; 2] {
    if largest >= f32::INFINITY.to_bits() {
        return [f32::NAN, 0.0];
    }
    let scale = f32::from_bits(largest) / f32::from(MOST);
    let scale = if scale > f32::MIN_POSITIVE { scale } else { f32::MIN_POSITIVE };
    [scale, 1.0 / scale]
}

/// Numbers become whole ones, in pairs, the first in the low half.
#[derive(Clone, Copy)]
pub(super) struct Scaled<'a> {
    /// What the numbers of a lane are multiplied with.
    pub inverses: &'a [f32; LANES_AT_ONCE],
}

impl Encode for Scaled<'_> {
    const PER_WORD: usize = 2;

    #[inline(always)]
    fn word(self, lane: usize, x: [f32; 2]) -> u32 {
        /// Near this the low bits of a float are a whole number; to add it rounds to the nearest, of two to the even.
        const SHIFT: f32 = 12_582_912.0;
        let whole = |x: f32| (x * self.inverses[lane] + SHIFT).to_bits();
        whole(x[0]) & 0xffff | whole(x[1]) << 16
    }
}

/// Packs a block whose `k` begin a span.
pub(super) fn pack<T: Load>(isa: Isa, block: Block<T>, panels: Panels, out: &mut [u32]) {
    let Panels { width, total, .. } = panels;
    assert!(LANES_AT_ONCE.is_multiple_of(width));
    for (out, first) in out.chunks_mut(LANES_AT_ONCE * total).zip((block.lanes[0]..).step_by(LANES_AT_ONCE)) {
        let lanes = [first, block.lanes[1].min(first + LANES_AT_ONCE)];
        for (from, first) in (block.k[0]..block.k[1]).step_by(SPAN).zip((panels.first..).step_by(steps(SPAN))) {
            let span = Block { lanes, k: [from, block.k[1].min(from + SPAN)], ..block };
            let panels = Panels { first, ..panels };
            let mut scales = [[0.0; LANES_AT_ONCE]; 2];
            for (lane, largest) in largest(isa, &span).into_iter().enumerate() {
                [scales[0][lane], scales[1][lane]] = scale(largest);
            }
            pack_as(isa, Scaled { inverses: &scales[1] }, span, panels, out);
            let last = steps(span.depth()) - 1;
            for lane in (0..panels.lanes(out.len())).step_by(width) {
                let at = panels.at(lane, last);
                for (word, scale) in out[at..at + width].iter_mut().zip(&scales[0][lane..lane + width]) {
                    *word = scale.to_bits();
                }
            }
        }
    }
}

/// The bits of the largest magnitude of each lane: as whole numbers they compare as the numbers do, and what is no number
/// or not finite is larger than all others. Zeros for lanes past the end of the block.
fn largest<T: Load>(isa: Isa, block: &Block<T>) -> [u32; LANES_AT_ONCE] {
    let mut largest = [0; LANES_AT_ONCE];
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: who chose this instruction set has made sure of it (`run` asserts it).
        unsafe { super::scaled_avx512::largest(block, &mut largest) };
        return largest;
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = isa;
    largest_one_by_one(block, 0..block.count(), 0..block.depth(), &mut largest);
    largest
}

/// Raises `largest` of the lanes `lanes` by their numbers `k`.
pub(super) fn largest_one_by_one<T: Number>(
    block: &Block<T>,
    lanes: Range<usize>,
    k: Range<usize>,
    largest: &mut [u32; LANES_AT_ONCE],
) {
    for k in k {
        for lane in lanes.clone() {
            largest[lane] = largest[lane].max(block.get(lane, k).to_bits() & 0x7fff_ffff);
        }
    }
}
