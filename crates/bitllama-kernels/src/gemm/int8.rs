//! Products of bytes with a sign by bytes without one, four at a time, summed up in 32 bits. Sums are exact, so that every
//! instruction set computes the same.

use super::codes::EXTRA;
use super::tile::{Job, Kernel, by_block, store, tile};
use crate::isa::Isa;
use crate::simd::{LANES, Simd, for_isa};

/// Words are four bytes: those of the left factor have a sign, those of the right one are at most 2.
#[derive(Clone, Copy)]
struct Bytes<S>(S);

impl<S: Simd> Kernel for Bytes<S> {
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
        self.0.dot_now(sum, self.0.bytes_of(b), self.0.bytes_of(a))
    }
    #[inline(always)]
    fn floats(self, sum: S::Ints) -> S::Floats {
        self.0.to_floats(sum)
    }
}

/// Computes the tiles of a job whose words are codes, with scales and sums of codes behind them.
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

/// All tiles of a job.
#[inline(always)]
fn tiles<S: Simd, const R: usize, const V: usize>(s: S, job: Job) {
    let [rows, columns] = job.shape;
    let k = Bytes(s);
    for (b, column) in job.b.chunks_exact(job.steps * V * LANES).zip((0..columns).step_by(V * LANES)) {
        let (b, b_extra) = b.split_at((job.steps - EXTRA) * V * LANES);
        let (b_scales, _) = b_extra.as_chunks::<LANES>();
        for (a, row) in job.a.chunks_exact(job.steps * R).zip((0..rows).step_by(R)) {
            let (a, a_extra) = a.split_at((job.steps - EXTRA) * R);
            let (a_scales, a_sums) = a_extra.split_at(R);
            let sums = tile::<Bytes<S>, R, V>(k, a, b, job.out.at(row, column));
            for r in 0..R.min(rows - row) {
                let (a_scale, a_sum) = (s.splat(f32::from_bits(a_scales[r])), k.splat(a_sums[r]));
                for v in 0..V {
                    let scale = s.mul(a_scale, s.load(&b_scales[v].map(f32::from_bits)));
                    let product = s.mul(s.to_floats(s.sub_ints(sums[r][v], a_sum)), scale);
                    let first = column + v * LANES;
                    let columns = first.min(columns)..columns.min(first + LANES);
                    store(s, product, job.out.at(row + r, 0), columns, job.add);
                }
            }
        }
    }
}
