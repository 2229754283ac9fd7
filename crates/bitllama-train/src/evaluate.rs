//! Burn models behind the evaluation of [`bitllama_runtime::evaluate`], so that perplexity and divergence are
//! computed by the same code whatever runs the model.

use std::error::Error;

use bitllama_nn::linear::{Precision, set_precision};
use bitllama_nn::{Llama, Mask};
use bitllama_runtime::evaluate::LogitModel;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

/// A Burn model without gradients, fake-quantized weights rounded once for all contexts.
pub struct Scored {
    llama: Llama,
    device: Device,
}

impl Scored {
    /// Takes a model as it would be exported.
    pub fn new(llama: &Llama, device: &Device) -> Self {
        let mut llama = llama.valid().materialize();
        set_precision(&mut llama, Precision::F32, false);
        Self { llama, device: device.clone().inner() }
    }
}

impl LogitModel for Scored {
    fn vocab_size(&self) -> usize {
        self.llama.config.vocab_size
    }

    fn logits(&mut self, tokens: &[u32]) -> Result<Vec<f32>, Box<dyn Error + Send + Sync>> {
        let seq = tokens.len();
        let logits = self.llama.forward(token_tensor(tokens, 1, &self.device), &Mask::causal(1, seq, &self.device));
        Ok(logits.into_data_as::<f32>().try_into_vec()?)
    }
}

/// `tokens`, row-major, as `[rows, tokens / rows]`.
pub fn token_tensor(tokens: &[u32], rows: usize, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    Tensor::from_data(TensorData::new(ids, [rows, tokens.len() / rows]), device)
}
