//! The kernels, written once over what an instruction set can do with 32-bit lanes. A lane is a row of a panel
//! ([`bitllama_core::panel`]), so sums never cross lanes.
//!
//! Each file of an instruction set implements [`Simd`] and calls the functions here inside of functions that have its
//! target features; everything is `#[inline(always)]`, so the loops are compiled for those features.

use std::ops::Range;

use bitllama_core::Scheme;
use bitllama_core::panel::{PANEL_ROWS, VECTOR_BYTES};

use crate::activations::{Activations, Tile};
use crate::out::Out;
use crate::weight::{Panel, Weight};

/// What a kernel needs of an instruction set. All pointers may be unaligned.
///
/// # Safety
/// The functions may be called only where the processor has the instruction set, with pointers to as many elements as
/// they name.
pub(crate) trait Simd {
    /// Rows of a register: it holds four bytes or one 32-bit number of each.
    const ROWS: usize;
    /// Whether sums of a few fields that stand higher in their bytes still fit ([`stacked`]): not where products of two
    /// bytes are summed in 16 bits.
    const STACKED: bool;
    /// Sums that should be under way at a time, for one not to wait for the other.
    const SUMS: usize;
    /// What [`Simd::dot_bytes`] takes from each field, so that it is a signed byte.
    const BYTE_BIAS: i32;
    /// Four bytes of each row.
    type Bytes: Copy;
    /// A 32-bit integer of each row.
    type Ints: Copy;
    /// A sum of products that is not yet in 32 bits.
    type Partial: Copy;
    /// An `f32` of each row.
    type Floats: Copy;

    unsafe fn load(bytes: *const u8) -> Self::Bytes;
    /// Four activations, for every row.
    unsafe fn broadcast(x: *const i8) -> Self::Bytes;
    unsafe fn and(bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    unsafe fn or(a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted right; bits of the next byte may come in from above.
    unsafe fn shift_right<const BITS: u32>(bytes: Self::Bytes) -> Self::Bytes;
    /// Each byte shifted left; bits of the byte before may come in from below.
    unsafe fn shift_left<const BITS: u32>(bytes: Self::Bytes) -> Self::Bytes;

    unsafe fn partial_zero() -> Self::Partial;
    /// Adds the products of four unsigned fields with four activations of each row.
    unsafe fn dot(sum: Self::Partial, fields: Self::Bytes, x: Self::Bytes) -> Self::Partial;
    /// How many products of fields up to `largest` a partial sum can take.
    fn depth(largest: u32) -> usize;
    unsafe fn add_partial(sum: Self::Ints, partial: Self::Partial) -> Self::Ints;
    /// Like [`Simd::dot`] for fields of all eight bits less [`Simd::BYTE_BIAS`], at once in 32 bits.
    unsafe fn dot_bytes(sum: Self::Ints, fields: Self::Bytes, x: Self::Bytes) -> Self::Ints;

    unsafe fn int_splat(value: i32) -> Self::Ints;
    unsafe fn int_load(values: *const i32) -> Self::Ints;
    unsafe fn int_add(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn int_mul(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Each number shifted right by less than 32, its sign kept.
    unsafe fn int_shift_right(a: Self::Ints, by: u32) -> Self::Ints;
    /// `(lane >> shift) & mask` of each row's four bytes as one number.
    unsafe fn lane_field(bytes: Self::Bytes, shift: u32, mask: i32) -> Self::Ints;
    unsafe fn to_floats(a: Self::Ints) -> Self::Floats;

    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn load_floats(values: *const f32) -> Self::Floats;
    unsafe fn store(values: *mut f32, floats: Self::Floats);
    unsafe fn add(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once or twice.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Asks for the cache line of an address that will be read soon, wherever it points.
    unsafe fn prefetch(bytes: *const u8);
}

/// Population counts of lanes: what [`Simd`] is for sums of products.
pub(crate) trait Popcount: Simd {
    /// Adds to each row the number of bits in which its four bytes differ from `x`.
    unsafe fn add_differences(sum: Self::Ints, bytes: Self::Bytes, x: u32) -> Self::Ints;
}

/// How the fields of a scheme come out of a block.
trait Fields {
    /// Quads of columns of a block.
    const QUADS: usize;
    /// Bytes of a block.
    const BYTES: usize;
    const LARGEST: u32;
    /// Shift of a row's lane that brings the lowest bit of byte 0 of each quad down, and its vector: see `panel`.
    const BITS: u32;
    /// The fields of each quad, each in its byte. `block` points to the rows of the register in vector 0.
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8];
    /// The field of one column of a block.
    #[inline(always)]
    unsafe fn column<S: Simd>(block: *const u8, column: usize) -> S::Ints {
        let shift = 8 * (column % 4) as u32 + Self::BITS * (column / 4) as u32;
        unsafe { S::lane_field(S::load(block), shift, Self::LARGEST as i32) }
    }
}

struct Bits1;
struct Bits2;
struct Bits3;
struct Bits4;
struct Bits8;

impl Fields for Bits1 {
    const QUADS: usize = 8;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 1;
    const BITS: u32 = 1;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let v = S::load(block);
            [
                S::and(v, 1),
                S::and(S::shift_right::<1>(v), 1),
                S::and(S::shift_right::<2>(v), 1),
                S::and(S::shift_right::<3>(v), 1),
                S::and(S::shift_right::<4>(v), 1),
                S::and(S::shift_right::<5>(v), 1),
                S::and(S::shift_right::<6>(v), 1),
                S::and(S::shift_right::<7>(v), 1),
            ]
        }
    }
}

impl Fields for Bits2 {
    const QUADS: usize = 4;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 3;
    const BITS: u32 = 2;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let v = S::load(block);
            let fields = [
                S::and(v, 3),
                S::and(S::shift_right::<2>(v), 3),
                S::and(S::shift_right::<4>(v), 3),
                S::and(S::shift_right::<6>(v), 3),
            ];
            [fields[0], fields[1], fields[2], fields[3], v, v, v, v]
        }
    }
}

