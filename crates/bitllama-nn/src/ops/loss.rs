//! The head, cross-entropy and divergence from a teacher in one operator, over chunks of tokens: no more logits exist than
//! those of a chunk. The gradient is computed with the loss, while the logits are there (as in Liger Kernel, Hsu et al. 2024,
//! <https://arxiv.org/abs/2410.10989>).

use std::cell::RefCell;

use bitllama_kernels::Isa;
use bitllama_kernels::gemm::{Elements, View, gemm};
use bitllama_kernels::training::logits::Bound;
use bitllama_kernels::training::loss::{self, Teacher, Terms, Weights, likeliest};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::node::{Input, Numbers, record};
use crate::decoder::Head;
use crate::profile::operator;

pub use bitllama_kernels::training::loss::Divergence;

/// What is known of a teacher at the positions of a batch.
pub enum Side<'a> {
    /// Nothing.
    Absent,
    /// What goes into its head, `[positions, hidden]`, and the head; of its distributions the likeliest tokens only, if a number
    /// of them is given.
    Model(&'a Tensor<2>, &'a Head, Option<usize>),
    /// `[positions, k]` and `[positions, k + 1]`, as [`Teacher::Likeliest`] of each.
    Likeliest(&'a [u32], &'a [f32]),
}

/// Weights of the loss's terms: `ce * cross-entropy + divergence * D`, the first a sum over scored positions divided by `scored`,
/// the second a mean over all positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixture {
    /// Weight of the cross-entropy.
    pub ce: f64,
    /// The divisor of the sum of the cross-entropies: the number of scored targets, or, where several batches make up a
    /// step, their mean number over these.
    pub scored: f64,
    /// Weight of the divergence.
    pub divergence: f64,
    /// By which both sides' logits are divided for the divergence.
    pub temperature: f64,
    /// Which divergence.
    pub kind: Divergence,
}

/// The loss of a batch and its terms.
pub struct Losses {
    /// What is followed back: a scalar of shape `[1]`.
    pub loss: Tensor<1>,
    /// Sum of the cross-entropies of the scored targets divided by [`Mixture::scored`], nats.
    pub ce: f64,
    /// Mean divergence over all positions, nats; 0 without a teacher.
    pub divergence: f64,
}

/// Numbers of logits that exist at a time, about.
pub const CHUNK: usize = 1 << 24;

