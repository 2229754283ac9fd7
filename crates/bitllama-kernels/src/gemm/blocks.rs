//! Blocks of the factors, the threads that pack and multiply them, and the memory that they are packed into.

use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use super::codes::{self, Codes};
use super::scaled::SPAN;
use super::tile::{Job, Out};
use super::view::View;
use super::{Words, pack, tile};
use crate::aligned::Aligned;
use crate::isa::Isa;

/// Rows and columns of the output that are computed from one block of each factor. With [`DEPTH`] these blocks take
/// 6 and 2 MiB, which all threads share: that of the right factor, read again for each [`JOB`] of rows, should be in the
/// second cache or not far from it.
const ROWS: usize = 2016;
const COLUMNS: usize = 768;
/// Words of a lane in a block, at most. A panel of the right factor is then read from the second cache for each tile, which
/// keeps pace with the multiplications; shorter ones for the first cache would read and write the output more often.
const DEPTH: usize = 768;
/// Depth is a multiple of this, but for the last block: what vectors transpose at a time, in pairs.
const DEPTH_STEP: usize = 32;
/// Rows and columns of a thread's job, about: with [`DEPTH`], 384 and 576 KiB of the factors.
const JOB: [usize; 2] = [128, 192];
/// Multiplications under which other threads are not worth waking.
const ALONE: usize = 1 << 18;

/// A factor, `[lanes, k]`: the left one, or the right one transposed.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    Numbers(View<'a>),
    /// For [`Words::Codes`].
    Codes(Codes<'a>),
}

impl Factor<'_> {
    fn lanes(&self) -> usize {
        match self {
            Self::Numbers(view) => view.rows(),
            Self::Codes(codes) => codes.lanes(),
        }
    }

    fn depth(&self) -> usize {
        match self {
            Self::Numbers(view) => view.columns(),
            Self::Codes(codes) => codes.depth(),
        }
    }

    /// Packs some lanes times a range of their `k` into panels of `width` lanes.
    fn pack(self, isa: Isa, words: Words, lanes: Range<usize>, k: Range<usize>, width: usize, to: &mut [u32]) {
        match self {
            Self::Numbers(view) => pack::pack(isa, words, view, lanes, k, width, to),
            Self::Codes(codes) => codes.pack(isa, lanes, k, width, to),
        }
    }
}

/// The ranges of `k` that are multiplied one after the other, about as long as each other. Sums are added up in this
/// order whatever else happens, which is why this depends on nothing else.
pub(super) fn depths(words: Words, k: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let (most, step) = match words {
        Words::Pairs => (2 * DEPTH, DEPTH_STEP),
        Words::Scaled => (2 * DEPTH / SPAN * SPAN, SPAN),
        Words::Codes => (codes::PER_WORD * DEPTH, DEPTH_STEP),
        _ => (DEPTH, DEPTH_STEP),
    };
    let depth = k.div_ceil(k.div_ceil(most).max(1)).next_multiple_of(step).max(1);
    (0..k).step_by(depth).map(move |from| from..k.min(from + depth))
}

/// The product of two factors of the same depth; see [`gemm`](super::gemm()).
pub(super) fn run(isa: Isa, words: Words, a: Factor, b: Factor, out: &mut [f32], stride: usize, add: bool) {
    assert!(isa.is_available(), "this processor has no {isa}");
    let (m, k, n) = (a.lanes(), a.depth(), b.lanes());
    if m == 0 || n == 0 {
        return;
    }
    assert!(stride >= n, "rows of the output overlap");
    let end = (m - 1).checked_mul(stride).and_then(|last| last.checked_add(n));
    assert!(end.is_some_and(|end| end <= out.len()), "the output has no room for [{m}, {n}] with stride {stride}");
    if k == 0 {
        if !add {
            out.chunks_mut(stride).take(m).for_each(|row| row[..n].fill(0.0));
        }
        return;
    }
    let out = Out { data: out.as_mut_ptr(), stride };
    let alone = m.saturating_mul(n).saturating_mul(k) < ALONE;
    let [a_width, b_width] = tile::lanes(isa);
    let mut memory = Memory::take();
    // What is in memory, so that it is not packed again.
    let (mut a_packed, mut b_packed) = (None, None);
    for rows in parts(m, ROWS, a_width) {
        for k in depths(words, k) {
            for columns in parts(n, COLUMNS, b_width) {
                let steps = words.steps(k.len());
                let a_len = rows.len().next_multiple_of(a_width) * steps;
                let b_len = columns.len().next_multiple_of(b_width) * steps;
                let a_new = a_packed.replace((rows.clone(), k.clone())) != Some((rows.clone(), k.clone()));
                let b_new = b_packed.replace((columns.clone(), k.clone())) != Some((columns.clone(), k.clone()));
                let [a_panels, b_panels] = &mut memory.panels;
                let (a_panels, b_panels) = (room(a_panels, a_len), room(b_panels, b_len));
                let pack_a = |to: &mut [u32]| {
                    if a_new {
                        pack_all(isa, words, a, &rows, &k, a_width, to, alone);
                    }
                };
                let pack_b = |to: &mut [u32]| {
                    if b_new {
                        pack_all(isa, words, b, &columns, &k, b_width, to, alone);
                    }
                };
                match alone {
                    true => (pack_a(a_panels), pack_b(b_panels)),
                    false => rayon::join(|| pack_a(a_panels), || pack_b(b_panels)),
                };
                let block = Job {
                    a: a_panels,
                    b: b_panels,
                    steps,
                    out: out.at(rows.start, columns.start),
                    shape: [rows.len(), columns.len()],
                    add: add || k.start > 0,
                };
                multiply(isa, words, block, alone);
            }
        }
    }
    memory.put_back();
}

