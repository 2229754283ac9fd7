//! Weights in and out of a model, by the names of [`bitllama_core::weights`] and as `[out_features, in_features]`.

use std::collections::HashMap;

use bitllama_core::rounding::StoredScales;
use bitllama_core::weights::{BLOCK_SUB_NORMS, EMBEDDING, FINAL_NORM, HEAD, Kind, QK_NORMS, WeightSpec, specs};
use bitllama_core::{Error, ModelConfig, RoundedMatrix};
use bitllama_kernels::gemm::Precision;
use bitllama_kernels::training::halves::{exact_bf16, exact_f16, rounded_f16};
use burn::module::{Param, ParamId};
use burn::nn::Embedding;
use burn::tensor::{DType, Device, Tensor, TensorData, f16};

use crate::attention::Attention;
use crate::decoder::{Block, Llama};
use crate::fake_quant::FakeQuant;
use crate::linear::Linear;
use crate::mlp::Mlp;
use crate::ops::attention::Heads;
use crate::rms_norm::RmsNorm;

/// How a model keeps the elements of its matrices; norms are always in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// In f32: what training needs.
    #[default]
    F32,
    /// In 16 bits where that loses nothing and the device has such numbers, else in f32: for inference. Weights that come from a
    /// file of bf16 or f16 take half the memory, and products have the same results.
    Exact16,
    /// As [`Storage::Exact16`], but rounded to f16 where no 16 bits hold the numbers and none is beyond f16's range: for inference
    /// with weights that were quantized (a GGUF of Q4_K). Rounding is off by 2^-11 of a number at most, and by 2^-25 below 2^-14;
    /// steps of a grid of 4 bits are a hundred times that.
    Rounded16,
}

/// Builds a model on `device`, asking `read` once for each weight (row-major, of `spec.shape`).
///
/// Parameter ids are the positions in [`specs`], so that an optimizer state saved by one process fits the model of
/// the next.
///
/// # Errors
/// Those of `read`.
pub fn build<E>(
    config: &ModelConfig,
    device: &Device,
    read: impl FnMut(&WeightSpec) -> Result<Vec<f32>, E>,
) -> Result<Llama, E> {
    build_as(Storage::F32, config, device, read)
}

/// As [`build`], with matrices kept as `storage` says. One at a time is in f32 meanwhile.
///
/// # Errors
/// Those of `read`.
pub fn build_as<E>(
    storage: Storage,
    config: &ModelConfig,
    device: &Device,
    read: impl FnMut(&WeightSpec) -> Result<Vec<f32>, E>,
) -> Result<Llama, E> {
    let positions = specs(config).into_iter().enumerate().map(|(i, spec)| (spec.name.clone(), (i, spec))).collect();
    let mut b = Builder { positions, config, device, storage, read };
    Ok(Llama {
        embed_tokens: Embedding { weight: b.param(EMBEDDING)? },
        layers: (0..config.num_hidden_layers).map(|layer| b.block(layer)).collect::<Result<_, E>>()?,
        norm: b.norm(FINAL_NORM)?,
        tied_head_input: None,
        head_precision: Precision::F32,
        lm_head: if config.tie_word_embeddings { None } else { Some(b.linear(HEAD)?) },
        config: config.clone(),
    })
}

struct Builder<'a, R> {
    positions: HashMap<String, (usize, WeightSpec)>,
    config: &'a ModelConfig,
    device: &'a Device,
    storage: Storage,
    read: R,
}

