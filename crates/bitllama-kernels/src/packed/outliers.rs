//! Activations that are far larger than the others of their token, multiplied in f32.

use super::fields::Fields;
use crate::simd::Simd;
use crate::weight::Panel;

/// The share of a token's outliers in the products with the rows of a panel: weights times numbers, column after column.
#[inline(always)]
pub(super) fn outlier_sum<S: Simd, F: Fields>(s: S, panel: &Panel, outliers: &[(u32, f32)]) -> S::Floats {
    let columns = 4 * F::QUADS;
    let (low, step) = panel.line;
    let mut total = s.splat(0.0);
    let mut rest = outliers;
    while let Some((first, _)) = rest.first() {
        let group = *first as usize / panel.group_size;
        let (mut fields, mut x_sum) = (s.splat(0.0), 0.0f32);
        while let Some(((column, x), others)) = rest.split_first()
            && *column as usize / panel.group_size == group
        {
            let (block, column) = (*column as usize / columns, *column as usize % columns);
            let field = F::column(s, &panel.bytes[block * F::BYTES..][..F::BYTES], column);
            fields = s.add(fields, s.mul(F::to_floats(s, field), s.splat(*x)));
            x_sum += x;
            rest = others;
        }
        let codes = match panel.lows {
            None => s.add(s.mul(fields, s.splat(step as f32)), s.splat(low as f32 * x_sum)),
            Some(lows) => s.add(fields, s.mul(s.to_floats(s.load_i16(&lows[group])), s.splat(x_sum))),
        };
        total = s.add(total, s.mul(codes, panel.scales.at(s, group)));
        if let Some(minimums) = panel.minimums {
            total = s.sub(total, s.mul(minimums.at(s, group), s.splat(x_sum)));
        }
    }
    total
}
