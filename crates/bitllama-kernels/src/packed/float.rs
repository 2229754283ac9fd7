//! Products with one row of activations in f32, and panels unpacked to f32 for the products of many rows.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::panel::PANEL_ROWS;

use super::fields::{Fields, by_fields};
use crate::isa::Isa;
use crate::out::Out;
use crate::simd::{LANES, Simd, for_isa};
use crate::weight::{Panel, Weight};

/// Products of `panels` of `weight` with one row of activations in f32 (`[columns]`), into `out` (`[rows]`).
///
/// # Safety
/// As for [`integer_panels`](super::integer::integer_panels).
///
/// # Panics
/// If `x` has other columns than `weight`.
pub(crate) unsafe fn float_panels(isa: Isa, weight: &Weight, panels: Range<usize>, x: &[f32], out: Out) {
    assert_eq!(weight.columns(), x.len());
    thread_local!(static SUMS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) });
    SUMS.with_borrow_mut(|x_sums| {
        x_sums.clear();
        let groups = x.chunks(weight.group_size());
        x_sums.extend(groups.map(|group| group.iter().map(|x| *x as f64).sum::<f64>() as f32));
        let x_sums: &[f32] = x_sums;
        for_isa!(
            isa,
            float_panels_of_kind(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out)
        )
    });
}

#[inline(always)]
fn float_panels_of_kind<S: Simd>(s: S, weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    by_fields!(weight, float_panels_of(s, weight, panels, x, x_sums, out))
}

#[inline(always)]
fn float_panels_of<S: Simd, F: Fields>(
    s: S,
    weight: &Weight,
    panels: Range<usize>,
    x: &[f32],
    x_sums: &[f32],
    out: Out,
) {
    for index in panels {
        let panel = weight.panel(index);
        let mut result = s.splat(0.0);
        let columns = 4 * F::QUADS;
        if panel.groups > 1 && panel.group_size < columns {
            // A block has the columns of two groups.
            let blocks = panel.bytes.chunks_exact(F::BYTES).zip(x.chunks_exact(columns));
            for (block, (bytes, x)) in blocks.enumerate() {
                let sums = field_sums::<S, F>(s, bytes, x);
                for half in 0..2 {
                    let group = 2 * block + half;
                    result = add_group(s, &panel, group, sums[half], x_sums[group], result);
                }
            }
        } else {
            let group_bytes = panel.bytes.len() / panel.groups;
            let groups = panel.bytes.chunks_exact(group_bytes).zip(x.chunks(panel.group_size)).zip(x_sums);
            for (group, ((bytes, x), x_sum)) in groups.enumerate() {
                let [first, second] = field_sums::<S, F>(s, bytes, x);
                result = add_group(s, &panel, group, s.add(first, second), *x_sum, result);
            }
        }
        // SAFETY: the rows of this panel are the caller's.
        unsafe { out.at(0, index * PANEL_ROWS).store(s, 0, result) };
    }
}

/// `total` with the share of a group, from the sums of its fields times activations and of the activations alone.
#[inline(always)]
fn add_group<S: Simd>(s: S, panel: &Panel, group: usize, fields: S::Floats, x_sum: f32, total: S::Floats) -> S::Floats {
    let (low, step) = panel.line;
    let codes = match panel.lows {
        None => s.add(s.mul(fields, s.splat(step as f32)), s.splat(low as f32 * x_sum)),
        Some(lows) => s.mul_add(s.to_floats(s.load_i16(&lows[group])), s.splat(x_sum), fields),
    };
    let total = s.add(total, s.mul(codes, panel.scales.at(s, group)));
    match panel.minimums {
        Some(minimums) => s.sub(total, s.mul(minimums.at(s, group), s.splat(x_sum))),
        None => total,
    }
}

/// The sums of fields times activations of some blocks: over the first sixteen columns of each block, and over the others.
#[inline(always)]
fn field_sums<S: Simd, F: Fields>(s: S, bytes: &[u8], x: &[f32]) -> [S::Floats; 2] {
    let columns = 4 * F::QUADS;
    let mut sums = [[s.splat(0.0); 4]; 2];
    let (blocks, rest) = bytes.split_at(x.len() / columns * F::BYTES);
    for (block, x) in blocks.chunks_exact(F::BYTES).zip(x.chunks_exact(columns)) {
        let fields = F::unpack(s, block);
        // Constants as bounds, so that the loops are unrolled and shifts are constants as well.
        for quad in 0..F::QUADS {
            for byte in 0..4 {
                let column = 4 * quad + byte;
                let field = match F::UNPACKED_COLUMNS {
                    true => s.lane_field(fields[quad], 8 * byte as u32, F::LARGEST as i32),
                    false => F::column(s, block, column),
                };
                let sum = &mut sums[quad / 4][byte];
                *sum = s.mul_add(F::to_floats(s, field), s.splat(x[column]), *sum);
            }
        }
    }
    for (column, x) in x.chunks_exact(columns).remainder().iter().enumerate() {
        let field = F::to_floats(s, F::column(s, &rest[..F::BYTES], column));
        let sum = &mut sums[column / 16][column % 4];
        *sum = s.mul_add(field, s.splat(*x), *sum);
    }
    let mut halves = [s.splat(0.0); 2];
    for half in 0..2 {
        let [a, b, c, d] = sums[half];
        halves[half] = s.add(s.add(a, b), s.add(c, d));
    }
    halves
}

/// The weights of one panel into `out`: `[columns, stride]` with the panel's rows in front, of which the last may be cut off
/// behind them.
///
/// # Panics
/// If `out` is shorter.
pub(crate) fn unpack_panel(isa: Isa, weight: &Weight, index: usize, out: &mut [f32], stride: usize) {
    for_isa!(isa, unpack_panel_of_kind(weight: &Weight, index: usize, out: &mut [f32], stride: usize))
}

#[inline(always)]
fn unpack_panel_of_kind<S: Simd>(s: S, weight: &Weight, index: usize, out: &mut [f32], stride: usize) {
    let panel = weight.panel(index);
    by_fields!(weight, unpack_panel_of(s, &panel, out, stride))
}

#[inline(always)]
fn unpack_panel_of<S: Simd, F: Fields>(s: S, panel: &Panel, out: &mut [f32], stride: usize) {
    let (low, step) = panel.line;
    let (step, columns) = (s.splat(step as f32), 4 * F::QUADS);
    for group in 0..panel.groups {
        let scale = panel.scales.at(s, group);
        let low = match panel.lows {
            None => s.splat(low as f32),
            Some(lows) => s.to_floats(s.load_i16(&lows[group])),
        };
        let minimum = match panel.minimums {
            Some(minimums) => Some(minimums.at(s, group)),
            None => None,
        };
        for column in group * panel.group_size..(group + 1) * panel.group_size {
            let block = &panel.bytes[column / columns * F::BYTES..][..F::BYTES];
            let field = F::to_floats(s, F::column(s, block, column % columns));
            let code = s.add(s.mul(field, step), low);
            let weight = match minimum {
                Some(minimum) => s.sub(s.mul(code, scale), minimum),
                None => s.mul(code, scale),
            };
            let Some(to) = out[column * stride..].first_chunk_mut::<LANES>() else { unreachable!("out is shorter") };
            s.store(weight, to);
        }
    }
}
