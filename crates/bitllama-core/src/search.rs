//! Scales that make the weighted squared error of rounding small: `sum h (w - (code - zero_point) * scale)^2`, or
//! `sum h (w - (code * scale - minimum))^2`.
//!
//! The error has a minimum wherever some code flips, so a coarse search over the range comes first; then codes and scale
//! are made the best for each other in turn, which never makes the error larger.

use crate::quantizer::Offset;
use crate::rounding::{Multiples, Offsets, ScaleParts, Scales, code_scales, round_scales, start_scales};
use crate::scales::Nesting;
use crate::{DenseMatrix, Quantized, Quantizer, ScaleFormat, Scheme};

/// A scale, and the offset that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Found {
    /// Rounded to the quantizer's [`ScaleFormat`], but for those that are rounded together ([`round_together`]), where alone it may
    /// be 0. Negative where codes reach further on that side than on the other and the weights ask for it, unless the method
    /// trains scales, which must be positive, or they are double-quantized, which is finer where they are alike.
    pub scale: f32,
    /// A zero point, which is a field, or a minimum.
    pub offset: Option<f32>,
    /// Parts of a nested scale, and of its minimum: factor and step.
    pub nested: [(f32, i8); 2],
}

/// The codes that weights are rounded to where they are evenly spaced: `low`, `low + step`, ... , `low + top * step`.
#[derive(Debug, Clone, Copy)]
struct Grid {
    low: f32,
    step: f32,
    top: f32,
}

/// Sums over the weights after rounding: the error, and what the best scale for these codes follows from.
#[derive(Debug, Clone, Copy)]
struct Fit {
    error: f32,
    weight_code: f32,
    code_code: f32,
}

/// Shares of the range that are tried: `FIRST`, `FIRST + 1`, ... over `SHARES`.
const SHARES: usize = 20;
const FIRST: usize = 3;
const LAST: usize = 23;
const REFINEMENTS: usize = 6;

/// The best scale that the search finds for `weights`, which share one. `importance`, of the same length, weighs the
/// squared error of each; without it all count the same. The error is never larger than with the scale that the
/// quantizer's own method gives ([`quantize`](crate::quantize)), which is one of those tried.
pub fn search(quantizer: &Quantizer, weights: &[f32], importance: Option<&[f32]>) -> Found {
    let scheme = quantizer.scheme;
    let top = (scheme.levels() - 1) as f32;
    let ones;
    let importance = match importance {
        Some(importance) => importance,
        None => {
            ones = vec![1.0; weights.len()];
            &ones
        }
    };
    let (smallest, largest) = weights.iter().fold((0.0f32, 0.0f32), |(low, high), w| (low.min(*w), high.max(*w)));
    let magnitude = largest.max(-smallest);
    if !(magnitude > 0.0 && magnitude.is_finite()) {
        let together = matches!(quantizer.scales, ScaleFormat::Double | ScaleFormat::Nested(_));
        let offset = (quantizer.offset != Offset::None).then_some(0.0);
        return Found { scale: if together { 0.0 } else { 1.0 }, offset, ..Found::default() };
    }
    if quantizer.offset == Offset::Minimum {
        return with_minimum(quantizer, weights, importance, smallest, largest);
    }
    // With 5 and 6 bits a step of a twentieth moves the largest codes by more than one; with 8, errors are small whatever the step.
    let fine = if (32..=64).contains(&scheme.levels()) { 4 } else { 1 };
    let shares = (fine * FIRST..=fine * LAST).map(|share| share as f32 / (fine * SHARES) as f32);
    let mut candidates: Vec<(Grid, f32)> = if quantizer.has_zero_points() {
        let zero_point = |scale: f32, share: f32| (-smallest * share / scale).round_ties_even().clamp(0.0, top);
        let grid = |scale, share| Grid { low: -zero_point(scale, share), step: 1.0, top };
        shares.map(|share| ((largest - smallest) * share / top, share)).map(|(s, share)| (grid(s, share), s)).collect()
    } else {
        let (low, step) = scheme.line();
        let grid = Grid { low: low as f32, step: step as f32, top };
        let (lowest, highest) = scheme.code_range();
        let widest = magnitude / ((highest - lowest) / 2.0);
        // Where the codes are not the same on both sides, it matters which side is which.
        let one_sign =
            scheme.is_symmetric() || quantizer.method.trains_scales() || quantizer.scales == ScaleFormat::Double;
        let signs: &[f32] = if one_sign { &[1.0] } else { &[1.0, -1.0] };
        shares.flat_map(|share| signs.iter().map(move |sign| (grid, sign * widest * share))).collect()
    };
    let plain = start_scales(quantizer, DenseMatrix { data: weights.to_vec(), columns: weights.len() });
    let grid = match plain.offsets {
        Some(points) => Grid { low: -points.numbers().data[0], step: 1.0, top },
        None => candidates[0].0,
    };
    candidates.push((grid, code_scales(quantizer, plain.scales).data[0]));
    let mut best: Option<(Fit, Grid, f32)> = None;
    // Only scales that can be stored are compared.
    for (grid, scale) in candidates {
        let scale = quantizer.scales.round(scale);
        let fit = fit(scheme, grid, scale, weights, importance);
        if best.is_none_or(|(other, ..)| fit.error < other.error) {
            best = Some((fit, grid, scale));
        }
    }
    let (mut now, grid, mut scale) = best.unwrap_or_else(|| unreachable!("there are candidates"));
    for _ in 0..REFINEMENTS {
        let better = quantizer.scales.round(now.weight_code / now.code_code);
        if !(better.is_finite() && better != 0.0 && better.signum() == scale.signum()) {
            break;
        }
        let next = fit(scheme, grid, better, weights, importance);
        if next.error >= now.error {
            break;
        }
        (now, scale) = (next, better);
    }
    Found { scale, offset: quantizer.has_zero_points().then_some(-grid.low), ..Found::default() }
}

