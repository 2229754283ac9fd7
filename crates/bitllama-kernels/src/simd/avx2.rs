//! AVX2 with FMA: two registers are a vector. `vpmaddubsw` multiplies two columns of sixteen bits, so products are summed in
//! 16 bits as long as they fit; with VNNI `vpdpbusd` multiplies four, into 32 bits.

use std::arch::x86_64::*;

use half::f16;

use super::{BYTES, LANES, Nibbles, Simd};

/// The proof of AVX2, FMA and F16C, and of the instructions for products of bytes that `DOTS` names.
#[derive(Clone, Copy)]
pub(crate) struct Avx2<const DOTS: u8 = NO_VNNI>(());

/// [`Avx2`] by itself.
pub(crate) const NO_VNNI: u8 = 0;
/// AVX-VNNI.
pub(crate) const AVX_VNNI: u8 = 1;
/// VNNI of AVX-512, with VL: the same in another encoding.
pub(crate) const AVX512_VNNI: u8 = 2;

impl<const DOTS: u8> Avx2<DOTS> {
    /// # Safety
    /// The processor must have what this is the proof of, and functions that use it must be compiled for that.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }

    /// Adds to each lane the products of its four bytes, unsigned ones with signed ones.
    #[inline(always)]
    fn dot_fours(self, sum: [__m256i; 2], fields: [__m256i; 2], x: [__m256i; 2]) -> [__m256i; 2] {
        match DOTS {
            AVX_VNNI => proven!([
                _mm256_dpbusd_avx_epi32(sum[0], fields[0], x[0]),
                _mm256_dpbusd_avx_epi32(sum[1], fields[1], x[1])
            ]),
            _ => {
                proven!([_mm256_dpbusd_epi32(sum[0], fields[0], x[0]), _mm256_dpbusd_epi32(sum[1], fields[1], x[1])])
            }
        }
    }
}

impl<const DOTS: u8> Simd for Avx2<DOTS> {
    type Floats = [__m256; 2];
    type Ints = [__m256i; 2];
    type Bytes = [__m256i; 2];
    type Dots = [__m256i; 2];
    const BLOCK: usize = 6;
    const ROWS: usize = 6;
    const STACKED: bool = DOTS != NO_VNNI;
    const SUMS: usize = 4;
    const BYTE_BIAS: i32 = if DOTS == NO_VNNI { 128 } else { 0 };

