//! Products of dense matrices for training: many rows times a weight that changes with each step, so
//! that nothing can be prepared but what a call prepares itself.
//!
//! [`gemm()`] packs blocks of both factors into the order in which a register tile reads them, then computes tiles, split
//! over the threads of the current `rayon` pool. Which sums are added up in which order depends on the shape and the
//! [`Isa`] only, in [`Precision::Bfp12`] on the shape only: results are the same to the bit for every number of threads.
//! Memory for the blocks is kept for later calls.
//!
//! | module | subject |
//! |---|---|
//! | `view` | where the numbers of a factor are |
//! | `encode` | what they become when packed |
//! | `pack`, `pack_avx512` | packing |
//! | `scaled`, `scaled_avx512` | packing in block floating point |
//! | `codes` | packing of factors that are codes times scales |
//! | `tile`, `bf16`, `bfp12`, `int8` | the innermost loop, in `f32`, with products of `bf16` pairs, of pairs of whole numbers, of four |
//! | `blocks` | blocks, threads, memory |

#[cfg(target_arch = "x86_64")]
mod bf16;
mod bfp12;
mod blocks;
mod codes;
mod encode;
mod int8;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
mod scaled;
#[cfg(target_arch = "x86_64")]
mod scaled_avx512;
#[cfg(test)]
mod tests;
mod tile;
mod view;

use crate::isa::Isa;
use blocks::Factor;
use codes::Codes;
pub use view::{Elements, View};

/// In what precision factors are multiplied; results are `f32` always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As they are.
    F32,
    /// Rounded to the nearest `bf16`, of two equally near ones to the even. Products and sums are those of the rounded
    /// numbers in `f32`, except where the processor multiplies pairs (see [`bf16_pairs`]): that instruction takes
    /// subnormal factors and sums for zeros, and rounds the sum of two products and the accumulator its own way, to
    /// nearest even after each addition. Results differ by rounding of `f32` only.
    Bf16,
    /// Block floating point with numbers of 12 bits: 256 neighbours in `k` of a row of the left factor, or of a column of the
    /// right one, share a scale, their largest magnitude over 2047 in `f32`, and are multiplied as the nearest whole
    /// multiples of it, of two equally near ones the even. Sums of 256 products of whole numbers are exact; then they are
    /// multiplied with both scales and added up in `f32`.
    ///
    /// Processors that multiply pairs of whole numbers of 16 bits (`VPDPWSSD`) do so with twice as many as in `f32`, and
    /// packed factors take half the memory. Results are the same to the bit on every [`Isa`].
    ///
    /// A number is off by half a scale at most: by 1/4094 of the largest of its 256, where `bf16` is off by up to 1/512 of
    /// the number itself. The product of matrices of normal numbers, 1024 deep, is off by 6.0e-4 of its norm, 2.3e-3 in
    /// `bf16`. Where few numbers are far larger than those around them the others lose digits: with one in 193 at 30
    /// standard deviations on one side, both are off by 1.8e-3.
    ///
    /// A block with a number that is infinite or none makes all results of its row or column NaN. Scales are no smaller than
    /// the smallest normal number: magnitudes below 2^-127 are zeros. Results may be infinite where the largest magnitude of a
    /// block of the right factor is above 2^108.
    ///
    /// The format is that of Rouhani et al., "Pushing the Limits of Narrow Precision Inferencing at Cloud Scale with
    /// Microsoft Floating Point" (NeurIPS 2020), with more bits, longer blocks and scales that are no powers of two.
    Bfp12,
}

/// Whether [`Precision::Bf16`] multiplies pairs of numbers with `VDPBF16PS` when `isa` is chosen. AMD's processors do
/// so twice as fast as they multiply numbers in `f32`, but Intel's half as fast: those multiply the rounded numbers in
/// `f32`.
pub fn bf16_pairs(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    let fast = isa == Isa::Avx512 && bf16::is_fast();
    #[cfg(not(target_arch = "x86_64"))]
    let fast = isa == Isa::Avx512 && isa.is_available();
    fast
}

