//! Sixteen `f32` numbers at a time, on every instruction set: what the loops of [`operators`](super) and of
//! [`attention`](crate::attention) are written in.
//!
//! A loop is written once, over [`Simd`], and compiled for each instruction set by [`for_isa`]. A value of a type that
//! implements [`Simd`] is a proof that the processor has the instructions: it comes from an `unsafe` constructor, so
//! the operations themselves are safe.

use half::f16;

/// Numbers in one vector, whatever the instruction set.
pub(crate) const LANES: usize = 16;

/// [`LANES`] codes -8 ..= 7: where a code lies, [`nibble_place`] says, so that the lanes of a vector alternate between
/// the two halves and each is a shift away from them.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Nibbles(pub [u8; LANES / 2]);

/// Byte and bit of a lane's code. The two halves of [`Nibbles`] are little-endian numbers of eight codes; lane `l` is
/// code `l / 2` of the half `l % 2`.
pub(crate) fn nibble_place(lane: usize) -> (usize, u32) {
    (lane % 2 * 4 + lane / 4, (lane / 2 % 2 * 4) as u32)
}

impl Nibbles {
    /// The code of a lane.
    #[inline(always)]
    pub(crate) fn code(&self, lane: usize) -> f32 {
        let (byte, shift) = nibble_place(lane);
        f32::from(((self.0[byte] >> shift) << 4) as i8 >> 4)
    }
}

/// A proof that the processor has an instruction set, and the set's operations on vectors of [`LANES`] numbers.
pub(crate) trait Simd: Copy {
    /// [`LANES`] numbers, in registers.
    type V: Copy;
    /// Vectors that the accumulators of a register block may take, beside the operands.
    const BLOCK: usize;
    /// Rows that a register block has at most.
    const ROWS: usize;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, x: &[f32; LANES]) -> Self::V;
    fn load_f16(self, x: &[f16; LANES]) -> Self::V;
    fn load_i8(self, x: &[i8; LANES]) -> Self::V;
    fn load_i4(self, x: &Nibbles) -> Self::V;
    fn store(self, v: Self::V, out: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once or twice.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The smaller; `b` where one is no number.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// The larger; `b` where one is no number.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `v * 2^n` for whole `n` where neither `v` nor the result is subnormal, else anything.
    fn scale(self, v: Self::V, n: Self::V) -> Self::V;
    /// `v`, but 0 where `x < bound`.
    fn zero_below(self, v: Self::V, x: Self::V, bound: f32) -> Self::V;
    /// The sum of all lanes, in pairs.
    fn sum(self, v: Self::V) -> f32;
    /// The largest lane.
    fn largest(self, v: Self::V) -> f32;

    /// Lane `i` of vector `j` becomes lane `j` of vector `i`.
    #[inline(always)]
    fn transpose(self, v: [Self::V; LANES]) -> [Self::V; LANES] {
        let mut rows = [[0.0; LANES]; LANES];
        for (row, v) in rows.iter_mut().zip(v) {
            self.store(v, row);
        }
        let mut out = v;
        for (i, out) in out.iter_mut().enumerate() {
            let mut column = [0.0; LANES];
            for (x, row) in column.iter_mut().zip(&rows) {
                *x = row[i];
            }
            *out = self.load(&column);
        }
        out
    }

    /// Asks for the cache line of an address that will be read soon, wherever it points.
    #[inline(always)]
    fn prefetch<T>(self, _address: *const T) {}

    /// Up to [`LANES`] numbers, then zeros.
    #[inline(always)]
    fn load_some(self, x: &[f32]) -> Self::V {
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        self.load(&lanes)
    }

    /// The first lanes, as many as `out` takes.
    #[inline(always)]
    fn store_some(self, v: Self::V, out: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(v, &mut lanes);
        out.copy_from_slice(&lanes[..out.len()]);
    }
}

/// Plain arrays, which the compiler makes into whatever vectors its target has. `FUSED` where the target multiplies and
/// adds in one instruction; elsewhere that is a call of a library.
#[derive(Clone, Copy)]
pub(crate) struct Portable<const FUSED: bool>;

/// [`Simd::scale`] of one number: adds `n` to the exponent of `v`.
#[inline(always)]
fn scale_bits(v: f32, n: f32) -> f32 {
    // Near 1.5 * 2^23 the low bits of a float are a whole number.
    f32::from_bits(v.to_bits().wrapping_add((n + 12_582_912.0).to_bits() << 23))
}

