//! The loss of a micro-batch and its gradients. The graph is cut before the first block and behind the last one, and with
//! `train.recompute = "block"` between blocks; each segment is followed back from the gradient that the one behind it gave.

use std::ops::Range;

use anyhow::Result;
use bitllama_nn::ops::gradient;
use bitllama_nn::profile::phase;
use bitllama_nn::{Llama, Mask, Positions};
use bitllama_runtime::evaluate::check_tokens;
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Device, Tensor};

use super::loss::{ScoredTargets, Terms, losses};
use super::optimizer::Gradients;
use super::states::{Compared, Projections, Side, States, Term};
use super::teacher::Teacher;
use crate::data::batches::Batch;
use crate::evaluate::token_tensor;
use crate::recipe::Recipe;

/// The loss and its terms as numbers, before they are weighed, by the names of [`Values::NAMES`]; 0 for what the recipe has not.
pub struct Values(pub [f64; 5]);

impl Values {
    /// What each value is.
    pub const NAMES: [&str; 5] =
        ["loss", "cross-entropy", "divergence", "distance of hidden states", "divergence of relations"];
}

/// What gradients depend on, beside the student and the batch.
pub struct Setting<'a> {
    /// The run.
    pub recipe: &'a Recipe,
    /// The teacher.
    pub teacher: &'a Teacher<'a>,
    /// Which of its blocks too.
    pub compared: &'a Compared,
    /// Between hidden states of different widths.
    pub projections: &'a Projections,
    /// With autodiff.
    pub device: &'a Device,
}

/// Gradients of several segments and micro-batches, summed.
#[derive(Default)]
pub struct Gathered {
    student: GradientsAccumulator<Llama>,
    projections: GradientsAccumulator<Projections>,
}

impl Gathered {
    fn add(&mut self, grads: &mut burn::tensor::Gradients, student: &Llama, projections: &Projections) {
        self.student.accumulate(student, GradientsParams::from_module(grads, student));
        self.projections.accumulate(projections, GradientsParams::from_module(grads, projections));
    }

    /// The sums.
    pub fn gradients(mut self) -> Gradients {
        Gradients { student: self.student.grads(), projections: self.projections.grads() }
    }
}

/// Some blocks with their graph.
struct Segment {
    /// A leaf, `[rows, seq, hidden]`.
    input: Tensor<3>,
    output: Tensor<3>,
    states: States,
}

/// What the blocks of a pass share.
struct Pass<'a> {
    setting: &'a Setting<'a>,
    student: &'a Llama,
    positions: Positions,
    of_teacher: States,
    /// Of the micro-batch in the step.
    share: f64,
}

/// Adds the gradients of micro-batch `pass` of a step's `batches` to those gathered, scaled for their sum over the step, which
/// starts at training row `first`. Values are such that their means over the micro-batches are those of the step.
///
/// # Errors
/// A token outside the vocabulary; a teacher's cache that does not have its rows.
pub fn micro_batch(
    setting: &Setting,
    student: &Llama,
    first: usize,
    (batches, pass): (&[Batch], usize),
    gathered: &mut Gathered,
) -> Result<Values> {
    let Setting { recipe, compared, projections, .. } = setting;
    let (rows, seq, distill) = (recipe.train.batch_size, recipe.data.sequence_length, recipe.distill());
    let (batch, first) = (&batches[pass], first + pass * rows);
    let plain = setting.device.clone().inner();
    let vocab_size = student.config.vocab_size;
    let inputs = token_tensor(&batch.inputs, rows, vocab_size, &plain)?;
    check_tokens(&batch.targets, vocab_size)?;
    let mask = Mask::within_documents(&batch.documents, seq, &plain);
    let (known, of_teacher) = phase("teacher", || setting.teacher.known(first, inputs.clone(), &mask, compared))?;
    let pass = Pass {
        setting,
        student,
        positions: Positions::new(&student.config, mask),
        of_teacher,
        share: 1.0 / batches.len() as f64,
    };
    let blocks = student.layers.len();
    let again = recipe.train.recomputed(blocks);

    // What goes into the blocks that are computed again, and the others with their graph.
    let (table, mut into, whole) = phase("forward", || {
        let table = student.embed_tokens.weight.val();
        let (into, x) = pass.inputs(again, student.embedded(&table.clone().inner(), inputs.clone()));
        (table, into, pass.segment(again..blocks, x))
    });

    let (last, head_table) = (leaf(whole.output.clone().inner()), leaf(table.clone().inner()));
    let Terms { loss, ce, divergence } = phase("loss", || {
        let (hidden, head) = student.forward_head(last.clone(), head_table.clone());
        let scored = ScoredTargets::of_step(&batch.scored, batches);
        losses(hidden, &head, known, &batch.targets, scored, &distill)
    });
    let of_head = [Some(loss.clone()), Some(ce), divergence].map(|term| term.map(Tensor::inner));
    let (mut d_x, d_table) = phase("backward", || {
        let mut grads = scaled(loss, pass.share).backward();
        gathered.add(&mut grads, student, projections);
        (gradient_of(last, &mut grads), gradient_of(head_table, &mut grads))
    });

    let mut of_blocks = [Vec::new(), Vec::new()];
    d_x = pass.back(whole, d_x, &mut of_blocks, gathered);
    while let Some(input) = into.pop() {
        let block = into.len();
        let segment = phase("recompute", || pass.segment(block..block + 1, input));
        d_x = pass.back(segment, d_x, &mut of_blocks, gathered);
    }
    phase("backward", || {
        let d_table = student.with_embedded(d_table, inputs, d_x);
        // By way of the quantizer, if there is one.
        let mut grads = gradient::known(table, d_table).backward();
        gathered.add(&mut grads, student, projections);
    });

    // Summed in the order of pairs, in whatever order their blocks were followed back.
    let [hidden, relations] = of_blocks.map(|mut terms| {
        terms.sort_by_key(|(pair, _)| *pair);
        terms.into_iter().map(|(_, term)| Some(term)).collect::<Vec<_>>()
    });
    let ends = [3, 3 + hidden.len(), 3 + hidden.len() + relations.len()];
    let values = of_head.into_iter().chain(hidden).chain(relations);
    let values = values.map(|term| term.unwrap_or_else(|| Tensor::zeros([1], &plain))).collect();
    let values = Tensor::cat(values, 0).into_data().convert::<f64>();
    let numbers = values.as_slice::<f64>().unwrap_or_default();
    let sum = |range: Range<usize>| numbers.get(range).map_or(f64::NAN, |terms| terms.iter().sum());
    let mut values = [sum(0..1), sum(1..2), sum(2..3), sum(ends[0]..ends[1]), sum(ends[1]..ends[2])];
    let weights = [distill.hidden.map(|term| term.weight), distill.relations.map(|term| term.weight)];
    values[0] += weights.iter().zip(&values[3..]).map(|(weight, value)| weight.unwrap_or(0.0) * value).sum::<f64>();
    Ok(Values(values))
}

