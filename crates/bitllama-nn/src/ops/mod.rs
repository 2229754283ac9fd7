//! Fused differentiable operators: forward and hand-written backward in one place each, over the kernels of
//! [`bitllama_kernels`].
//!
//! | module | subject |
//! |---|---|
//! | [`node`] | an operator in Burn's graph of gradients |
//! | [`linear`] | matrix products and biases, several layers of one input side by side |
//! | [`rms_norm`] | RMSNorm |
//! | [`qk_norm`] | RMSNorm of queries and keys, before their rotation |
//! | [`gated`] | gated activations: SwiGLU and its kin |
//! | [`attention`] | rotary embedding and causal grouped-query attention, without the matrix of scores |
//! | [`loss`] | head, cross-entropy and divergence from a teacher, without the logits |
//! | [`squares`] | what the norm of gradients is made of |
//! | [`gradient`] | a gradient that is known, to be followed back from there |
//! | [`adamw`] | the optimizer's step in one pass |
//!
//! They run on the `flex` device. Everywhere else, and for what they do not cover, the modules of this crate compose the same
//! operators out of Burn's; `tests/all/ops.rs` compares both. `BITLLAMA_OPERATORS=plain` in the environment composes them on `flex`
//! too.

use std::cell::Cell;
use std::sync::OnceLock;

use bitllama_kernels::gemm::Precision;
use burn::backend::DispatchDevice;
use burn::tensor::Device;

pub mod adamw;
pub mod attention;
pub mod gated;
pub mod gradient;
pub mod linear;
pub mod loss;
pub mod node;
pub mod qk_norm;
pub mod rms_norm;
pub mod squares;

/// Whether tensors of a device, with or without autodiff, go through fused operators.
pub fn fused(device: &Device) -> bool {
    static WISHED: OnceLock<bool> = OnceLock::new();
    *WISHED.get_or_init(|| fused_by_env().unwrap_or(true))
        && !PLAIN.get()
        && matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether `BITLLAMA_OPERATORS` wants fused operators where there are some: `fused`, the default, or `plain`.
///
/// # Errors
/// What is wrong with its value, in one line.
pub fn fused_by_env() -> Result<bool, String> {
    match std::env::var("BITLLAMA_OPERATORS").as_deref() {
        Err(_) | Ok("fused") => Ok(true),
        Ok("plain") => Ok(false),
        Ok(other) => Err(format!("BITLLAMA_OPERATORS: unknown value `{other}`, expected `fused` or `plain`")),
    }
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