impl<E, R: FnMut(&WeightSpec) -> Result<Vec<f32>, E>> Builder<'_, R> {
    fn block(&mut self, layer: usize) -> Result<Block, E> {
        let weight = |part: &str| format!("layers.{layer}.{part}.weight");
        let (norms, config) = (self.config.arch.norms, self.config);
        let post_attention_layernorm = self.norm(&weight("post_attention_layernorm"))?;
        Ok(Block {
            input_layernorm: self.norm_if_any(&weight("input_layernorm"))?,
            self_attn: Attention {
                q_proj: self.linear(&weight("self_attn.q_proj"))?,
                k_proj: self.linear(&weight("self_attn.k_proj"))?,
                v_proj: self.linear(&weight("self_attn.v_proj"))?,
                q_norm: self.norm_if_any(&weight(QK_NORMS[0]))?,
                k_norm: self.norm_if_any(&weight(QK_NORMS[1]))?,
                attn_sub_norm: self.norm_if_any(&weight(BLOCK_SUB_NORMS[0]))?,
                o_proj: self.linear(&weight("self_attn.o_proj"))?,
                heads: Heads::of_layer(config, layer),
                kind: config.arch.layer(layer),
                kv_cache: None,
            },
            post_attention_layernorm,
            pre_feedforward_layernorm: self.norm_if_any(&weight("pre_feedforward_layernorm"))?,
            mlp: Mlp {
                gate_proj: self.linear(&weight("mlp.gate_proj"))?,
                up_proj: self.linear(&weight("mlp.up_proj"))?,
                ffn_sub_norm: self.norm_if_any(&weight(BLOCK_SUB_NORMS[1]))?,
                down_proj: self.linear(&weight("mlp.down_proj"))?,
                hidden_act: config.arch.hidden_act,
            },
            post_feedforward_layernorm: self.norm_if_any(&weight("post_feedforward_layernorm"))?,
            norms,
            residual_scale: config.arch.residual_scale,
        })
    }

    fn norm(&mut self, name: &str) -> Result<RmsNorm, E> {
        Ok(RmsNorm { weight: self.param(name)?, eps: self.config.rms_norm_eps })
    }

    /// A norm, if the model has one of the name.
    fn norm_if_any(&mut self, name: &str) -> Result<Option<RmsNorm>, E> {
        self.positions.contains_key(name).then(|| self.norm(name)).transpose()
    }

    fn linear(&mut self, name: &str) -> Result<Linear, E> {
        let bias = bias_of(name);
        let bias = self.positions.contains_key(&bias).then(|| self.param(&bias)).transpose()?;
        Ok(Linear { weight: self.param(name)?, bias, input: None, precision: Precision::F32, int8_forward: false })
    }

    fn param<const D: usize>(&mut self, name: &str) -> Result<Param<Tensor<D>>, E> {
        let (index, spec) = &self.positions[name];
        let data = (self.read)(spec)?;
        let (data, shape) = match spec.shape[..] {
            [rows, columns] if input_dimension(spec.kind) == 0 => {
                (transposed(&data, rows, columns), vec![columns, rows])
            }
            _ => (data, spec.shape.clone()),
        };
        let narrow = if D == 2 { self.sixteen_bits(&data, &shape) } else { None };
        let (data, dtype) = narrow.unwrap_or_else(|| (TensorData::new(data, shape), DType::F32));
        let tensor = Tensor::from_data(data, (self.device, dtype));
        let tensor = if self.device.is_autodiff() { tensor.require_grad() } else { tensor };
        Ok(Param::initialized(ParamId::from(*index as u64 + 1), tensor))
    }

    /// A matrix in 16 bits, where [`Storage`] wants it so.
    fn sixteen_bits(&self, numbers: &[f32], shape: &[usize]) -> Option<(TensorData, DType)> {
        let has = |dtype: DType| self.device.supports_dtype(dtype);
        let bf16 = || has(DType::BF16).then(|| exact_bf16(numbers)).flatten();
        let halves: fn(&[f32]) -> Option<Vec<f16>> = match self.storage {
            Storage::F32 => return None,
            Storage::Exact16 => exact_f16,
            Storage::Rounded16 => rounded_f16,
        };
        let f16 = || has(DType::F16).then(|| halves(numbers)).flatten();
        let bf16 = bf16().map(|data| (TensorData::new(data, shape.to_vec()), DType::BF16));
        bf16.or_else(|| f16().map(|data| (TensorData::new(data, shape.to_vec()), DType::F16)))
    }
}

/// The name of the bias beside a weight, whether the model has it or not.
fn bias_of(weight: &str) -> String {
    format!("{}.bias", weight.strip_suffix(".weight").unwrap_or(weight))
}