impl Pass<'_> {
    /// What goes into each of the first `blocks`, and what the last of them gives, without a graph.
    fn inputs(&self, blocks: usize, mut x: Tensor<3>) -> (Vec<Tensor<3>>, Tensor<3>) {
        let (plain, mut into) = (self.student.valid(), Vec::with_capacity(blocks));
        for block in 0..blocks {
            into.push(x.clone());
            x = plain.forward_blocks(block..block + 1, x, &self.positions, &mut |_, _, _| ());
        }
        (into, x)
    }

    /// Blocks and their graph from what goes into the first.
    fn segment(&self, blocks: Range<usize>, input: Tensor<3>) -> Segment {
        let (input, mut states) = (leaf(input), States::default());
        let mut observe = self.setting.compared.observer(Side::Student, &mut states);
        let output = self.student.forward_blocks(blocks, input.clone(), &self.positions, &mut observe);
        drop(observe);
        Segment { input, output, states }
    }

    /// Gathers the gradients of a segment from that of its output, and of the terms that compare its blocks, which are added to
    /// `terms`; the gradient of its input.
    fn back(
        &self,
        segment: Segment,
        d_output: Tensor<3>,
        terms: &mut [Vec<Term>; 2],
        gathered: &mut Gathered,
    ) -> Tensor<3> {
        let Setting { recipe, compared, projections, .. } = self.setting;
        let distill = recipe.distill();
        phase("backward", || {
            let Segment { input, output, states } = segment;
            let mut loss = gradient::known(output, d_output);
            let weights = [distill.hidden.map(|term| term.weight), distill.relations.map(|term| term.weight)];
            let found = compared.losses(&states, &self.of_teacher, projections, self.positions.mask());
            for ((found, weight), terms) in found.into_iter().zip(weights).zip(terms) {
                for (pair, term) in found {
                    loss = loss + term.clone() * (weight.unwrap_or(0.0) * self.share);
                    terms.push((pair, term.inner()));
                }
            }
            drop(states);
            let mut grads = loss.backward();
            gathered.add(&mut grads, self.student, projections);
            gradient_of(input, &mut grads)
        })
    }
}

/// The start of a graph.
fn leaf<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    Tensor::from_inner(tensor).require_grad()
}

/// That of a leaf; zeros where nothing depends on it.
fn gradient_of<const D: usize>(leaf: Tensor<D>, grads: &mut burn::tensor::Gradients) -> Tensor<D> {
    leaf.grad_remove(grads).unwrap_or_else(|| leaf.inner().zeros_like())
}

fn scaled(loss: Tensor<1>, share: f64) -> Tensor<1> {
    if share == 1.0 { loss } else { loss * share }
}