/// `0..len` in parts of at most `most` that are about as long as each other, and multiples of `of` but for the last.
fn parts(len: usize, most: usize, of: usize) -> impl Iterator<Item = Range<usize>> {
    let part = len.div_ceil(len.div_ceil(most)).next_multiple_of(of);
    (0..len).step_by(part).map(move |from| from..len.min(from + part))
}

/// Packs a range of the lanes of a factor on all threads.
#[expect(clippy::too_many_arguments, reason = "a block of a factor, and how to pack it where")]
fn pack_all(
    isa: Isa,
    words: Words,
    factor: Factor,
    lanes: &Range<usize>,
    k: &Range<usize>,
    width: usize,
    to: &mut [u32],
    alone: bool,
) {
    // Vectors of sixteen lanes must not cross from a task to the next.
    let per_task = 96usize.next_multiple_of(width);
    let pack_task = |(task, to): (usize, &mut [u32])| {
        let first = lanes.start + task * per_task;
        factor.pack(isa, words, first..lanes.end.min(first + per_task), k.clone(), width, to);
    };
    let len = per_task * words.steps(k.len());
    match alone {
        true => to.chunks_mut(len).enumerate().for_each(pack_task),
        false => to.par_chunks_mut(len).enumerate().for_each(pack_task),
    }
}

/// Computes all tiles of a block.
fn multiply(isa: Isa, words: Words, block: Job, alone: bool) {
    let [a_width, b_width] = tile::lanes(isa);
    let [rows, columns] = block.shape;
    let job = [JOB[0].next_multiple_of(a_width), JOB[1].next_multiple_of(b_width)];
    let down = rows.div_ceil(job[0]);
    let multiply_job = |index: usize| {
        // Jobs with the same columns follow each other, for a thread to find them in its cache.
        let first = [index % down * job[0], index / down * job[1]];
        let panels = |all: &'_ [u32], i: usize| -> Range<usize> {
            let end = all.len().min((first[i] + job[i]) * block.steps);
            first[i] * block.steps..end
        };
        let job = Job {
            a: &block.a[panels(block.a, 0)],
            b: &block.b[panels(block.b, 1)],
            out: block.out.at(first[0], first[1]),
            shape: [job[0].min(rows - first[0]), job[1].min(columns - first[1])],
            ..block
        };
        // SAFETY: jobs share no rows and columns, which are within the output, as `run` asserts.
        unsafe {
            match words {
                #[cfg(target_arch = "x86_64")]
                Words::Pairs => super::bf16::run(job),
                Words::Scaled => super::bfp12::run(isa, job),
                Words::Codes => super::int8::run(isa, job),
                _ => tile::run_f32(isa, job),
            }
        }
    };
    let jobs = down * columns.div_ceil(job[1]);
    match alone || jobs == 1 {
        true => (0..jobs).for_each(multiply_job),
        false => (0..jobs).into_par_iter().with_max_len(1).for_each(multiply_job),
    }
}

/// Memory that blocks of the two factors are packed into. It is kept when a call ends: taken anew each time, the system
/// would have to clear and map megabytes of it.
#[derive(Default)]
struct Memory {
    panels: [Aligned<u32>; 2],
}

static MEMORY: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

impl Memory {
    /// What an earlier call left. Not one for each thread: a thread that waits for others may begin another call.
    fn take() -> Self {
        MEMORY.lock().unwrap_or_else(|e| e.into_inner()).pop().unwrap_or_default()
    }

    fn put_back(self) {
        MEMORY.lock().unwrap_or_else(|e| e.into_inner()).push(self);
    }
}

/// Memory for `len` words, in large pages where the system has them: tiles read from more places than there are entries
/// for small ones.
fn room(memory: &mut Aligned<u32>, len: usize) -> &mut [u32] {
    if memory.as_slice().len() < len {
        memory.reserve(len);
        memory.ask_for_large_pages();
        memory.grow(len);
    }
    &mut memory.as_mut_slice()[..len]
}
