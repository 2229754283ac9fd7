//! AArch64 with the dot product extension: four registers are a vector, `sdot` multiplies four columns of four rows. It
//! takes signed bytes, which fields below 128 are as well.
//!
//! Floats are the arrays of [`Portable`], which the compiler puts into registers.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::{BYTES, LANES, Nibbles, Portable, Simd};

/// The proof of NEON with the dot product extension.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    /// # Safety
    /// The processor must have what this is the proof of, and functions that use it must be compiled for that.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

/// The results for each of four registers.
macro_rules! each {
    ($i:ident => $x:expr) => {{
        let mut out = [proven!(std::mem::zeroed()); 4];
        for $i in 0..4 {
            out[$i] = proven!($x);
        }
        out
    }};
}

/// Methods that are those of [`Portable`].
macro_rules! portable {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($argument: $type),*) $(-> $result)? {
                Portable::<true>.$name($($argument),*)
            }
        )*
    };
}

/// `vdotq_s32`, which `std::arch` has in nightly Rust only.
///
/// # Safety
/// The processor has the dot product extension.
#[inline(always)]
unsafe fn sdot(mut sum: int32x4_t, a: uint8x16_t, b: uint8x16_t) -> int32x4_t {
    // SAFETY: as promised by the caller; only registers are touched.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

type Floats = [f32; LANES];

impl Simd for Neon {
    type Floats = Floats;
    type Ints = [int32x4_t; 4];
    type Bytes = [uint8x16_t; 4];
    type Dots = [int32x4_t; 4];
    const BLOCK: usize = Portable::<true>::BLOCK;
    const ROWS: usize = Portable::<true>::ROWS;
    const STACKED: bool = false;
    const SUMS: usize = 4;
    const BYTE_BIAS: i32 = 128;

    portable! {
        fn splat(x: f32) -> Floats;
        fn load(x: &[f32; LANES]) -> Floats;
        fn load_f16(x: &[f16; LANES]) -> Floats;
        fn load_i8(x: &[i8; LANES]) -> Floats;
        fn load_i4(x: &Nibbles) -> Floats;
        fn store(v: Floats, out: &mut [f32; LANES]);
        fn add(a: Floats, b: Floats) -> Floats;
        fn sub(a: Floats, b: Floats) -> Floats;
        fn mul(a: Floats, b: Floats) -> Floats;
        fn div(a: Floats, b: Floats) -> Floats;
        fn mul_add(a: Floats, b: Floats, c: Floats) -> Floats;
        fn min(a: Floats, b: Floats) -> Floats;
        fn max(a: Floats, b: Floats) -> Floats;
        fn scale(v: Floats, n: Floats) -> Floats;
        fn zero_below(v: Floats, x: Floats, bound: f32) -> Floats;
        fn sum(v: Floats) -> f32;
        fn largest(v: Floats) -> f32;
    }

    #[inline(always)]
    fn lookup_floats(self, table: &[f32; 16], indices: Self::Ints) -> Floats {
        let bytes = proven!(vld1q_u8_x4(table.as_ptr().cast()));
        let floats: [float32x4_t; 4] = each!(i => {
            // The four bytes of a number lie at four times its index.
            let at = vmlaq_u32(vdupq_n_u32(0x0302_0100), vreinterpretq_u32_s32(indices[i]), vdupq_n_u32(0x0404_0404));
            vreinterpretq_f32_u8(vqtbl4q_u8(bytes, vreinterpretq_u8_u32(at)))
        });
        proven!(std::mem::transmute::<[float32x4_t; 4], Floats>(floats))
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::Ints {
        [proven!(vdupq_n_s32(x)); 4]
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> Self::Ints {
        each!(i => vld1q_s32(x[4 * i..].as_ptr()))
    }
    #[inline(always)]
    fn load_i16(self, x: &[i16; LANES]) -> Self::Ints {
        each!(i => vmovl_s16(vld1_s16(x[4 * i..].as_ptr())))
    }
    #[inline(always)]
    fn load_i8_ints(self, x: &[i8; LANES]) -> Self::Ints {
        let bytes = proven!(vld1q_s8(x.as_ptr()));
        let [low, high] = proven!([vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)]);
        proven!([
            vmovl_s16(vget_low_s16(low)),
            vmovl_high_s16(low),
            vmovl_s16(vget_low_s16(high)),
            vmovl_high_s16(high)
        ])
    }
    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(i => vaddq_s32(a[i], b[i]))
    }
    #[inline(always)]
    fn sub_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(i => vsubq_s32(a[i], b[i]))
    }
    #[inline(always)]
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(i => vmulq_s32(a[i], b[i]))
    }
    #[inline(always)]
    fn shift_ints_right(self, a: Self::Ints, by: u32) -> Self::Ints {
        each!(i => vshlq_s32(a[i], vdupq_n_s32(-(by as i32))))
    }
    #[inline(always)]
    fn shift_ints_left(self, a: Self::Ints, by: u32) -> Self::Ints {
        each!(i => vshlq_s32(a[i], vdupq_n_s32(by as i32)))
    }
    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Floats {
        let floats: [float32x4_t; 4] = each!(i => vcvtq_f32_s32(a[i]));
        proven!(std::mem::transmute::<[float32x4_t; 4], Floats>(floats))
    }
    #[inline(always)]
    fn dot_pairs(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        each!(i => {
            let low = vmulq_s32(vshrq_n_s32::<16>(vshlq_n_s32::<16>(a[i])), vshrq_n_s32::<16>(vshlq_n_s32::<16>(b[i])));
            vmlaq_s32(vaddq_s32(sum[i], low), vshrq_n_s32::<16>(a[i]), vshrq_n_s32::<16>(b[i]))
        })
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; BYTES]) -> Self::Bytes {
        each!(i => vld1q_u8(x[16 * i..].as_ptr()))
    }
    #[inline(always)]
    fn splat_quad(self, x: [i8; 4]) -> Self::Bytes {
        self.bytes_of(self.splat_int(i32::from_le_bytes(bytemuck::cast(x))))
    }
    #[inline(always)]
    fn bytes_of(self, x: Self::Ints) -> Self::Bytes {
        each!(i => vreinterpretq_u8_s32(x[i]))
    }
    #[inline(always)]
    fn and(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        each!(i => vandq_u8(bytes[i], vdupq_n_u8(mask)))
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        each!(i => vorrq_u8(a[i], b[i]))
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes {
        each!(i => vshlq_u8(bytes[i], vdupq_n_s8(-(BITS as i8))))
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes {
        each!(i => vshlq_u8(bytes[i], vdupq_n_s8(BITS as i8)))
    }
    #[inline(always)]
    fn lane_field(self, bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints {
        each!(i => {
            let lanes = vshlq_u32(vreinterpretq_u32_u8(bytes[i]), vdupq_n_s32(-(shift as i32)));
            vandq_s32(vreinterpretq_s32_u32(lanes), vdupq_n_s32(mask))
        })
    }
    #[inline(always)]
    fn table(self, bytes: &[u8; 16]) -> Self::Bytes {
        [proven!(vld1q_u8(bytes.as_ptr())); 4]
    }
    #[inline(always)]
    fn lookup(self, table: Self::Bytes, fields: Self::Bytes) -> Self::Bytes {
        each!(i => vqtbl1q_u8(table[i], fields[i]))
    }
    #[inline(always)]
    fn no_dots(self) -> Self::Dots {
        self.splat_int(0)
    }
    #[inline(always)]
    fn dot(self, sum: Self::Dots, fields: Self::Bytes, x: Self::Bytes) -> Self::Dots {
        each!(i => sdot(sum[i], fields[i], x[i]))
    }
    fn depth(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    fn add_dots(self, sum: Self::Ints, dots: Self::Dots) -> Self::Ints {
        self.add_ints(sum, dots)
    }
    #[inline(always)]
    fn dot_now(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        self.dot(sum, fields, x)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        let signed: Self::Bytes = each!(i => veorq_u8(fields[i], vdupq_n_u8(128)));
        self.dot(sum, signed, x)
    }
    #[inline(always)]
    fn add_differences(self, sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints {
        each!(i => {
            let different = veorq_u8(bytes[i], vreinterpretq_u8_u32(vdupq_n_u32(x)));
            let counts = vpaddlq_u8(vcntq_u8(different));
            vreinterpretq_s32_u32(vpadalq_u16(vreinterpretq_u32_s32(sum[i]), counts))
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        proven!(asm!("prfm pldl1keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags)))
    }
    #[inline(always)]
    fn prefetch_far<T>(self, address: *const T) {
        proven!(asm!("prfm pldl2keep, [{0}]", in(reg) address, options(readonly, nostack, preserves_flags)))
    }
}
