//! Products with activations in 8 bits: sums of fields times activations are whole numbers and exact, scales come last.
//!
//! With groups, an element is `x_scale * sum over groups of scale * float(sum of codes * x)`: each group's sum is converted
//! once and multiplied and added with one rounding, so that all instruction sets give the same bits.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::panel::PANEL_ROWS;

use super::fields::{Fields, by_fields};
use super::outliers::outlier_sums;
use super::sums::Quads;
use super::{levels, sums};
use crate::activations::{Activations, Tile};
use crate::out::Out;
use crate::simd::{Simd, for_isa};
use crate::weight::{Panel, Weight};

/// Products of `panels` of `weight` with all rows of `x`, into `out` (`[n, rows]`).
///
/// # Safety
/// `out` is `[x.len(), weight.rows()]` and nobody else writes the columns of `panels`.
///
/// # Panics
/// If `x` has other columns than `weight`.
pub(crate) unsafe fn integer_panels(weight: &Weight, panels: Range<usize>, x: &Activations, out: Out) {
    assert_eq!(weight.columns(), x.columns());
    thread_local!(static ADDENDS: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) });
    ADDENDS.with_borrow_mut(|addends| {
        for_isa!(
            x.isa(),
            panels_of_kind(weight: &Weight, panels: Range<usize>, x: &Activations, addends: &mut Vec<i32>, out: Out)
        )
    });
}

#[inline(always)]
fn panels_of_kind<S: Simd>(
    s: S,
    weight: &Weight,
    panels: Range<usize>,
    x: &Activations,
    addends: &mut Vec<i32>,
    out: Out,
) {
    by_fields!(weight, panels_of(s, weight, panels, x, addends, out))
}

#[inline(always)]
fn panels_of<S: Simd, F: Fields>(
    s: S,
    weight: &Weight,
    panels: Range<usize>,
    x: &Activations,
    addends: &mut Vec<i32>,
    out: Out,
) {
    let offset = Offset::of::<S, F>(weight);
    let rows = weight.groups() == 1;
    for tile in x.tiles() {
        offset.addends(tile, weight.groups(), addends);
        for index in panels.clone() {
            let panel = &weight.panel(index);
            let job = Job { panel, tile, offset, addends, out: out.at(tile.first, index * PANEL_ROWS) };
            match tile.width {
                1 => tile_of::<S, F, 1, 1>(s, job),
                2 if S::SUMS >= 2 => tile_of::<S, F, 2, 2>(s, job),
                4 if S::SUMS >= 4 => tile_of::<S, F, 4, 4>(s, job),
                8 if S::SUMS >= 8 => tile_of::<S, F, 8, 8>(s, job),
                16 if S::SUMS >= 16 && rows && !F::LEVELS => tile_of::<S, F, 16, 16>(s, job),
                24 if S::SUMS >= 24 && rows && !F::LEVELS => tile_of::<S, F, 24, 24>(s, job),
                // Sums of groups, or of each digit of a level, and totals fit into the registers for half as many tokens.
                16 if S::SUMS >= 16 => tile_of::<S, F, 8, 16>(s, job),
                24 if S::SUMS >= 24 && F::LEVELS => tile_of::<S, F, 8, 24>(s, job),
                24 if S::SUMS >= 24 => tile_of::<S, F, 12, 24>(s, job),
                _ => unreachable!("tiles have no other width"),
            }
        }
    }
}

/// One panel with a tile of `WIDTH` tokens, `N` at a time.
#[inline(always)]
fn tile_of<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(s: S, job: Job) {
    let mut outliers = [s.splat(0.0); WIDTH];
    let mut first = 0;
    while first < WIDTH {
        tokens::<S, F, N, WIDTH>(s, job, first, &mut outliers);
        first += N;
    }
}

