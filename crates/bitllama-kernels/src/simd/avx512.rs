//! AVX-512 with VNNI: a register is a vector, `vpdpbusd` multiplies four columns of sixteen rows.

use std::arch::x86_64::*;

use half::f16;

use super::{BYTES, LANES, Nibbles, Simd};

/// The proof of AVX-512 F, BW, DQ, VL and VNNI, beside what [`Avx2`](super::Avx2) proves; with `POPCOUNT` of VPOPCNTDQ too.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const POPCOUNT: bool = false>(());

impl<const POPCOUNT: bool> Avx512<POPCOUNT> {
    /// # Safety
    /// The processor must have what this is the proof of, and functions that use it must be compiled for that.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }

    /// `f` of each lane, for operations that Miri does not know.
    #[inline(always)]
    fn by_lane(self, a: __m512i, f: impl Fn(i32) -> i32) -> __m512i {
        self.by_lanes(a, a, a, |lane, _, _| f(lane))
    }

    /// As [`Avx512::by_lane`], of the lanes of three vectors.
    #[inline(always)]
    fn by_lanes(self, a: __m512i, b: __m512i, c: __m512i, f: impl Fn(i32, i32, i32) -> i32) -> __m512i {
        let mut lanes = [[0i32; LANES]; 3];
        for (lanes, vector) in lanes.iter_mut().zip([a, b, c]) {
            proven!(_mm512_storeu_si512(lanes.as_mut_ptr().cast(), vector));
        }
        let out: [i32; LANES] = std::array::from_fn(|lane| f(lanes[0][lane], lanes[1][lane], lanes[2][lane]));
        proven!(_mm512_loadu_si512(out.as_ptr().cast()))
    }
}

