//! Products of pairs of whole numbers with 16 bits, summed up in 32 bits. Sums of a span are exact and become `f32` when it
//! ends, so that every instruction set computes the same.

use super::scaled::{SPAN, steps};
use super::tile::{Job, Kernel, by_block, multiply_registers, store, tile};
use crate::isa::Isa;
use crate::simd::{LANES, Simd, for_isa};

/// Words are two whole numbers of 16 bits. Where a scale is no number, they may be any.
#[derive(Clone, Copy)]
struct Pairs<S>(S);

impl<S: Simd> Kernel for Pairs<S> {
    type S = S;
    type V = S::Ints;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn zero(self) -> S::Ints {
        self.0.splat_int(0)
    }
    #[inline(always)]
    fn load(self, words: &[u32; LANES]) -> S::Ints {
        self.0.load_ints(bytemuck::cast_ref(words))
    }
    #[inline(always)]
    fn splat(self, word: u32) -> S::Ints {
        self.0.splat_int(word as i32)
    }
    #[inline(always)]
    fn step(self, a: S::Ints, b: S::Ints, sum: S::Ints) -> S::Ints {
        self.0.dot_pairs(sum, a, b)
    }
    #[inline(always)]
    fn floats(self, sum: S::Ints) -> S::Floats {
        self.0.to_floats(sum)
    }
}

/// Computes the tiles of a job whose words are pairs of whole numbers with scales between them.
///
/// # Safety
/// `out` has the rows and columns of the job, and nobody else touches them meanwhile.
pub(super) unsafe fn run(isa: Isa, job: Job) {
    for_isa!(isa, all_tiles(job: Job))
}

#[inline(always)]
fn all_tiles<S: Simd>(s: S, job: Job) {
    by_block!(S, tiles(s, job))
}

/// Multiplies and adds in registers only, `turns` times as often as there are sums; returns how many words it added up.
pub(super) fn peak(isa: Isa, turns: usize) -> usize {
    for_isa!(isa, peak_of(turns: usize) -> usize)
}

#[inline(always)]
fn peak_of<S: Simd>(s: S, turns: usize) -> usize {
    multiply_registers(Pairs(s), turns)
}

/// All tiles of a job.
#[inline(always)]
fn tiles<S: Simd, const R: usize, const V: usize>(s: S, job: Job) {
    let [rows, columns] = job.shape;
    let k = Pairs(s);
    for (b, column) in job.b.chunks_exact(job.steps * V * LANES).zip((0..columns).step_by(V * LANES)) {
        for (a, row) in job.a.chunks_exact(job.steps * R).zip((0..rows).step_by(R)) {
            let out = job.out.at(row, column);
            let mut totals = [[s.splat(0.0); V]; R];
            let spans = a.chunks(steps(SPAN) * R).zip(b.chunks(steps(SPAN) * V * LANES));
            for (a, b) in spans {
                let (a, a_scales) = a.split_at(a.len() - R);
                let (b, b_scales) = b.split_at(b.len() - V * LANES);
                let sums = tile::<Pairs<S>, R, V>(k, a, b, out);
                let (b_scales, _) = b_scales.as_chunks::<LANES>();
                for (v, scales) in b_scales.iter().enumerate().take(V) {
                    let b = s.load(&scales.map(f32::from_bits));
                    for (r, scale) in a_scales.iter().enumerate().take(R) {
                        let a = s.splat(f32::from_bits(*scale));
                        totals[r][v] = s.mul_add_once(s.mul(s.to_floats(sums[r][v]), b), a, totals[r][v]);
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