/// The best scale and minimum: shares of the range as ever, then codes and both numbers the best for each other in turn, by least
/// squares, as `make_qkx2_quants` of ggml's `ggml-quants.c` has it.
fn with_minimum(quantizer: &Quantizer, weights: &[f32], importance: &[f32], smallest: f32, largest: f32) -> Found {
    let top = (quantizer.scheme.levels() - 1) as f32;
    let round = |scale: f32, minimum: f32| (quantizer.scales.round(scale), quantizer.scales.round_offset(minimum));
    let sums = |scale: f32, minimum: f32| {
        let inverse = 1.0 / scale;
        // Error; sums of h, h q, h q^2, h w, h w q.
        let mut sums = [0.0f32; 6];
        for (w, h) in weights.iter().zip(importance) {
            let q = ((w + minimum) * inverse).round_ties_even().clamp(0.0, top);
            let error = w - (q * scale - minimum);
            let terms = [h * error * error, *h, h * q, h * q * q, h * w, h * w * q];
            sums.iter_mut().zip(terms).for_each(|(sum, term)| *sum += term);
        }
        sums
    };
    let shares = (FIRST..=LAST).map(|share| share as f32 / SHARES as f32);
    let mut best: Option<([f32; 6], f32, f32)> = None;
    for share in shares {
        let (scale, minimum) = round((largest - smallest) * share / top, -smallest * share);
        if scale == 0.0 {
            continue;
        }
        let found = sums(scale, minimum);
        if best.is_none_or(|(other, ..)| found[0] < other[0]) {
            best = Some((found, scale, minimum));
        }
    }
    let Some((mut now, mut scale, mut minimum)) = best else {
        return Found { scale: 0.0, offset: Some(0.0), ..Found::default() };
    };
    for _ in 0..REFINEMENTS {
        let [_, h, q, qq, w, wq] = now;
        let determinant = h * qq - q * q;
        // A minimum below 0 has no form: then the best scale without one.
        let (mut next, mut low) = ((h * wq - q * w) / determinant, (q * wq - qq * w) / determinant);
        if low.is_nan() || low < 0.0 {
            (next, low) = (wq / qq, 0.0);
        }
        let (next, low) = round(next, low);
        if !(next.is_finite() && next > 0.0 && low.is_finite()) {
            break;
        }
        let found = sums(next, low);
        if found[0] >= now[0] {
            break;
        }
        (now, scale, minimum) = (found, next, low);
    }
    Found { scale, offset: Some(minimum), ..Found::default() }
}

