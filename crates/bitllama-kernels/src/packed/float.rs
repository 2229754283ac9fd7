//! Products with one row of activations in f32, and panels unpacked to f32 for the products of many rows.

use std::cell::RefCell;
use std::ops::Range;

use bitllama_core::Scheme;
use bitllama_core::panel::PANEL_ROWS;

use super::fields::{Bits1, Bits2, Bits3, Bits4, Bits8, Fields, Nf4, by_scheme};
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
        let groups = x.chunks(weight.packed().group_size());
        x_sums.extend(groups.map(|group| group.iter().map(|x| *x as f64).sum::<f64>() as f32));
        let x_sums: &[f32] = x_sums;
        for_isa!(
            isa,
            float_panels_of_scheme(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out)
        )
    });
}

#[inline(always)]
fn float_panels_of_scheme<S: Simd>(s: S, weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    by_scheme!(weight.scheme(), float_panels_of(s, weight, panels, x, x_sums, out))
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
    let (low, step) = weight.scheme().line();
    for index in panels {
        let panel = weight.panel(index);
        let group_bytes = panel.bytes.len() / panel.groups;
        let groups = panel.bytes.chunks_exact(group_bytes).zip(x.chunks(panel.group_size)).zip(x_sums);
        let mut result = s.splat(0.0);
        for (group, ((bytes, x), x_sum)) in groups.enumerate() {
            let fields = field_sums::<S, F>(s, bytes, x);
            let codes = match panel.lows {
                None => s.add(s.mul(fields, s.splat(step as f32)), s.splat(low as f32 * x_sum)),
                Some(lows) => s.mul_add(s.to_floats(s.load_i16(&lows[group])), s.splat(*x_sum), fields),
            };
            result = s.add(result, s.mul(codes, panel.scales.at(s, group)));
        }
        // SAFETY: the rows of this panel are the caller's.
        unsafe { out.at(0, index * PANEL_ROWS).store(s, 0, result) };
    }
}

/// The sums of fields times activations of a group.
#[inline(always)]
fn field_sums<S: Simd, F: Fields>(s: S, bytes: &[u8], x: &[f32]) -> S::Floats {
    let columns = 4 * F::QUADS;
    let mut sums = [s.splat(0.0); 4];
    let (blocks, rest) = bytes.split_at(x.len() / columns * F::BYTES);
    for (block, x) in blocks.chunks_exact(F::BYTES).zip(x.chunks_exact(columns)) {
        let fields = F::unpack(s, block);
        // Constants as bounds, so that the loops are unrolled and shifts are constants as well.
        for quad in 0..F::QUADS {
            for byte in 0..4 {
                let column = 4 * quad + byte;
                let field = match F::BITS {
                    3 => s.lane_field(fields[quad], 8 * byte as u32, 7),
                    _ => F::column(s, block, column),
                };
                sums[byte] = s.mul_add(F::to_floats(s, field), s.splat(x[column]), sums[byte]);
            }
        }
    }
    for (column, x) in x.chunks_exact(columns).remainder().iter().enumerate() {
        let field = F::to_floats(s, F::column(s, &rest[..F::BYTES], column));
        sums[column % 4] = s.mul_add(field, s.splat(*x), sums[column % 4]);
    }
    s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]))
}

/// The weights of one panel into `out`: `[columns, stride]` with the panel's rows in front, of which the last may be cut off
/// behind them.
///
/// # Panics
/// If `out` is shorter.
pub(crate) fn unpack_panel(isa: Isa, weight: &Weight, index: usize, out: &mut [f32], stride: usize) {
    for_isa!(isa, unpack_panel_of_scheme(weight: &Weight, index: usize, out: &mut [f32], stride: usize))
}

#[inline(always)]
fn unpack_panel_of_scheme<S: Simd>(s: S, weight: &Weight, index: usize, out: &mut [f32], stride: usize) {
    let panel = weight.panel(index);
    by_scheme!(weight.scheme(), unpack_panel_of(s, &panel, out, stride))
}

#[inline(always)]
fn unpack_panel_of<S: Simd, F: Fields>(s: S, panel: &Panel, out: &mut [f32], stride: usize) {
    let (low, step) = panel.scheme.line();
    let columns = 4 * F::QUADS;
    for group in 0..panel.groups {
        let scale = panel.scales.at(s, group);
        let low = match panel.lows {
            None => s.splat_int(low),
            Some(lows) => s.load_i16(&lows[group]),
        };
        for column in group * panel.group_size..(group + 1) * panel.group_size {
            let block = &panel.bytes[column / columns * F::BYTES..][..F::BYTES];
            let field = F::column(s, block, column % columns);
            let code = match F::TABLE {
                true => F::to_floats(s, field),
                false => s.to_floats(s.add_ints(s.mul_ints(field, s.splat_int(step)), low)),
            };
            let Some(to) = out[column * stride..].first_chunk_mut::<LANES>() else { unreachable!("out is shorter") };
            s.store(s.mul(code, scale), to);
        }
    }
}
