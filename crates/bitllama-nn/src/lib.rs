//! Llama-family decoders and fake quantizers as Burn modules.
//!
//! | module | subject |
//! |---|---|
//! | [`device`] | `--device` names and the backends compiled in |
//! | [`decoder`] | the model: embedding, blocks, final norm, head |
//! | [`attention`], [`mlp`], [`rms_norm`], [`rotary`] | its parts |
//! | [`mask`] | which positions attend to which |
//! | [`fake_quant`] | low-bit weights with straight-through gradients, attached by parameter path |
//! | [`weights`] | weights in and out of a model, by name |
//!
//! A model knows nothing of quantization: [`fake_quant::quantize`] attaches a bit plan to it from outside.

pub mod attention;
pub mod decoder;
pub mod device;
pub mod fake_quant;
pub mod mask;
pub mod mlp;
pub mod rms_norm;
pub mod rotary;
pub mod weights;

pub use decoder::{Block, Llama, Site};
pub use device::device;