impl Fields for Bits3 {
    const QUADS: usize = 8;
    const BYTES: usize = 3 * VECTOR_BYTES;
    const LARGEST: u32 = 7;
    const BITS: u32 = 3;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let (a, b) = (S::load(block), S::load(block.add(VECTOR_BYTES)));
            let high = S::load(block.add(2 * VECTOR_BYTES));
            [
                S::or(S::and(a, 3), S::and(S::shift_left::<2>(high), 4)),
                S::or(S::and(S::shift_right::<2>(a), 3), S::and(S::shift_left::<1>(high), 4)),
                S::or(S::and(S::shift_right::<4>(a), 3), S::and(high, 4)),
                S::or(S::and(S::shift_right::<6>(a), 3), S::and(S::shift_right::<1>(high), 4)),
                S::or(S::and(b, 3), S::and(S::shift_right::<2>(high), 4)),
                S::or(S::and(S::shift_right::<2>(b), 3), S::and(S::shift_right::<3>(high), 4)),
                S::or(S::and(S::shift_right::<4>(b), 3), S::and(S::shift_right::<4>(high), 4)),
                S::or(S::and(S::shift_right::<6>(b), 3), S::and(S::shift_right::<5>(high), 4)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn column<S: Simd>(block: *const u8, column: usize) -> S::Ints {
        let (byte, quad) = (8 * (column % 4) as u32, (column / 4) as u32);
        unsafe {
            let low = S::load(block.add(quad as usize / 4 * VECTOR_BYTES));
            let high = S::load(block.add(2 * VECTOR_BYTES));
            let low = S::lane_field(low, byte + 2 * (quad % 4), 3);
            let high = S::lane_field(high, byte + quad, 1);
            S::int_add(low, S::int_mul(high, S::int_splat(4)))
        }
    }
}

impl Fields for Bits4 {
    const QUADS: usize = 2;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 15;
    const BITS: u32 = 4;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe {
            let v = S::load(block);
            [S::and(v, 15), S::and(S::shift_right::<4>(v), 15), v, v, v, v, v, v]
        }
    }
}

impl Fields for Bits8 {
    const QUADS: usize = 1;
    const BYTES: usize = VECTOR_BYTES;
    const LARGEST: u32 = 255;
    const BITS: u32 = 8;
    #[inline(always)]
    unsafe fn unpack<S: Simd>(block: *const u8) -> [S::Bytes; 8] {
        unsafe { [S::load(block); 8] }
    }
}

/// Products of `panels` of `weight` with all rows of `x`, into `out` (`[n, rows]`).
///
/// # Safety
/// The processor has the instruction set of `S`, `x` is laid out for it and has as many columns as `weight`; `out` is
/// `[x.len(), weight.rows()]` and nobody else writes the columns of `panels`.
#[inline(always)]
pub(crate) unsafe fn integer_panels<S: Simd>(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    unsafe {
        match weight.scheme() {
            Scheme::Binary => panels_of::<S, Bits1>(weight, panels, x, out),
            Scheme::Ternary | Scheme::Int2 => panels_of::<S, Bits2>(weight, panels, x, out),
            Scheme::Int3 => panels_of::<S, Bits3>(weight, panels, x, out),
            Scheme::Int4 => panels_of::<S, Bits4>(weight, panels, x, out),
            Scheme::Int8 => panels_of::<S, Bits8>(weight, panels, x, out),
        }
    }
}

#[inline(always)]
unsafe fn panels_of<S: Simd, F: Fields>(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    for index in panels {
        let panel = weight.panel(index);
        for tile in x.tiles() {
            let out = out.at(tile.first, index * PANEL_ROWS);
            unsafe {
                match tile.width {
                    1 => tile_of::<S, F, 1>(&panel, tile, out),
                    2 => tile_of::<S, F, 2>(&panel, tile, out),
                    4 => tile_of::<S, F, 4>(&panel, tile, out),
                    8 => tile_of::<S, F, 8>(&panel, tile, out),
                    16 if S::ROWS == PANEL_ROWS => tile_of::<S, F, 16>(&panel, tile, out),
                    24 if S::ROWS == PANEL_ROWS => tile_of::<S, F, 24>(&panel, tile, out),
                    _ => unreachable!("tiles have no other width"),
                }
            }
        }
    }
}

/// One panel with one tile of `N` tokens. `out` is where the first token's first row goes.
#[inline(always)]
unsafe fn tile_of<S: Simd, F: Fields, const N: usize>(panel: &Panel, tile: &Tile, out: Out) {
    let (step, low) = (panel.scheme.code_of(1) - panel.scheme.code_of(0), panel.scheme.code_of(0));
    // A field of which `bias` was taken is the code of `field + bias`.
    let bias = if F::BITS == 8 { S::BYTE_BIAS } else { 0 };
    for part in 0..PANEL_ROWS / S::ROWS {
        let bytes = unsafe { panel.bytes.as_ptr().add(part * 4 * S::ROWS) };
        let mut result = [unsafe { S::splat(0.0) }; N];
        for group in 0..panel.groups {
            let blocks = panel.group_blocks(group);
            let constants = group * PANEL_ROWS + part * S::ROWS;
            unsafe {
                let sums = fields_sum::<S, F, N>(bytes, tile.values.as_ptr(), blocks);
                let scale = S::load_floats(panel.scales.as_ptr().add(constants));
                for (token, sum) in sums.into_iter().enumerate().take(tile.tokens) {
                    let x_sum = tile.sum(token, panel.group_units(group));
                    let codes = match panel.lows {
                        None => {
                            let low = S::int_splat((low + step * bias).wrapping_mul(x_sum));
                            S::int_add(S::int_mul(sum, S::int_splat(step)), low)
                        }
                        Some(lows) => {
                            let low = S::int_add(S::int_load(lows.as_ptr().add(constants)), S::int_splat(bias));
                            S::int_add(sum, S::int_mul(low, S::int_splat(x_sum)))
                        }
                    };
                    result[token] = S::add(result[token], S::mul(S::to_floats(codes), scale));
                }
            }
        }
        for (token, result) in result.into_iter().enumerate().take(tile.tokens) {
            unsafe {
                let mut result = S::mul(result, S::splat(tile.scales[token]));
                let outliers = tile.outliers(token);
                if !outliers.is_empty() {
                    result = S::add(result, outlier_sum::<S, F>(panel, part, outliers));
                }
                out.store::<S>(token, part * S::ROWS, result);
            }
        }
    }
}

/// The sums of fields times activations of some blocks.
#[inline(always)]
unsafe fn fields_sum<S: Simd, F: Fields, const N: usize>(
    panel: *const u8,
    values: *const i8,
    (first, end): (usize, usize),
) -> [S::Ints; N] {
    if S::STACKED && F::BITS != 3 && F::QUADS * N <= 16 && (F::QUADS > 1 || N <= 4) {
        return unsafe {
            match (F::QUADS, N) {
                (8, _) => stacked::<S, F, N, 8, 1>(panel, values, (first, end)),
                (4, 1) => stacked::<S, F, N, 4, 2>(panel, values, (first, end)),
                (4, _) => stacked::<S, F, N, 4, 1>(panel, values, (first, end)),
                (2, 1) => stacked::<S, F, N, 2, 4>(panel, values, (first, end)),
                (2, 2 | 4) => stacked::<S, F, N, 2, 2>(panel, values, (first, end)),
                (2, _) => stacked::<S, F, N, 2, 1>(panel, values, (first, end)),
                (_, 1) => stacked::<S, F, N, 1, 8>(panel, values, (first, end)),
                (_, 2) => stacked::<S, F, N, 1, 4>(panel, values, (first, end)),
                (_, _) => stacked::<S, F, N, 1, 2>(panel, values, (first, end)),
            }
        };
    }
    if !S::STACKED && F::BITS <= 2 && N <= 2 {
        return unsafe {
            match F::BITS {
                1 => half_stacked::<S, F, N, 4>(panel, values, (first, end)),
                _ => half_stacked::<S, F, N, 2>(panel, values, (first, end)),
            }
        };
    }
    let mut sums = [unsafe { S::int_splat(0) }; N];
    // With few tokens, quads have sums of their own.
    let chains = (S::SUMS / N).clamp(1, if F::QUADS < 4 { F::QUADS } else { 4 });
    let depth = if F::BITS == 8 { usize::MAX } else { (S::depth(F::LARGEST) / (F::QUADS / chains)).max(1) };
    let mut block = first;
    while block < end {
        let stop = block.saturating_add(depth).min(end);
        unsafe {
            let mut partial = [[S::partial_zero(); N]; 4];
            while block < stop {
                let fields = F::unpack::<S>(panel.add(block * F::BYTES));
                S::prefetch(panel.wrapping_add(block * F::BYTES + PREFETCH));
                for (quad, fields) in fields.into_iter().enumerate().take(F::QUADS) {
                    let x = values.add((block * F::QUADS + quad) * N * 4);
                    for token in 0..N {
                        let x = S::broadcast(x.add(4 * token));
                        match F::BITS {
                            8 => sums[token] = S::dot_bytes(sums[token], fields, x),
                            _ => partial[quad % chains][token] = S::dot(partial[quad % chains][token], fields, x),
                        }
                    }
                }
                block += 1;
            }
            if F::BITS != 8 {
                for partial in partial.iter().take(chains) {
                    for token in 0..N {
                        sums[token] = S::add_partial(sums[token], partial[token]);
                    }
                }
            }
        }
    }
    sums
}

/// Bytes ahead of the block at work that are asked for.
const PREFETCH: usize = 2048;

/// [`fields_sum`] without shifts: a field is masked where it stands in its byte, and each height of fields has sums of
/// its own, which are multiples of what the height is worth and are divided by that at the end. `UNROLL` blocks have
/// sums of their own as well, so that enough of them are under way at a time.
#[inline(always)]
unsafe fn stacked<S: Simd, F: Fields, const N: usize, const QUADS: usize, const UNROLL: usize>(
    panel: *const u8,
    values: *const i8,
    (first, end): (usize, usize),
) -> [S::Ints; N] {
    unsafe {
        let mut sums = [[[S::partial_zero(); N]; QUADS]; UNROLL];
        let mut block = first;
        while block + UNROLL <= end {
            for (at, sums) in sums.iter_mut().enumerate() {
                stacked_block::<S, F, N, QUADS>(panel, values, block + at, sums);
            }
            block += UNROLL;
        }
        while block < end {
            stacked_block::<S, F, N, QUADS>(panel, values, block, &mut sums[0]);
            block += 1;
        }
        let mut totals = [S::int_splat(0); N];
        for quad in 0..QUADS {
            for (token, total) in totals.iter_mut().enumerate() {
                let mut sum = S::int_splat(0);
                for sums in &sums {
                    sum = S::add_partial(sum, sums[quad][token]);
                }
                *total = S::int_add(*total, S::int_shift_right(sum, quad as u32 * F::BITS));
            }
        }
        totals
    }
}

#[inline(always)]
unsafe fn stacked_block<S: Simd, F: Fields, const N: usize, const QUADS: usize>(
    panel: *const u8,
    values: *const i8,
    block: usize,
    sums: &mut [[S::Partial; N]; QUADS],
) {
    unsafe {
        let v = S::load(panel.add(block * F::BYTES));
        S::prefetch(panel.wrapping_add(block * F::BYTES + PREFETCH));
        for (quad, sums) in sums.iter_mut().enumerate() {
            let mask = (F::LARGEST << (quad as u32 * F::BITS)) as u8;
            let fields = if F::BITS == 8 { v } else { S::and(v, mask) };
            for (token, sum) in sums.iter_mut().enumerate() {
                let x = S::broadcast(values.add(((block * QUADS + quad) * N + token) * 4));
                *sum = S::dot(*sum, fields, x);
            }
        }
    }
}

/// [`fields_sum`] where sums of fields that stand as high as in [`stacked`] would be too large: a byte is taken in two
/// halves of `HEIGHTS` fields, so that one shift is left.
#[inline(always)]
unsafe fn half_stacked<S: Simd, F: Fields, const N: usize, const HEIGHTS: usize>(
    panel: *const u8,
    values: *const i8,
    (first, end): (usize, usize),
) -> [S::Ints; N] {
    unsafe {
        let mut sums = [[S::int_splat(0); N]; HEIGHTS];
        let depth = S::depth(F::LARGEST << ((HEIGHTS as u32 - 1) * F::BITS));
        let mut block = first;
        while block < end {
            let stop = block.saturating_add(depth).min(end);
            let mut partial = [[[S::partial_zero(); N]; HEIGHTS]; 2];
            while block < stop {
                let v = S::load(panel.add(block * F::BYTES));
                S::prefetch(panel.wrapping_add(block * F::BYTES + PREFETCH));
                for (half, (v, partial)) in [v, S::shift_right::<4>(v)].into_iter().zip(&mut partial).enumerate() {
                    for (height, partial) in partial.iter_mut().enumerate() {
                        let fields = S::and(v, (F::LARGEST << (height as u32 * F::BITS)) as u8);
                        let x = values.add((block * F::QUADS + half * HEIGHTS + height) * N * 4);
                        for (token, partial) in partial.iter_mut().enumerate() {
                            *partial = S::dot(*partial, fields, S::broadcast(x.add(4 * token)));
                        }
                    }
                }
                block += 1;
            }
            for (height, sums) in sums.iter_mut().enumerate() {
                for (token, sum) in sums.iter_mut().enumerate() {
                    *sum = S::add_partial(S::add_partial(*sum, partial[0][height][token]), partial[1][height][token]);
                }
            }
        }
        let mut totals = [S::int_splat(0); N];
        for (height, sums) in sums.into_iter().enumerate() {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = S::int_add(*total, S::int_shift_right(sum, height as u32 * F::BITS));
            }
        }
        totals
    }
}

