//! Products with activations in 8 bits: sums of fields times activations are whole numbers and exact, scales come last.
//!
//! With groups, but for nested scales, an element is `x_scale * sum over groups of scale * float(sum of codes * x)`: each group's sum is converted
//! once and multiplied and added with one rounding, so that all instruction sets give the same bits.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::panel::PANEL_ROWS;

use super::fields::{Fields, by_fields};
use super::offset::{Offset, addends_of};
use super::outliers::outlier_sums;
use super::sums::Quads;
use super::{levels, nested, one_token, sums};
use crate::activations::{Activations, Tile};
#[cfg(target_arch = "x86_64")]
use crate::isa::{Isa, has_vnni_of_avx512};
use crate::out::Out;
#[cfg(target_arch = "x86_64")]
use crate::simd::{AVX_VNNI, AVX512_VNNI, Avx2};
use crate::simd::{Simd, for_isa};
use crate::weight::{Panel, PanelScales, Weight};

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
        #[cfg(target_arch = "x86_64")]
        if x.isa() == Isa::AvxVnni && Isa::AvxVnni.is_available() {
            // SAFETY: the processor has the instructions, as was asked.
            return unsafe {
                match has_vnni_of_avx512() {
                    true => with_vnni_of_avx512(weight, panels, x, addends, out),
                    false => with_avx_vnni(weight, panels, x, addends, out),
                }
            };
        }
        for_isa!(
            x.isa(),
            panels_of_kind(weight: &Weight, panels: Range<usize>, x: &Activations, addends: &mut Vec<i32>, out: Out)
        )
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn with_avx_vnni(weight: &Weight, panels: Range<usize>, x: &Activations, addends: &mut Vec<i32>, out: Out) {
    // SAFETY: the caller has made sure of the instructions of this function.
    panels_of_kind(unsafe { Avx2::<AVX_VNNI>::new() }, weight, panels, x, addends, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
fn with_vnni_of_avx512(weight: &Weight, panels: Range<usize>, x: &Activations, addends: &mut Vec<i32>, out: Out) {
    // SAFETY: the caller has made sure of the instructions of this function.
    panels_of_kind(unsafe { Avx2::<AVX512_VNNI>::new() }, weight, panels, x, addends, out);
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
    let Job { panel, tile, offset, addends, .. } = job;
    let x = Quads::<WIDTH> { x: tile.values.as_chunks::<4>().0, first };
    let totals = match panel.scales {
        PanelScales::Nested { .. } => nested::weighted_sums::<S, F, N, WIDTH>(s, offset, panel, x, addends),
        _ => weighted_sums::<S, F, N, WIDTH>(s, offset, panel, x, addends),
    };
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

/// The sums of weights times activations of all columns for the `N` tokens of `x`. `addends` is `[groups, WIDTH]`.
#[inline(always)]
fn weighted_sums<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    offset: Offset,
    panel: &Panel,
    x: Quads<WIDTH>,
    addends: &[i32],
) -> [S::Floats; N] {
    if WIDTH == 1
        && let Some(total) = one_token::weighted_sums::<S, F>(s, offset, panel, x.x, addends)
    {
        return [total; N];
    }
    let (mut fields, mut x) = (panel.bytes, x);
    let (group_bytes, group_quads) = match panel.groups {
        1 => (panel.bytes.len(), x.x.len() / WIDTH),
        _ => (panel.group_size / 4 / F::QUADS * F::BYTES, panel.group_size / 4),
    };
    let mut totals = [s.splat(0.0); N];
    for group in 0..panel.groups {
        let (Some(bytes), Some(x)) = (fields.split_off(..group_bytes), x.split_off(group_quads)) else {
            unreachable!("every group has fields and activations")
        };
        let addends = addends_of::<N>(addends, group * WIDTH + x.first);
        let codes = match F::LEVELS {
            true => levels::code_sums::<S, N, WIDTH>(s, bytes, x, addends),
            false => {
                let sums = sums::fields::<S, F, N, WIDTH>(s, bytes, x, offset.start::<S, N>(s, addends));
                offset.code_sums::<S, N>(s, panel.low(group), sums, addends)
            }
        };
        totals = add_group::<S, N>(s, panel, group, codes, addends, totals);
    }
    totals
}

/// `totals` with the share of a group: its scale times the sums of codes, less its minimum times the sums of activations.
#[inline(always)]
fn add_group<S: Simd, const N: usize>(
    s: S,
    panel: &Panel,
    group: usize,
    codes: [S::Floats; N],
    addends: &[i32; N],
    totals: [S::Floats; N],
) -> [S::Floats; N] {
    let mut totals = totals;
    let scale = panel.scales.at(s, group);
    for token in 0..N {
        totals[token] = s.mul_add_once(codes[token], scale, totals[token]);
    }
    if let Some(minimums) = panel.minimums {
        let minimum = s.sub(s.splat(0.0), minimums.at(s, group));
        for token in 0..N {
            let x_sum = s.splat(f32::from_bits(addends[token] as u32));
            totals[token] = s.mul_add_once(minimum, x_sum, totals[token]);
        }
    }
    totals
}