/// Rounds scales and minimums that were found where several are rounded together: those of a whole matrix, `[rows, groups]`, for
/// double quantization, else those of any whole blocks.
pub fn round_together(quantizer: &Quantizer, found: &mut [Found]) -> Option<ScaleParts<DenseMatrix>> {
    if !matches!(quantizer.scales, ScaleFormat::Double | ScaleFormat::Nested(_)) {
        return None;
    }
    let numbers = |of: fn(&Found) -> f32| DenseMatrix { data: found.iter().map(of).collect(), columns: 1 };
    let minimums = || Offsets::Minimums(numbers(|found| found.offset.unwrap_or(0.0)));
    let offsets = (quantizer.offset == Offset::Minimum).then(minimums);
    let scales = Scales { scales: numbers(|found| found.scale), offsets };
    let (Scales { scales, offsets }, parts) = round_scales(quantizer.scales, scales);
    found.iter_mut().zip(scales.data).for_each(|(found, scale)| found.scale = scale);
    if let Some(Offsets::Minimums(minimums)) = offsets {
        found.iter_mut().zip(minimums.data).for_each(|(found, minimum)| found.offset = Some(minimum));
    }
    if let (Some(ScaleParts::Nested { scales, minimums }), ScaleFormat::Nested(Nesting { groups, .. })) =
        (&parts, quantizer.scales)
    {
        for (kind, multiples) in [Some(scales), minimums.as_ref()].into_iter().enumerate() {
            let Some(Multiples { factors, steps }) = multiples else { continue };
            for (index, (found, step)) in found.iter_mut().zip(&steps.data).enumerate() {
                found.nested[kind] = (factors.data[index / groups], *step as i8);
            }
        }
    }
    parts
}

/// Parts of nested scales out of those that [`round_together`] put into whole blocks of `found`.
pub fn nested_parts(quantizer: &Quantizer, found: &[Found]) -> Option<ScaleParts<DenseMatrix>> {
    let ScaleFormat::Nested(Nesting { groups, .. }) = quantizer.scales else { return None };
    let multiples = |kind: usize| Multiples {
        factors: DenseMatrix {
            data: found.iter().step_by(groups).map(|found| found.nested[kind].0).collect(),
            columns: 1,
        },
        steps: DenseMatrix {
            data: found.iter().map(|found| f32::from(found.nested[kind].1)).collect(),
            columns: groups,
        },
    };
    let minimums = (quantizer.offset == Offset::Minimum).then(|| multiples(1));
    Some(ScaleParts::Nested { scales: multiples(0), minimums })
}

/// Codes and what was found for each group, `[rows, groups]`, as packing takes them. `parts` are those of scales that were rounded
/// together.
pub fn quantized(
    quantizer: &Quantizer,
    codes: Vec<f32>,
    found: &[Found],
    parts: Option<ScaleParts<DenseMatrix>>,
) -> Quantized<DenseMatrix> {
    let numbers = |data: Vec<f32>| DenseMatrix { data, columns: 1 };
    let offsets =
        || Offsets::of(quantizer.offset, numbers(found.iter().map(|found| found.offset.unwrap_or(0.0)).collect()));
    Quantized {
        codes: DenseMatrix { columns: codes.len() / found.len().max(1), data: codes },
        scales: numbers(found.iter().map(|found| found.scale).collect()),
        offsets: (quantizer.offset != Offset::None).then(offsets),
        parts,
    }
}

/// Rounds with `scale` and sums up.
fn fit(scheme: Scheme, grid: Grid, scale: f32, weights: &[f32], importance: &[f32]) -> Fit {
    /// Adding and taking away this leaves the nearest whole number, ties to even, for fields that are not huge.
    const MAGIC: f32 = 12_582_912.0;
    let (inverse, offset) = (1.0 / (scale * grid.step), -grid.low / grid.step);
    if let Some(table) = scheme.table() {
        return sum_up(|w| table.nearest(w / scale), scale, weights, importance);
    }
    match scheme {
        // Half way between the two codes counts as the upper one.
        Scheme::Binary => sum_up(|w| if w * inverse >= 0.0 { 1.0 } else { -1.0 }, scale, weights, importance),
        _ => {
            let code = |w: f32| {
                let field = (w * inverse + offset).clamp(0.0, grid.top);
                ((field + MAGIC) - MAGIC) * grid.step + grid.low
            };
            sum_up(code, scale, weights, importance)
        }
    }
}

/// The sums over weights that `code` rounds. In lanes, so that it can run in vector registers.
#[inline(always)]
fn sum_up(code: impl Fn(f32) -> f32, scale: f32, weights: &[f32], importance: &[f32]) -> Fit {
    const LANES: usize = 8;
    let mut sums = [[0.0f32; LANES]; 3];
    let mut add = |lane: usize, w: f32, h: f32| {
        let code = code(w);
        let error = w - code * scale;
        sums[0][lane] += h * error * error;
        sums[1][lane] += h * w * code;
        sums[2][lane] += h * code * code;
    };
    let (chunks, rest) = weights.as_chunks::<LANES>();
    let (importances, importance_rest) = importance.as_chunks::<LANES>();
    for (weights, importance) in chunks.iter().zip(importances) {
        for lane in 0..LANES {
            add(lane, weights[lane], importance[lane]);
        }
    }
    for (w, h) in rest.iter().zip(importance_rest) {
        add(0, *w, *h);
    }
    let [error, weight_code, code_code] = sums.map(|lanes| lanes.iter().sum());
    Fit { error, weight_code, code_code }
}

