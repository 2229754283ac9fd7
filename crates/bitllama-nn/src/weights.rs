//! Weights in and out of a model, by the names of [`bitllama_core::weights`] and as `[out_features, in_features]`.

use std::collections::HashMap;

use bitllama_core::weights::{EMBEDDING, FINAL_NORM, HEAD, WeightSpec, specs};
use bitllama_core::{DenseMatrix, Error, ModelConfig, PackedMatrix, Scheme};
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::nn::{Embedding, Linear};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::attention::Attention;
use crate::decoder::{Block, Llama};
use crate::fake_quant::{codes_and_scales, input_dimension};
use crate::mlp::Mlp;
use crate::rms_norm::RmsNorm;

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
    let positions = specs(config).into_iter().enumerate().map(|(i, spec)| (spec.name.clone(), (i, spec))).collect();
    let mut b = Builder { positions, device, read };
    let layers =
        (0..config.num_hidden_layers).map(|i| b.block(&format!("layers.{i}"), config)).collect::<Result<_, E>>();
    Ok(Llama {
        embed_tokens: Embedding { weight: b.param(EMBEDDING)? },
        layers: layers?,
        norm: b.norm(FINAL_NORM, config)?,
        lm_head: if config.tie_word_embeddings { None } else { Some(b.linear(HEAD)?) },
        config: config.clone(),
    })
}

struct Builder<'a, R> {
    positions: HashMap<String, (usize, WeightSpec)>,
    device: &'a Device,
    read: R,
}

impl<E, R: FnMut(&WeightSpec) -> Result<Vec<f32>, E>> Builder<'_, R> {
    fn block(&mut self, path: &str, config: &ModelConfig) -> Result<Block, E> {
        let (attention, mlp) = (format!("{path}.self_attn"), format!("{path}.mlp"));
        Ok(Block {
            input_layernorm: self.norm(&format!("{path}.input_layernorm.weight"), config)?,
            self_attn: Attention {
                q_proj: self.linear(&format!("{attention}.q_proj.weight"))?,
                k_proj: self.linear(&format!("{attention}.k_proj.weight"))?,
                v_proj: self.linear(&format!("{attention}.v_proj.weight"))?,
                o_proj: self.linear(&format!("{attention}.o_proj.weight"))?,
                num_heads: config.num_attention_heads,
                num_kv_heads: config.num_key_value_heads,
                head_dim: config.head_dim,
            },
            post_attention_layernorm: self.norm(&format!("{path}.post_attention_layernorm.weight"), config)?,
            mlp: Mlp {
                gate_proj: self.linear(&format!("{mlp}.gate_proj.weight"))?,
                up_proj: self.linear(&format!("{mlp}.up_proj.weight"))?,
                down_proj: self.linear(&format!("{mlp}.down_proj.weight"))?,
            },
        })
    }

    fn norm(&mut self, name: &str, config: &ModelConfig) -> Result<RmsNorm, E> {
        Ok(RmsNorm { weight: self.param(name)?, eps: config.rms_norm_eps })
    }

    fn linear(&mut self, name: &str) -> Result<Linear, E> {
        Ok(Linear { weight: self.param(name)?, bias: None })
    }

    fn param<const D: usize>(&mut self, name: &str) -> Result<Param<Tensor<D>>, E> {
        let (index, spec) = &self.positions[name];
        let data = (self.read)(spec)?;
        let data = match spec.shape[..] {
            [rows, columns] if input_dimension(spec.kind) == 0 => {
                TensorData::new(transposed(&data, rows, columns), [columns, rows])
            }
            _ => TensorData::new(data, spec.shape.clone()),
        };
        let tensor = Tensor::from_data(data, (self.device, DType::F32));
        let tensor = if self.device.is_autodiff() { tensor.require_grad() } else { tensor };
        Ok(Param::initialized(ParamId::from(*index as u64 + 1), tensor))
    }
}

/// Row-major `[rows, columns]` to row-major `[columns, rows]`, in tiles that stay in cache.
fn transposed(data: &[f32], rows: usize, columns: usize) -> Vec<f32> {
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
pub struct Weights {
    matrices: HashMap<String, Tensor<2>>,
    vectors: HashMap<String, Tensor<1>>,
}

impl Weights {
    /// Takes hold of the parameters of `model`; tensors are shared, not copied.
    pub fn of(model: &Llama) -> Self {
        let mut collector =
            Collector { path: Vec::new(), out: Weights { matrices: HashMap::new(), vectors: HashMap::new() } };
        model.visit(&mut collector);
        collector.out
    }

    /// One weight, row-major, of `spec.shape`.
    pub fn read(&self, spec: &WeightSpec) -> Vec<f32> {
        match spec.shape[..] {
            [_, _] => {
                let tensor = self.matrices[&spec.name].clone();
                floats(if input_dimension(spec.kind) == 0 { tensor.transpose() } else { tensor })
            }
            _ => floats(self.vectors[&spec.name].clone()),
        }
    }

    /// One matrix rounded to `scheme` on the model's device, by the function that fake quantization uses, and packed.
    ///
    /// # Errors
    /// [`Error::Packed`] if a weight is not finite: it has no code.
    pub fn pack(&self, spec: &WeightSpec, scheme: Scheme) -> Result<PackedMatrix, Error> {
        let quantized = codes_and_scales(scheme, spec.kind, self.matrices[&spec.name].clone());
        let rows = |tensor| if input_dimension(spec.kind) == 0 { Tensor::transpose(tensor) } else { tensor };
        let codes = DenseMatrix { data: floats(rows(quantized.codes.into_tensor())), columns: spec.shape[1] };
        PackedMatrix::pack(scheme, &codes, floats(rows(quantized.scales.into_tensor())))
    }
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_into_vec().unwrap_or_else(|e| unreachable!("data was converted to f32: {e:?}"))
}

struct Collector {
    path: Vec<String>,
    out: Weights,
}

impl ModuleVisitor for Collector {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_string());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.join(".");
        let tensor = param.base();
        match tensor.dims()[..] {
            [n] => drop(self.out.vectors.insert(name, tensor.reshape([n]))),
            [a, b] => drop(self.out.matrices.insert(name, tensor.reshape([a, b]))),
            _ => {}
        }
    }
}
