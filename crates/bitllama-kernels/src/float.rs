//! Products with one row of activations in f32, and panels unpacked to f32 for the products of many rows.

use std::ops::Range;

use bitllama_core::Scheme;
use bitllama_core::panel::PANEL_ROWS;

use crate::fields::{Bits1, Bits2, Bits3, Bits4, Bits8, Fields, Nf4, by_scheme};
use crate::out::Out;
use crate::simd::Simd;
use crate::weight::Weight;

/// Products of `panels` of `weight` with one row of activations in f32 (`[columns]`), into `out` (`[rows]`). `x_sums` are
/// the sums of `x` over each group of columns.
///
/// # Safety
/// As for [`crate::integer::integer_panels`].
#[inline(always)]
pub(crate) unsafe fn float_panels<S: Simd>(weight: &Weight, panels: Range<usize>, x: &[f32], x_sums: &[f32], out: Out) {
    unsafe { by_scheme!(weight.scheme(), float_panels_of::<S>(weight, panels, x, x_sums, out)) }
}

#[inline(always)]
unsafe fn float_panels_of<S: Simd, F: Fields>(
    weight: &Weight,
    panels: Range<usize>,
    x: &[f32],
    x_sums: &[f32],
    out: Out,
) {
    let (low, step) = weight.scheme().line();
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
                                *sum = S::mul_add(F::to_floats::<S>(field), S::splat(*x.add(column)), *sum);
                            }
                        }
                    }
                    if whole < end {
                        let start = bytes.add(whole * F::BYTES);
                        for (column, x) in x[whole * columns..].iter().enumerate() {
                            let field = F::to_floats::<S>(F::column::<S>(start, column));
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
    unsafe { by_scheme!(weight.scheme(), unpack_panel_of::<S>(weight, index, out, stride)) }
}

#[inline(always)]
unsafe fn unpack_panel_of<S: Simd, F: Fields>(weight: &Weight, index: usize, out: *mut f32, stride: usize) {
    let panel = weight.panel(index);
    let (low, step) = panel.scheme.line();
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
                    let code = match F::TABLE {
                        true => F::to_floats::<S>(field),
                        false => S::to_floats(S::int_add(S::int_mul(field, S::int_splat(step)), low)),
                    };
                    S::store(out.add(column * stride + part * S::ROWS), S::mul(code, scale));
                }
            }
        }
    }
}
