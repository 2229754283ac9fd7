//! AVX2 with FMA: two registers are a vector of a panel. `vpmaddubsw` multiplies two columns of sixteen bits of eight
//! rows, so products are summed in 16 bits as long as they fit.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activations::Activations;
use crate::out::Out;
use crate::simd::{Popcount, Simd};
use crate::weight::Weight;
use crate::{float, integer, xnor};

pub(crate) struct Avx2;

impl Simd for Avx2 {
    const ROWS: usize = 8;
    const STACKED: bool = false;
    const SUMS: usize = 4;
    const BYTE_BIAS: i32 = 128;
    type Bytes = __m256i;
    type Ints = __m256i;
    type Partial = __m256i;
    type Floats = __m256;

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(bytes.cast()) }
    }
    #[inline(always)]
    unsafe fn broadcast(x: *const i8) -> __m256i {
        unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn and(bytes: __m256i, mask: u8) -> __m256i {
        unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right<const BITS: u32>(bytes: __m256i) -> __m256i {
        unsafe { _mm256_srl_epi16(bytes, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    unsafe fn shift_left<const BITS: u32>(bytes: __m256i) -> __m256i {
        unsafe { _mm256_sll_epi16(bytes, _mm_cvtsi32_si128(BITS as i32)) }
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> __m256i {
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn lookup(table: __m256i, fields: __m256i) -> __m256i {
        unsafe { _mm256_shuffle_epi8(table, fields) }
    }
    #[inline(always)]
    unsafe fn partial_zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m256i, fields: __m256i, x: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(sum, _mm256_maddubs_epi16(fields, x)) }
    }
    fn depth(largest: u32) -> usize {
        // Each 16-bit number takes two products.
        i16::MAX as usize / (2 * 127 * largest as usize)
    }
    #[inline(always)]
    unsafe fn add_partial(sum: __m256i, partial: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sum, _mm256_madd_epi16(partial, _mm256_set1_epi16(1))) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: __m256i, fields: __m256i, x: __m256i) -> __m256i {
        unsafe {
            // The sign moves from the field to the activation, so that two products of at most 128 * 127 fit into 16 bits.
            let fields = _mm256_xor_si256(fields, _mm256_set1_epi8(i8::MIN));
            let products = _mm256_maddubs_epi16(_mm256_abs_epi8(fields), _mm256_sign_epi8(x, fields));
            _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)))
        }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn int_load(values: *const i32) -> __m256i {
        unsafe { _mm256_loadu_si256(values.cast()) }
    }
    #[inline(always)]
    unsafe fn int_add(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_mul(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_shift_right(a: __m256i, by: u32) -> __m256i {
        unsafe { _mm256_sra_epi32(a, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    unsafe fn lane_field(bytes: __m256i, shift: u32, mask: i32) -> __m256i {
        unsafe {
            let lanes = _mm256_srl_epi32(bytes, _mm_cvtsi32_si128(shift as i32));
            _mm256_and_si256(lanes, _mm256_set1_epi32(mask))
        }
    }
    #[inline(always)]
    unsafe fn to_floats(a: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn lookup_floats(table: &[f32; 16], indices: __m256i) -> __m256 {
        unsafe {
            // Three bits of the index choose in each half, and the fourth, moved to the sign, between the halves.
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), indices);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), indices);
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices)))
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load_floats(values: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(values) }
    }
    #[inline(always)]
    unsafe fn store(values: *mut f32, floats: __m256) {
        unsafe { _mm256_storeu_ps(values, floats) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn prefetch(bytes: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.cast()) }
    }
}

impl Popcount for Avx2 {
    #[inline(always)]
    unsafe fn add_differences(sum: __m256i, bytes: __m256i, x: u32) -> __m256i {
        unsafe {
            // The bits of each half of a byte by table (Mula, "SSSE3: fast popcount").
            let table = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
            let different = _mm256_xor_si256(bytes, _mm256_set1_epi32(x as i32));
            let low = _mm256_shuffle_epi8(table, Self::and(different, 15));
            let high = _mm256_shuffle_epi8(table, Self::and(_mm256_srli_epi16::<4>(different), 15));
            let counts = _mm256_maddubs_epi16(_mm256_add_epi8(low, high), _mm256_set1_epi8(1));
            _mm256_add_epi32(sum, _mm256_madd_epi16(counts, _mm256_set1_epi16(1)))
        }
    }
}

/// See [`integer::integer_panels`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn integer_panels(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    unsafe { integer::integer_panels::<Avx2>(weight, panels, x, out) }
}

/// See [`float::float_panels`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn float_panels(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    unsafe { float::float_panels::<Avx2>(weight, panels, x, x_sums, out) }
}

/// See [`crate::peak::run`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn peak(x: *const i8) -> usize {
    unsafe { crate::peak::run::<Avx2>(x) }
}

/// See [`float::unpack_panel`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn unpack_panel(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    unsafe { float::unpack_panel::<Avx2>(weight, index, out, stride) }
}

/// See [`xnor::sign_panels`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn sign_panels(weight: &Weight, panels: Range<usize>, signs: &[u32], scales: &[f32], out: Out) {
    unsafe { xnor::sign_panels::<Avx2>(weight, panels, signs, scales, out) }
}

/// See [`crate::activations::quantize_row_portable`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn quantize_row(x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32 {
    crate::activations::quantize_row_portable(x, out, outliers)
}