impl<const POPCOUNT: bool> Simd for Avx512<POPCOUNT> {
    type Floats = __m512;
    type Ints = __m512i;
    type Bytes = __m512i;
    type Dots = __m512i;
    const BLOCK: usize = 24;
    const ROWS: usize = 8;
    const STACKED: bool = true;
    const SUMS: usize = 24;
    const BYTE_BIAS: i32 = 0;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        proven!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn prefetch<T>(self, address: *const T) {
        proven!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
    }
    #[inline(always)]
    fn prefetch_far<T>(self, address: *const T) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(address.cast()))
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        proven!(_mm512_loadu_ps(x.as_ptr()))
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> __m512 {
        if cfg!(miri) {
            return self.load(&x.map(f16::to_f32_const));
        }
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> __m512 {
        self.to_floats(self.load_i8_ints(x))
    }
    #[inline(always)]
    fn load_i4(self, x: &Nibbles) -> __m512 {
        let halves = proven!(_mm512_set1_epi64(i64::from_le_bytes(x.0)));
        let shifts = proven!(_mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28));
        // The look-up goes by the lowest four bits.
        let codes = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0f32];
        proven!(_mm512_permutexvar_ps(_mm512_srlv_epi32(halves, shifts), _mm512_loadu_ps(codes.as_ptr())))
    }
    #[inline(always)]
    fn store(self, v: __m512, out: &mut [f32; LANES]) {
        proven!(_mm512_storeu_ps(out.as_mut_ptr(), v))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        proven!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_min_ps(a, b))
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        proven!(_mm512_max_ps(a, b))
    }
    #[inline(always)]
    fn scale(self, v: __m512, n: __m512) -> __m512 {
        proven!(_mm512_scalef_ps(v, n))
    }
    #[inline(always)]
    fn zero_below(self, v: __m512, x: __m512, bound: f32) -> __m512 {
        proven!(_mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(bound)), v))
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        proven!(_mm512_reduce_add_ps(v))
    }
    #[inline(always)]
    fn largest(self, v: __m512) -> f32 {
        proven!(_mm512_reduce_max_ps(v))
    }
    #[inline(always)]
    fn transpose(self, v: [__m512; LANES]) -> [__m512; LANES] {
        let mut pairs = v;
        for i in (0..LANES).step_by(2) {
            pairs[i] = proven!(_mm512_unpacklo_ps(v[i], v[i + 1]));
            pairs[i + 1] = proven!(_mm512_unpackhi_ps(v[i], v[i + 1]));
        }
        // Lane `4 * q + k` of vector `4 * f + c` is now lane `4 * q + c` of vector `4 * f + k`.
        let mut fours = pairs;
        for i in (0..LANES).step_by(4) {
            for h in 0..2 {
                let a = proven!(_mm512_castps_pd(pairs[i + h]));
                let b = proven!(_mm512_castps_pd(pairs[i + 2 + h]));
                fours[i + 2 * h] = proven!(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
                fours[i + 2 * h + 1] = proven!(_mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
            }
        }
        // What is left is the transposition of four by four quarters.
        let mut out = fours;
        for k in 0..4 {
            let (a, b, c, d) = (fours[k], fours[4 + k], fours[8 + k], fours[12 + k]);
            let (ab, cd) = (proven!(_mm512_shuffle_f32x4::<0x44>(a, b)), proven!(_mm512_shuffle_f32x4::<0x44>(c, d)));
            out[k] = proven!(_mm512_shuffle_f32x4::<0x88>(ab, cd));
            out[4 + k] = proven!(_mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let (ab, cd) = (proven!(_mm512_shuffle_f32x4::<0xee>(a, b)), proven!(_mm512_shuffle_f32x4::<0xee>(c, d)));
            out[8 + k] = proven!(_mm512_shuffle_f32x4::<0x88>(ab, cd));
            out[12 + k] = proven!(_mm512_shuffle_f32x4::<0xdd>(ab, cd));
        }
        out
    }
    #[inline(always)]
    fn load_some(self, x: &[f32]) -> __m512 {
        assert!(x.len() <= LANES);
        let mask = ((1u32 << x.len()) - 1) as __mmask16;
        // SAFETY: as in `proven`; the lanes past the end of `x` are masked out and not read.
        unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) }
    }
    #[inline(always)]
    fn store_some(self, v: __m512, out: &mut [f32]) {
        assert!(out.len() <= LANES);
        let mask = ((1u32 << out.len()) - 1) as __mmask16;
        // SAFETY: as in `proven`; the lanes past the end of `out` are masked out and not written.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, v) }
    }
    #[inline(always)]
    fn lookup_floats(self, table: &[f32; 16], indices: __m512i) -> __m512 {
        if cfg!(miri) {
            let mut floats = [0.0; LANES];
            let bits = self.by_lane(indices, |index| table[index as usize & 15].to_bits() as i32);
            proven!(_mm512_storeu_si512(floats.as_mut_ptr().cast(), bits));
            return self.load(&floats);
        }
        proven!(_mm512_permutexvar_ps(indices, _mm512_loadu_ps(table.as_ptr())))
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        proven!(_mm512_set1_epi32(x))
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> __m512i {
        proven!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn load_i16(self, x: &[i16; LANES]) -> __m512i {
        proven!(_mm512_cvtepi16_epi32(_mm256_loadu_si256(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_i8_ints(self, x: &[i8; LANES]) -> __m512i {
        proven!(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast())))
    }
    #[inline(always)]
    fn add_ints(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn sub_ints(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_sub_epi32(a, b))
    }
    #[inline(always)]
    fn mul_ints(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_mullo_epi32(a, b))
    }
    #[inline(always)]
    fn shift_ints_right(self, a: __m512i, by: u32) -> __m512i {
        if cfg!(miri) {
            return self.by_lane(a, |lane| lane >> by);
        }
        proven!(_mm512_sra_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }
    #[inline(always)]
    fn shift_ints_left(self, a: __m512i, by: u32) -> __m512i {
        if cfg!(miri) {
            return self.by_lane(a, |lane| lane << by);
        }
        proven!(_mm512_sll_epi32(a, _mm_cvtsi32_si128(by as i32)))
    }
    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        proven!(_mm512_cvtepi32_ps(a))
    }
    #[inline(always)]
    fn dot_pairs(self, sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
        if cfg!(miri) {
            return self.by_lanes(sum, a, b, |sum, a, b| {
                let half = |x: i32, upper: bool| if upper { x >> 16 } else { (x << 16) >> 16 };
                let products = [false, true].map(|upper| half(a, upper).wrapping_mul(half(b, upper)));
                sum.wrapping_add(products[0]).wrapping_add(products[1])
            });
        }
        proven!(_mm512_dpwssd_epi32(sum, a, b))
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; BYTES]) -> __m512i {
        proven!(_mm512_loadu_si512(x.as_ptr().cast()))
    }
    #[inline(always)]
    fn splat_quad(self, x: [i8; 4]) -> __m512i {
        proven!(_mm512_set1_epi32(i32::from_le_bytes(bytemuck::cast(x))))
    }
    #[inline(always)]
    fn bytes_of(self, x: __m512i) -> __m512i {
        x
    }
    #[inline(always)]
    fn and(self, bytes: __m512i, mask: u8) -> __m512i {
        proven!(_mm512_and_si512(bytes, _mm512_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        proven!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, bytes: __m512i) -> __m512i {
        proven!(_mm512_srli_epi16::<BITS>(bytes))
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, bytes: __m512i) -> __m512i {
        proven!(_mm512_slli_epi16::<BITS>(bytes))
    }
    #[inline(always)]
    fn lane_field(self, bytes: __m512i, shift: u32, mask: i32) -> __m512i {
        if cfg!(miri) {
            return self.by_lane(bytes, |lane| (lane as u32 >> shift) as i32 & mask);
        }
        let lanes = proven!(_mm512_srl_epi32(bytes, _mm_cvtsi32_si128(shift as i32)));
        proven!(_mm512_and_si512(lanes, _mm512_set1_epi32(mask)))
    }
    #[inline(always)]
    fn table(self, bytes: &[u8; 16]) -> __m512i {
        proven!(_mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())))
    }
    #[inline(always)]
    fn lookup(self, table: __m512i, fields: __m512i) -> __m512i {
        proven!(_mm512_shuffle_epi8(table, fields))
    }
    #[inline(always)]
    fn no_dots(self) -> __m512i {
        proven!(_mm512_setzero_si512())
    }
    #[inline(always)]
    fn dot(self, sum: __m512i, fields: __m512i, x: __m512i) -> __m512i {
        proven!(_mm512_dpbusd_epi32(sum, fields, x))
    }
    fn depth(_: u32) -> usize {
        usize::MAX
    }
    #[inline(always)]
    fn add_dots(self, sum: __m512i, dots: __m512i) -> __m512i {
        proven!(_mm512_add_epi32(sum, dots))
    }
    #[inline(always)]
    fn dot_now(self, sum: __m512i, fields: __m512i, x: __m512i) -> __m512i {
        self.dot(sum, fields, x)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: __m512i, fields: __m512i, x: __m512i) -> __m512i {
        self.dot(sum, fields, x)
    }
    #[inline(always)]
    fn add_differences(self, sum: __m512i, bytes: __m512i, x: u32) -> __m512i {
        let different = proven!(_mm512_xor_si512(bytes, _mm512_set1_epi32(x as i32)));
        if POPCOUNT {
            return proven!(_mm512_add_epi32(sum, _mm512_popcnt_epi32(different)));
        }
        // The bits of each half of a byte by table (Mula, "SSSE3: fast popcount").
        let table = self.table(&[0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4]);
        let low = self.lookup(table, self.and(different, 15));
        let high = self.lookup(table, self.and(self.shift_right::<4>(different), 15));
        self.dot(sum, proven!(_mm512_add_epi8(low, high)), proven!(_mm512_set1_epi8(1)))
    }
}
