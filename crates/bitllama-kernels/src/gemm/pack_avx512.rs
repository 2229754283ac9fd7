//! Packing with AVX-512: sixteen lanes times sixteen steps at a time. Where the lanes lie side by side a row of words is
//! a load and a store; where the numbers of a lane do, sixteen such rows are transposed in registers.

use std::arch::x86_64::*;

use half::bf16;

use super::encode::{Encode, Exact, Number, Pairs, Rounded};
use super::pack::{Block, Panels};
use crate::simd::LANES;

/// Numbers that can be loaded as `f32`.
pub(in crate::gemm) trait Load: Number {
    /// # Safety
    /// The processor has AVX-512 F, and there are [`LANES`] numbers.
    unsafe fn load(at: *const Self) -> __m512;
}

impl Load for f32 {
    #[inline(always)]
    unsafe fn load(at: *const f32) -> __m512 {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_loadu_ps(at) }
    }
}

impl Load for bf16 {
    #[inline(always)]
    unsafe fn load(at: *const bf16) -> __m512 {
        // SAFETY: as promised by the caller.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }
}

/// What [`Encode::word`] does, in vectors. The second operand is only looked at where a word has two numbers.
pub(in crate::gemm) trait Vectors: Encode {
    /// Words of [`LANES`] lanes from `lane` on: their numbers at one `k`, and at the next.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW, and lanes are those of the block.
    unsafe fn across(self, lane: usize, x: __m512, next: __m512) -> __m512i;

    /// [`LANES`] words of one lane, from the first numbers and from the [`LANES`] that follow.
    ///
    /// # Safety
    /// The processor has AVX-512 F and BW, and the lane is one of the block.
    unsafe fn along(self, lane: usize, x: __m512, next: __m512) -> __m512i;

    /// Which of those words [`along`](Self::along) returns in a place.
    #[inline(always)]
    fn step(place: usize) -> usize {
        place
    }
}

impl Vectors for Exact {
    #[inline(always)]
    unsafe fn across(self, _: usize, x: __m512, _: __m512) -> __m512i {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_castps_si512(x) }
    }
    #[inline(always)]
    unsafe fn along(self, _: usize, x: __m512, _: __m512) -> __m512i {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_castps_si512(x) }
    }
}

impl Vectors for Rounded {
    #[inline(always)]
    unsafe fn across(self, _: usize, x: __m512, _: __m512) -> __m512i {
        // SAFETY: as promised by the caller.
        unsafe { rounded(x) }
    }
    #[inline(always)]
    unsafe fn along(self, _: usize, x: __m512, _: __m512) -> __m512i {
        // SAFETY: as promised by the caller.
        unsafe { rounded(x) }
    }
}

impl Vectors for Pairs {
    #[inline(always)]
    unsafe fn across(self, _: usize, x: __m512, next: __m512) -> __m512i {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_or_si512(_mm512_srli_epi32::<16>(rounded(x)), rounded(next)) }
    }
    #[inline(always)]
    unsafe fn along(self, _: usize, x: __m512, next: __m512) -> __m512i {
        const UPPER: [i16; 32] = {
            let mut halves = [0; 32];
            let mut i = 0;
            while i < 32 {
                halves[i] = 2 * i as i16 + 1;
                i += 1;
            }
            halves
        };
        // SAFETY: as promised by the caller.
        unsafe { _mm512_permutex2var_epi16(rounded(x), _mm512_loadu_si512(UPPER.as_ptr().cast()), rounded(next)) }
    }
}

/// [`encode::rounded`](super::encode) of every lane.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn rounded(x: __m512) -> __m512i {
    // SAFETY: as promised by the caller.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let nearest = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let kept = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x0040_0000));
        _mm512_and_si512(kept, _mm512_set1_epi32(0xffff_0000u32 as i32))
    }
}

/// Groups of sixteen lanes that [`pack`] takes at a time, at most.
const GROUPS: usize = 6;

/// Packs a block into its panels.
///
/// # Safety
/// The processor has the instructions.
///
/// # Panics
/// If the panels' width is neither 8 nor a multiple of 16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(in crate::gemm) unsafe fn pack<T: Load, E: Vectors>(encode: E, block: Block<T>, panels: Panels, out: &mut [u32]) {
    let width = panels.width;
    assert!(width == 8 || width.is_multiple_of(LANES));
    let (lanes, steps) = (panels.lanes(out.len()), block.depth().div_ceil(E::PER_WORD));
    // Whole words of whole groups of lanes go by vectors.
    let (words, groups) = (block.depth() / E::PER_WORD, block.count() / LANES);
    let [lane_stride, k_stride] = block.strides;
    let words = match (lane_stride, k_stride) {
        (1, _) => words,
        (_, 1) => words / LANES * LANES,
        _ => 0,
    };
    let vectors = if words == 0 { 0 } else { groups * LANES };
    for first in (0..vectors).step_by(GROUPS * LANES) {
        let groups = GROUPS.min((vectors - first) / LANES);
        let corner = (block.lanes[0] + first) * lane_stride + block.k[0] * k_stride;
        // The last number that is read and the last words that are written, so that one check does for all.
        let last = corner + (groups * LANES - 1) * lane_stride + (words * E::PER_WORD - 1) * k_stride;
        assert!(last < block.data.len(), "the block is outside its data");
        assert!(panels.at(first + groups * LANES - 8, words - 1) + 8 <= out.len(), "the block is outside its panels");
        let mut halves = [[0; 2]; GROUPS];
        for (group, halves) in halves.iter_mut().enumerate() {
            *halves = [0, 8].map(|half| panels.at(first + group * LANES + half, 0));
        }
        let to = To { out: out.as_mut_ptr(), halves: &halves[..groups], lane: first, width };
        let from = block.data[corner..].as_ptr();
        // SAFETY: the numbers and the words are within their slices, as asserted.
        match lane_stride {
            1 => unsafe { across(encode, from, k_stride, words, to) },
            _ => unsafe { along(encode, from, lane_stride, words, to) },
        }
    }
    for (lanes, steps) in [(0..vectors, words..steps), (vectors..lanes, 0..steps)] {
        block.one_by_one(encode, lanes, steps, |lane, step, word| out[panels.at(lane, step)] = word);
    }
}

