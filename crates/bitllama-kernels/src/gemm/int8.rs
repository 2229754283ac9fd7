//! Products of bytes with a sign by bytes without one, four at a time, summed up in 32 bits: `VPDPBUSD`, or the same with
//! AVX2 or without. Sums are exact, so that every instruction set computes the same.

use super::codes::EXTRA;
use super::tile::{Job, Kernel, store, tile};
use crate::isa::Isa;
use crate::operators::lanes::{LANES, Portable, Simd};

/// [`Kernel`]s whose sums are whole numbers.
trait Whole: Kernel {
    /// `sum - less`.
    fn less(self, sum: Self::V, less: Self::V) -> Self::V;
}

/// For any processor.
#[derive(Clone, Copy)]
struct Plain<const FUSED: bool>;

impl<const FUSED: bool> Kernel for Plain<FUSED> {
    type S = Portable<FUSED>;
    type V = [i32; LANES];

    #[inline(always)]
    fn simd(self) -> Self::S {
        Portable
    }
    #[inline(always)]
    fn zero(self) -> Self::V {
        [0; LANES]
    }
    #[inline(always)]
    fn load(self, words: &[u32; LANES]) -> Self::V {
        words.map(|word| word as i32)
    }
    #[inline(always)]
    fn splat(self, word: u32) -> Self::V {
        [word as i32; LANES]
    }
    #[inline(always)]
    fn step(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
        let mut out = sum;
        for i in 0..LANES {
            for byte in [0, 8, 16, 24] {
                out[i] += i32::from((a[i] >> byte) as i8) * (b[i] >> byte & 0xff);
            }
        }
        out
    }
    #[inline(always)]
    fn floats(self, sum: Self::V) -> [f32; LANES] {
        sum.map(|sum| sum as f32)
    }
}

impl<const FUSED: bool> Whole for Plain<FUSED> {
    #[inline(always)]
    fn less(self, sum: Self::V, less: Self::V) -> Self::V {
        std::array::from_fn(|i| sum[i] - less[i])
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Job, Kernel, LANES, Whole, tiles};
    use crate::operators::lanes::{Avx2, Avx512};

    /// With AVX512_VNNI. It exists where the processor has that.
    #[derive(Clone, Copy)]
    pub struct Vnni(pub Avx512);

    impl Kernel for Vnni {
        type S = Avx512;
        type V = __m512i;

        #[inline(always)]
        fn simd(self) -> Avx512 {
            self.0
        }
        #[inline(always)]
        fn zero(self) -> __m512i {
            // SAFETY: `self` exists, so the processor has the instruction.
            unsafe { _mm512_setzero_si512() }
        }
        #[inline(always)]
        fn load(self, words: &[u32; LANES]) -> __m512i {
            // SAFETY: as above, and the array has as many words.
            unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
        }
        #[inline(always)]
        fn splat(self, word: u32) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_set1_epi32(word as i32) }
        }
        #[inline(always)]
        fn step(self, a: __m512i, b: __m512i, sum: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_dpbusd_epi32(sum, b, a) }
        }
        #[inline(always)]
        fn floats(self, sum: __m512i) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_cvtepi32_ps(sum) }
        }
    }

    impl Whole for Vnni {
        #[inline(always)]
        fn less(self, sum: __m512i, less: __m512i) -> __m512i {
            // SAFETY: as above.
            unsafe { _mm512_sub_epi32(sum, less) }
        }
    }

    /// With AVX2. It exists where the processor has that.
    #[derive(Clone, Copy)]
    pub struct Madd(pub Avx2);

    impl Kernel for Madd {
        type S = Avx2;
        type V = [__m256i; 2];

        #[inline(always)]
        fn simd(self) -> Avx2 {
            self.0
        }
        #[inline(always)]
        fn zero(self) -> Self::V {
            // SAFETY: `self` exists, so the processor has the instruction.
            unsafe { [_mm256_setzero_si256(); 2] }
        }
        #[inline(always)]
        fn load(self, words: &[u32; LANES]) -> Self::V {
            let from = words.as_ptr().cast::<__m256i>();
            // SAFETY: as above, and the array has as many words.
            unsafe { [_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))] }
        }
        #[inline(always)]
        fn splat(self, word: u32) -> Self::V {
            // SAFETY: as above.
            unsafe { [_mm256_set1_epi32(word as i32); 2] }
        }
        #[inline(always)]
        fn step(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V {
            let mut out = sum;
            for i in 0..2 {
                // SAFETY: as above. Bytes of the right factor are at most 2, so sums of two products fit into 16 bits.
                out[i] = unsafe {
                    let pairs = _mm256_maddubs_epi16(b[i], a[i]);
                    _mm256_add_epi32(sum[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                };
            }
            out
        }
        #[inline(always)]
        fn floats(self, sum: Self::V) -> [__m256; 2] {
            // SAFETY: as above.
            unsafe { [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])] }
        }
    }

    impl Whole for Madd {
        #[inline(always)]
        fn less(self, sum: Self::V, less: Self::V) -> Self::V {
            // SAFETY: as above.
            unsafe { [_mm256_sub_epi32(sum[0], less[0]), _mm256_sub_epi32(sum[1], less[1])] }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub fn avx512(job: Job) {
        // SAFETY: who calls this function has made sure of its instructions.
        tiles::<_, 8, 3>(Vnni(unsafe { Avx512::new() }), job);
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn avx2(job: Job) {
        // SAFETY: who calls this function has made sure of its instructions.
        tiles::<_, 6, 1>(Madd(unsafe { Avx2::new() }), job);
    }
}

/// Computes the tiles of a job whose words are codes, with scales and sums of codes behind them.
///
/// # Safety
/// `out` has the rows and columns of the job, and nobody else touches them meanwhile.
pub(super) unsafe fn run(isa: Isa, job: Job) {
    assert!(isa.is_available(), "this processor has no {isa}");
    match isa {
        // SAFETY: the processor has the instructions, by the assertion above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::avx512(job) },
        // SAFETY: the processor has the instructions, by the assertion above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2(job) },
        Isa::Neon => tiles::<_, 6, 1>(Plain::<true>, job),
        _ => tiles::<_, 2, 1>(Plain::<false>, job),
    }
}

/// All tiles of a job.
#[inline(always)]
fn tiles<K: Whole, const R: usize, const V: usize>(k: K, job: Job) {
    let [rows, columns] = job.shape;
    let s = k.simd();
    for (b, column) in job.b.chunks_exact(job.steps * V * LANES).zip((0..columns).step_by(V * LANES)) {
        let (b, b_extra) = b.split_at((job.steps - EXTRA) * V * LANES);
        let (b_scales, _) = b_extra.as_chunks::<LANES>();
        for (a, row) in job.a.chunks_exact(job.steps * R).zip((0..rows).step_by(R)) {
            let (a, a_extra) = a.split_at((job.steps - EXTRA) * R);
            let (a_scales, a_sums) = a_extra.split_at(R);
            let sums = tile::<K, R, V>(k, a, b, job.out.at(row, column));
            for r in 0..R.min(rows - row) {
                let (a_scale, a_sum) = (s.splat(f32::from_bits(a_scales[r])), k.splat(a_sums[r]));
                for v in 0..V {
                    let scale = s.mul(a_scale, s.load(&b_scales[v].map(f32::from_bits)));
                    let product = s.mul(k.floats(k.less(sums[r][v], a_sum)), scale);
                    let first = column + v * LANES;
                    let columns = first.min(columns)..columns.min(first + LANES);
                    store(s, product, job.out.at(row + r, 0), columns, job.add);
                }
            }
        }
    }
}
