//! Products of binary weights with signs: bits that differ are counted.

use std::ops::Range;

use bitllama_core::panel::{PANEL_ROWS, VECTOR_BYTES};

use crate::out::Out;
use crate::simd::Popcount;
use crate::weight::Weight;

/// Products of `panels` of a binary `weight` with signs (`[n, units]`, 32 columns a number, see [`crate::Signs`]) that
/// stand for `scales` (`[n]`) each, into `out` (`[n, rows]`).
///
/// # Safety
/// As for [`crate::integer::integer_panels`].
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
