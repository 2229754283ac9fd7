//! What the tests share: the backend they run on, a small model, its numbers.

use std::convert::Infallible;

use bitllama_core::ModelConfig;
use bitllama_core::weights::{Kind, WeightSpec};
use bitllama_nn::Llama;
use bitllama_nn::weights::build;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// Of the first backend that is compiled in: `--no-default-features --features ndarray` runs the tests there.
pub fn device() -> Device {
    bitllama_nn::device(bitllama_nn::device::default_name()).unwrap()
}

/// Two blocks with grouped queries.
pub fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        vocab_size: 24,
        hidden_size: 16,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 4,
        max_position_embeddings: 32,
        rms_norm_eps: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tie_word_embeddings: tied,
        sub_norm: false,
        arch: Default::default(),
        bos_token_id: None,
        eos_token_ids: vec![],
        end_token_ids: Vec::new(),
    }
}

/// A weight that differs from place to place, and never by accident equals its transpose.
pub fn values(spec: &WeightSpec) -> Vec<f32> {
    let seed = spec.name.len() as f32;
    (0..spec.len())
        .map(|i| match spec.kind {
            Kind::Norm => 1.0 + 0.1 * (i as f32).sin(),
            _ => 0.3 * ((i as f32 * 12.9898 + seed).sin() * 43758.547).fract(),
        })
        .collect()
}

/// The model of [`config`] with [`values`].
pub fn model(device: &Device, tied: bool) -> Llama {
    build(&config(tied), device, |spec| Ok::<_, Infallible>(values(spec))).unwrap()
}

/// Two rows of six tokens.
pub fn tokens(device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = (0..12).map(|i| (i * 7 + 3) % 24).collect();
    Tensor::from_data(TensorData::new(ids, [2, 6]), device)
}

/// Elements on the host.
pub fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data_as::<f32>().try_into_vec().unwrap()
}