/// The number that an `f16` of these bits is; infinities become 2^16 and more.
#[inline(always)]
fn from_f16_bits(bits: u16) -> f32 {
    // The exponents' biases differ by 112.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16)
}

macro_rules! lanewise {
    (|$($v:ident),*; $lane:ident| $result:expr) => {{
        let mut out = [0.0f32; LANES];
        for $lane in 0..LANES {
            $(let $v = $v[$lane];)*
            out[$lane] = $result;
        }
        out
    }};
}

impl<const FUSED: bool> Simd for Portable<FUSED> {
    type V = [f32; LANES];
    const BLOCK: usize = if FUSED { 6 } else { 2 };
    const ROWS: usize = if FUSED { 6 } else { 2 };

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::V {
        *x
    }
    #[inline(always)]
    fn load_f16(self, x: &[f16; LANES]) -> Self::V {
        lanewise!(|x; i| from_f16_bits(x.to_bits()))
    }
    #[inline(always)]
    fn load_i8(self, x: &[i8; LANES]) -> Self::V {
        lanewise!(|x; i| f32::from(x))
    }
    #[inline(always)]
    fn load_i4(self, x: &Nibbles) -> Self::V {
        let mut out = [0.0; LANES];
        for (lane, out) in out.iter_mut().enumerate() {
            *out = x.code(lane);
        }
        out
    }
    #[inline(always)]
    fn store(self, v: Self::V, out: &mut [f32; LANES]) {
        *out = v;
    }
    #[inline(always)]
    fn add(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b; i| a + b)
    }
    #[inline(always)]
    fn sub(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b; i| a - b)
    }
    #[inline(always)]
    fn mul(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b; i| a * b)
    }
    #[inline(always)]
    fn div(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b; i| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanewise!(|a, b, c; i| if FUSED { a.mul_add(b, c) } else { a * b + c })
    }
    #[inline(always)]
    fn min(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b; i| if a < b { a } else { b })
    }
    #[inline(always)]
    fn max(self, a: Self::V, b: Self::V) -> Self::V {
        lanewise!(|a, b; i| if a > b { a } else { b })
    }
    #[inline(always)]
    fn scale(self, v: Self::V, n: Self::V) -> Self::V {
        lanewise!(|v, n; i| scale_bits(v, n))
    }
    #[inline(always)]
    fn zero_below(self, v: Self::V, x: Self::V, bound: f32) -> Self::V {
        lanewise!(|v, x; i| if x < bound { 0.0 } else { v })
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        let mut v = v;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn largest(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Nibbles, Simd, f16};

    /// The vectors of AVX-512 F.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(());

    /// Pairs of vectors of AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(());

    impl Avx512 {
        /// # Safety
        /// The processor must have AVX-512 F, AVX2, FMA and F16C.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Self(())
        }
    }

    impl Avx2 {
        /// # Safety
        /// The processor must have AVX2, FMA and F16C.
        #[inline(always)]
        pub(crate) unsafe fn new() -> Self {
            Self(())
        }
    }

    /// An expression of intrinsics in a method of a proof.
    macro_rules! proven {
        ($x:expr) => {
            // SAFETY: `self` exists, so the processor has the instructions, and what is read or written through a
            // pointer is an array of the right length behind a reference.
            unsafe { $x }
        };
    }

    impl Simd for Avx512 {
        type V = __m512;
        const BLOCK: usize = 24;
        const ROWS: usize = 8;

        #[inline(always)]
        fn splat(self, x: f32) -> __m512 {
            proven!(_mm512_set1_ps(x))
        }
        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            proven!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> __m512 {
            proven!(_mm512_loadu_ps(x.as_ptr()))
        }
        #[inline(always)]
        fn load_f16(self, x: &[f16; LANES]) -> __m512 {
            proven!(_mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())))
        }
        #[inline(always)]
        fn load_i8(self, x: &[i8; LANES]) -> __m512 {
            proven!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(x.as_ptr().cast()))))
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
                let (ab, cd) =
                    (proven!(_mm512_shuffle_f32x4::<0x44>(a, b)), proven!(_mm512_shuffle_f32x4::<0x44>(c, d)));
                out[k] = proven!(_mm512_shuffle_f32x4::<0x88>(ab, cd));
                out[4 + k] = proven!(_mm512_shuffle_f32x4::<0xdd>(ab, cd));
                let (ab, cd) =
                    (proven!(_mm512_shuffle_f32x4::<0xee>(a, b)), proven!(_mm512_shuffle_f32x4::<0xee>(c, d)));
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
    }

    impl Simd for Avx2 {
        type V = [__m256; 2];
        const BLOCK: usize = 6;
        const ROWS: usize = 6;

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            proven!([_mm256_set1_ps(x); 2])
        }
        #[inline(always)]
        fn prefetch<T>(self, address: *const T) {
            proven!(_mm_prefetch::<_MM_HINT_T0>(address.cast()))
        }
        #[inline(always)]
        fn load(self, x: &[f32; LANES]) -> Self::V {
            proven!([_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())])
        }
        #[inline(always)]
        fn load_f16(self, x: &[f16; LANES]) -> Self::V {
            proven!([
                _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(x[8..].as_ptr().cast())),
            ])
        }
        #[inline(always)]
        fn load_i8(self, x: &[i8; LANES]) -> Self::V {
            proven!([
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x.as_ptr().cast()))),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(x[8..].as_ptr().cast()))),
            ])
        }
        #[inline(always)]
        fn load_i4(self, x: &Nibbles) -> Self::V {
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
        fn store(self, v: Self::V, out: &mut [f32; LANES]) {
            proven!(_mm256_storeu_ps(out.as_mut_ptr(), v[0]));
            proven!(_mm256_storeu_ps(out[8..].as_mut_ptr(), v[1]));
        }
        #[inline(always)]
        fn add(self, a: Self::V, b: Self::V) -> Self::V {
            proven!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn sub(self, a: Self::V, b: Self::V) -> Self::V {
            proven!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn mul(self, a: Self::V, b: Self::V) -> Self::V {
            proven!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn div(self, a: Self::V, b: Self::V) -> Self::V {
            proven!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            proven!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
        }
        #[inline(always)]
        fn min(self, a: Self::V, b: Self::V) -> Self::V {
            proven!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn max(self, a: Self::V, b: Self::V) -> Self::V {
            proven!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
        }
        #[inline(always)]
        fn scale(self, v: Self::V, n: Self::V) -> Self::V {
            let mut out = v;
            for i in 0..2 {
                let exponents = proven!(_mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n[i])));
                out[i] = proven!(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v[i]), exponents)));
            }
            out
        }
        #[inline(always)]
        fn zero_below(self, v: Self::V, x: Self::V, bound: f32) -> Self::V {
            let bound = proven!(_mm256_set1_ps(bound));
            proven!([
                _mm256_and_ps(v[0], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[0], bound)),
                _mm256_and_ps(v[1], _mm256_cmp_ps::<_CMP_NLT_UQ>(x[1], bound)),
            ])
        }
        #[inline(always)]
        fn sum(self, v: Self::V) -> f32 {
            let eight = proven!(_mm256_add_ps(v[0], v[1]));
            let four = proven!(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
            let two = proven!(_mm_add_ps(four, _mm_movehl_ps(four, four)));
            proven!(_mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two))))
        }
        #[inline(always)]
        fn largest(self, v: Self::V) -> f32 {
            let eight = proven!(_mm256_max_ps(v[0], v[1]));
            let four = proven!(_mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)));
            let two = proven!(_mm_max_ps(four, _mm_movehl_ps(four, four)));
            proven!(_mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two))))
        }
    }
}

