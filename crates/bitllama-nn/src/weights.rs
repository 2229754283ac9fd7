//! Weights in and out of a model, by the names of [`bitllama_core::weights`] and as `[out_features, in_features]`.

use std::collections::HashMap;

use bitllama_core::rounding::StoredScales;
use bitllama_core::weights::{BLOCK_MATRICES, BLOCK_NORMS, EMBEDDING, FINAL_NORM, HEAD, Kind, WeightSpec, specs};
use bitllama_core::{DenseMatrix, Error, ModelConfig, PackedMatrix, Quantized};
use burn::module::{Param, ParamId};
use burn::nn::{Embedding, Linear};
use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::attention::Attention;
use crate::decoder::{Block, Llama};
use crate::fake_quant::FakeQuant;
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

/// Puts other elements into a matrix of a block of `model`: row-major, of `spec.shape`. A quantizer on it is gone then.
///
/// # Panics
/// If `spec` is no matrix of a block of this model, or `data` is not of its shape.
pub fn set_matrix(model: &mut Llama, spec: &WeightSpec, data: &[f32]) {
    let param = block_matrix(model, &spec.name).unwrap_or_else(|| panic!("{} is no matrix of a block", spec.name));
    let tensor = matrix_tensor(spec, data, &param.base().device());
    *param = Param::initialized(param.id, tensor);
}

/// The matrix of a block by its name.
fn block_matrix<'a>(model: &'a mut Llama, name: &str) -> Option<&'a mut Param<Tensor<2>>> {
    let (layer, matrix) = name.strip_prefix("layers.")?.strip_suffix(".weight")?.split_once('.')?;
    let Block { self_attn, mlp, .. } = model.layers.get_mut(layer.parse::<usize>().ok()?)?;
    let linear = match matrix {
        "self_attn.q_proj" => &mut self_attn.q_proj,
        "self_attn.k_proj" => &mut self_attn.k_proj,
        "self_attn.v_proj" => &mut self_attn.v_proj,
        "self_attn.o_proj" => &mut self_attn.o_proj,
        "mlp.gate_proj" => &mut mlp.gate_proj,
        "mlp.up_proj" => &mut mlp.up_proj,
        "mlp.down_proj" => &mut mlp.down_proj,
        _ => return None,
    };
    Some(&mut linear.weight)
}

/// A matrix, row-major `[out_features, in_features]`, in the layout of its Burn parameter.
fn matrix_tensor(spec: &WeightSpec, data: &[f32], device: &Device) -> Tensor<2> {
    let [rows, columns] = spec.shape[..] else { panic!("{} is no matrix", spec.name) };
    let data = match input_dimension(spec.kind) {
        0 => TensorData::new(transposed(data, rows, columns), [columns, rows]),
        _ => TensorData::new(data.to_vec(), [rows, columns]),
    };
    Tensor::from_data(data, (device, DType::F32))
}

/// The dimension of a Burn parameter along which the inputs of one output row lie.
pub(crate) fn input_dimension(kind: Kind) -> usize {
    match kind {
        Kind::Embedding => 1,
        Kind::Linear | Kind::Head | Kind::Norm => 0,
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
pub struct Weights {
    matrices: HashMap<String, Matrix>,
    vectors: HashMap<String, Tensor<1>>,
}

struct Matrix {
    base: Tensor<2>,
    fake_quant: Option<FakeQuant>,
}

impl Weights {
    /// Takes hold of the parameters of `model`; tensors are shared, not copied.
    pub fn of(model: &Llama) -> Self {
        let mut weights = Self { matrices: HashMap::new(), vectors: HashMap::new() };
        weights.matrix(EMBEDDING.into(), &model.embed_tokens.weight);
        for (index, block) in model.layers.iter().enumerate() {
            let Block { input_layernorm, self_attn, post_attention_layernorm, mlp } = block;
            let Attention { q_proj, k_proj, v_proj, o_proj, .. } = self_attn;
            let Mlp { gate_proj, up_proj, down_proj } = mlp;
            let linears = [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj];
            for (name, linear) in BLOCK_MATRICES.iter().zip(linears) {
                weights.matrix(format!("layers.{index}.{name}.weight"), &linear.weight);
            }
            for (name, norm) in BLOCK_NORMS.iter().zip([input_layernorm, post_attention_layernorm]) {
                weights.vectors.insert(format!("layers.{index}.{name}.weight"), norm.weight.base());
            }
        }
        weights.vectors.insert(FINAL_NORM.into(), model.norm.weight.base());
        if let Some(head) = &model.lm_head {
            weights.matrix(HEAD.into(), &head.weight);
        }
        weights
    }

    fn matrix(&mut self, name: String, param: &Param<Tensor<2>>) {
        let fake_quant = param.reparameterization().cloned();
        self.matrices.insert(name, Matrix { base: param.base(), fake_quant });
    }

    /// One weight, row-major, of `spec.shape`.
    pub fn read(&self, spec: &WeightSpec) -> Vec<f32> {
        match spec.shape[..] {
            [_, _] => {
                let tensor = self.matrices[&spec.name].base.clone();
                floats(if input_dimension(spec.kind) == 0 { tensor.transpose() } else { tensor })
            }
            _ => floats(self.vectors[&spec.name].clone()),
        }
    }

    /// One matrix rounded on the model's device, by the function and the scales that fake quantization uses, and packed;
    /// `None` if it is in full precision.
    ///
    /// # Errors
    /// [`Error::Packed`] if a weight is not finite: it has no code.
    pub fn pack(&self, spec: &WeightSpec) -> Result<Option<PackedMatrix>, Error> {
        let Some(Matrix { base, fake_quant: Some(fake) }) = self.matrices.get(&spec.name) else { return Ok(None) };
        let (view, rounded) = fake.codes_and_scales(base.clone());
        let [_, columns] = view.matrix_shape();
        let rounded = Quantized {
            codes: DenseMatrix { data: view.elements(rounded.codes), columns },
            scales: view.numbers(rounded.scales),
            zero_points: rounded.zero_points.map(|points| view.numbers(points)),
        };
        PackedMatrix::pack(&fake.quantizer(), view.matrix_shape(), rounded).map(Some)
    }

    /// The scales that are trained, by the names of their weights.
    pub fn scales(&self) -> StoredScales {
        let trained = self.matrices.iter().filter_map(|(name, matrix)| {
            let scales = matrix.fake_quant.as_ref()?.stored_scales(matrix.base.dims())?;
            Some((name.clone(), scales))
        });
        trained.collect()
    }
}

pub(crate) fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_into_vec().unwrap_or_else(|e| unreachable!("data was converted to f32: {e:?}"))
}
