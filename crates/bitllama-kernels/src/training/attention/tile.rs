//! The small matrix products of a tile, with their operands packed: what nearly all the time of attention goes into.
//!
//! A block of results stays in registers, some rows by some vectors, while the product runs over its depth. Each step
//! reads a row of vectors on the right and one number for each row on the left, which is spread over the lanes. The
//! product that this forms for scores is keys times queries, not queries times keys: the lanes are queries then, and
//! the softmax needs nothing across lanes.

use crate::isa::Isa;
use crate::simd::{LANES, Simd, for_isa};

/// How far the elements of the left side lie apart.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// Those of a row side by side, the rows this far apart.
    Rows(usize),
    /// Those of a step side by side, the steps this far apart.
    Columns(usize),
}

/// `[rows, depth]` numbers.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub data: &'a [f32],
    pub layout: Layout,
}

/// `[depth, vectors]` vectors, `stride` numbers from a step to the next.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// `[rows, vectors]` vectors, `stride` numbers from a row to the next, written over or, if `add`, added to.
pub(super) struct Out<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
    pub add: bool,
}

/// The size of a product.
#[derive(Clone, Copy)]
pub(super) struct Size {
    pub rows: usize,
    pub depth: usize,
    pub vectors: usize,
}

/// Steps after which sums go to memory: a block's part of the right side then stays in the first cache.
const DEPTH: usize = 96;

/// `out = left * right`, or `out += left * right`.
///
/// # Panics
/// If a side is too short for `size`, or the processor lacks `isa`.
pub(super) fn multiply(isa: Isa, left: Left, right: Right, size: Size, out: Out) {
    for_isa!(isa, multiply_all(left: Left, right: Right, size: Size, out: Out))
}

#[inline(always)]
fn multiply_all<S: Simd>(s: S, left: Left, right: Right, size: Size, out: Out) {
    let Size { rows, depth, vectors } = size;
    if rows == 0 || vectors == 0 {
        return;
    }
    let Out { data: out, stride, add } = out;
    assert!((rows - 1) * stride + vectors * LANES <= out.len(), "the result ends early");
    if depth > 0 {
        let last = match left.layout {
            Layout::Rows(stride) => (rows - 1) * stride + depth - 1,
            Layout::Columns(stride) => (depth - 1) * stride + rows - 1,
        };
        assert!(last < left.data.len(), "the left side ends early");
        assert!((depth - 1) * right.stride + vectors * LANES <= right.data.len(), "the right side ends early");
    }
    // No closures here: they would be functions without the instructions of `S`.
    for start in (0..depth.max(1)).step_by(DEPTH) {
        let end = depth.min(start + DEPTH);
        let mut column = 0;
        while column < vectors {
            let c = columns::<S>(vectors - column);
            let most = (S::BLOCK / c).min(S::ROWS);
            let mut row = 0;
            while row < rows {
                let r = rows_of_block(most.min(rows - row));
                let part = Part { row, column, start, end, add: add || start > 0 };
                // SAFETY: the rows, vectors and steps of the part are those of the product, and all three sides hold
                // them, by the assertions above.
                unsafe {
                    match left.layout {
                        Layout::Rows(_) => block_of::<S, false>(s, [r, c], left, right, part, out, stride),
                        Layout::Columns(_) => block_of::<S, true>(s, [r, c], left, right, part, out, stride),
                    }
                }
                row += r;
            }
            column += c;
        }
    }
}

/// Vectors of the next block, of those that are left.
#[inline(always)]
fn columns<S: Simd>(left: usize) -> usize {
    match left {
        _ if S::BLOCK < 16 => 1,
        // Rather 3 and 2 than 4 and 1.
        5 => 3,
        left if left.is_multiple_of(3) => 3,
        left => left.min(4),
    }
}

/// Rows of the next block, at most `limit`.
#[inline(always)]
fn rows_of_block(limit: usize) -> usize {
    match limit {
        8.. => 8,
        6.. => 6,
        4.. => 4,
        limit => limit.min(2),
    }
}

/// What a block computes: its first row and vector, and the steps of the depth.
#[derive(Clone, Copy)]
struct Part {
    row: usize,
    column: usize,
    start: usize,
    end: usize,
    add: bool,
}

/// # Safety
/// As of [`block`].
#[inline(always)]
unsafe fn block_of<S: Simd, const COLUMNS: bool>(
    s: S,
    size: [usize; 2],
    left: Left,
    right: Right,
    part: Part,
    out: &mut [f32],
    stride: usize,
) {
    macro_rules! sizes {
        ($($c:literal: $($r:literal)*;)*) => {
            match size {
                // Blocks of one column are for all instruction sets, the others for those with many registers.
                $($([$r, $c] if $r <= S::ROWS && ($c == 1 || S::BLOCK >= 16) && $r * $c <= S::BLOCK => {
                    // SAFETY: the caller's promise.
                    unsafe { block::<S, COLUMNS, $r, $c>(s, left, right, part, out, stride) }
                })*)*
                [r, c] => unreachable!("no block has {r} rows of {c} vectors"),
            }
        };
    }
    sizes! { 1: 8 6 4 2 1; 2: 8 6 4 2 1; 3: 8 6 4 2 1; 4: 6 4 2 1; }
}

/// # Safety
/// `left` has `R` rows from `part.row` on, `right` and `out` have `C` vectors from `part.column` on, in all steps of the
/// part and in all rows, and `COLUMNS` says which layout `left` has.
#[inline(always)]
unsafe fn block<S: Simd, const COLUMNS: bool, const R: usize, const C: usize>(
    s: S,
    left: Left,
    right: Right,
    part: Part,
    out: &mut [f32],
    stride: usize,
) {
    let (Layout::Rows(apart) | Layout::Columns(apart)) = left.layout;
    let mut sums = [[s.splat(0.0); C]; R];
    let at = |r: usize, c: usize| (part.row + r) * stride + (part.column + c) * LANES;
    if part.add {
        for (r, sums) in sums.iter_mut().enumerate() {
            for (c, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the caller's promise.
                *sum = s.load(unsafe { vector(out, at(r, c)) });
            }
        }
    }
    for step in part.start..part.end {
        let mut vectors = [s.splat(0.0); C];
        for (c, v) in vectors.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *v = s.load(unsafe { vector(right.data, step * right.stride + (part.column + c) * LANES) });
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let at = if COLUMNS { step * apart + part.row + r } else { (part.row + r) * apart + step };
            // SAFETY: the caller's promise.
            let x = s.splat(unsafe { *left.data.get_unchecked(at) });
            for c in 0..C {
                sums[c] = s.mul_add(x, vectors[c], sums[c]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: the caller's promise.
            s.store(*sum, unsafe { vector_mut(out, at(r, c)) });
        }
    }
}

/// # Safety
/// `data` has a vector at `start`.
#[inline(always)]
unsafe fn vector(data: &[f32], start: usize) -> &[f32; LANES] {
    debug_assert!(start + LANES <= data.len());
    // SAFETY: the caller's promise.
    unsafe { &*data.as_ptr().add(start).cast() }
}

/// # Safety
/// `data` has a vector at `start`.
#[inline(always)]
unsafe fn vector_mut(data: &mut [f32], start: usize) -> &mut [f32; LANES] {
    debug_assert!(start + LANES <= data.len());
    // SAFETY: the caller's promise.
    unsafe { &mut *data.as_mut_ptr().add(start).cast() }
}