impl Found {
    /// The weight that a code stands for, as [`Quantized::dequantize`](crate::Quantized::dequantize) has it.
    #[inline]
    pub fn weight(&self, offset: Offset, code: f32) -> f32 {
        let number = self.offset.unwrap_or(0.0);
        match offset {
            Offset::Minimum => code * self.scale - number,
            Offset::None | Offset::ZeroPoint => (code - number) * self.scale,
        }
    }
}

impl Quantizer {
    /// The code nearest to `weight`, or the field where there are offsets.
    #[inline]
    pub fn code_of(&self, weight: f32, found: Found) -> f32 {
        let scheme = self.scheme;
        let top = (scheme.levels() - 1) as f32;
        let scale = if found.scale == 0.0 { 1.0 } else { found.scale };
        match found.offset {
            Some(minimum) if self.offset == Offset::Minimum => {
                ((weight + minimum) / scale).round_ties_even().clamp(0.0, top)
            }
            Some(zero_point) => ((weight / scale).round_ties_even() + zero_point).clamp(0.0, top),
            None if scheme == Scheme::Binary => {
                if weight / scale >= 0.0 {
                    1.0
                } else {
                    -1.0
                }
            }
            None => {
                if let Some(table) = scheme.table() {
                    return table.nearest(weight / scale);
                }
                let (low, step) = scheme.line();
                let (low, step) = (low as f32, step as f32);
                ((weight / scale - low) / step).round_ties_even().clamp(0.0, top) * step + low
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{DenseMatrix, Granularity, quantize};

    fn error(quantizer: &Quantizer, weights: &[f32], importance: &[f32], found: Found) -> f32 {
        let of = |(w, h): (&f32, &f32)| h * (w - found.weight(quantizer.offset, quantizer.code_of(*w, found))).powi(2);
        weights.iter().zip(importance).map(of).sum()
    }

    proptest! {
        #[test]
        fn the_scale_found_is_no_worse_than_the_plain_one(
            weights in prop::collection::vec(-1f32..1.0, 32..200), which in 0usize..1000, tail in 1f32..20.0
        ) {
            let mut weights = weights;
            weights[0] *= tail;
            let all = crate::quantizer::tests::all();
            let quantizer = all[which % all.len()].with_granularity(Granularity::Row);
            let importance: Vec<f32> = weights.iter().map(|w| 0.1 + w * w).collect();
            let minimums = crate::Target::named(["gguf:q4_1", "gguf:q5_1"][which % 2]).unwrap().quantizers[0];
            let quantizer = if which % 10 == 0 { minimums } else { quantizer };
            let found = search(&quantizer, &weights, Some(&importance));
            prop_assert!(found.scale != 0.0 && found.scale.is_finite());
            let plain = quantize(&quantizer, DenseMatrix { data: weights.clone(), columns: weights.len() }, None);
            let plain = Found {
                scale: plain.scales.data[0],
                offset: plain.offsets.map(|offsets| offsets.numbers().data[0]),
                ..Found::default()
            };
            let (found, plain) = (error(&quantizer, &weights, &importance, found), error(&quantizer, &weights, &importance, plain));
            // Rounding of the sums apart.
            prop_assert!(found <= plain * (1.0 + 1e-5) + 1e-7, "{} {} {}", quantizer, found, plain);
        }
    }

    #[test]
    fn a_grid_is_found_again() {
        for scheme in Scheme::ALL {
            let quantizer = Quantizer::from(scheme);
            let weights: Vec<f32> = (0..200).map(|i| scheme.code_of((i * 7 % scheme.levels()) as u8) * 0.37).collect();
            let found = search(&quantizer, &weights, None);
            let ones = vec![1.0; 200];
            assert!(error(&quantizer, &weights, &ones, found) < 1e-3, "{scheme}: {found:?}");
        }
        let zeros = search(&Quantizer::from(Scheme::Int4), &[0.0; 32], None);
        assert_eq!(zeros, Found { scale: 1.0, ..Found::default() });
    }
}
