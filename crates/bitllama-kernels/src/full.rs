//! Products of full-precision rows with a few rows of activations: reading the weights is what takes the time.

use crate::Isa;
use crate::out::Out;

/// Independent sums of a row: what lets the loop use registers of any width, and keeps rounding errors small.
const LANES: usize = 32;

/// `out[t, r] = x[t] . tile[r]` for the rows of `tile` (`[r, columns]`) and of `x` (`[t, columns]`).
///
/// # Safety
/// `isa` is available; `out` is the place of the first row, has as many from there on, and nobody else writes them.
pub(crate) unsafe fn rows(isa: Isa, tile: &[f32], x: &[f32], columns: usize, out: Out) {
    for (row, weights) in tile.chunks_exact(columns).enumerate() {
        for (token, x) in x.chunks_exact(columns).enumerate() {
            // SAFETY: as promised by the caller.
            unsafe { *out.at(token, row).as_ptr() = dot(isa, weights, x) };
        }
    }
}

/// # Safety
/// `isa` is available.
#[inline]
unsafe fn dot(isa: Isa, a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
        dot_portable(a, b, f32::mul_add)
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f")]
    unsafe fn dot_avx512(a: &[f32], b: &[f32]) -> f32 {
        dot_portable(a, b, f32::mul_add)
    }
    match isa {
        // SAFETY: as promised by the caller.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { dot_avx2(a, b) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { dot_avx512(a, b) },
        Isa::Neon => dot_portable(a, b, f32::mul_add),
        _ => dot_portable(a, b, |a, b, c| a * b + c),
    }
}

#[inline(always)]
fn dot_portable(a: &[f32], b: &[f32], mul_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let ((a_lanes, a_rest), (b_lanes, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] = mul_add(a[lane], b[lane], sums[lane]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
