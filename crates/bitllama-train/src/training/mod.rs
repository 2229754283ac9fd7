//! The loop and its parts.
//!
//! | module | subject |
//! |---|---|
//! | [`run`] | the loop: steps, evaluations, checkpoints, the end |
//! | [`step`] | one optimizer step: forward, losses, gradients |
//! | [`loss`] | cross-entropy and divergence, and how they are weighed |
//! | [`divergence`] | forward and reverse KL, Jensen-Shannon, over all or the likeliest tokens |
//! | [`optimizer`] | AdamW by groups, learning-rate schedule, clipping |
//! | [`checkpoint`] | what a run needs to go on, on disk |
//! | [`interrupt`] | Ctrl-C |

pub mod checkpoint;
pub mod divergence;
pub mod interrupt;
pub mod loss;
pub mod optimizer;
pub mod run;
pub mod step;
