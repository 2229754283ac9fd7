//! The innermost loop: a tile of the output in registers, multiplied from a panel of each factor.
//!
//! A panel is `steps` times the words of its lanes (rows of the left factor, columns of the right one), in the order in
//! which the loop reads them. A word has 32 bits: one number, or two neighbours in `k`; see
//! [`Encode`](super::encode::Encode).

use std::ops::Range;

use crate::isa::Isa;
use crate::simd::{LANES, Simd, for_isa};

/// The step of a tile's accumulators with a word of each factor.
pub(super) trait Kernel: Copy {
    /// The proof of the instruction set that sums are stored with.
    type S: Simd;
    /// [`LANES`] words, or as many sums.
    type V: Copy;

    fn simd(self) -> Self::S;
    fn zero(self) -> Self::V;
    fn load(self, words: &[u32; LANES]) -> Self::V;
    fn splat(self, word: u32) -> Self::V;
    /// `sum + a * b`, for both halves of a word where it has two numbers.
    fn step(self, a: Self::V, b: Self::V, sum: Self::V) -> Self::V;
    fn floats(self, sum: Self::V) -> <Self::S as Simd>::Floats;
}

/// Words are numbers in `f32`.
#[derive(Clone, Copy)]
pub(super) struct Fma<S>(pub S);

impl<S: Simd> Kernel for Fma<S> {
    type S = S;
    type V = S::Floats;

    #[inline(always)]
    fn simd(self) -> S {
        self.0
    }
    #[inline(always)]
    fn zero(self) -> S::Floats {
        self.0.splat(0.0)
    }
    #[inline(always)]
    fn load(self, words: &[u32; LANES]) -> S::Floats {
        self.0.load(bytemuck::cast_ref(words))
    }
    #[inline(always)]
    fn splat(self, word: u32) -> S::Floats {
        self.0.splat(f32::from_bits(word))
    }
    #[inline(always)]
    fn step(self, a: S::Floats, b: S::Floats, sum: S::Floats) -> S::Floats {
        self.0.mul_add(a, b, sum)
    }
    #[inline(always)]
    fn floats(self, sum: S::Floats) -> S::Floats {
        sum
    }
}

/// Lanes of the panels of each factor, which is also the shape of a tile: as many accumulators as there are registers
/// for, with few loads for each multiplication.
pub(super) fn lanes(isa: Isa) -> [usize; 2] {
    match isa {
        Isa::Avx512 => [8, 3 * LANES],
        Isa::Avx2 | Isa::AvxVnni | Isa::Neon => [6, LANES],
        Isa::Scalar => [2, LANES],
    }
}

/// Tiles of the output that one thread computes with the same blocks of the factors.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    /// Panels of the left factor, each `[steps, lanes]`.
    pub a: &'a [u32],
    /// Panels of the right factor, each `[steps, lanes]`.
    pub b: &'a [u32],
    pub steps: usize,
    pub out: Out,
    /// Rows and columns of `out` that the panels are of; the lanes beyond them are zeros.
    pub shape: [usize; 2],
    /// Whether the products are added to what `out` has.
    pub add: bool,
}

/// A place in the output.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub data: *mut f32,
    pub stride: usize,
}

// SAFETY: the pointer is only used in `run`, whose callers give each task tiles of its own.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

impl Out {
    pub fn at(self, row: usize, column: usize) -> Self {
        Self { data: self.data.wrapping_add(row * self.stride + column), ..self }
    }
}

/// Computes the tiles of a job whose words are numbers in `f32`.
///
/// # Safety
/// `out` has the rows and columns of the job, and nobody else touches them meanwhile.
pub(super) unsafe fn run_f32(isa: Isa, job: Job) {
    for_isa!(isa, f32_tiles(job: Job))
}

#[inline(always)]
fn f32_tiles<S: Simd>(s: S, job: Job) {
    by_block!(S, tiles(Fma(s), job))
}

/// Calls `$tiles::<_, R, V>` with the rows and vectors of a register block of `$S`. The constants are those of the instruction
/// set, so one branch is left.
macro_rules! by_block {
    ($S:ident, $tiles:ident($($argument:expr),*)) => {
        match ($S::ROWS, $S::BLOCK / $S::ROWS) {
            (8, 3) => $tiles::<_, 8, 3>($($argument),*),
            (6, 1) => $tiles::<_, 6, 1>($($argument),*),
            _ => $tiles::<_, 2, 1>($($argument),*),
        }
    };
}
pub(super) use by_block;

