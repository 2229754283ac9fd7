//! Activations that are far larger than the others of their token, multiplied in f32.

use super::fields::Fields;
use crate::activations::Outlier;
use crate::simd::Simd;
use crate::weight::Panel;

/// The shares of the outliers of a tile in the products of each token with the rows of a panel: weights times numbers, column
/// after column. The weights of a column are made once for all tokens, which often have their outliers in the same ones.
#[inline(always)]
pub(super) fn outlier_sums<S: Simd, F: Fields, const WIDTH: usize>(
    s: S,
    panel: &Panel,
    outliers: &[Outlier],
    sums: &mut [S::Floats; WIDTH],
) {
    let mut rest = outliers;
    while let Some(first) = rest.first() {
        let weights = column::<S, F>(s, panel, first.column as usize);
        while let Some((outlier, others)) = rest.split_first()
            && outlier.column == first.column
        {
            let sum = &mut sums[outlier.token as usize % WIDTH];
            *sum = s.add(*sum, s.mul(weights, s.splat(outlier.value)));
            rest = others;
        }
    }
}

/// The weights of a column.
#[inline(always)]
fn column<S: Simd, F: Fields>(s: S, panel: &Panel, column: usize) -> S::Floats {
    let (low, step) = panel.line;
    let (block, within) = (column / (4 * F::QUADS), column % (4 * F::QUADS));
    let group = match panel.groups {
        1 => 0,
        _ => column as u32 / panel.group_size as u32,
    } as usize;
    let field = F::to_floats(s, F::column(s, &panel.bytes[block * F::BYTES..][..F::BYTES], within));
    let low = match panel.lows {
        None => s.splat(low as f32),
        Some(lows) => s.to_floats(s.load_i16(&lows[group])),
    };
    let code = s.add(s.mul(field, s.splat(step as f32)), low);
    let weights = s.mul(code, panel.scales.at(s, group));
    match panel.minimums {
        Some(minimums) => s.sub(weights, minimums.at(s, group)),
        None => weights,
    }
}