/// The way in which sums of fields become sums of codes, with a number per token and group: its *addend*, a multiple of the sum
/// of the group's activations.
#[derive(Clone, Copy)]
enum Offset {
    /// Sums start from the addend.
    Start { factor: i32 },
    /// Twice the sum, and the addend.
    Double { factor: i32 },
    /// The addend times the number of each row, in 16 bits or in 32. `bias` belongs to that number.
    Rows { short: bool, bias: i32 },
    /// The minimum of each row is taken off as often as the addend says, the bits of an f32.
    Minimums,
    /// Codes are levels of a table, which want the sum itself.
    Levels,
}

impl Offset {
    #[inline(always)]
    fn of<S: Simd, F: Fields>(weight: &Weight) -> Self {
        // A field of which `bias` was taken is the code of `field + bias`.
        let bias = if F::WIDE { S::BYTE_BIAS } else { 0 };
        let (low, step) = weight.line();
        match (weight.has_zero_points(), step) {
            _ if F::LEVELS => Self::Levels,
            _ if weight.has_minimums() => Self::Minimums,
            (true, _) => Self::Rows { short: weight.group_size() <= MAX_SHORT_GROUP, bias },
            (false, 1) => Self::Start { factor: low + bias },
            (false, _) => Self::Double { factor: low + step * bias },
        }
    }

    /// Writes the addends of a tile for groups of as many columns, `[groups, width]`.
    #[inline(always)]
    fn addends(self, tile: &Tile, groups: usize, out: &mut Vec<i32>) {
        let units = tile.sums.len() / tile.width - 1;
        let unit = |group: usize| if groups == 1 { group * units } else { group * (units / groups) } * tile.width;
        out.clear();
        for group in 0..groups {
            let (before, after) =
                (&tile.sums[unit(group)..][..tile.width], &tile.sums[unit(group + 1)..][..tile.width]);
            out.extend(after.iter().zip(before).map(|(after, before)| match self {
                Self::Start { factor } | Self::Double { factor } => factor * (after - before),
                // The upper half is taken off, so that one product is left of each pair.
                Self::Rows { short: true, .. } => (after - before) & 0xffff,
                Self::Minimums => ((after - before) as f32).to_bits() as i32,
                Self::Rows { .. } | Self::Levels => after - before,
            }));
        }
    }
}

/// Columns of the largest group whose sums of activations have 16 bits.
const MAX_SHORT_GROUP: usize = i16::MAX as usize / 127;

/// A panel to be multiplied with a tile.
#[derive(Clone, Copy)]
struct Job<'a> {
    panel: &'a Panel<'a>,
    tile: &'a Tile,
    offset: Offset,
    /// `[groups, width]`.
    addends: &'a [i32],
    /// The place of the first token's first row.
    out: Out,
}

