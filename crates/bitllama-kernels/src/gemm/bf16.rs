//! Products of pairs of `bf16` numbers with AVX512_BF16: `VDPBF16PS`.

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::tile::{Job, Kernel, tiles};
use crate::simd::{Avx512, LANES, Simd};

/// Whether the processor has the instruction.
pub(super) fn is_available() -> bool {
    crate::Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16")
}

/// Whether it has, and pairs are multiplied faster than two numbers in `f32`. Measured on Sapphire Rapids, one is begun
/// every other cycle, against two fused multiplications of as many numbers each cycle; on Zen 4 and 5 at the same rate as
/// those. A fixed rule rather than a measurement, so that the same machine always computes the same numbers.
pub(super) fn is_fast() -> bool {
    static FAST: OnceLock<bool> = OnceLock::new();
    *FAST.get_or_init(|| is_available() && is_amd())
}

fn is_amd() -> bool {
    let id = __cpuid(0);
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Words are pairs of numbers in `bf16`. It exists where the processor has AVX512_BF16.
#[derive(Clone, Copy)]
struct Bf16Pairs(Avx512);

impl Kernel for Bf16Pairs {
    type S = Avx512;
    type V = __m512;

    #[inline(always)]
    fn simd(self) -> Avx512 {
        self.0
    }
    #[inline(always)]
    fn zero(self) -> __m512 {
        self.0.splat(0.0)
    }
    #[inline(always)]
    fn load(self, words: &[u32; LANES]) -> __m512 {
        // SAFETY: the processor has AVX-512, and the array as many words.
        unsafe { _mm512_loadu_ps(words.as_ptr().cast()) }
    }
    #[inline(always)]
    fn splat(self, word: u32) -> __m512 {
        self.0.splat(f32::from_bits(word))
    }
    #[inline(always)]
    fn step(self, a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: the processor has the instruction, as `self` exists; any bits are a value of either type.
        unsafe {
            let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
            _mm512_dpbf16_ps(sum, a, b)
        }
    }
    #[inline(always)]
    fn floats(self, sum: __m512) -> __m512 {
        sum
    }
}

/// Computes the tiles of a job whose words are pairs.
///
/// # Safety
/// The processor has the instruction; `out` has the rows and columns of the job, and nobody else touches them meanwhile.
pub(super) unsafe fn run(job: Job) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn all(job: Job) {
        // SAFETY: who calls this function has made sure of its instructions.
        tiles::<_, 8, 3>(Bf16Pairs(unsafe { Avx512::new() }), job);
    }
    // SAFETY: as promised by the caller.
    unsafe { all(job) }
}
