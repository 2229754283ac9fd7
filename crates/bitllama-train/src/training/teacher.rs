//! Where a step has the teacher's distributions from.

use anyhow::Result;
use bitllama_nn::{Head, Llama, Mask};
use burn::tensor::{Int, Tensor};

use super::states::{Compared, Side, States};
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

/// What is known of a teacher's distributions over some rows of text.
pub enum Known {
    /// Nothing.
    Absent,
    /// What goes into its head (`[rows, seq, hidden]`), and the head.
    Model(Box<(Tensor<3>, Head)>),
    /// The likeliest tokens at each position.
    Cached(Likeliest),
}

impl Teacher<'_> {
    /// What is known of its distributions in the training rows from `first` on, whose tokens are `inputs`, and its side of
    /// the states that are compared.
    ///
    /// # Errors
    /// If the cache does not have these rows.
    pub fn known(
        &self,
        first: usize,
        inputs: Tensor<2, Int>,
        mask: &Mask,
        compared: &Compared,
    ) -> Result<(Known, States)> {
        Ok(match self {
            Teacher::Absent => (Known::Absent, States::default()),
            Teacher::Model(llama) => {
                let (hidden, head, states) = compared.forward(Side::Teacher, llama, inputs, mask);
                (Known::Model(Box::new((hidden, head))), states)
            }
            Teacher::Cache(cache) => (Known::Cached(cache.rows(first, inputs.dims()[0])?), States::default()),
        })
    }

    /// Whether there is one.
    pub fn is_present(&self) -> bool {
        !matches!(self, Teacher::Absent)
    }
}
