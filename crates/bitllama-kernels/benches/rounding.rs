//! Rounding the weights of SmolLM2-135M as training does it, on all threads of rayon: the median time for the 106
//! million numbers of its linear layers (of the embedding table: for as many numbers), and how fast that is beside a
//! copy of the same arrays, which reads and writes each number once.
//!
//! ```text
//! cargo bench -p bitllama-kernels --bench rounding
//! RAYON_NUM_THREADS=1 cargo bench -p bitllama-kernels --bench rounding -- lsq
//! ```

mod timing;

use std::time::Duration;

use bitllama_core::rounding::{Scales, quantize};
use bitllama_core::{Granularity, Method, Quantizer, RowMatrix, Scheme};
use bitllama_kernels::Isa;
use bitllama_kernels::training::blocks::{Cut, for_each_block};
use bitllama_kernels::training::rows::Rows;
use rayon::prelude::*;
use timing::seconds;

/// `[d_in, d_out]` of a block's linear layers.
const SHAPES: [[usize; 2]; 7] = [[576, 576], [576, 192], [576, 192], [576, 576], [576, 1536], [576, 1536], [1536, 576]];

/// Blocks of the model.
const BLOCKS: usize = 30;

/// `[rows, d_in]` of the embedding table.
const EMBEDDING: [usize; 2] = [49152, 576];

/// Time that a figure may take.
const TIME: Duration = Duration::from_millis(2500);

/// A weight, what becomes of it, and a scale for each of its rows, as `[outer, n, inner]`.
struct Matrix {
    shape: [usize; 3],
    weight: Vec<f32>,
    scales: Vec<f32>,
    out: Vec<f32>,
    d_scales: Vec<f32>,
}

type Pass = fn(&mut Matrix, &Quantizer);

impl Matrix {
    fn new(shape: [usize; 3]) -> Self {
        let [outer, n, inner] = shape;
        let weight = (0..outer * n * inner).map(|i| (i * 7919 % 2001) as f32 / 10_000.0 - 0.1).collect();
        let scales = (0..outer * inner).map(|i| 0.01 + (i % 7) as f32 / 1000.0).collect();
        Matrix { shape, weight, scales, out: vec![0.0; outer * n * inner], d_scales: vec![0.0; outer * inner] }
    }

    fn round(&mut self, quantizer: &Quantizer) {
        let [outer, n, inner] = self.shape;
        let cut = if inner > 1 { Cut::Columns(inner) } else { Cut::Rows(outer) };
        let trained = quantizer.method.trains_scales();
        let inputs: &[&[f32]] = if trained { &[&self.weight, &self.scales] } else { &[&self.weight] };
        let isa = Isa::current();
        for_each_block(cut, inputs, &mut [&mut self.out], |_, parts, mut out| {
            let width = if inner > 1 { parts[0].width() } else { 1 };
            let weight = Rows::new(parts[0], n, width, isa);
            let trained = trained.then(|| Scales { scales: Rows::new(parts[1], 1, width, isa), offsets: None });
            quantize(quantizer, weight, trained).dequantize().write(&mut out[0]);
        });
    }

    /// What becomes of gradients, here the weights themselves, on their way to weights and trained scales of `lsq`: one
    /// of the compositions in `bitllama_nn::fake_quant::gradient`, which a kernel cannot call.
    fn lsq_backward(&mut self, quantizer: &Quantizer) {
        let [outer, n, inner] = self.shape;
        let cut = if inner > 1 { Cut::Columns(inner) } else { Cut::Rows(outer) };
        let (isa, (low, high)) = (Isa::current(), quantizer.scheme.code_range());
        let inputs: [&[f32]; 3] = [&self.weight, &self.scales, &self.weight];
        for_each_block(cut, &inputs, &mut [&mut self.out, &mut self.d_scales], |_, parts, mut out| {
            let width = if inner > 1 { parts[0].width() } else { 1 };
            let rows = |i: usize, n| Rows::new(parts[i], n, width, isa);
            let (weight, scales, gradient) = (rows(0, n), rows(1, 1), rows(2, n));
            let trained = Scales { scales: scales.clone(), offsets: None };
            let codes = quantize(quantizer, weight.clone(), Some(trained)).codes;
            let v = weight.div_rows(scales.clamp(f32::MIN_POSITIVE, f32::MAX));
            let inside = v.clone().within(low, high);
            let factor = codes.add(v.mul(inside.clone()).scale(-1.0)).scale(1.0 / (n as f32 * high).sqrt());
            gradient.clone().mul(factor).row_mean().scale(n as f32).write(&mut out[1]);
            gradient.mul(inside).write(&mut out[0]);
        });
    }