/// What the outliers of a token add to the rows of a part: codes times numbers in f32, column after column.
#[inline(always)]
unsafe fn outlier_sum<S: Simd, F: Fields>(panel: &Panel, part: usize, outliers: &[(u32, f32)]) -> S::Floats {
    let bytes = unsafe { panel.bytes.as_ptr().add(part * 4 * S::ROWS) };
    let (step, low) = (panel.scheme.code_of(1) - panel.scheme.code_of(0), panel.scheme.code_of(0));
    let columns = 4 * F::QUADS;
    unsafe {
        let mut total = S::splat(0.0);
        let mut rest = outliers;
        for group in 0..panel.groups {
            let here = match panel.groups {
                1 => rest.len(),
                _ => rest.partition_point(|(column, _)| (*column as usize) < (group + 1) * panel.group_size),
            };
            if here == 0 {
                continue;
            }
            let (mut fields, mut x_sum) = (S::splat(0.0), 0.0f32);
            for (column, x) in &rest[..here] {
                let column = *column as usize;
                let field = F::column::<S>(bytes.add(column / columns * F::BYTES), column % columns);
                fields = S::add(fields, S::mul(S::to_floats(field), S::splat(*x)));
                x_sum += x;
            }
            rest = &rest[here..];
            let constants = group * PANEL_ROWS + part * S::ROWS;
            let codes = match panel.lows {
                None => S::add(S::mul(fields, S::splat(step as f32)), S::splat(low as f32 * x_sum)),
                Some(lows) => {
                    let low = S::to_floats(S::int_load(lows.as_ptr().add(constants)));
                    S::add(fields, S::mul(low, S::splat(x_sum)))
                }
            };
            total = S::add(total, S::mul(codes, S::load_floats(panel.scales.as_ptr().add(constants))));
        }
        total
    }
}

