//! AArch64 with the dot product extension: four registers are a vector of a panel, `sdot` multiplies four columns of four
//! rows. It takes signed bytes, which fields below 128 are as well.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use crate::activations::Activations;
use crate::out::Out;
use crate::simd::{Popcount, Simd};
use crate::weight::Weight;
use crate::{float, integer, xnor};

pub(crate) struct Neon;

/// `vdotq_s32`, which `std::arch` has in nightly Rust only.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

impl Simd for Neon {
    const ROWS: usize = 4;
    const STACKED: bool = false;
    const SUMS: usize = 16;
    const BYTE_BIAS: i32 = 128;
    type Bytes = uint8x16_t;
    type Ints = int32x4_t;
    type Partial = int32x4_t;
    type Floats = float32x4_t;

    #[inline(always)]
    unsafe fn load(bytes: *const u8) -> uint8x16_t {
        unsafe { vld1q_u8(bytes) }
    }
    #[inline(always)]
    unsafe fn broadcast(x: *const i8) -> uint8x16_t {
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(x.cast::<u32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn and(bytes: uint8x16_t, mask: u8) -> uint8x16_t {
        unsafe { vandq_u8(bytes, vdupq_n_u8(mask)) }
    }
    #[inline(always)]
    unsafe fn or(a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        unsafe { vorrq_u8(a, b) }
    }
    #[inline(always)]
    unsafe fn shift_right<const BITS: u32>(bytes: uint8x16_t) -> uint8x16_t {
        unsafe { vshlq_u8(bytes, vdupq_n_s8(-(BITS as i8))) }
    }
    #[inline(always)]
    unsafe fn shift_left<const BITS: u32>(bytes: uint8x16_t) -> uint8x16_t {
        unsafe { vshlq_u8(bytes, vdupq_n_s8(BITS as i8)) }
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> uint8x16_t {
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn lookup(table: uint8x16_t, fields: uint8x16_t) -> uint8x16_t {
        unsafe { vqtbl1q_u8(table, fields) }
    }
    #[inline(always)]
    unsafe fn partial_zero() -> int32x4_t {
        unsafe { vdupq_n_s32(0) }
    }
    #[inline(always)]
    unsafe fn dot(sum: int32x4_t, fields: uint8x16_t, x: uint8x16_t) -> int32x4_t {
        unsafe { sdot(sum, fields, x) }
    }
    fn depth(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    unsafe fn add_partial(sum: int32x4_t, partial: int32x4_t) -> int32x4_t {
        unsafe { vaddq_s32(sum, partial) }
    }
    #[inline(always)]
    unsafe fn dot_bytes(sum: int32x4_t, fields: uint8x16_t, x: uint8x16_t) -> int32x4_t {
        unsafe { sdot(sum, veorq_u8(fields, vdupq_n_u8(128)), x) }
    }
    #[inline(always)]
    unsafe fn int_splat(value: i32) -> int32x4_t {
        unsafe { vdupq_n_s32(value) }
    }
    #[inline(always)]
    unsafe fn int_load(values: *const i32) -> int32x4_t {
        unsafe { vld1q_s32(values) }
    }
    #[inline(always)]
    unsafe fn int_add(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vaddq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_mul(a: int32x4_t, b: int32x4_t) -> int32x4_t {
        unsafe { vmulq_s32(a, b) }
    }
    #[inline(always)]
    unsafe fn int_shift_right(a: int32x4_t, by: u32) -> int32x4_t {
        unsafe { vshlq_s32(a, vdupq_n_s32(-(by as i32))) }
    }
    #[inline(always)]
    unsafe fn lane_field(bytes: uint8x16_t, shift: u32, mask: i32) -> int32x4_t {
        unsafe {
            let lanes = vshlq_u32(vreinterpretq_u32_u8(bytes), vdupq_n_s32(-(shift as i32)));
            vandq_s32(vreinterpretq_s32_u32(lanes), vdupq_n_s32(mask))
        }
    }
    #[inline(always)]
    unsafe fn to_floats(a: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(a) }
    }
    #[inline(always)]
    unsafe fn lookup_floats(table: &[f32; 16], indices: int32x4_t) -> float32x4_t {
        unsafe {
            // The four bytes of a number lie at four times its index.
            let bytes = vmlaq_u32(vdupq_n_u32(0x0302_0100), vreinterpretq_u32_s32(indices), vdupq_n_u32(0x0404_0404));
            let table = vld1q_u8_x4(table.as_ptr().cast());
            vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }
    #[inline(always)]
    unsafe fn load_floats(values: *const f32) -> float32x4_t {
        unsafe { vld1q_f32(values) }
    }
    #[inline(always)]
    unsafe fn store(values: *mut f32, floats: float32x4_t) {
        unsafe { vst1q_f32(values, floats) }
    }
    #[inline(always)]
    unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }
    #[inline(always)]
    unsafe fn prefetch(bytes: *const u8) {
        unsafe { asm!("prfm pldl1keep, [{0}]", in(reg) bytes, options(readonly, nostack, preserves_flags)) }
    }
}

impl Popcount for Neon {
    #[inline(always)]
    unsafe fn add_differences(sum: int32x4_t, bytes: uint8x16_t, x: u32) -> int32x4_t {
        unsafe {
            let different = veorq_u8(bytes, vreinterpretq_u8_u32(vdupq_n_u32(x)));
            let counts = vpaddlq_u8(vcntq_u8(different));
            vreinterpretq_s32_u32(vpadalq_u16(vreinterpretq_u32_s32(sum), counts))
        }
    }
}

/// See [`integer::integer_panels`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn integer_panels(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    unsafe { integer::integer_panels::<Neon>(weight, panels, x, out) }
}

/// See [`float::float_panels`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn float_panels(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    unsafe { float::float_panels::<Neon>(weight, panels, x, x_sums, out) }
}

/// See [`crate::peak::run`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn peak(x: *const i8) -> usize {
    unsafe { crate::peak::run::<Neon>(x) }
}

/// See [`float::unpack_panel`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn unpack_panel(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    unsafe { float::unpack_panel::<Neon>(weight, index, out, stride) }
}

/// See [`xnor::sign_panels`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn sign_panels(weight: &Weight, panels: Range<usize>, signs: &[u32], scales: &[f32], out: Out) {
    unsafe { xnor::sign_panels::<Neon>(weight, panels, signs, scales, out) }
}

/// See [`crate::activations::quantize_row_portable`].
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn quantize_row(x: &[f32], out: &mut [i8], outliers: &mut Vec<(u32, f32)>) -> f32 {
    crate::activations::quantize_row_portable(x, out, outliers)
}
