//! AVX-512 with VNNI: a register is a vector of a panel, `vpdpbusd` multiplies four columns of sixteen rows.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::activations::Activations;
use crate::out::Out;
use crate::simd::{Popcount, Simd};
use crate::weight::Weight;
use crate::{float, integer, xnor};

pub(crate) struct Avx512;

impl Simd for Avx512 {
    const ROWS: usize = 16;
    const STACKED: bool = true;
    const SUMS: usize = 16;
    const BYTE_BIAS: i32 = 0;
    type Bytes = __m512i;
    type Ints = __m512i;
    type Partial = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(bytes.cast()) }
    }
    #[inline(always)]
    unsafe fn broadcast(x: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn and(bytes: __m512i, mask: u8) -> __m512i {
        unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(mask as i8)) }
    }
    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right<const BITS: u32>(bytes: __m512i) -> __m512i {
        unsafe { _mm512_srli_epi16::<BITS>(bytes) }
    }
    #[inline(always)]
    unsafe fn shift_left<const BITS: u32>(bytes: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi16::<BITS>(bytes) }
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> __m512i {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn lookup(table: __m512i, fields: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(table, fields) }
    }
    #[inline(always)]
    unsafe fn partial_zero() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn dot(sum: __m512i, fields: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, fields, x) }
    }
    fn depth(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    unsafe fn add_partial(sum: __m512i, partial: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(sum, partial) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: __m512i, fields: __m512i, x: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, fields, x) }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn int_load(values: *const i32) -> __m512i {
        unsafe { _mm512_loadu_si512(values.cast()) }
    }
    #[inline(always)]
    unsafe fn int_add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_mul(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_mullo_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_shift_right(a: __m512i, by: u32) -> __m512i {
        unsafe { _mm512_srav_epi32(a, _mm512_set1_epi32(by as i32)) }
    }
    #[inline(always)]
    unsafe fn lane_field(bytes: __m512i, shift: u32, mask: i32) -> __m512i {
        unsafe {
            let lanes = _mm512_srlv_epi32(bytes, _mm512_set1_epi32(shift as i32));
            _mm512_and_si512(lanes, _mm512_set1_epi32(mask))
        }
    }
    #[inline(always)]
    unsafe fn to_floats(a: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn lookup_floats(table: &[f32; 16], indices: __m512i) -> __m512 {
        unsafe { _mm512_permutexvar_ps(indices, _mm512_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn load_floats(values: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(values) }
    }
    #[inline(always)]
    unsafe fn store(values: *mut f32, floats: __m512) {
        unsafe { _mm512_storeu_ps(values, floats) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn prefetch(bytes: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.cast()) }
    }
}

impl Popcount for Avx512 {
    #[inline(always)]
    unsafe fn add_differences(sum: __m512i, bytes: __m512i, x: u32) -> __m512i {
        unsafe {
            let different = _mm512_xor_si512(bytes, _mm512_set1_epi32(x as i32));
            _mm512_add_epi32(sum, _mm512_popcnt_epi32(different))
        }
    }
}

/// See [`integer::integer_panels`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn integer_panels(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    unsafe { integer::integer_panels::<Avx512>(weight, panels, x, out) }
}

/// See [`float::float_panels`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn float_panels(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    unsafe { float::float_panels::<Avx512>(weight, panels, x, x_sums, out) }
}

/// See [`crate::peak::run`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn peak(x: *const i8) -> usize {
    unsafe { crate::peak::run::<Avx512>(x) }
}

/// See [`float::unpack_panel`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn unpack_panel(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    unsafe { float::unpack_panel::<Avx512>(weight, index, out, stride) }
}

/// Whether the processor can run [`sign_panels`].
pub(crate) fn has_popcount() -> bool {
    is_x86_feature_detected!("avx512vpopcntdq")
}

/// See [`xnor::sign_panels`]; to be called only after [`has_popcount`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vpopcntdq")]
pub(crate) unsafe fn sign_panels(weight: &Weight, panels: Range<usize>, signs: &[u32], scales: &[f32], out: Out) {
    unsafe { xnor::sign_panels::<Avx512>(weight, panels, signs, scales, out) }
}

/// See [`crate::activations::quantize_row_portable`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) unsafe fn quantize_row(x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32 {
    crate::activations::quantize_row_portable(x, out, outliers)
}