/// All tiles of a job. The panel of the right factor stays in the first cache while those of the left pass by.
#[inline(always)]
pub(super) fn tiles<K: Kernel, const R: usize, const V: usize>(k: K, job: Job) {
    let [rows, columns] = job.shape;
    for (b, column) in job.b.chunks_exact(job.steps * V * LANES).zip((0..columns).step_by(V * LANES)) {
        for (a, row) in job.a.chunks_exact(job.steps * R).zip((0..rows).step_by(R)) {
            let out = job.out.at(row, column);
            let rows = R.min(rows - row);
            let sums = tile::<K, R, V>(k, a, b, out);
            for (r, sums) in sums.into_iter().enumerate().take(rows) {
                for (v, sum) in sums.into_iter().enumerate() {
                    let first = column + v * LANES;
                    let columns = first.min(columns)..columns.min(first + LANES);
                    store(k.simd(), k.floats(sum), job.out.at(row + r, 0), columns, job.add);
                }
            }
        }
    }
}

/// The sums of a tile. Asks for the tile's rows of `out` on the way.
#[inline(always)]
pub(super) fn tile<K: Kernel, const R: usize, const V: usize>(k: K, a: &[u32], b: &[u32], out: Out) -> [[K::V; V]; R] {
    let mut sums = [[k.zero(); V]; R];
    let (a, _) = a.as_chunks::<R>();
    let (b, _) = b.as_chunks::<LANES>();
    let (b, _) = b.as_chunks::<V>();
    let mut steps = a.iter().zip(b);
    let mut row = 0;
    // The output's cache lines are asked for a row at a time: all at once, they would be in the way of the panels.
    let part = (steps.len() / (R + 2)).max(1);
    while steps.len() > 0 {
        if row < R {
            for v in 0..V {
                k.simd().prefetch(out.at(row, v * LANES).data);
            }
        }
        row += 1;
        for (a, b) in steps.by_ref().take(part) {
            let b = b.each_ref().map(|b| k.load(b));
            for (a, sums) in a.iter().zip(&mut sums) {
                let a = k.splat(*a);
                for (b, sum) in b.iter().zip(sums) {
                    *sum = k.step(a, *b, *sum);
                }
            }
        }
    }
    sums
}

#[inline(always)]
pub(super) fn store<S: Simd>(s: S, sum: S::Floats, row: Out, columns: Range<usize>, add: bool) {
    if columns.len() == LANES {
        // SAFETY: the row has these columns, by the promise to `run_f32` and its like, and they are this job's.
        let to = unsafe { &mut *row.at(0, columns.start).data.cast::<[f32; LANES]>() };
        s.store(if add { s.add(s.load(to), sum) } else { sum }, to);
    } else if !columns.is_empty() {
        // SAFETY: as above.
        let to = unsafe { std::slice::from_raw_parts_mut(row.at(0, columns.start).data, columns.len()) };
        s.store_some(if add { s.add(s.load_some(to), sum) } else { sum }, to);
    }
}

/// Multiplies and adds in registers only, `turns` times as often as there are sums; returns how many words it added up.
pub(super) fn peak_f32(isa: Isa, turns: usize) -> usize {
    for_isa!(isa, multiply_floats(turns: usize) -> usize)
}

#[inline(always)]
fn multiply_floats<S: Simd>(s: S, turns: usize) -> usize {
    multiply_registers(Fma(s), turns)
}

/// As [`peak_f32`], with any words.
#[inline(always)]
pub(super) fn multiply_registers<K: Kernel>(k: K, turns: usize) -> usize {
    /// More sums than multiplications are under way at a time; twice as many where a vector is one register.
    const SUMS: usize = 6;
    #[inline(always)]
    fn run<K: Kernel, const N: usize>(k: K, turns: usize) -> usize {
        let [a, b] = std::hint::black_box([0.5f32, 0.25]).map(|x| k.splat(x.to_bits()));
        let mut sums = [b; N];
        for _ in 0..turns {
            // Read again, else the compiler may multiply once only.
            let a = *std::hint::black_box(&a);
            for sum in &mut sums {
                *sum = k.step(a, b, *sum);
            }
        }
        for sum in sums {
            std::hint::black_box(k.simd().sum(k.floats(sum)));
        }
        turns * N * LANES
    }
    match K::S::BLOCK {
        24 => run::<K, { 2 * SUMS }>(k, turns),
        _ => run::<K, SUMS>(k, turns),
    }
}