/// Products of `panels` of `weight` with one row of activations in f32 (`[columns]`), into `out` (`[rows]`). `x_sums` are
/// the sums of `x` over each group of columns.
///
/// # Safety
/// As for [`integer_panels`].
#[inline(always)]
pub(crate) unsafe fn float_panels<S: Simd>(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    unsafe {
        match weight.scheme() {
            Scheme::Binary => float_panels_of::<S, Bits1>(weight, panels, x, x_sums, out),
            Scheme::Ternary | Scheme::Int2 => float_panels_of::<S, Bits2>(weight, panels, x, x_sums, out),
            Scheme::Int3 => float_panels_of::<S, Bits3>(weight, panels, x, x_sums, out),
            Scheme::Int4 => float_panels_of::<S, Bits4>(weight, panels, x, x_sums, out),
            Scheme::Int8 => float_panels_of::<S, Bits8>(weight, panels, x, x_sums, out),
        }
    }
}

#[inline(always)]
unsafe fn float_panels_of<S: Simd, F: Fields>(
    weight: &Weight,
    panels: Range<usize>,
    x: &[f32],
    x_sums: &[f32],
    out: Out,
) {
    let scheme = weight.scheme();
    let (step, low) = (scheme.code_of(1) - scheme.code_of(0), scheme.code_of(0));
    let columns = 4 * F::QUADS;
    for index in panels {
        let panel = weight.panel(index);
        let out = out.at(0, index * PANEL_ROWS);
        for part in 0..PANEL_ROWS / S::ROWS {
            unsafe {
                let bytes = panel.bytes.as_ptr().add(part * 4 * S::ROWS);
                let mut result = S::splat(0.0);
                for (group, x_sum) in x_sums.iter().enumerate() {
                    let (first, end) = panel.group_blocks(group);
                    let mut sums = [S::splat(0.0); 4];
                    let whole = (x.len() / columns).min(end);
                    for block in first..whole {
                        let start = bytes.add(block * F::BYTES);
                        let x = x.as_ptr().add(block * columns);
                        let fields = F::unpack::<S>(start);
                        // Constants as bounds, so that the loops are unrolled and shifts are constants as well.
                        for (quad, fields) in fields.into_iter().enumerate().take(F::QUADS) {
                            for (byte, sum) in sums.iter_mut().enumerate() {
                                let column = 4 * quad + byte;
                                let field = match F::BITS {
                                    3 => S::lane_field(fields, 8 * byte as u32, 7),
                                    _ => F::column::<S>(start, column),
                                };
                                *sum = S::mul_add(S::to_floats(field), S::splat(*x.add(column)), *sum);
                            }
                        }
                    }
                    if whole < end {
                        let start = bytes.add(whole * F::BYTES);
                        for (column, x) in x[whole * columns..].iter().enumerate() {
                            let field = S::to_floats(F::column::<S>(start, column));
                            sums[column % 4] = S::mul_add(field, S::splat(*x), sums[column % 4]);
                        }
                    }
                    let fields = S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3]));
                    let constants = group * PANEL_ROWS + part * S::ROWS;
                    let codes = match panel.lows {
                        None => S::add(S::mul(fields, S::splat(step as f32)), S::splat(low as f32 * x_sum)),
                        Some(lows) => {
                            let low = S::to_floats(S::int_load(lows.as_ptr().add(constants)));
                            S::mul_add(low, S::splat(*x_sum), fields)
                        }
                    };
                    let scale = S::load_floats(panel.scales.as_ptr().add(constants));
                    result = S::add(result, S::mul(codes, scale));
                }
                out.store::<S>(0, part * S::ROWS, result);
            }
        }
    }
}