    fn copy(&mut self) {
        const PART: usize = 1 << 16;
        self.out.par_chunks_mut(PART).zip(self.weight.par_chunks(PART)).for_each(|(out, x)| out.copy_from_slice(x));
    }
}

/// The weights of the model's linear layers, or of the embedding table.
fn matrices(granularity: Granularity, embedding: bool) -> Vec<Matrix> {
    let columns = |[a, b]: [usize; 2]| match granularity {
        Granularity::Group(size) => [a / size, size, b],
        _ => [1, a, b],
    };
    let rows = |[a, b]: [usize; 2]| match granularity {
        Granularity::Group(size) => [a * b / size, size, 1],
        _ => [a, b, 1],
    };
    if embedding {
        return vec![Matrix::new(rows(EMBEDDING))];
    }
    (0..BLOCKS).flat_map(|_| SHAPES).map(|shape| Matrix::new(columns(shape))).collect()
}

fn main() {
    // As programs that train do.
    bitllama_kernels::allocator::keep_freed_memory();
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let total: usize = BLOCKS * SHAPES.iter().map(|[a, b]| a * b).sum::<usize>();
    println!("{}, {} threads, {:.1}M numbers", Isa::current(), rayon::current_num_threads(), total as f64 / 1e6);
    let of = |scheme: Scheme, method| Quantizer::from(scheme).with_method(method).with_granularity(Granularity::Row);
    let grouped = |quantizer: Quantizer, size| quantizer.with_granularity(Granularity::Group(size));
    let cases = [
        (of(Scheme::Ternary, Method::Absmean), false),
        (of(Scheme::Int4, Method::Lsq), false),
        (of(Scheme::Ternary, Method::Seq), false),
        (of(Scheme::Seq2, Method::Seq), false),
        (of(Scheme::Int8, Method::Minmax), false),
        (grouped(of(Scheme::Int4, Method::Minmax), 64), false),
        (grouped(of(Scheme::Int4, Method::Lsq), 32), false),
        (grouped(of(Scheme::Nf4, Method::Minmax), 64), false),
        (of(Scheme::Ternary, Method::Absmean), true),
        (of(Scheme::Int4, Method::Lsq), true),
        (grouped(of(Scheme::Int4, Method::Minmax), 64), true),
    ];
    for (quantizer, embedding) in cases {
        let name = format!("{quantizer}{}", if embedding { ", embedding" } else { "" });
        let passes: &[(&str, Pass)] = match quantizer.method {
            Method::Lsq => &[("", Matrix::round), (", backward", Matrix::lsq_backward)],
            _ => &[("", Matrix::round)],
        };
        for (suffix, pass) in passes {
            let name = name.clone() + suffix;
            if !name.contains(&filter) {
                continue;
            }
            let mut matrices = matrices(quantizer.granularity, embedding);
            let numbers: usize = matrices.iter().map(|matrix| matrix.weight.len()).sum();
            let milliseconds = 1e3 * total as f64 / numbers as f64;
            let copy = seconds(TIME, || matrices.iter_mut().for_each(Matrix::copy));
            let rounding = seconds(TIME, || matrices.iter_mut().for_each(|matrix| pass(matrix, &quantizer)));
            println!(
                "{name:36} {:6.1} ms (least {:6.1}), copy {:5.1} ms (least {:5.1}): {:4.1} GB/s, {:4.2} of the copy",
                rounding[0] * milliseconds,
                rounding[1] * milliseconds,
                copy[0] * milliseconds,
                copy[1] * milliseconds,
                8e-9 * numbers as f64 / rounding[0],
                copy[0] / rounding[0],
            );
        }
    }
}