/// One panel with the `N` tokens from `first` on of a tile of `WIDTH`. The first ones find
/// the shares of the outliers of all.
#[inline(always)]
fn tokens<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    job: Job,
    first: usize,
    outliers: &mut [S::Floats; WIDTH],
) {
    let first = if N == WIDTH { 0 } else { first };
    let Job { panel, tile, .. } = job;
    let (x, _) = tile.values.as_chunks::<4>();
    let (mut fields, mut x, mut addends) = (panel.bytes, Quads::<WIDTH> { x, first }, job.addends);
    let mut totals = [s.splat(0.0); N];
    let mut addends_of = || match addends.split_off(..WIDTH).and_then(|here| here[first..].first_chunk::<N>()) {
        Some(addends) => addends,
        None => unreachable!("every group has addends of all tokens"),
    };
    if F::QUADS == 8 && panel.groups > 1 && panel.group_size < 4 * F::QUADS {
        // A block has the columns of two groups.
        let mut group = 0;
        while let (Some(block), Some(x)) = (fields.split_off(..F::BYTES), x.split_off(F::QUADS)) {
            let unpacked = F::unpack(s, block);
            for half in 0..2 {
                let addends = addends_of();
                let sums = start::<S, N>(s, job.offset, addends);
                let sums = sums::quads::<S, F, N, WIDTH>(s, &unpacked, x, 4 * half, sums);
                let codes = code_sums::<S, N>(s, job, group, sums, addends);
                totals = add_group::<S, N>(s, job, group, codes, addends, totals);
                group += 1;
            }
        }
    } else {
        let (group_bytes, group_quads) = match panel.groups {
            1 => (panel.bytes.len(), x.x.len() / WIDTH),
            _ => (panel.group_size / 4 / F::QUADS * F::BYTES, panel.group_size / 4),
        };
        for group in 0..panel.groups {
            let (Some(bytes), Some(x)) = (fields.split_off(..group_bytes), x.split_off(group_quads)) else {
                unreachable!("every group has fields and activations")
            };
            let addends = addends_of();
            let codes = match F::LEVELS {
                true => levels::code_sums::<S, N, WIDTH>(s, bytes, x, addends),
                false => {
                    let sums = start::<S, N>(s, job.offset, addends);
                    let sums = sums::fields::<S, F, N, WIDTH>(s, bytes, x, sums);
                    code_sums::<S, N>(s, job, group, sums, addends)
                }
            };
            totals = add_group::<S, N>(s, job, group, codes, addends, totals);
        }
    }
    if first == 0 && !tile.outliers.is_empty() {
        // Now that the panel is in the first cache.
        outlier_sums::<S, F, WIDTH>(s, panel, &tile.outliers, outliers);
    }
    for token in 0..N {
        if first + token < tile.tokens {
            let result = s.mul(totals[token], s.splat(tile.scales[first + token]));
            let result = s.add(result, outliers[first + token]);
            // SAFETY: the token is one of the output, whose rows of this panel are the caller's.
            unsafe { job.out.store(s, first + token, result) };
        }
    }
}

/// The numbers that sums of fields start from.
#[inline(always)]
fn start<S: Simd, const N: usize>(s: S, offset: Offset, addends: &[i32; N]) -> [S::Ints; N] {
    let mut sums = [s.splat_int(0); N];
    if let Offset::Start { .. } = offset {
        for token in 0..N {
            sums[token] = s.splat_int(addends[token]);
        }
    }
    sums
}

/// The sums of codes times activations of a group, from those of its fields.
#[inline(always)]
fn code_sums<S: Simd, const N: usize>(
    s: S,
    job: Job,
    group: usize,
    sums: [S::Ints; N],
    addends: &[i32; N],
) -> [S::Floats; N] {
    let mut sums = sums;
    match (job.offset, job.panel.lows) {
        (Offset::Rows { short, bias }, Some(lows)) => {
            let low = s.add_ints(s.load_i16(&lows[group]), s.splat_int(bias));
            for token in 0..N {
                let addend = s.splat_int(addends[token]);
                sums[token] = match short {
                    true => s.dot_pairs(sums[token], low, addend),
                    false => s.add_ints(sums[token], s.mul_ints(low, addend)),
                };
            }
        }
        (Offset::Double { .. }, _) => {
            for token in 0..N {
                sums[token] = s.add_ints(s.add_ints(sums[token], sums[token]), s.splat_int(addends[token]));
            }
        }
        _ => {}
    }
    let mut floats = [s.splat(0.0); N];
    for token in 0..N {
        floats[token] = s.to_floats(sums[token]);
    }
    floats
}

/// `totals` with the share of a group: its scale times the sums of codes, less its minimum times the sums of activations.
#[inline(always)]
fn add_group<S: Simd, const N: usize>(
    s: S,
    job: Job,
    group: usize,
    codes: [S::Floats; N],
    addends: &[i32; N],
    totals: [S::Floats; N],
) -> [S::Floats; N] {
    let mut totals = totals;
    let scale = job.panel.scales.at(s, group);
    for token in 0..N {
        totals[token] = s.mul_add_once(codes[token], scale, totals[token]);
    }
    if let Some(minimums) = job.panel.minimums {
        let minimum = s.sub(s.splat(0.0), minimums.at(s, group));
        for token in 0..N {
            let x_sum = s.splat(f32::from_bits(addends[token] as u32));
            totals[token] = s.mul_add_once(minimum, x_sum, totals[token]);
        }
    }
    totals
}
