//! What a training step computes beside its matrix products: operators forward and backward, the loss, the optimizer.
//!
//! | module | subject |
//! |---|---|
//! | [`attention`] | rotary embedding and causal grouped-query attention |
//! | [`rms_norm`] | the gradient of RMSNorm |
//! | [`qk_norm`] | RMSNorm of queries and keys side by side with values |
//! | [`bias`] | biases of linear layers whose outputs lie side by side |
//! | [`gated`] | gated activations over gates and values that lie side by side |
//! | [`loss`] | cross-entropy and divergence from a teacher, values and gradients of one row of logits |
//! | [`logits`] | factors and caps between a head's product and the loss |
//! | [`squares`] | what the norm of gradients is made of |
//! | [`adamw`] | one pass over a parameter, its gradient and its moments |
//! | `runs` | loops over the lanes of a vector |
//! | [`blocks`] | matrices a few rows or columns at a time |
//! | [`rows`] | rounding of such blocks, in one pass over a weight and one more for scales that it gives |
//! | [`buffer`] | numbers that are written before they are read |
//! | [`halves`] | numbers of 16 bits made `f32`, and back where that loses nothing |
//!
//! Rows are tokens; all arithmetic is `f32`. Work is split over rayon's threads by shape alone, and every sum has one order, so
//! results are the same to the bit for every number of threads. They differ between instruction sets by rounding.

pub mod adamw;
pub mod attention;
pub mod bias;
pub mod blocks;
pub mod buffer;
pub mod gated;
pub mod halves;
pub mod logits;
pub mod loss;
pub mod qk_norm;
pub mod rms_norm;
pub mod rows;
mod runs;
pub mod squares;

/// Numbers of a part that a thread takes at a time: a few hundred microseconds of work, and in reach of its cache.
const PART: usize = 1 << 16;

/// Rows of a part, for rows of `width` numbers.
fn rows_of_part(width: usize) -> usize {
    (PART / width.max(1)).max(1)
}
