//! What [`scaled`](super::scaled) does, with AVX-512: the search for the largest of each lane, and words of sixteen lanes
//! or sixteen words of a lane at a time.

use std::arch::x86_64::*;

use super::pack::{Block, Load, Vectors};
use super::scaled::{LANES_AT_ONCE, Scaled, largest_one_by_one};
use crate::simd::LANES;

impl Vectors for Scaled<'_> {
    #[inline(always)]
    unsafe fn across(self, lane: usize, x: __m512, next: __m512) -> __m512i {
        debug_assert!(lane + LANES <= LANES_AT_ONCE);
        // SAFETY: as promised by the caller; there are inverses for all lanes of a block.
        unsafe {
            let inverses = _mm512_loadu_ps(self.inverses.as_ptr().add(lane));
            let (x, next) = (_mm512_mul_ps(x, inverses), _mm512_mul_ps(next, inverses));
            let upper = _mm512_slli_epi32::<16>(_mm512_cvtps_epi32(next));
            _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_cvtps_epi32(x), upper)
        }
    }

    #[inline(always)]
    unsafe fn along(self, lane: usize, x: __m512, next: __m512) -> __m512i {
        // SAFETY: as promised by the caller.
        unsafe {
            let inverse = _mm512_set1_ps(self.inverses[lane]);
            let (x, next) = (_mm512_mul_ps(x, inverse), _mm512_mul_ps(next, inverse));
            _mm512_packs_epi32(_mm512_cvtps_epi32(x), _mm512_cvtps_epi32(next))
        }
    }

    /// In each quarter two words of the first numbers, then two of those that follow.
    #[inline(always)]
    fn step(place: usize) -> usize {
        place / 4 * 2 + place % 2 + place % 4 / 2 * 8
    }
}

/// Raises `largest` of each lane by the bits of its magnitudes.
///
/// # Safety
/// The processor has the instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn largest<T: Load>(block: &Block<T>, largest: &mut [u32; LANES_AT_ONCE]) {
    let (lanes, depth) = (block.count(), block.depth());
    let [lane_stride, k_stride] = block.strides;
    assert!(lanes <= LANES_AT_ONCE);
    let (vectors, numbers) = match (lane_stride, k_stride) {
        (1, _) => (lanes / LANES * LANES, depth),
        (_, 1) => (lanes / LANES * LANES, depth / LANES * LANES),
        _ => (0, 0),
    };
    if vectors > 0 && numbers > 0 {
        let corner = block.lanes[0] * lane_stride + block.k[0] * k_stride;
        assert!(corner + (vectors - 1) * lane_stride + (numbers - 1) * k_stride < block.data.len());
        let from = block.data[corner..].as_ptr();
        // SAFETY: the numbers are within the slice, as asserted, and `largest` has room for the lanes.
        unsafe {
            let to = largest.as_mut_ptr();
            if lane_stride != 1 {
                for first in (0..vectors).step_by(LANES) {
                    along(from.add(first * lane_stride), lane_stride, numbers, to.add(first));
                }
            } else {
                let mut first = 0;
                while first < vectors {
                    let (from, to) = (from.add(first), to.add(first));
                    let groups = match (vectors - first) / LANES {
                        6.. => across::<T, 6>(from, k_stride, numbers, to),
                        3.. => across::<T, 3>(from, k_stride, numbers, to),
                        _ => across::<T, 1>(from, k_stride, numbers, to),
                    };
                    first += groups * LANES;
                }
            }
        }
    }
    largest_one_by_one(block, 0..vectors, numbers..depth, largest);
    largest_one_by_one(block, vectors..lanes, 0..depth, largest);
}

/// The larger of each lane, of `largest` and of the bits of a magnitude.
///
/// # Safety
/// The processor has AVX-512 F.
#[inline(always)]
unsafe fn larger(largest: __m512i, x: __m512) -> __m512i {
    // SAFETY: as promised by the caller.
    unsafe { _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fff_ffff))) }
}

/// Of groups of lanes that lie side by side, `k_stride` from a `k` to the next; returns how many they are.
///
/// # Safety
/// The processor has AVX-512 F, and there are as many numbers and room for the lanes.
#[inline(always)]
unsafe fn across<T: Load, const N: usize>(from: *const T, k_stride: usize, depth: usize, to: *mut u32) -> usize {
    /// Numbers from one that is asked for to the one that is read.
    const AHEAD: usize = 4;
    // SAFETY: as promised by the caller; nothing happens where a line that is asked for does not exist.
    unsafe {
        let mut all = [_mm512_setzero_si512(); N];
        for k in 0..depth {
            let row = from.wrapping_add(k * k_stride);
            for (group, largest) in all.iter_mut().enumerate() {
                let at = row.add(group * LANES);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(AHEAD * k_stride).cast());
                *largest = larger(*largest, T::load(at));
            }
        }
        for (group, largest) in all.into_iter().enumerate() {
            _mm512_storeu_si512(to.add(group * LANES).cast(), largest);
        }
    }
    N
}

/// Of sixteen lanes `lane_stride` apart, the numbers of each side by side; `depth` is a multiple of sixteen.
///
/// # Safety
/// The processor has AVX-512 F, and there are as many numbers and room for the lanes.
#[inline(always)]
unsafe fn along<T: Load>(from: *const T, lane_stride: usize, depth: usize, to: *mut u32) {
    /// Lanes that are read together: the next number of one does not wait for the one before it.
    const TOGETHER: usize = 4;
    // SAFETY: as promised by the caller.
    unsafe {
        for first in (0..LANES).step_by(TOGETHER) {
            let mut all = [_mm512_setzero_si512(); TOGETHER];
            for k in (0..depth).step_by(LANES) {
                for (lane, largest) in all.iter_mut().enumerate() {
                    *largest = larger(*largest, T::load(from.add((first + lane) * lane_stride + k)));
                }
            }
            for (lane, largest) in all.into_iter().enumerate() {
                *to.add(first + lane) = _mm512_reduce_max_epu32(largest);
            }
        }
    }
}