/// The weights of one panel, `[columns, stride]` with the panel's rows in front.
///
/// # Safety
/// The processor has the instruction set of `S`; `out` has room for `columns` times `stride`, at least a panel's rows.
#[inline(always)]
pub(crate) unsafe fn unpack_panel<S: Simd>(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    unsafe {
        match weight.scheme() {
            Scheme::Binary => unpack_panel_of::<S, Bits1>(weight, index, out, stride),
            Scheme::Ternary | Scheme::Int2 => unpack_panel_of::<S, Bits2>(weight, index, out, stride),
            Scheme::Int3 => unpack_panel_of::<S, Bits3>(weight, index, out, stride),
            Scheme::Int4 => unpack_panel_of::<S, Bits4>(weight, index, out, stride),
            Scheme::Int8 => unpack_panel_of::<S, Bits8>(weight, index, out, stride),
        }
    }
}

#[inline(always)]
unsafe fn unpack_panel_of<S: Simd, F: Fields>(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    let panel = weight.panel(index);
    let (step, low) = (panel.scheme.code_of(1) - panel.scheme.code_of(0), panel.scheme.code_of(0));
    let columns = panel.scheme.block_columns();
    for part in 0..PANEL_ROWS / S::ROWS {
        for group in 0..panel.groups {
            let constants = group * PANEL_ROWS + part * S::ROWS;
            let first = group * panel.group_size;
            unsafe {
                let bytes = panel.bytes.as_ptr().add(part * 4 * S::ROWS);
                let scale = S::load_floats(panel.scales.as_ptr().add(constants));
                let low = match panel.lows {
                    None => S::int_splat(low),
                    Some(lows) => S::int_load(lows.as_ptr().add(constants)),
                };
                for column in first..first + panel.group_size {
                    let field = F::column::<S>(bytes.add(column / columns * F::BYTES), column % columns);
                    let code = S::int_add(S::int_mul(field, S::int_splat(step)), low);
                    S::store(out.add(column * stride + part * S::ROWS), S::mul(S::to_floats(code), scale));
                }
            }
        }
    }
}

