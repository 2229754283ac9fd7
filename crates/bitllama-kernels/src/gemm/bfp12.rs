//! Products of pairs of whole numbers with 16 bits, summed up in 32 bits: `VPDPWSSD`, or the same with AVX2 or without.
//! Sums of a span are exact and become `f32` when it ends, so that every instruction set computes the same.

use super::scaled::{SPAN, steps};
use super::tile::{Job, Kernel, multiply_registers, store, tile};
use crate::isa::Isa;
use crate::operators::lanes::{LANES, Portable, Simd};

/// [`Kernel`]s whose sums are whole numbers, to be multiplied with the scales of a span.
trait Whole: Kernel {
    /// `total + sum * b * a`, rounded after each multiplication, but the last one and the addition together.
    #[inline(always)]
    fn scaled(
        self,
        sum: Self::V,
        [a, b]: [<Self::S as Simd>::V; 2],
        total: <Self::S as Simd>::V,
    ) -> <Self::S as Simd>::V {
        let s = self.simd();
        s.mul_add(s.mul(self.floats(sum), b), a, total)
    }
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
            let low = i32::from(a[i] as i16) * i32::from(b[i] as i16);
            // Where a scale is no number, the whole numbers may be any.
            out[i] = out[i].wrapping_add(low).wrapping_add((a[i] >> 16) * (b[i] >> 16));
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
    fn scaled(self, sum: Self::V, [a, b]: [[f32; LANES]; 2], total: [f32; LANES]) -> [f32; LANES] {
        let mut out = total;
        for i in 0..LANES {
            // A call of a library where the target has no such instruction, but once a span only.
            out[i] = (sum[i] as f32 * b[i]).mul_add(a[i], total[i]);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Job, multiply_registers, tiles};
    use super::{Kernel, LANES, Whole};
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
            unsafe { _mm512_dpwssd_epi32(sum, a, b) }
        }
        #[inline(always)]
        fn floats(self, sum: __m512i) -> __m512 {
            // SAFETY: as above.
            unsafe { _mm512_cvtepi32_ps(sum) }
        }
    }

    impl Whole for Vnni {}

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
                // SAFETY: as above.
                out[i] = unsafe { _mm256_add_epi32(sum[i], _mm256_madd_epi16(a[i], b[i])) };
            }
            out
        }
        #[inline(always)]
        fn floats(self, sum: Self::V) -> [__m256; 2] {
            // SAFETY: as above.
            unsafe { [_mm256_cvtepi32_ps(sum[0]), _mm256_cvtepi32_ps(sum[1])] }
        }
    }

    impl Whole for Madd {}

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

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
    pub fn peak_avx512(turns: usize) -> usize {
        // SAFETY: who calls this function has made sure of its instructions.
        multiply_registers(Vnni(unsafe { Avx512::new() }), turns)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn peak_avx2(turns: usize) -> usize {
        // SAFETY: who calls this function has made sure of its instructions.
        multiply_registers(Madd(unsafe { Avx2::new() }), turns)
    }
}

/// Computes the tiles of a job whose words are pairs of whole numbers with scales between them.
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

/// Multiplies and adds in registers only, `turns` times as often as there are sums; returns how many words it added up.
pub(super) fn peak(isa: Isa, turns: usize) -> usize {
    assert!(isa.is_available(), "this processor has no {isa}");
    match isa {
        // SAFETY: the processor has the instructions, by the assertion above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::peak_avx512(turns) },
        // SAFETY: the processor has the instructions, by the assertion above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::peak_avx2(turns) },
        Isa::Neon => multiply_registers(Plain::<true>, turns),
        _ => multiply_registers(Plain::<false>, turns),
    }
}

/// All tiles of a job.
#[inline(always)]
fn tiles<K: Whole, const R: usize, const V: usize>(k: K, job: Job) {
    let [rows, columns] = job.shape;
    let s = k.simd();
    for (b, column) in job.b.chunks_exact(job.steps * V * LANES).zip((0..columns).step_by(V * LANES)) {
        for (a, row) in job.a.chunks_exact(job.steps * R).zip((0..rows).step_by(R)) {
            let out = job.out.at(row, column);
            let mut totals = [[s.splat(0.0); V]; R];
            let spans = a.chunks(steps(SPAN) * R).zip(b.chunks(steps(SPAN) * V * LANES));
            for (a, b) in spans {
                let (a, a_scales) = a.split_at(a.len() - R);
                let (b, b_scales) = b.split_at(b.len() - V * LANES);
                let sums = tile::<K, R, V>(k, a, b, out);
                let (b_scales, _) = b_scales.as_chunks::<LANES>();
                for (v, scales) in b_scales.iter().enumerate().take(V) {
                    let b = s.load(&scales.map(f32::from_bits));
                    for (r, scale) in a_scales.iter().enumerate().take(R) {
                        let a = s.splat(f32::from_bits(*scale));
                        totals[r][v] = k.scaled(sums[r][v], [a, b], totals[r][v]);
                    }
                }
            }
            for (r, totals) in totals.into_iter().enumerate().take(R.min(rows - row)) {
                for (v, total) in totals.into_iter().enumerate() {
                    let first = column + v * LANES;
                    let columns = first.min(columns)..columns.min(first + LANES);
                    store(s, total, job.out.at(row + r, 0), columns, job.add);
                }
            }
        }
    }
}