    #[inline(always)]
    fn splat(self, x: f32) -> Self::Floats {
        proven!([_mm256_set1_ps(x); 2])
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
    fn load(self, x: &[f32; LANES]) -> Self::Floats {
        proven!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())])
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::Floats {
        if cfg!(miri) {
            return self.load(&x.map(f16::to_f32_const));
        }
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(x[8..].as_ptr().cast())),
        ])
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::Floats {
        proven!([
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()))),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x[8..].as_ptr().cast()))),
        ])
    }
    #[inline(always)]
    fn load_i4(self, x: &Nibbles) -> Self::Floats {
        let halves = proven!(_mm256_set1_epi64x(i64::from_le_bytes(x.0)));
        let of = |shifts: __m256i| {
            let codes = proven!(_mm256_srai_epi32::<28>(_mm256_sllv_epi32(halves, shifts)));
            proven!(_mm256_cvtepi32_ps(codes))
        };
        [
            of(proven!(_mm256_setr_epi32(28, 28, 24, 24, 20, 20, 16, 16))),
            of(proven!(_mm256_setr_epi32(12, 12, 8, 8, 4, 4, 0, 0))),
        ]
    }
    #[inline(always)]
    fn store(self, v: Self::Floats, out: &mut [f32; LANES]) {
        proven!(_mm256_storeu_ps(out.as_mut_ptr(), v[0]));
        proven!(_mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]));
    }
    #[inline(always)]
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        proven!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }
    #[inline(always)]
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats {
        proven!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }
    #[inline(always)]
    fn scale(self, v: Self::Floats, n: Self::Floats) -> Self::Floats {
        let mut out = v;
        for i in 0..2 {
            let exponents = proven!(_mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n[i])));
            out[i] = proven!(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v[i]), exponents)));
        }
        out
    }
    #[inline(always)]
    fn zero_below(self, v: Self::Floats, x: Self::Floats, bound: f32) -> Self::Floats {
        let bound = proven!(_mm256_set1_ps(bound));
        proven!([
            _mm256_and_ps(v[0], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], bound)),
            _mm256_and_ps(v[1], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], bound)),
        ])
    }
    #[inline(always)]
    fn sum(self, v: Self::Floats) -> f32 {
        let eight = proven!(_mm256_add_ps(v[0], v[1]));
        let four = proven!(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
        let two = proven!(_mm_add_ps(four, _mm_movehl_ps(four, four)));
        proven!(_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))))
    }
    #[inline(always)]
    fn largest(self, v: Self::Floats) -> f32 {
        let eight = proven!(_mm256_max_ps(v[0], v[1]));
        let four = proven!(_mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
        let two = proven!(_mm_max_ps(four, _mm_movehl_ps(four, four)));
        proven!(_mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two))))
    }
    #[inline(always)]
    fn lookup_floats(self, table: &[f32; 16], indices: Self::Ints) -> Self::Floats {
        let mut out = self.splat(0.0);
        for i in 0..2 {
            // Three bits of the index choose in each half, and the fourth, moved to the sign, between the halves.
            out[i] = proven!({
                let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), indices[i]);
                let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table[8..].as_ptr()), indices[i]);
                _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(indices[i])))
            });
        }
        out
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::Ints {
        proven!([_mm256_set1_epi32(x); 2])
    }
    #[inline(always)]
    fn load_ints(self, x: &[i32; LANES]) -> Self::Ints {
        proven!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[8..].as_ptr().cast())])
    }
    #[inline(always)]
    fn load_i16(self, x: &[i16; LANES]) -> Self::Ints {
        proven!([
            _mm256_cvtepi16_epi32(_mm_loadu_si128(x.as_ptr().cast())),
            _mm256_cvtepi16_epi32(_mm_loadu_si128(x[8..].as_ptr().cast())),
        ])
    }
    #[inline(always)]
    fn load_i8_ints(self, x: &[i8; LANES]) -> Self::Ints {
        proven!([
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast())),
            _mm256_cvtepi8_epi32(_mm_loadl_epi64(x[8..].as_ptr().cast())),
        ])
    }
    #[inline(always)]
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        proven!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn sub_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        proven!([_mm256_sub_epi32(a[0], b[0]), _mm256_sub_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn mul_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        proven!([_mm256_mullo_epi32(a[0], b[0]), _mm256_mullo_epi32(a[1], b[1])])
    }
    #[inline(always)]
    fn shift_ints_right(self, a: Self::Ints, by: u32) -> Self::Ints {
        let by = proven!(_mm_cvtsi32_si128(by as i32));
        proven!([_mm256_sra_epi32(a[0], by), _mm256_sra_epi32(a[1], by)])
    }
    #[inline(always)]
    fn shift_ints_left(self, a: Self::Ints, by: u32) -> Self::Ints {
        let by = proven!(_mm_cvtsi32_si128(by as i32));
        proven!([_mm256_sll_epi32(a[0], by), _mm256_sll_epi32(a[1], by)])
    }
    #[inline(always)]
    fn to_floats(self, a: Self::Ints) -> Self::Floats {
        proven!([_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])])
    }
    #[inline(always)]
    fn dot_pairs(self, sum: Self::Ints, a: Self::Ints, b: Self::Ints) -> Self::Ints {
        proven!([
            _mm256_add_epi32(sum[0], _mm256_madd_epi16(a[0], b[0])),
            _mm256_add_epi32(sum[1], _mm256_madd_epi16(a[1], b[1]))
        ])
    }
    #[inline(always)]
    fn load_bytes(self, x: &[u8; BYTES]) -> Self::Bytes {
        proven!([_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[32..].as_ptr().cast())])
    }
    #[inline(always)]
    fn splat_quad(self, x: [i8; 4]) -> Self::Bytes {
        self.splat_int(i32::from_le_bytes(bytemuck::cast(x)))
    }
    #[inline(always)]
    fn bytes_of(self, x: Self::Ints) -> Self::Bytes {
        x
    }
    #[inline(always)]
    fn and(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes {
        let mask = proven!(_mm256_set1_epi8(mask as i8));
        proven!([_mm256_and_si256(bytes[0], mask), _mm256_and_si256(bytes[1], mask)])
    }
    #[inline(always)]
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes {
        proven!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }
    #[inline(always)]
    fn shift_right<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes {
        let by = proven!(_mm_cvtsi32_si128(BITS as i32));
        proven!([_mm256_srl_epi16(bytes[0], by), _mm256_srl_epi16(bytes[1], by)])
    }
    #[inline(always)]
    fn shift_left<const BITS: u32>(self, bytes: Self::Bytes) -> Self::Bytes {
        let by = proven!(_mm_cvtsi32_si128(BITS as i32));
        proven!([_mm256_sll_epi16(bytes[0], by), _mm256_sll_epi16(bytes[1], by)])
    }
    #[inline(always)]
    fn lane_field(self, bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints {
        let shift = proven!(_mm_cvtsi32_si128(shift as i32));
        let mask = proven!(_mm256_set1_epi32(mask));
        proven!([
            _mm256_and_si256(_mm256_srl_epi32(bytes[0], shift), mask),
            _mm256_and_si256(_mm256_srl_epi32(bytes[1], shift), mask)
        ])
    }
    #[inline(always)]
    fn table(self, bytes: &[u8; 16]) -> Self::Bytes {
        proven!([_mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())); 2])
    }
    #[inline(always)]
    fn lookup(self, table: Self::Bytes, fields: Self::Bytes) -> Self::Bytes {
        proven!([_mm256_shuffle_epi8(table[0], fields[0]), _mm256_shuffle_epi8(table[1], fields[1])])
    }
    #[inline(always)]
    fn no_dots(self) -> Self::Dots {
        proven!([_mm256_setzero_si256(); 2])
    }
    #[inline(always)]
    fn dot(self, sum: Self::Dots, fields: Self::Bytes, x: Self::Bytes) -> Self::Dots {
        if DOTS != NO_VNNI {
            return self.dot_fours(sum, fields, x);
        }
        proven!([
            _mm256_add_epi16(sum[0], _mm256_maddubs_epi16(fields[0], x[0])),
            _mm256_add_epi16(sum[1], _mm256_maddubs_epi16(fields[1], x[1]))
        ])
    }
    fn depth(largest: u32) -> usize {
        match DOTS {
            // Each 16-bit number takes two products.
            NO_VNNI => i16::MAX as usize / (2 * 127 * largest as usize),
            _ => usize::MAX,
        }
    }
    #[inline(always)]
    fn add_dots(self, sum: Self::Ints, dots: Self::Dots) -> Self::Ints {
        if DOTS != NO_VNNI {
            return self.add_ints(sum, dots);
        }
        let one = proven!(_mm256_set1_epi16(1));
        proven!([
            _mm256_add_epi32(sum[0], _mm256_madd_epi16(dots[0], one)),
            _mm256_add_epi32(sum[1], _mm256_madd_epi16(dots[1], one)),
        ])
    }
    #[inline(always)]
    fn dot_now(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        if DOTS != NO_VNNI {
            return self.dot_fours(sum, fields, x);
        }
        let products = proven!([_mm256_maddubs_epi16(fields[0], x[0]), _mm256_maddubs_epi16(fields[1], x[1])]);
        self.add_dots(sum, products)
    }
    #[inline(always)]
    fn dot_bytes(self, sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints {
        if DOTS != NO_VNNI {
            return self.dot_fours(sum, fields, x);
        }
        let mut products = sum;
        for i in 0..2 {
            // The sign moves from the field to the activation, so that two products of at most 128 * 127 fit into 16 bits.
            products[i] = proven!({
                let field = _mm256_xor_si256(fields[i], _mm256_set1_epi8(i8::MIN));
                _mm256_maddubs_epi16(_mm256_abs_epi8(field), _mm256_sign_epi8(x[i], field))
            });
        }
        self.add_dots(sum, products)
    }
    #[inline(always)]
    fn add_differences(self, sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints {
        // The bits of each half of a byte by table (Mula, "SSSE3: fast popcount").
        let table = self.table(&[0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4]);
        let x = self.splat_int(x as i32);
        let different = proven!([_mm256_xor_si256(bytes[0], x[0]), _mm256_xor_si256(bytes[1], x[1])]);
        let low = self.lookup(table, self.and(different, 15));
        let high = self.lookup(table, self.and(self.shift_right::<4>(different), 15));
        let ones = proven!([_mm256_set1_epi8(1); 2]);
        self.dot_now(sum, proven!([_mm256_add_epi8(low[0], high[0]), _mm256_add_epi8(low[1], high[1])]), ones)
    }
}
