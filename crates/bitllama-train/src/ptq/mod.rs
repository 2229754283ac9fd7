//! Quantization without training: rounding to nearest, searched scales, GPTQ.
//!
//! | module | subject |
//! |---|---|
//! | this one | the methods by name, over all weights of a model |
//! | [`gptq`] | one matrix by GPTQ |
//! | [`blocks`] | what the matrices of a block see on calibration text |

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use bitllama_core::rounding::Quantized;
use bitllama_core::search::search;
use bitllama_core::weights::{BLOCK_MATRICES, WeightSpec};
use bitllama_core::{DenseMatrix, PackedMatrix, Quantizer};
use bitllama_formats::Model;
use bitllama_nn::weights::set_matrix;
use burn::tensor::Device;
use clap::ValueEnum;
use rayon::prelude::*;

use crate::models::{self, ResolvedPlan};

pub mod blocks;
pub mod gptq;

/// How codes and scales are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// The scales that the weights give (largest or mean magnitude), each weight to the nearest code
    Rtn,
    /// The scales with the least squared error of the weights
    Search,
    /// The scales with the least squared error, each weight weighed by the mean square of its input on calibration text
    Importance,
    /// GPTQ on calibration text
    Gptq,
}

impl Method {
    /// Whether it needs text.
    pub fn calibrates(self) -> bool {
        matches!(self, Method::Importance | Method::Gptq)
    }
}

/// Rounds a matrix by scales that are searched for.
///
/// # Errors
/// A weight that is not finite; groups that do not divide the columns.
pub fn searched(
    quantizer: &Quantizer,
    shape: [usize; 2],
    weight: Vec<f32>,
    importance: Option<&[f32]>,
) -> Result<PackedMatrix> {
    quantizer.check_shape(shape)?;
    let (columns, group) = (shape[1], quantizer.group_len(shape));
    let tiled = importance.filter(|_| group > columns).map(|importance| importance.repeat(shape[0]));
    let importance = tiled.as_deref().or(importance);
    let found: Vec<_> = weight
        .par_chunks(group)
        .enumerate()
        .map(|(index, weights)| {
            let first = index * group % columns;
            search(quantizer, weights, importance.map(|importance| &importance[first..first + weights.len()]))
        })
        .collect();
    let mut codes = weight;
    codes.par_chunks_mut(group).zip(&found).for_each(|(codes, found)| {
        codes.iter_mut().for_each(|code| *code = quantizer.code_of(*code, *found));
    });
    let numbers = |data: Vec<f32>| DenseMatrix { data, columns: 1 };
    let quantized = Quantized {
        codes: DenseMatrix { data: codes, columns: group },
        scales: numbers(found.iter().map(|found| found.scale).collect()),
        zero_points: found.iter().map(|found| found.zero_point).collect::<Option<Vec<_>>>().map(numbers),
    };
    Ok(PackedMatrix::pack(quantizer, shape, quantized)?)
}

/// Rounds one weight of the plan without text; `None` stays in f32.
///
/// # Errors
/// As [`searched`].
pub fn round(method: Method, quantizer: &Quantizer, spec: &WeightSpec, weight: Vec<f32>) -> Result<PackedMatrix> {
    let &[rows, columns] = &spec.shape[..] else { unreachable!("a bit plan has matrices only") };
    let packed = match method {
        Method::Rtn => PackedMatrix::quantize(quantizer, [rows, columns], weight).map_err(Into::into),
        _ => searched(quantizer, [rows, columns], weight, None),
    };
    packed.with_context(|| spec.name.clone())
}

/// Rounds the matrices of all blocks on calibration text: `rows` of tokens of one length. Each block sees the text through
/// the rounded blocks before it. Weights outside of blocks are not in the answer.
///
/// `progress` is told how many blocks are done.
///
/// # Errors
/// A weight that cannot be read or is not finite; a Hessian without an inverse.
pub fn calibrated(
    method: Method,
    model: &Model,
    plan: &ResolvedPlan,
    rows: &[Vec<u32>],
    options: gptq::Options,
    device: &Device,
    mut progress: impl FnMut(usize),
) -> Result<HashMap<String, PackedMatrix>> {
    ensure!(!rows.is_empty(), "there is no calibration text");
    let mut llama = models::to_device(model, device)?;
    let mut stream = blocks::Stream::new(&llama, &model.config, rows, device);
    let plan: HashMap<&str, (&WeightSpec, Quantizer)> =
        plan.iter().filter_map(|(spec, quantizer)| Some((spec.name.as_str(), (spec, (*quantizer)?)))).collect();
    let mut done = HashMap::new();
    for layer in 0..model.config.num_hidden_layers {
        let hessians = stream.hessians(&llama.layers[layer])?;
        for matrix in BLOCK_MATRICES {
            let Some((spec, quantizer)) = plan.get(format!("layers.{layer}.{matrix}.weight").as_str()) else {
                continue;
            };
            let (hessian, weight) = (&hessians[matrix], model.weights.read(spec)?);
            let &[rows, columns] = &spec.shape[..] else { unreachable!("a bit plan has matrices only") };
            let packed = match method {
                Method::Gptq => gptq::gptq(quantizer, [rows, columns], &weight, hessian, options),
                _ => searched(quantizer, [rows, columns], weight, Some(&hessian.diagonal())),
            };
            let packed = packed.with_context(|| spec.name.clone())?;
            set_matrix(&mut llama, spec, &packed.dequantize().data);
            done.insert(spec.name.clone(), packed);
        }
        stream.advance(&llama.layers[layer]);
        progress(layer + 1);
    }
    Ok(done)
}
