//! Quantization without end-to-end training: rounding to nearest, searched scales, GPTQ, block-wise reconstruction.
//!
//! | module | subject |
//! |---|---|
//! | this one | the methods by name, over all weights of a model |
//! | [`gptq`] | one matrix by GPTQ |
//! | [`reconstruct`] | one block trained to give the output that it had |
//! | [`kept`] | what was found, in a file for other runs |
//! | [`blocks`] | what the matrices of a block see on calibration text |

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use bitllama_core::rounding::{Scales, StoredScales, alpha_codes};
use bitllama_core::search::{quantized, round_together, search};
use bitllama_core::weights::{BLOCK_MATRICES, WeightSpec};
use bitllama_core::{DenseMatrix, Granularity, Quantizer, RoundedMatrix, RowMatrix};
use bitllama_nn::Llama;
use bitllama_nn::weights::{block_matrices, read, set_block_matrix};
use burn::tensor::Device;
use clap::ValueEnum;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::models::ResolvedPlan;

pub mod blocks;
pub mod gptq;
pub mod kept;
pub mod reconstruct;

use gptq::Rounded;
use reconstruct::Start;

/// How codes and scales are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The scales that the weights give (largest or mean magnitude), each weight to the nearest code
    #[default]
    Rtn,
    /// The scales with the least squared error of the weights
    Search,
    /// The scales with the least squared error, each weight weighed by the mean square of its input on calibration text
    Importance,
    /// GPTQ on calibration text
    Gptq,
    /// GPTQ, and then each block trained alone to give the output that it had, weights and scales both (EfficientQAT's
    /// Block-AP)
    Block,
}

impl Method {
    /// The name on the command line and in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Search => "search",
            Method::Importance => "importance",
            Method::Gptq => "gptq",
            Method::Block => "block",
        }
    }

    /// Whether it needs text.
    pub fn calibrates(self) -> bool {
        matches!(self, Method::Importance | Method::Gptq | Method::Block)
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
) -> Result<RoundedMatrix> {
    quantizer.check_shape(shape)?;
    let (columns, group) = (shape[1], quantizer.group_len(shape));
    let tiled = importance.filter(|_| group > columns).map(|importance| importance.repeat(shape[0]));
    let importance = tiled.as_deref().or(importance);
    let mut found: Vec<_> = weight
        .par_chunks(group)
        .enumerate()
        .map(|(index, weights)| {
            let first = index * group % columns;
            search(quantizer, weights, importance.map(|importance| &importance[first..first + weights.len()]))
        })
        .collect();
    let parts = round_together(quantizer, &mut found);
    let mut codes = weight;
    codes.par_chunks_mut(group).zip(&found).for_each(|(codes, found)| {
        codes.iter_mut().for_each(|code| *code = quantizer.code_of(*code, *found));
    });
    Ok(RoundedMatrix::pack(quantizer, shape, quantized(quantizer, codes, &found, parts))?)
}

/// Rounds one weight of the plan without text.
///
/// # Errors
/// As [`searched`].
pub fn round(method: Method, quantizer: &Quantizer, spec: &WeightSpec, weight: Vec<f32>) -> Result<RoundedMatrix> {
    let packed = match method {
        Method::Rtn => RoundedMatrix::quantize(quantizer, shape_of(spec), weight, None).map_err(Into::into),
        _ => searched(quantizer, shape_of(spec), weight, None),
    };
    packed.with_context(|| spec.name.clone())
}

/// How the methods that use text go about it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Of GPTQ, also as the start of the reconstruction.
    pub gptq: gptq::Options,
    /// Of the reconstruction.
    pub block: reconstruct::Options,
}

