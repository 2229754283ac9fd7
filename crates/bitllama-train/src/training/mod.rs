//! The loop and its parts.
//!
//! | module | subject |
//! |---|---|
//! | [`run`] | the loop: steps, evaluations, checkpoints, the end |
//! | [`step`] | one optimizer step |
//! | [`backward`] | loss and gradients of a micro-batch, in one piece or block by block |
//! | [`loss`] | cross-entropy and divergence, and how they are weighed |
//! | [`divergence`] | forward and reverse KL, Jensen-Shannon, over all or the likeliest tokens |
//! | [`states`] | losses between hidden states and attention relations |
//! | [`teacher`] | the teacher's distributions: from the model, or from a cache on disk |
//! | [`optimizer`] | what moves weights and scales, learning-rate schedule, clipping |
//! | [`checkpoint`] | what a run needs to go on, on disk |
//! | [`interrupt`] | signals that ask a run to stop |

pub mod backward;
pub mod checkpoint;
pub mod divergence;
pub mod interrupt;
pub mod loss;
pub mod optimizer;
pub mod run;
pub mod states;
pub mod step;
pub mod teacher;
