//! Burn models behind the evaluation of [`bitllama_runtime::evaluate`], so that perplexity and divergence are
//! computed by the same code whatever runs the model.

use std::collections::HashMap;
use std::error::Error;

use bitllama_nn::linear::{Precision, set_precision};
use bitllama_nn::{Llama, Mask};
use bitllama_runtime::Error as Refused;
use bitllama_runtime::evaluate::{LogitModel, check_tokens};
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};

type Logits = Result<Vec<f32>, Box<dyn Error + Send + Sync>>;

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

    fn logits(&mut self, tokens: &[u32]) -> Logits {
        self.logits_from(tokens, 0)
    }

    fn logits_from(&mut self, tokens: &[u32], first: usize) -> Logits {
        let (seq, device) = (tokens.len(), &self.device);
        let ids = token_tensor(tokens, 1, self.vocab_size(), device)?;
        let mask = Mask::causal(1, seq, device);
        let (hidden, head) = self.llama.forward_observed(ids, &mask, &mut |_, _, _| ());
        let logits = head.logits(hidden.slice([0..1, first..seq]));
        Ok(logits.into_data_as::<f32>().try_into_vec()?)
    }
}

/// A model that is asked for the same contexts again, as a teacher is for each of its students: keeps its logits as long as there
/// is room for them.
pub struct Remembering<M> {
    model: M,
    /// By context and first position.
    known: HashMap<(Vec<u32>, usize), Vec<f32>>,
    /// Bytes.
    room: usize,
}

impl<M: LogitModel> Remembering<M> {
    /// Keeps `room` bytes of logits at most.
    pub fn new(model: M, room: usize) -> Self {
        Self { model, known: HashMap::new(), room }
    }
}

impl<M: LogitModel> LogitModel for Remembering<M> {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn logits(&mut self, tokens: &[u32]) -> Logits {
        self.logits_from(tokens, 0)
    }

    fn logits_from(&mut self, tokens: &[u32], first: usize) -> Logits {
        let context = (tokens.to_vec(), first);
        if let Some(logits) = self.known.get(&context) {
            return Ok(logits.clone());
        }
        let logits = self.model.logits_from(tokens, first)?;
        let bytes = size_of_val(logits.as_slice());
        if bytes <= self.room {
            self.room -= bytes;
            self.known.insert(context, logits.clone());
        }
        Ok(logits)
    }
}

/// `tokens`, row-major, as `[rows, tokens / rows]`. All tokens that a Burn model reads come through here.
///
/// # Errors
/// A token outside the vocabulary.
pub fn token_tensor(
    tokens: &[u32],
    rows: usize,
    vocab_size: usize,
    device: &Device,
) -> Result<Tensor<2, Int>, Refused> {
    check_tokens(tokens, vocab_size)?;
    let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
    Ok(Tensor::from_data(TensorData::new(ids, [rows, tokens.len() / rows]), device))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::models;

    /// Counts how often it is asked; its logits are the tokens.
    struct Counting(usize);

    impl LogitModel for Counting {
        fn vocab_size(&self) -> usize {
            1
        }

        fn logits(&mut self, tokens: &[u32]) -> Logits {
            self.0 += 1;
            Ok(tokens.iter().map(|token| *token as f32).collect())
        }
    }

    #[test]
    fn a_token_outside_the_vocabulary_never_reaches_a_model() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/nano.json");
        let config = bitllama_formats::hf::read_config(&path).unwrap();
        let (vocab, device) = (config.vocab_size as u32, Device::flex());
        let mut scored = Scored::new(&models::random(&config, 0, &device.clone().autodiff()).unwrap(), &device);
        assert!(scored.logits(&[0, vocab - 1]).is_ok());
        for tokens in [[0, vocab], [u32::MAX, 0]] {
            let message = scored.logits(&tokens).unwrap_err().to_string();
            assert!(message.contains("is outside"), "{message}");
        }
    }

    #[test]
    fn what_is_known_is_not_computed_again() {
        // Room for five logits.
        let mut model = Remembering::new(Counting(0), 20);
        for _ in 0..3 {
            assert_eq!(model.logits_from(&[1, 2, 3], 1).unwrap(), [2.0, 3.0]);
            assert_eq!(model.logits(&[1, 2, 3]).unwrap(), [1.0, 2.0, 3.0]);
        }
        assert_eq!(model.model.0, 2);
        // No room for these.
        assert_eq!(model.logits(&[4]).unwrap(), model.logits(&[4]).unwrap());
        assert_eq!(model.model.0, 4);
    }
}
