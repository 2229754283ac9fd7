//! Rounding on `flex` a few rows at a time: the passes of a quantizer over a block stay in the processor's cache, and nothing
//! is kept for the backward pass but the weight itself. The numbers of a block are those of the same functions as everywhere.

use bitllama_core::rounding::{Quantized, Scales, quantize as round};
use bitllama_core::{Granularity, Quantizer, ScaleFormat};
use bitllama_kernels::training::blocks::{Cut, for_each_block};
use bitllama_kernels::training::buffer::written;
use burn::tensor::{Device, Tensor, TensorData};

use super::gradient::{Factors, factors};
use super::matrix::{TensorMatrix, View};
use crate::ops;
use crate::ops::node::{Input, Numbers, record};
use crate::weights::floats;

/// Whether weights of this quantizer are rounded in blocks on a device: where rows do not depend on each other.
pub fn covers(quantizer: &Quantizer, device: &Device) -> bool {
    let alone = quantizer.granularity != Granularity::Tensor && quantizer.scales != ScaleFormat::Double;
    alone && ops::fused(device)
}

/// `[outer, n, inner]` and how it is cut: rows that share a scale lie along the middle.
fn cut([outer, _, inner]: [usize; 3]) -> Cut {
    if inner > 1 { Cut::Columns(inner) } else { Cut::Rows(outer) }
}

/// A block as a matrix of rows that share a scale, `n` numbers in a row; or of their numbers, where `n` is 1.
fn matrix(part: Vec<f32>, cut: Cut, width: usize, n: usize) -> TensorMatrix {
    let shape = match cut {
        Cut::Columns(_) => [part.len() / width / n, n, width],
        Cut::Rows(_) => [part.len() / n, n, 1],
    };
    TensorMatrix(Tensor::from_data(TensorData::new(part, shape), &Device::flex()))
}

/// A block's weights and scales out of the parts that [`for_each_block`] gives: weights, then scales and zero points if there
/// are any, then others, which are left.
fn parts(mut parts: Vec<Vec<f32>>, shape: [usize; 3], [scales, points]: [bool; 2]) -> Parts {
    let ([outer, n, _], cut) = (shape, cut(shape));
    let weights = parts.remove(0);
    let width = match cut {
        Cut::Columns(_) => weights.len() / (outer * n),
        Cut::Rows(_) => 1,
    };
    let scales = scales.then(|| matrix(parts.remove(0), cut, width, 1));
    let zero_points = points.then(|| matrix(parts.remove(0), cut, width, 1));
    let left = parts.into_iter().map(|part| matrix(part, cut, width, n)).collect();
    let trained = scales.map(|scales| Scales { scales, zero_points });
    Parts { weight: matrix(weights, cut, width, n), trained, left }
}

struct Parts {
    weight: TensorMatrix,
    trained: Option<Scales<TensorMatrix>>,
    left: Vec<TensorMatrix>,
}

/// The rounded weight at strength `lambda`, with the gradients of [`super::gradient`].
pub fn rounded<const D: usize>(
    view: &View,
    base: Tensor<D>,
    scales: Option<Tensor<3>>,
    zero_points: Option<Tensor<3>>,
    lambda: f32,
) -> Tensor<D> {
    let (quantizer, shape, dims) = (*view.quantizer(), view.rows_shape(), base.dims());
    let has = [scales.is_some(), zero_points.is_some()];
    let mut inputs = vec![Input::of(base)];
    inputs.extend(scales.map(Input::of));
    let mut known: Vec<Numbers> = inputs.iter().map(Input::numbers).collect();
    known.extend(zero_points.map(|points| Input::of(points).numbers()));

    let value = written(known[0].len(), |out| {
        let slices: Vec<&[f32]> = known.iter().map(|numbers| &numbers[..]).collect();
        for_each_block(cut(shape), &slices, &mut [out], |_, taken| {
            let Parts { weight, trained, .. } = parts(taken, shape, has);
            let mut value = round(&quantizer, weight.clone(), trained).dequantize().0;
            if lambda != 1.0 {
                value = value * lambda + weight.0 * (1.0 - lambda);
            }
            vec![floats(value)]
        });
    });
    record(inputs, Numbers::new(value, dims), move |d_value, wanted| {
        if !quantizer.method.trains_scales() || !has[0] {
            return vec![Some(d_value.into_gradient())];
        }
        let mut slices: Vec<&[f32]> = known.iter().map(|numbers| &numbers[..]).collect();
        slices.push(&d_value);
        let mut d_scales = vec![0.0; known[1].len()];
        let d_base = written(known[0].len(), |d_base| {
            for_each_block(cut(shape), &slices, &mut [d_base, &mut d_scales], |_, taken| {
                let Parts { weight, trained, mut left } = parts(taken, shape, has);
                let rounded = round(&quantizer, weight.clone(), trained.clone());
                let d = left.remove(0).0;
                let Factors { weight: of_weight, scale } = factors(&quantizer, weight, trained, rounded);
                let d_scale = match scale {
                    Some(factor) => (d.clone() * factor).sum_dim(1) * lambda,
                    None => d.clone().sum_dim(1) * 0.0,
                };
                let d_weight = match of_weight {
                    Some(factor) if lambda == 1.0 => d * factor,
                    Some(factor) => d * (factor * lambda + (1.0 - lambda)),
                    None => d,
                };
                vec![floats(d_weight), floats(d_scale)]
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
    let asymmetric = quantizer.zero_point;
    let numbers = |matrix: TensorMatrix| Input::of(matrix.0).numbers();
    let has = [trained.is_some(), trained.as_ref().is_some_and(|trained| trained.zero_points.is_some())];
    let mut known = vec![numbers(weight)];
    if let Some(Scales { scales, zero_points }) = trained {
        known.push(numbers(scales));
        known.extend(zero_points.map(numbers));
    }
    let slices: Vec<&[f32]> = known.iter().map(|numbers| &numbers[..]).collect();
    let mut codes = vec![0.0; outer * n * inner];
    let (mut scales, mut points) = (vec![0.0; outer * inner], vec![0.0; outer * inner]);
    for_each_block(cut(shape), &slices, &mut [&mut codes, &mut scales, &mut points], |_, taken| {
        let Parts { weight, trained, .. } = parts(taken, shape, has);
        let Quantized { codes, scales, zero_points, .. } = round(quantizer, weight, trained);
        let scales = floats(scales.0);
        let points = zero_points.map_or_else(|| vec![0.0; scales.len()], |points| floats(points.0));
        vec![floats(codes.0), scales, points]
    });
    let matrix = |data: Vec<f32>, n: usize| {
        TensorMatrix(Tensor::from_data(TensorData::new(data, [outer, n, inner]), &Device::flex()))
    };
    Quantized {
        codes: matrix(codes, n),
        scales: matrix(scales, 1),
        zero_points: asymmetric.then(|| matrix(points, 1)),
        double: None,
    }
}
