//! Where a step has the teacher's distributions from.

use anyhow::Result;
use bitllama_nn::Llama;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::divergence::TeacherSide;
use super::states::{Compared, Side, States};
use crate::recipe::Distill;
use crate::teacher_cache::{Likeliest, TeacherCache};

/// The teacher of a run.
pub enum Teacher<'a> {
    /// None: the text alone teaches.
    Absent,
    /// In memory, on an inner device: no gradient is ever taken through it.
    Model(&'a Llama),
    /// On disk.
    Cache(&'a TeacherCache),
}

impl Teacher<'_> {
    /// What is known of its distributions in the training rows from `first` on, whose tokens are `inputs`, and its side of
    /// the states that are compared.
    ///
    /// # Errors
    /// If the cache does not have these rows.
    pub fn side(
        &self,
        first: usize,
        inputs: Tensor<2, Int>,
        mask: Tensor<4>,
        compared: &Compared,
        distill: &Distill,
    ) -> Result<(Option<TeacherSide>, States)> {
        let [rows, seq] = inputs.dims();
        Ok(match self {
            Teacher::Absent => (None, States::default()),
            Teacher::Model(llama) => {
                let (logits, states) = compared.forward(Side::Teacher, llama, inputs, mask);
                let vocab = logits.dims()[2];
                let logits = logits.reshape([rows * seq, vocab]);
                (Some(TeacherSide::of(logits, distill.temperature, distill.top_k)), states)
            }
            Teacher::Cache(cache) => {
                let device = inputs.device();
                (Some(of_cache(cache.rows(first, rows)?, cache.top_k(), &device)), States::default())
            }
        })
    }

    /// Whether there is one.
    pub fn is_present(&self) -> bool {
        !matches!(self, Teacher::Absent)
    }
}

fn of_cache(likeliest: Likeliest, k: usize, device: &Device) -> TeacherSide {
    let positions = likeliest.tokens.len() / k;
    let tokens: Vec<i32> = likeliest.tokens.into_iter().map(|token| token as i32).collect();
    TeacherSide {
        tokens: Some(Tensor::from_data(TensorData::new(tokens, [positions, k]), device)),
        log_p: Tensor::from_data(TensorData::new(likeliest.log_p, [positions, k + 1]), device),
    }
}