/// What is in the words of packed panels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Words {
    /// A number in `f32`.
    Exact,
    /// A number in `f32` that is a `bf16`.
    Rounded,
    /// Two numbers in `bf16`.
    Pairs,
    /// Two whole numbers of 16 bits or, between those, a scale in `f32`; see [`scaled`].
    Scaled,
    /// Four codes or, behind those, a scale and a sum; see [`codes`].
    Codes,
}

impl Words {
    fn of(isa: Isa, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::Exact,
            Precision::Bf16 if bf16_pairs(isa) => Self::Pairs,
            Precision::Bf16 => Self::Rounded,
            Precision::Bfp12 => Self::Scaled,
        }
    }

    /// Words of a lane that `depth` numbers take, from the start of a block of `k` on.
    fn steps(self, depth: usize) -> usize {
        match self {
            Self::Pairs => depth.div_ceil(2),
            Self::Scaled => scaled::steps(depth),
            Self::Codes => codes::steps(depth),
            _ => depth,
        }
    }
}

/// `out = a * b`, or `out += a * b` if `accumulate`: `a` is `[m, k]`, `b` is `[k, n]`, `out` is `[m, n]` with
/// `out_stride` numbers from a row to the next; what lies between rows is not touched.
///
/// # Panics
/// If the shapes do not fit each other, `out` is too short or its rows overlap, or the processor lacks `isa`.
pub fn gemm(isa: Isa, precision: Precision, a: View, b: View, out: &mut [f32], out_stride: usize, accumulate: bool) {
    assert_eq!(a.columns(), b.rows(), "the factors do not fit each other");
    let [a, b] = [a, b.transposed()].map(Factor::Numbers);
    blocks::run(isa, Words::of(isa, precision), a, b, out, out_stride, accumulate);
}

/// `out = a * b` of fake-quantized factors, in whole numbers, where `b` is ternary or binary: the numbers of a column are 0, a scale
/// and its opposite. `a` (`[m, k]`) is rounded to 8 bits a row, as [`Activation::Int8`](bitllama_core::Activation) does, which
/// changes nothing of what has been rounded so before; `b` is `[k, n]`; `out` is `[m, n]` with `out_stride` numbers from a row to
/// the next. Sums of products are exact, so that results are the same to the bit on every [`Isa`].
///
/// Returns whether `b` is so; if not, nothing is written.
///
/// # Panics
/// If `a` and `b` have other lengths, `out` is too short or its rows overlap, or the processor lacks `isa`.
pub fn gemm_codes(isa: Isa, [m, k, n]: [usize; 3], a: &[f32], b: &[f32], out: &mut [f32], out_stride: usize) -> bool {
    assert!(a.len() == m * k && b.len() == k * n, "[{m}, {k}] and [{k}, {n}] of {} and {} numbers", a.len(), b.len());
    if k == 0 || n == 0 {
        return false;
    }
    let Some(of_columns) = codes::of_columns(isa, b, n) else { return false };
    let of_rows = codes::of_rows(isa, a, k);
    let [a, b] = [Codes::left(a, k, &of_rows), Codes::right(b, k, &of_columns)].map(Factor::Codes);
    blocks::run(isa, Words::Codes, a, b, out, out_stride, false);
    true
}

/// Multiplications and additions a second of the threads of the current `rayon` pool when all is in registers: the roof of
/// [`gemm()`]. In [`Precision::Bf16`] it is that of `f32`.
///
/// # Panics
/// If the processor lacks `isa`.
pub fn peak(isa: Isa, precision: Precision) -> f64 {
    const TURNS: usize = 200_000;
    let start = std::time::Instant::now();
    let run = |_: rayon::BroadcastContext| match precision {
        Precision::Bfp12 => 4 * bfp12::peak(isa, TURNS),
        _ => 2 * tile::peak_f32(isa, TURNS),
    };
    let operations: usize = rayon::broadcast(run).iter().sum();
    operations as f64 / start.elapsed().as_secs_f64()
}
