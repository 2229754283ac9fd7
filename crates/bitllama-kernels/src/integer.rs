//! Products with activations in 8 bits: sums of fields times activations are whole numbers and exact, scales come last.

use std::ops::Range;

use bitllama_core::Scheme;
use bitllama_core::panel::PANEL_ROWS;

use crate::activations::{Activations, Tile};
use crate::fields::{Bits1, Bits2, Bits3, Bits4, Bits8, Fields, Nf4, by_scheme};
use crate::levels;
use crate::out::Out;
use crate::simd::Simd;
use crate::weight::{Panel, Weight};

/// Products of `panels` of `weight` with all rows of `x`, into `out` (`[n, rows]`).
///
/// # Safety
/// The processor has the instruction set of `S`, `x` is laid out for it and has as many columns as `weight`; `out` is
/// `[x.len(), weight.rows()]` and nobody else writes the columns of `panels`.
#[inline(always)]
pub(crate) unsafe fn integer_panels<S: Simd>(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    unsafe { by_scheme!(weight.scheme(), panels_of::<S>(weight, panels, x, out)) }
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
    for part in 0..PANEL_ROWS / S::ROWS {
        let mut result = [unsafe { S::splat(0.0) }; N];
        for group in 0..panel.groups {
            let constants = group * PANEL_ROWS + part * S::ROWS;
            unsafe {
                let codes = code_sums::<S, F, N>(panel, part, group, tile);
                let scale = S::load_floats(panel.scales.as_ptr().add(constants));
                for (result, codes) in result.iter_mut().zip(codes).take(tile.tokens) {
                    *result = S::add(*result, S::mul(codes, scale));
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

/// The sums of codes times activations of a group, for the tokens that the tile has.
#[inline(always)]
unsafe fn code_sums<S: Simd, F: Fields, const N: usize>(
    panel: &Panel,
    part: usize,
    group: usize,
    tile: &Tile,
) -> [S::Floats; N] {
    let bytes = unsafe { panel.bytes.as_ptr().add(part * 4 * S::ROWS) };
    let (values, blocks, units) = (tile.values.as_ptr(), panel.group_blocks(group), panel.group_units(group));
    let (low, step) = panel.scheme.line();
    // A field of which `bias` was taken is the code of `field + bias`.
    let bias = if F::BITS == 8 { S::BYTE_BIAS } else { 0 };
    let constants = group * PANEL_ROWS + part * S::ROWS;
    unsafe {
        if F::TABLE {
            let mut x_sums = [0; N];
            for (token, sum) in x_sums.iter_mut().enumerate().take(tile.tokens) {
                *sum = tile.sum(token, units);
            }
            return levels::code_sums::<S, N>(bytes, values, blocks, x_sums);
        }
        let sums = fields_sum::<S, F, N>(bytes, values, blocks);
        let mut codes = [S::splat(0.0); N];
        for (token, sum) in sums.into_iter().enumerate().take(tile.tokens) {
            let x_sum = tile.sum(token, units);
            let sum = match panel.lows {
                None => {
                    let low = S::int_splat((low + step * bias).wrapping_mul(x_sum));
                    S::int_add(S::int_mul(sum, S::int_splat(step)), low)
                }
                Some(lows) => {
                    let low = S::int_add(S::int_load(lows.as_ptr().add(constants)), S::int_splat(bias));
                    S::int_add(sum, S::int_mul(low, S::int_splat(x_sum)))
                }
            };
            codes[token] = S::to_floats(sum);
        }
        codes
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
    let (low, step) = panel.scheme.line();
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
                fields = S::add(fields, S::mul(F::to_floats::<S>(field), S::splat(*x)));
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