thread_local! {
    /// Logits of student and teacher, kept from step to step: fresh pages cost more than the arithmetic on them.
    static LOGITS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Losses of a student whose `hidden` (`[positions, hidden]`, after the final norm) goes into `head`, against `targets`
/// (`[positions]`) where `scored`, and against a teacher.
///
/// # Panics
/// If shapes disagree, or a target is not in the vocabulary.
pub fn forward(
    hidden: Tensor<2>,
    head: &Head,
    side: Side,
    targets: &[u32],
    scored: &[bool],
    mixture: &Mixture,
) -> Losses {
    let ([positions, width], isa, precision) = (hidden.dims(), Isa::current(), head.precision);
    assert!(targets.len() == positions && scored.len() == positions, "one target for each position");
    let (vocab, tied, bound) = (head.vocab(), head.tied, bound_of(head));
    let inputs = vec![Input::of(hidden), Input::of(head.weight.clone())];
    let (hidden, table) = (inputs[0].numbers(), inputs[1].numbers());
    let of_teacher = match &side {
        Side::Model(hidden, head, _) => {
            assert_eq!(head.vocab(), vocab, "two vocabularies");
            let width = hidden.dims()[1];
            Some((Input::of((*hidden).clone()).numbers(), Input::of(head.weight.clone()).factor(), width, *head))
        }
        _ => None,
    };
    let per_position = mixture.divergence / positions as f64;
    let weights = |scored: bool| Weights {
        ce: if scored { (mixture.ce / mixture.scored) as f32 } else { 0.0 },
        divergence: per_position as f32,
        temperature: mixture.temperature as f32,
        kind: mixture.kind,
    };

    let (mut d_hidden, mut d_table) = (vec![0.0; hidden.len()], vec![0.0; table.len()]);
    let mut terms: Vec<Terms> = Vec::with_capacity(positions);
    let chunks = (positions * vocab).div_ceil(CHUNK).clamp(1, positions.max(1));
    LOGITS.with_borrow_mut(|[logits, teacher_logits]| {
        for chunk in 0..chunks {
            let (start, end) = (positions * chunk / chunks, positions * (chunk + 1) / chunks);
            let rows = end - start;
            if rows == 0 {
                continue;
            }
            grow(logits, rows * vocab);
            let logits = &mut logits[..rows * vocab];
            let hidden = View::row_major(&hidden[start * width..end * width], [rows, width]);
            operator("head", || {
                gemm(isa, precision, hidden, head_view(&table[..], width, vocab, tied), logits, vocab, false)
            });
            if let Some((hidden, table, width, head)) = &of_teacher {
                grow(teacher_logits, rows * vocab);
                let hidden = View::row_major(&hidden[start * width..end * width], [rows, *width]);
                let table = head_view(table.elements(), *width, vocab, head.tied);
                let out = &mut teacher_logits[..rows * vocab];
                operator("teacher head", || {
                    gemm(isa, head.precision, hidden, table, out, vocab, false);
                    bind(isa, bound_of(head), out, vocab);
                });
            }
            let of_rows =
                logits.par_chunks_mut(vocab).enumerate().map_init(Vec::<f32>::new, |before, (row, logits)| {
                    let position = start + row;
                    let weights = weights(scored[position]);
                    let mut of = |teacher: Teacher, logits: &mut [f32]| {
                        bound.forward(isa, logits);
                        if bound.cap.is_some() {
                            // The gradient takes their place.
                            before.clear();
                            before.extend_from_slice(logits);
                        }
                        let terms = loss::row(isa, &weights, teacher, targets[position] as usize, logits);
                        bound.backward(isa, before, logits);
                        terms
                    };
                    match &side {
                        Side::Absent => of(Teacher::Absent, logits),
                        Side::Likeliest(tokens, log_p) => {
                            let k = tokens.len() / positions;
                            let tokens = &tokens[position * k..][..k];
                            of(Teacher::Likeliest(tokens, &log_p[position * (k + 1)..][..k + 1]), logits)
                        }
                        Side::Model(_, _, top_k) => {
                            let known = &teacher_logits[row * vocab..][..vocab];
                            match top_k.filter(|k| *k < vocab) {
                                None => of(Teacher::Logits(known), logits),
                                Some(k) => {
                                    let (mut tokens, mut log_p) = (Vec::new(), Vec::new());
                                    likeliest(isa, known, weights.temperature, k, &mut tokens, &mut log_p);
                                    of(Teacher::Likeliest(&tokens, &log_p), logits)
                                }
                            }
                        }
                    }
                });
            operator("rows", || terms.par_extend(of_rows));
            let d_logits = View::row_major(&*logits, [rows, vocab]);
            let table = head_view(&table[..], width, vocab, tied).transposed();
            let d_hidden = &mut d_hidden[start * width..end * width];
            operator("head gradient", || gemm(isa, precision, d_logits, table, d_hidden, width, false));
            if tied {
                operator("head gradient", || {
                    gemm(isa, precision, d_logits.transposed(), hidden, &mut d_table, width, chunk > 0)
                });
            } else {
                operator("head gradient", || {
                    gemm(isa, precision, hidden.transposed(), d_logits, &mut d_table, vocab, chunk > 0)
                });
            }
        }
    });

    let of_scored = terms.iter().zip(scored).filter(|(_, scored)| **scored);
    let ce = of_scored.map(|(terms, _)| terms.ce as f64).sum::<f64>() / mixture.scored;
    let divergence = terms.iter().map(|terms| terms.divergence as f64).sum::<f64>() / positions as f64;
    let loss = mixture.ce * ce + mixture.divergence * divergence;
    let loss = record("loss", inputs, Numbers::new(vec![loss as f32], [1]), move |d_loss, wanted| {
        let scaled = |mut gradient: Vec<f32>| {
            if d_loss[0] != 1.0 {
                gradient.par_iter_mut().for_each(|x| *x *= d_loss[0]);
            }
            gradient
        };
        vec![wanted.gradient(0, || scaled(d_hidden)), wanted.gradient(1, || scaled(d_table))]
    });
    Losses { loss, ce, divergence }
}

/// The likeliest `k` tokens of each row (`[positions, k]`) that a model gives from `hidden` (`[positions, hidden]`, what goes
/// into its head), and logarithms of their probabilities, `[positions, k + 1]`, as [`Teacher::Likeliest`] of each.
pub fn likeliest_of(hidden: Tensor<2>, head: &Head, temperature: f64, k: usize) -> (Vec<u32>, Vec<f32>) {
    let ([positions, width], isa, vocab) = (hidden.dims(), Isa::current(), head.vocab());
    let (hidden, table) = (Input::of(hidden).numbers(), Input::of(head.weight.clone()).factor());
    let (mut all_tokens, mut all_log_p) = (Vec::new(), Vec::new());
    let rows = (CHUNK / vocab).clamp(1, positions.max(1));
    LOGITS.with_borrow_mut(|[logits, _]| {
        for hidden in hidden.chunks(rows * width) {
            let rows = hidden.len() / width;
            grow(logits, rows * vocab);
            let logits = &mut logits[..rows * vocab];
            let hidden = View::row_major(hidden, [rows, width]);
            let table = head_view(table.elements(), width, vocab, head.tied);
            gemm(isa, head.precision, hidden, table, logits, vocab, false);
            bind(isa, bound_of(head), logits, vocab);
            let of_rows = logits.par_chunks(vocab).map(|logits| {
                let (mut tokens, mut log_p) = (Vec::new(), Vec::new());
                likeliest(isa, logits, temperature as f32, k, &mut tokens, &mut log_p);
                (tokens, log_p)
            });
            for (tokens, log_p) in of_rows.collect::<Vec<_>>() {
                all_tokens.extend(tokens);
                all_log_p.extend(log_p);
            }
        }
    });
    (all_tokens, all_log_p)
}

fn grow(numbers: &mut Vec<f32>, len: usize) {
    if numbers.len() < len {
        *numbers = vec![0.0; len];
    }
}

/// How a head's logits come from its product.
fn bound_of(head: &Head) -> Bound {
    Bound { scale: head.scale, cap: head.cap }
}

/// Makes rows of a product into logits.
fn bind(isa: Isa, bound: Bound, rows: &mut [f32], vocab: usize) {
    if !bound.is_none() {
        rows.par_chunks_mut(vocab).for_each(|row| bound.forward(isa, row));
    }
}

/// `[hidden, vocab]`.
fn head_view<'a>(table: impl Into<Elements<'a>>, width: usize, vocab: usize, tied: bool) -> View<'a> {
    match tied {
        true => View::row_major(table, [vocab, width]).transposed(),
        false => View::row_major(table, [width, vocab]),
    }
}