/// The matrices of a block, in the order and by the names of [`bitllama_core::weights::BLOCK_MATRICES`].
pub fn block_matrices(block: &Block) -> [(&'static str, &Param<Tensor<2>>); 7] {
    block.linears().map(|(name, linear)| (name, &linear.weight))
}

/// Puts other elements into a matrix of a block: row-major `[rows, columns]`, on `device`. A quantizer on it is gone then.
///
/// # Panics
/// If a block has no such matrix.
pub fn set_block_matrix(block: &mut Block, name: &str, [rows, columns]: [usize; 2], data: &[f32], device: &Device) {
    let found = block.linears_mut().into_iter().find(|(known, _)| *known == name);
    let (_, linear) = found.unwrap_or_else(|| panic!("{name} is no matrix of a block"));
    let data = TensorData::new(transposed(data, rows, columns), [columns, rows]);
    let tensor = Tensor::from_data(data, (device, DType::F32));
    let tensor = if device.is_autodiff() { tensor.require_grad() } else { tensor };
    linear.weight = Param::initialized(linear.weight.id, tensor);
}

/// The stored elements of a matrix, row-major `[out_features, in_features]`.
pub fn read(param: &Param<Tensor<2>>, kind: Kind) -> Vec<f32> {
    floats(if input_dimension(kind) == 0 { param.base().transpose() } else { param.base() })
}

/// A matrix rounded on its device, by the function and the scales that fake quantization uses, and packed; `None` if it is
/// in full precision.
///
/// # Errors
/// [`Error::Packed`] if a weight is not finite: it has no code.
pub fn pack(param: &Param<Tensor<2>>) -> Result<Option<RoundedMatrix>, Error> {
    let Some(fake) = param.reparameterization::<FakeQuant>() else { return Ok(None) };
    let (view, rounded) = fake.codes_and_scales(param.base());
    RoundedMatrix::pack(&fake.quantizer(), view.matrix_shape(), view.quantized(rounded)).map(Some)
}

/// The dimension of a Burn parameter along which the inputs of one output row lie.
pub(crate) fn input_dimension(kind: Kind) -> usize {
    match kind {
        Kind::Embedding => 1,
        Kind::Linear | Kind::Head | Kind::Norm | Kind::Bias => 0,
    }
}

/// Row-major `[rows, columns]` to row-major `[columns, rows]`, in tiles that stay in cache.
pub(crate) fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0.0; data.len()];
    for row_tile in (0..rows).step_by(TILE) {
        for column_tile in (0..columns).step_by(TILE) {
            for row in row_tile..(row_tile + TILE).min(rows) {
                for column in column_tile..(column_tile + TILE).min(columns) {
                    out[column * rows + row] = data[row * columns + column];
                }
            }
        }
    }
    out
}

/// The stored parameters of a model: what training moves, before any rounding.
pub struct Weights<'a> {
    matrices: HashMap<String, &'a Param<Tensor<2>>>,
    vectors: HashMap<String, &'a Param<Tensor<1>>>,
}

impl<'a> Weights<'a> {
    /// The parameters of `model` by their names.
    pub fn of(model: &'a Llama) -> Self {
        let mut matrices = HashMap::from([(EMBEDDING.to_string(), &model.embed_tokens.weight)]);
        let mut vectors = HashMap::from([(FINAL_NORM.to_string(), &model.norm.weight)]);
        for (index, block) in model.layers.iter().enumerate() {
            let name = |part: &str| format!("layers.{index}.{part}.weight");
            for (part, linear) in block.linears() {
                matrices.insert(name(part), &linear.weight);
                vectors.extend(linear.bias.as_ref().map(|bias| (bias_of(&name(part)), bias)));
            }
            vectors.extend(block.norms().into_iter().map(|(part, norm)| (name(part), &norm.weight)));
        }
        matrices.extend(model.lm_head.as_ref().map(|head| (HEAD.to_string(), &head.weight)));
        Self { matrices, vectors }
    }

    /// One weight, row-major, of `spec.shape`.
    pub fn read(&self, spec: &WeightSpec) -> Vec<f32> {
        match spec.shape[..] {
            [_, _] => read(self.matrices[&spec.name], spec.kind),
            _ => floats(self.vectors[&spec.name].base()),
        }
    }

    /// [`pack`] of one matrix; `None` for a norm.
    ///
    /// # Errors
    /// As [`pack`].
    pub fn pack(&self, spec: &WeightSpec) -> Result<Option<RoundedMatrix>, Error> {
        self.matrices.get(&spec.name).map_or(Ok(None), |param| pack(param))
    }

    /// The scales that are trained, by the names of their weights.
    pub fn scales(&self) -> StoredScales {
        let trained = self.matrices.iter().filter_map(|(name, param)| {
            let scales = param.reparameterization::<FakeQuant>()?.stored_scales(param.base().dims())?;
            Some((name.clone(), scales))
        });
        trained.collect()
    }
}

pub(crate) fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_into_vec().unwrap_or_else(|e| unreachable!("data was converted to f32: {e:?}"))
}
