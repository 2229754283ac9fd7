//! Groups whose scales and minimums are whole multiples of a factor per super-block, as those of GGUF's K types: sums over the
//! columns of a super-block are whole numbers as well, and are converted once.
//!
//! With `sums` for those of codes times activations of a group, and `x_sum` for those of its activations, an element is
//! `x_scale * sum over super-blocks of factor * float(sum of step * sums) - minimum_factor * float(sum of minimum_step * x_sum)`.

use half::f16;

use super::fields::Fields;
use super::offset::{Offset, addends_of};
use super::sums::{self, Quads};
use crate::simd::{LANES, Simd};
use crate::weight::{Panel, PanelScales};

/// Scales or minimums of a panel.
#[derive(Clone, Copy)]
struct Steps<'a> {
    /// `[super_blocks, PANEL_ROWS]`.
    factors: &'a [[f16; LANES]],
    /// `[groups, PANEL_ROWS]`.
    steps: &'a [[i8; LANES]],
}

impl<'a> Steps<'a> {
    #[inline(always)]
    fn of(scales: PanelScales<'a>) -> Self {
        match scales {
            PanelScales::Nested { factors, steps, .. } => Self { factors, steps },
            _ => unreachable!("scales and minimums are nested alike"),
        }
    }
}

/// The sums of weights times activations of all columns for the `N` tokens of `x`. `addends` is `[groups, WIDTH]`.
#[inline(always)]
pub(super) fn weighted_sums<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    offset: Offset,
    panel: &Panel,
    x: Quads<WIDTH>,
    addends: &[i32],
) -> [S::Floats; N] {
    if F::NESTED == 0 {
        unreachable!("no format has such fields with nested scales");
    }
    let scales = Steps::of(panel.scales);
    let minimums = match panel.minimums {
        Some(minimums) => Some(Steps::of(minimums)),
        None => None,
    };
    let groups = panel.groups / scales.factors.len();
    let (mut bytes, mut x) = (panel.bytes, x);
    let mut totals = [s.splat(0.0); N];
    for block in 0..scales.factors.len() {
        let addends = &addends[block * groups * WIDTH..][..groups * WIDTH];
        let steps = &scales.steps[block * groups..][..groups];
        let sums = block_sums::<S, F, N, WIDTH>(s, offset, steps, &mut bytes, &mut x, addends);
        let factor = s.load_f16(&scales.factors[block]);
        for token in 0..N {
            totals[token] = s.mul_add_once(s.to_floats(sums[token]), factor, totals[token]);
        }
        if let Some(minimums) = &minimums {
            let sums = minimum_sums::<S, N, WIDTH>(s, &minimums.steps[block * groups..][..groups], x.first, addends);
            let factor = s.sub(s.splat(0.0), s.load_f16(&minimums.factors[block]));
            for token in 0..N {
                totals[token] = s.mul_add_once(s.to_floats(sums[token]), factor, totals[token]);
            }
        }
    }
    totals
}

/// The sums of steps times codes times activations of a super-block, whose bytes and activations are taken off.
#[inline(always)]
fn block_sums<S: Simd, F: Fields, const N: usize, const WIDTH: usize>(
    s: S,
    offset: Offset,
    steps: &[[i8; LANES]],
    bytes: &mut &[u8],
    x: &mut Quads<WIDTH>,
    addends: &[i32],
) -> [S::Ints; N] {
    // A block may have the columns of two groups.
    let at_once = if F::NESTED < F::QUADS { 2 } else { 1 };
    let bytes_at_once = at_once * F::NESTED * F::BYTES / F::QUADS;
    let mut sums = [s.splat_int(0); N];
    let mut group = 0;
    while group < steps.len() {
        let (Some(bytes), Some(x)) = (bytes.split_off(..bytes_at_once), x.split_off(at_once * F::NESTED)) else {
            unreachable!("every group has fields and activations")
        };
        if at_once == 2 {
            sums::ask_ahead::<S, N>(s, bytes);
        }
        let unpacked = if at_once == 2 { Some(F::unpack(s, bytes)) } else { None };
        for half in 0..at_once {
            // Before the sums: a check of bounds behind them would part the products from their loads, which would have to be kept in memory.
            let step = s.load_i8_ints(&steps[group]);
            let start = offset.start::<S, N>(s, addends_of(addends, group * WIDTH + x.first));
            let of_group = match &unpacked {
                Some(fields) => sums::quads::<S, F, N, WIDTH>(s, fields, x, F::NESTED * half, start),
                // So few columns are unpacked for many tokens sooner than sums of each height are added up.
                None if S::STACKED && N >= 4 => sums::plain::<S, F, N, WIDTH>(s, bytes, x, start),
                None => sums::fields::<S, F, N, WIDTH>(s, bytes, x, start),
            };
            for token in 0..N {
                sums[token] = s.add_ints(sums[token], s.mul_ints(of_group[token], step));
            }
            group += 1;
        }
    }
    sums
}

/// The sums of steps of minimums times sums of activations of a super-block.
#[inline(always)]
fn minimum_sums<S: Simd, const N: usize, const WIDTH: usize>(
    s: S,
    steps: &[[i8; LANES]],
    first: usize,
    addends: &[i32],
) -> [S::Ints; N] {
    let mut sums = [s.splat_int(0); N];
    for group in 0..steps.len() {
        let step = s.load_i8_ints(&steps[group]);
        let addends = addends_of::<N>(addends, group * WIDTH + first);
        for token in 0..N {
            sums[token] = s.dot_pairs(sums[token], step, s.splat_int(addends[token]));
        }
    }
    sums
}