/// Products of `panels` of a binary `weight` with signs (`[n, units]`, 32 columns a number, see [`crate::Signs`]) that
/// stand for `scales` (`[n]`) each, into `out` (`[n, rows]`).
///
/// # Safety
/// As for [`integer_panels`].
#[inline(always)]
pub(crate) unsafe fn sign_panels<S: Popcount>(
    weight: &Weight,
    panels: Range<usize>,
    signs: &[u32],
    scales: &[f32],
    out: Out,
) {
    let units = signs.len() / scales.len();
    for index in panels {
        let panel = weight.panel(index);
        for (token, scale) in scales.iter().enumerate() {
            let signs = &signs[token * units..][..units];
            let out = out.at(token, index * PANEL_ROWS);
            for part in 0..PANEL_ROWS / S::ROWS {
                unsafe {
                    let bytes = panel.bytes.as_ptr().add(part * 4 * S::ROWS);
                    let mut result = S::splat(0.0);
                    for group in 0..panel.groups {
                        let (first, end) = panel.group_units(group);
                        let mut sums = [S::int_splat(0); 4];
                        for (unit, x) in (first..end).zip(&signs[first..end]) {
                            let lane = S::load(bytes.add(unit * VECTOR_BYTES));
                            sums[unit % 4] = S::add_differences(sums[unit % 4], lane, *x);
                        }
                        let different = S::int_add(S::int_add(sums[0], sums[1]), S::int_add(sums[2], sums[3]));
                        // Equal signs give +1 and different ones -1.
                        let columns = S::int_splat(panel.group_size as i32);
                        let codes = S::int_add(columns, S::int_mul(different, S::int_splat(-2)));
                        let constants = group * PANEL_ROWS + part * S::ROWS;
                        let weight_scale = S::load_floats(panel.scales.as_ptr().add(constants));
                        result = S::add(result, S::mul(S::to_floats(codes), weight_scale));
                    }
                    out.store::<S>(0, part * S::ROWS, S::mul(result, S::splat(*scale)));
                }
            }
        }
    }
}