/// Rounds the matrices of all blocks of `llama`, which is in full precision on `device`, on calibration text: `rows` of
/// tokens of one length. Each block sees the text through the rounded blocks before it. Weights outside of blocks are not
/// in the answer.
///
/// `progress` is told how many blocks are done, and how well the last one was reconstructed.
///
/// # Errors
/// A weight that is not finite; a Hessian without an inverse; a reconstruction that diverges.
pub fn calibrated(
    method: Method,
    mut llama: Llama,
    plan: &ResolvedPlan,
    rows: &[Vec<u32>],
    options: Options,
    device: &Device,
    mut progress: impl FnMut(usize, Option<reconstruct::Report>),
) -> Result<HashMap<String, Rounded>> {
    ensure!(!rows.is_empty(), "there is no calibration text");
    let mut stream = blocks::Stream::new(&llama, rows, device)?;
    let mut teachers = (method == Method::Block).then(|| stream.clone());
    let plan: HashMap<&str, (&WeightSpec, Quantizer)> =
        plan.iter().filter_map(|(spec, quantizer)| Some((spec.name.as_str(), (spec, (*quantizer)?)))).collect();
    let of_layer = |layer: usize| BLOCK_MATRICES.map(|name| plan.get(format!("layers.{layer}.{name}.weight").as_str()));
    let last = (0..llama.layers.len()).rev().find(|layer| of_layer(*layer).iter().any(Option::is_some));
    let mut done = HashMap::new();
    for (layer, block) in llama.layers.iter_mut().enumerate().take(last.map_or(0, |last| last + 1)) {
        if let Some(teachers) = &mut teachers {
            teachers.advance(block);
        }
        let hessians = stream.hessians(block)?;
        let (mut rounded, mut starts) = (HashMap::new(), Vec::new());
        for ((name, param), planned) in block_matrices(block).into_iter().zip(of_layer(layer)) {
            let Some((spec, quantizer)) = planned else { continue };
            let (hessian, shape, weight) = (&hessians[name], shape_of(spec), read(param, spec.kind));
            let round = |quantizer: &Quantizer| {
                gptq::gptq(quantizer, shape, &weight, hessian, options.gptq).with_context(|| spec.name.clone())
            };
            match method {
                Method::Block => {
                    let quantizer = reconstruct::trained(*quantizer);
                    starts.push(Start { name, quantizer, rounded: round(&quantizer)? });
                }
                Method::Gptq => drop(rounded.insert(name, round(quantizer)?)),
                _ => {
                    let searched = searched(quantizer, shape, weight.clone(), Some(&hessian.diagonal()));
                    let packed = searched.with_context(|| spec.name.clone())?;
                    rounded.insert(name, Rounded { packed, weight });
                }
            }
        }
        let mut report = None;
        if let Some(teachers) = teachers.as_ref().filter(|_| !starts.is_empty()) {
            let result = reconstruct::reconstruct(block, starts, &stream, teachers, options.block, device);
            let (matrices, how_well) = result.with_context(|| format!("block {layer}"))?;
            (rounded, report) = (matrices, Some(how_well));
        }
        for (name, rounded) in rounded {
            let packed = &rounded.packed;
            set_block_matrix(block, name, [packed.rows(), packed.columns()], &packed.dequantize().data, device);
            done.insert(format!("layers.{layer}.{name}.weight"), rounded);
        }
        stream.advance(block);
        progress(layer + 1, report);
    }
    Ok(done)
}

/// The scales of a rounded matrix as training has them.
pub fn trained_scales(quantizer: &Quantizer, rounded: &RoundedMatrix) -> Scales<DenseMatrix> {
    let codes = alpha_codes(quantizer);
    let numbers = |mut numbers: DenseMatrix| {
        if quantizer.granularity == Granularity::Tensor {
            numbers.data.truncate(1);
        }
        numbers
    };
    let Scales { scales, offsets } = rounded.scales();
    Scales { scales: numbers(scales).scale(codes), offsets: offsets.map(|offsets| offsets.map(numbers)) }
}

/// What a student starts from whose matrices were rounded so: trained scales, and other weights for some. Methods that
/// train no scales have those of the weights, so there the rounded weights are the ones to start from.
pub fn starts(plan: &ResolvedPlan, rounded: HashMap<String, Rounded>) -> (HashMap<String, Vec<f32>>, StoredScales) {
    let (mut weights, mut scales) = (HashMap::new(), StoredScales::new());
    for (spec, quantizer) in plan {
        let (Some(quantizer), Some(Rounded { packed, weight })) = (quantizer, rounded.get(&spec.name)) else {
            continue;
        };
        if quantizer.method.trains_scales() {
            scales.insert(spec.name.clone(), trained_scales(quantizer, packed));
            weights.insert(spec.name.clone(), weight.clone());
        } else {
            weights.insert(spec.name.clone(), packed.dequantize().data);
        }
    }
    (weights, scales)
}

fn shape_of(spec: &WeightSpec) -> [usize; 2] {
    match spec.shape[..] {
        [rows, columns] => [rows, columns],
        _ => unreachable!("a bit plan has matrices only"),
    }
}