/// Calls `$body(proof, arguments...)`, an `#[inline(always)]` function over [`Simd`], compiled for `$isa`.
///
/// # Panics
/// If the processor lacks `$isa`.
macro_rules! for_isa {
    ($isa:expr, $body:ident($($name:ident: $type:ty),* $(,)?) $(-> $result:ty)?) => {{
        use $crate::operators::lanes::*;
        let isa: $crate::isa::Isa = $isa;
        assert!(isa.is_available(), "this processor has no {isa}");
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        fn avx512($($name: $type),*) $(-> $result)? {
            // SAFETY: who calls this function has made sure of its instructions.
            $body(unsafe { Avx512::new() }, $($name),*)
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        #[allow(clippy::too_many_arguments)]
        fn avx2($($name: $type),*) $(-> $result)? {
            // SAFETY: who calls this function has made sure of its instructions.
            $body(unsafe { Avx2::new() }, $($name),*)
        }
        match isa {
            // SAFETY: the processor has the instructions, by the assertion above.
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx512 => unsafe { avx512($($name),*) },
            // SAFETY: the processor has the instructions, by the assertion above.
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx2 => unsafe { avx2($($name),*) },
            // NEON belongs to every AArch64 target, so plain code has it.
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Isa::Neon => $body(Portable::<true>, $($name),*),
            _ => $body(Portable::<false>, $($name),*),
        }
    }};
}
pub(crate) use for_isa;
