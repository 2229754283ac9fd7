//! Fused differentiable operators: forward and hand-written backward in one place each, over the kernels of
//! [`bitllama_kernels`].
//!
//! | module | subject |
//! |---|---|
//! | [`node`] | an operator in Burn's graph of gradients |
//! | [`linear`] | matrix products, several matrices of one input side by side |
//! | [`rms_norm`] | RMSNorm |
//! | [`swiglu`] | SwiGLU |
//! | [`attention`] | rotary embedding and causal grouped-query attention, without the matrix of scores |
//! | [`loss`] | head, cross-entropy and divergence from a teacher, without the logits |
//! | [`squares`] | what the norm of gradients is made of |
//! | [`adamw`] | the optimizer's step in one pass |
//!
//! They run on the `flex` device. Everywhere else, and for what they do not cover, the modules of this crate compose the same
//! operators out of Burn's; `tests/ops.rs` compares both. `BITLLAMA_OPERATORS=plain` in the environment composes them on `flex`
//! too.

use std::cell::Cell;
use std::sync::OnceLock;

use bitllama_kernels::gemm::Precision;
use burn::backend::DispatchDevice;
use burn::tensor::Device;

pub mod adamw;
pub mod attention;
pub mod linear;
pub mod loss;
pub mod node;
pub mod rms_norm;
pub mod squares;
pub mod swiglu;

/// Whether tensors of a device, with or without autodiff, go through fused operators.
pub fn fused(device: &Device) -> bool {
    static WISHED: OnceLock<bool> = OnceLock::new();
    let wished = *WISHED.get_or_init(|| std::env::var("BITLLAMA_OPERATORS").map_or(true, |name| name != "plain"));
    wished && !PLAIN.get() && matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Floating-point operations a second that this machine's threads reach with their multiplications in f32.
pub fn peak() -> f64 {
    bitllama_kernels::gemm::peak(bitllama_kernels::Isa::current(), Precision::F32)
}

thread_local! {
    static PLAIN: Cell<bool> = const { Cell::new(false) };
}

/// Calls `f` with all operators composed out of Burn's, on this thread: what fused ones are compared with.
pub fn composed<T>(f: impl FnOnce() -> T) -> T {
    let before = PLAIN.replace(true);
    let result = f();
    PLAIN.set(before);
    result
}
