//! Losses between the blocks of student and teacher: hidden states, and MiniLM's relations.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use bitllama_core::ModelConfig;
use bitllama_nn::decoder::Value;
use bitllama_nn::{Head, Llama, Mask, Site};
use burn::module::{Module, Param, ParamId};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_distr::{Distribution, Normal};

use crate::recipe::{Distill, HiddenLoss};
use crate::seeded;

/// A student's and a teacher's block, counted from 0.
type Pair = [usize; 2];

/// Which blocks are compared, and how.
#[derive(Debug, Clone, Default)]
pub struct Compared {
    hidden: Option<(HiddenLoss, Vec<Pair>)>,
    /// Relation heads.
    relations: Option<(usize, Vec<Pair>)>,
}

/// Whose blocks.
#[derive(Debug, Clone, Copy)]
pub enum Side {
    /// The first of each pair.
    Student = 0,
    /// The second.
    Teacher = 1,
}

/// What a forward pass left at the compared blocks.
#[derive(Default)]
pub struct States {
    /// What blocks gave, `[batch, seq, hidden]`.
    outputs: HashMap<usize, Tensor<3>>,
    /// Queries, keys and values of a block, `[batch, seq, width]`.
    relations: HashMap<usize, Vec<Tensor<3>>>,
}

/// The number of a pair and what it adds to the loss, before it is weighed.
pub type Term = (usize, Tensor<1>);

/// Matrices from the student's hidden states to the width of the teacher's, one for each compared pair; none where the
/// widths agree. They are trained beside the student and are no part of it.
#[derive(Module, Debug)]
pub struct Projections {
    /// `[student hidden, teacher hidden]`.
    matrices: Vec<Param<Tensor<2>>>,
}

/// What is added to the number of a projection for its id, beside those of the weights and scales.
const PROJECTIONS: u64 = 3 << 32;

impl Projections {
    /// Normal random matrices that keep the size of a state, on a device with autodiff.
    pub fn new(compared: &Compared, student: usize, teacher: usize, seed: u64, device: &Device) -> Self {
        let count = match &compared.hidden {
            Some((_, pairs)) if student != teacher => pairs.len(),
            _ => 0,
        };
        let one = |index: usize| {
            let normal =
                Normal::new(0.0, (student as f32).powf(-0.5)).unwrap_or_else(|_| unreachable!("it is positive"));
            let mut rng = seeded(seed, "projection", index as u64);
            let data: Vec<f32> = (0..student * teacher).map(|_| normal.sample(&mut rng)).collect();
            let tensor = Tensor::from_data(TensorData::new(data, [student, teacher]), device).require_grad();
            Param::initialized(ParamId::from(PROJECTIONS + index as u64), tensor)
        };
        Self { matrices: (0..count).map(one).collect() }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }
}

impl Compared {
    /// What the recipe compares between two models.
    ///
    /// # Errors
    /// A block that a model has not, or widths that cannot be cut into relation heads.
    pub fn new(distill: &Distill, student: &ModelConfig, teacher: &ModelConfig) -> Result<Self> {
        let counts = [student.num_hidden_layers, teacher.num_hidden_layers];
        let checked = |key: &str, pairs: Vec<Pair>| {
            ensure!(!pairs.is_empty(), "`{key}` names no pair of blocks");
            for [own, of_teacher] in &pairs {
                let [student, teacher] = counts;
                if *own >= student || *of_teacher >= teacher {
                    bail!(
                        "`{key}`: [{own}, {of_teacher}] is no pair of a student's and a teacher's block: they have \
                           {student} and {teacher}, counted from 0"
                    );
                }
            }
            Ok(pairs)
        };
        let hidden = distill.hidden.as_ref().map(|term| {
            let evenly = || (0..counts[0]).map(|own| [own, ((own + 1) * counts[1]).div_ceil(counts[0]) - 1]).collect();
            let pairs = term.layers.clone().unwrap_or_else(evenly);
            Ok::<_, anyhow::Error>((term.loss, checked("distill.hidden.layers", pairs)?))
        });
        let relations = distill.relations.as_ref().map(|term| {
            let widths = [student.q_size(), student.kv_size(), teacher.q_size(), teacher.kv_size()];
            let divides = |heads: usize| heads > 0 && widths.iter().all(|width| width.is_multiple_of(heads));
            let most = || (1..=student.num_key_value_heads).rev().find(|heads| divides(*heads)).unwrap_or(1);
            let heads = term.heads.unwrap_or_else(most);
            ensure!(
                divides(heads),
                "`distill.relations.heads` = {heads} does not divide the widths of queries and of keys and values: {} and {} \
                 in the student, {} and {} in the teacher",
                widths[0],
                widths[1],
                widths[2],
                widths[3]
            );
            let last = || vec![counts.map(|count| count - 1)];
            let pairs = term.layers.clone().unwrap_or_else(last);
            Ok((heads, checked("distill.relations.layers", pairs)?))
        });
        Ok(Self { hidden: hidden.transpose()?, relations: relations.transpose()? })
    }