/// Where the words of groups of sixteen lanes go.
#[derive(Clone, Copy)]
struct To<'a> {
    out: *mut u32,
    /// Where those of the first step go, for each half of a group.
    halves: &'a [[usize; 2]],
    /// The first lane of the first group.
    lane: usize,
    /// Words from a step to the next.
    width: usize,
}

impl To<'_> {
    /// Stores the words of a step of a group.
    ///
    /// # Safety
    /// There is room for them, and the processor has AVX-512 F.
    #[inline(always)]
    unsafe fn store(self, group: usize, step: usize, words: __m512i) {
        let [low, high] = self.halves[group];
        // SAFETY: as promised by the caller.
        unsafe {
            let to = self.out.add(step * self.width);
            if self.width == 8 {
                _mm256_storeu_si256(to.add(low).cast(), _mm512_castsi512_si256(words));
                _mm256_storeu_si256(to.add(high).cast(), _mm512_extracti64x4_epi64::<1>(words));
            } else {
                _mm512_storeu_si512(to.add(low).cast(), words);
            }
        }
    }
}

/// Words of groups of lanes that lie side by side, `k_stride` from a `k` to the next. What is side by side is read
/// together: a group at a time would be one cache line, and often one page, for each `k`.
///
/// # Safety
/// The numbers of all steps are there, and room for the words.
#[inline(always)]
unsafe fn across<T: Load, E: Vectors>(encode: E, from: *const T, k_stride: usize, steps: usize, to: To) {
    /// Steps from a number that is asked for to the one that is read.
    const AHEAD: usize = 8;
    for step in 0..steps {
        let row = from.wrapping_add(step * E::PER_WORD * k_stride);
        for group in 0..to.halves.len() {
            // SAFETY: as promised by the caller; nothing happens where a line that is asked for does not exist.
            unsafe {
                let at = row.add(group * LANES);
                let x = T::load(at);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * E::PER_WORD * k_stride).cast());
                let mut next = x;
                if E::PER_WORD > 1 {
                    next = T::load(at.add(k_stride));
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add((AHEAD * E::PER_WORD + 1) * k_stride).cast());
                }
                to.store(group, step, encode.across(to.lane + group * LANES, x, next));
            }
        }
    }
}

/// Words of groups of lanes `lane_stride` apart, the numbers of each side by side; `steps` is a multiple of sixteen.
///
/// # Safety
/// The numbers of all steps are there, and room for the words.
#[inline(always)]
unsafe fn along<T: Load, E: Vectors>(encode: E, from: *const T, lane_stride: usize, steps: usize, to: To) {
    /// Numbers from one that is asked for to the one that is read.
    const AHEAD: usize = 8 * LANES;
    for group in 0..to.halves.len() {
        for step in (0..steps).step_by(LANES) {
            // SAFETY: as promised by the caller; nothing happens where a line that is asked for does not exist.
            unsafe {
                let mut rows = [_mm512_setzero_si512(); LANES];
                for (lane, row) in rows.iter_mut().enumerate() {
                    let at = from.add((group * LANES + lane) * lane_stride + step * E::PER_WORD);
                    let x = T::load(at);
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD).cast());
                    let mut next = x;
                    if E::PER_WORD > 1 {
                        next = T::load(at.add(LANES));
                        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD + LANES).cast());
                    }
                    *row = encode.along(to.lane + group * LANES + lane, x, next);
                }
                let rows = transposed(rows);
                for (place, words) in rows.iter().enumerate() {
                    to.store(group, step + E::step(place), *words);
                }
            }
        }
    }
}

/// Sixteen rows of sixteen words, with rows for columns: pairs of words, then of double words, within quarters; then
/// the quarters themselves.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    // SAFETY: as promised by the caller.
    unsafe {
        let zero = _mm512_setzero_si512();
        let (mut a, mut b) = ([zero; LANES], [zero; LANES]);
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
        }
        // b[4 * i + j]: in each quarter q, column 4 * q + j of the rows 4 * i ..
        for i in 0..4 {
            for j in 0..2 {
                b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
                b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
            }
        }
        for j in 0..4 {
            let low = _mm512_shuffle_i32x4::<0x88>(b[j], b[4 + j]);
            let high = _mm512_shuffle_i32x4::<0x88>(b[8 + j], b[12 + j]);
            let low_odd = _mm512_shuffle_i32x4::<0xdd>(b[j], b[4 + j]);
            let high_odd = _mm512_shuffle_i32x4::<0xdd>(b[8 + j], b[12 + j]);
            a[j] = _mm512_shuffle_i32x4::<0x88>(low, high);
            a[8 + j] = _mm512_shuffle_i32x4::<0xdd>(low, high);
            a[4 + j] = _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd);
            a[12 + j] = _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd);
        }
        a
    }
}
