//! Rounding on `flex` a few rows at a time: what is read for scales is still in the processor's cache when codes are
//! chosen, and nothing is kept for the backward pass but the weight itself. The numbers of a block are those of the
//! same functions as everywhere.

use bitllama_core::rounding::{Offsets, Quantized, Scales, quantize as round};
use bitllama_core::{Granularity, Offset, Quantizer, RowMatrix, ScaleFormat};
use bitllama_kernels::Isa;
use bitllama_kernels::training::blocks::{Cut, Part, for_each_block};
use bitllama_kernels::training::buffer::written;
use bitllama_kernels::training::rows::Rows;
use burn::tensor::{Device, Tensor, TensorData};

use super::gradient::{Factors, factors};
use super::matrix::{TensorMatrix, View};
use crate::ops;
use crate::ops::node::{Input, Numbers, record};
use crate::profile::operator;

/// Whether weights of this quantizer are rounded in blocks on a device: where rows do not depend on each other.
pub fn covers(quantizer: &Quantizer, device: &Device) -> bool {
    let alone = quantizer.granularity != Granularity::Tensor && quantizer.scales != ScaleFormat::Double;
    alone && ops::fused(device)
}

/// `[outer, n, inner]` and how it is cut: rows that share a scale lie along the middle. Groups whose scales are rounded together are
/// not cut apart: they lie in one column, or are counted as one row.
fn cut(quantizer: &Quantizer, [outer, _, inner]: [usize; 3]) -> Cut {
    if inner > 1 { Cut::Columns(inner) } else { Cut::Rows(outer / quantizer.nested_groups()) }
}

/// A block's weights and scales out of the parts that [`for_each_block`] gives: weights, then scales and offsets if there are any,
/// then the gradient of the weights if there is one.
fn rows<'a>(
    offset: Offset,
    parts: &[Part<'a>],
    [_, n, inner]: [usize; 3],
    [scales, offsets]: [bool; 2],
) -> BlockRows<'a> {
    let (isa, inner) = (Isa::current(), if inner > 1 { parts[0].width() } else { 1 });
    let mut parts = parts.iter();
    let mut next = |n: usize| parts.next().map(|part| Rows::new(*part, n, inner, isa));
    let Some(weight) = next(n) else { unreachable!("the weights are the first input") };
    let scales = if scales { next(1) } else { None };
    let offsets = if offsets { next(1).map(|numbers| Offsets::of(offset, numbers)) } else { None };
    let gradient = next(n);
    BlockRows { weight, trained: scales.map(|scales| Scales { scales, offsets }), gradient }
}

struct BlockRows<'a> {
    weight: Rows<'a>,
    trained: Option<Scales<Rows<'a>>>,
    gradient: Option<Rows<'a>>,
}