    /// What goes into the head (`[batch, seq, hidden]`), the head, and what [`Compared::losses`] needs of this side.
    pub fn forward(&self, side: Side, llama: &Llama, tokens: Tensor<2, Int>, mask: &Mask) -> (Tensor<3>, Head, States) {
        let mut states = States::default();
        let (hidden, head) = llama.forward_observed(tokens, mask, &mut self.observer(side, &mut states));
        (hidden, head, states)
    }

    /// Puts what is compared of a side into `states`, as it is observed.
    pub fn observer(&self, side: Side, states: &mut States) -> impl FnMut(usize, Site, Value) {
        let of = move |pairs: &[Pair], layer: usize| pairs.iter().any(|pair| pair[side as usize] == layer);
        move |layer, site, value| match site {
            Site::Output if self.hidden.as_ref().is_some_and(|(_, pairs)| of(pairs, layer)) => {
                states.outputs.insert(layer, value());
            }
            Site::Queries | Site::Keys | Site::Values
                if self.relations.as_ref().is_some_and(|(_, pairs)| of(pairs, layer)) =>
            {
                states.relations.entry(layer).or_default().push(value());
            }
            _ => {}
        }
    }

    /// The terms of hidden states and of relations that the student's blocks in `student` have a part in: each the number of a
    /// pair and, as a scalar of shape `[1]`, its share of the mean over all pairs. The mask is that of the forward passes.
    pub fn losses(&self, student: &States, teacher: &States, projections: &Projections, mask: &Mask) -> [Vec<Term>; 2] {
        let (mut hidden, mut relations) = (Vec::new(), Vec::new());
        if let Some((loss, pairs)) = &self.hidden {
            for (index, [own, of_teacher]) in pairs.iter().enumerate() {
                let Some(own) = student.outputs.get(own).cloned() else { continue };
                let own = match projections.matrices.get(index) {
                    Some(matrix) => own.matmul(matrix.val().unsqueeze()),
                    None => own,
                };
                let term = hidden_loss(*loss, own, Tensor::from_inner(teacher.outputs[of_teacher].clone()));
                hidden.push((index, term / pairs.len() as f64));
            }
        }
        if let Some((heads, pairs)) = &self.relations {
            for (index, [own, of_teacher]) in pairs.iter().enumerate() {
                let Some(own) = student.relations.get(own) else { continue };
                let of_each = own.iter().zip(&teacher.relations[of_teacher]).map(|(own, of_teacher)| {
                    let of_teacher = relation(of_teacher.clone(), *heads, mask.additive(false));
                    relation_loss(relation(own.clone(), *heads, mask.additive(true)), Tensor::from_inner(of_teacher))
                });
                let sum = of_each.reduce(|a, b| a + b);
                relations.extend(sum.map(|sum| (index, sum / (pairs.len() * own.len()) as f64)));
            }
        }
        [hidden, relations]
    }
}

/// The mean over positions of the distance of two states `[batch, seq, hidden]`.
fn hidden_loss(loss: HiddenLoss, student: Tensor<3>, teacher: Tensor<3>) -> Tensor<1> {
    const TINY: f64 = 1e-8;
    match loss {
        // Each position relative to its size: a few are far larger than the others, and the next norm takes that away.
        HiddenLoss::Mse => {
            let size = teacher.clone().square().mean_dim(2) + TINY;
            ((student - teacher).square().mean_dim(2) / size).mean()
        }
        HiddenLoss::Cosine => {
            let dot = (student.clone() * teacher.clone()).sum_dim(2);
            let sizes = (student.square().sum_dim(2) + TINY).sqrt() * (teacher.square().sum_dim(2) + TINY).sqrt();
            (dot / sizes).neg().mean() + 1.0
        }
    }
}

