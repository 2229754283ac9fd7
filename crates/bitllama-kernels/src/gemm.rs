//! Products of dense matrices in full precision, for training: many rows times a weight that changes with each step, so
//! that nothing can be prepared but what a call prepares itself.
//!
//! [`gemm()`] packs blocks of both factors into the order in which a register tile reads them, then computes tiles, split
//! over the threads of the current `rayon` pool. Which sums are added up in which order depends on the shape and the
//! [`Isa`] only: results are the same to the bit for every number of threads. Memory for the blocks is kept for later
//! calls.
//!
//! A factor that stays the same, a frozen model's weight, is packed once with [`PackedB::new`] and multiplied with
//! [`gemm_packed`]; the products are the same to the bit.
//!
//! | module | subject |
//! |---|---|
//! | `view` | where the numbers of a factor are |
//! | `encode` | what they become when packed |
//! | `pack`, `pack_avx512` | packing |
//! | `tile`, `bf16` | the innermost loop, in `f32` and with products of `bf16` pairs |
//! | `blocks` | blocks, threads, memory |

#[cfg(target_arch = "x86_64")]
mod bf16;
mod blocks;
mod encode;
mod pack;
#[cfg(target_arch = "x86_64")]
mod pack_avx512;
mod packed;
#[cfg(test)]
mod tests;
mod tile;
mod view;

use crate::isa::Isa;
pub use packed::PackedB;
pub use view::{Elements, View};

/// In what precision factors are multiplied; sums are `f32` always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Precision {
    /// As they are.
    F32,
    /// Rounded to the nearest `bf16`, of two equally near ones to the even. Products and sums are those of the rounded
    /// numbers in `f32`, except where the processor multiplies pairs (see [`bf16_pairs`]): that instruction takes
    /// subnormal factors and sums for zeros, and rounds the sum of two products and the accumulator its own way, to
    /// nearest even after each addition. Results differ by rounding of `f32` only.
    Bf16,
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
}

impl Words {
    fn of(isa: Isa, precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::Exact,
            Precision::Bf16 if bf16_pairs(isa) => Self::Pairs,
            Precision::Bf16 => Self::Rounded,
        }
    }

    /// Words of a lane that `depth` numbers take.
    fn steps(self, depth: usize) -> usize {
        match self {
            Self::Pairs => depth.div_ceil(2),
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
    blocks::run(isa, Words::of(isa, precision), a, blocks::Right::View(b), out, out_stride, accumulate);
}

/// [`gemm()`] with a right factor that was packed before.
///
/// # Panics
/// As [`gemm()`].
pub fn gemm_packed(a: View, b: &PackedB, out: &mut [f32], out_stride: usize, accumulate: bool) {
    assert_eq!(a.columns(), b.rows(), "the factors do not fit each other");
    blocks::run(b.isa(), b.words(), a, blocks::Right::Packed(b), out, out_stride, accumulate);
}

/// Floating point operations a second of the threads of the current `rayon` pool when all is in registers and in `f32`:
/// the roof of [`gemm()`].
///
/// # Panics
/// If the processor lacks `isa`.
pub fn peak(isa: Isa) -> f64 {
    const TURNS: usize = 200_000;
    let start = std::time::Instant::now();
    let operations: usize = rayon::broadcast(|_| 2 * tile::peak(isa, TURNS)).iter().sum();
    operations as f64 / start.elapsed().as_secs_f64()
}