/// The rounded weight at strength `lambda`, with the gradients of [`super::gradient`].
pub fn rounded<const D: usize>(
    view: &View,
    base: Tensor<D>,
    scales: Option<Tensor<3>>,
    offsets: Option<Tensor<3>>,
    lambda: f32,
) -> Tensor<D> {
    let (quantizer, shape, dims) = (*view.quantizer(), view.rows_shape(), base.dims());
    let has = [scales.is_some(), offsets.is_some()];
    let mut inputs = vec![Input::of(base)];
    inputs.extend(scales.map(Input::of));
    let mut known: Vec<Numbers> = inputs.iter().map(Input::numbers).collect();
    known.extend(offsets.map(|offsets| Input::of(offsets).numbers()));

    let value = operator("fake_quant", || {
        written(known[0].len(), |out| {
            let slices: Vec<&[f32]> = known.iter().map(|numbers| &numbers[..]).collect();
            for_each_block(cut(&quantizer, shape), &slices, &mut [out], |_, parts, mut out| {
                let BlockRows { weight, trained, .. } = rows(quantizer.offset, &parts, shape, has);
                let value = round(&quantizer, weight.clone(), trained).dequantize();
                let value = match lambda {
                    1.0 => value,
                    _ => value.scale(lambda).add(weight.scale(1.0 - lambda)),
                };
                value.write(&mut out[0]);
            });
        })
    });
    record("fake_quant", inputs, Numbers::new(value, dims), move |d_value, wanted| {
        if !quantizer.method.trains_scales() || !has[0] {
            return vec![Some(d_value.into_gradient())];
        }
        let mut slices: Vec<&[f32]> = known.iter().map(|numbers| &numbers[..]).collect();
        slices.push(&d_value);
        let mut d_scales = vec![0.0; known[1].len()];
        let d_base = written(known[0].len(), |d_base| {
            for_each_block(cut(&quantizer, shape), &slices, &mut [d_base, &mut d_scales], |_, parts, mut out| {
                let BlockRows { weight, trained, gradient } = rows(quantizer.offset, &parts, shape, has);
                let Some(gradient) = gradient else { unreachable!("the gradient is the last input") };
                let [_, n, _] = shape;
                let rounded = round(&quantizer, weight.clone(), trained.clone());
                let Factors { weight: of_weight, scale } = factors(&quantizer, n, weight, trained, rounded);
                // The sum, which is the mean times their number. Gradients of scales are 0 where there is no factor.
                if let Some(factor) = scale {
                    gradient.clone().mul(factor).row_mean().scale(n as f32 * lambda).write(&mut out[1]);
                }
                let d_weight = match of_weight {
                    Some(factor) if lambda == 1.0 => gradient.mul(factor),
                    Some(factor) => gradient.mul(factor.scale(lambda).shift(1.0 - lambda)),
                    None => gradient,
                };
                d_weight.write(&mut out[0]);
            });
        });
        vec![wanted.gradient(0, || d_base), wanted.gradient(1, || d_scales)]
    })
}

/// Codes and scales of a weight, `[outer, n, inner]`: those that [`rounded`] computes.
pub fn quantized(
    quantizer: &Quantizer,
    weight: TensorMatrix,
    trained: Option<Scales<TensorMatrix>>,
) -> Quantized<TensorMatrix> {
    let shape @ [outer, n, inner] = weight.0.dims();
    let numbers = |matrix: TensorMatrix| Input::of(matrix.0).numbers();
    let has = [trained.is_some(), trained.as_ref().is_some_and(|trained| trained.offsets.is_some())];
    let mut known = vec![numbers(weight)];
    if let Some(Scales { scales, offsets }) = trained {
        known.push(numbers(scales));
        known.extend(offsets.map(|offsets| numbers(offsets.into_numbers())));
    }
    let slices: Vec<&[f32]> = known.iter().map(|numbers| &numbers[..]).collect();
    let mut codes = vec![0.0; outer * n * inner];
    let (mut scales, mut points) = (vec![0.0; outer * inner], vec![0.0; outer * inner]);
    for_each_block(cut(quantizer, shape), &slices, &mut [&mut codes, &mut scales, &mut points], |_, parts, mut out| {
        let BlockRows { weight, trained, .. } = rows(quantizer.offset, &parts, shape, has);
        let Quantized { codes, scales, offsets, .. } = round(quantizer, weight, trained);
        let offsets = offsets.map(Offsets::into_numbers);
        for (numbers, out) in [Some(codes), Some(scales), offsets].into_iter().zip(&mut out) {
            if let Some(numbers) = numbers {
                numbers.write(out);
            }
        }
    });
    let matrix = |data: Vec<f32>, n: usize| {
        TensorMatrix(Tensor::from_data(TensorData::new(data, [outer, n, inner]), &Device::flex()))
    };
    Quantized {
        codes: matrix(codes, n),
        scales: matrix(scales, 1),
        offsets: (quantizer.offset != Offset::None).then(|| Offsets::of(quantizer.offset, matrix(points, 1))),
        parts: None,
    }
}