/// Natural logarithms of MiniLMv2's relations, equation 3 (<https://arxiv.org/abs/2012.15828>):
/// `softmax(A A^T / sqrt(d))` within `heads` parts of `A` (`[batch, seq, width]`), `[batch, heads, seq, seq]`. The mask is that
/// of the attention: what a position cannot see, it cannot resemble.
fn relation(a: Tensor<3>, heads: usize, mask: Tensor<4>) -> Tensor<4> {
    let [batch, seq, width] = a.dims();
    let a = a.reshape([batch, seq, heads, width / heads]).swap_dims(1, 2);
    let scores = a.clone().matmul(a.swap_dims(2, 3)) / ((width / heads) as f64).sqrt();
    log_softmax(scores + mask, 3).clamp_min(LEAST)
}

/// The logarithm of the least probability that counts, near the smallest normal f32.
const LEAST: f64 = -87.0;

/// KL(teacher || student) of relations, the mean over positions and heads.
fn relation_loss(student: Tensor<4>, teacher: Tensor<4>) -> Tensor<1> {
    let [batch, heads, seq, _] = student.dims();
    (teacher.clone().exp() * (teacher - student)).sum() / (batch * heads * seq) as f64
}

#[cfg(test)]
mod tests {
    use bitllama_nn::Mask;

    use super::*;

    fn state(values: &[f32], device: &Device) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, 2, values.len() / 2]), device)
    }

    fn scalar(tensor: Tensor<1>) -> f64 {
        let value: f32 = tensor.into_scalar();
        value as f64
    }

    #[test]
    fn hidden_losses_by_hand() {
        let device = Device::flex();
        let (student, teacher) = (state(&[1.0, 2.0, 0.0, 3.0], &device), state(&[1.0, 0.0, 4.0, 3.0], &device));
        // Position 0: 4 over 1; position 1: 16 over 25.
        let mse = scalar(hidden_loss(HiddenLoss::Mse, student.clone(), teacher.clone()));
        assert!((mse - (4.0 + 0.64) / 2.0).abs() < 1e-6, "{mse}");
        let cosine = scalar(hidden_loss(HiddenLoss::Cosine, student, teacher.clone()));
        assert!((cosine - (1.0 - (5f64.powf(-0.5) + 9.0 / 15.0) / 2.0)).abs() < 1e-6, "{cosine}");
        assert!(scalar(hidden_loss(HiddenLoss::Mse, teacher.clone(), teacher.clone())) == 0.0);
        assert!(scalar(hidden_loss(HiddenLoss::Cosine, teacher.clone(), teacher)).abs() < 1e-6);
    }

    #[test]
    fn relations_by_hand() {
        let device = Device::flex();
        let mask = Mask::causal(1, 2, &device).additive(false);
        // One head of two: position 0 sees itself only; position 1 scores 2 and 4, over sqrt(2).
        let of = |values: &[f32]| relation(state(values, &device), 1, mask.clone());
        let (student, teacher) = (of(&[1.0, 1.0, 2.0, 0.0]), of(&[1.0, 0.0, 0.0, 1.0]));
        let softmax = |a: f64, b: f64| {
            let (a, b) = ((a / 2f64.sqrt()).exp(), (b / 2f64.sqrt()).exp());
            [a / (a + b), b / (a + b)]
        };
        let (p, q) = (softmax(0.0, 1.0), softmax(2.0, 4.0));
        let expected = (p[0] * (p[0] / q[0]).ln() + p[1] * (p[1] / q[1]).ln()) / 2.0;
        let got = scalar(relation_loss(student.clone(), teacher.clone()));
        assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        assert!(scalar(relation_loss(teacher.clone(), teacher)) == 0.0);
        let two_heads = relation(state(&[1.0, 1.0, 2.0, 0.0], &device), 2, mask);
        assert_eq!(two_heads.dims(), [1, 2, 2, 2]);
    }

    #[test]
    fn gradients_are_finite_where_the_mask_hides() {
        let device = Device::flex();
        let leaf = state(&[1.0, -1.0, 2.0, 0.5], &device.clone().autodiff()).require_grad();
        let mask = Mask::causal(1, 2, &device).additive(false);
        let teacher = relation(state(&[0.0, 1.0, 2.0, 0.0], &device), 1, mask.clone());
        let loss = relation_loss(relation(leaf.clone(), 1, Tensor::from_inner(mask)), Tensor::from_inner(teacher));
        let gradient = leaf.grad(&loss.backward()).unwrap().into_data_as::<f32>();
        let gradient: Vec<f32> = gradient.try_into_vec().unwrap();
        assert!(gradient.iter().all(|g| g.is_finite()) && gradient.iter().any(|g| *g != 0.0), "{gradient:?}");
    }
}
