//! Decoders of all families and fake quantizers as Burn modules.
//!
//! | module | subject |
//! |---|---|
//! | [`device`] | `--device` names and the backends compiled in |
//! | [`decoder`] | the model: embedding, blocks, final norm, head |
//! | [`attention`], [`mlp`], [`linear`], [`rms_norm`], [`rotary`] | its parts |
//! | [`mask`] | which positions attend to which |
//! | [`positions`] | rotations and masks of the layers of a model |
//! | [`fake_quant`] | low-bit weights with straight-through gradients, attached by parameter path |
//! | [`activations`] | low-bit activations, keys and values, with straight-through gradients |
//! | [`ops`] | the operators of the parts, fused, with hand-written gradients |
//! | [`profile`] | where the time of a step goes |
//! | [`shared_number`] | a number that changes from step to step |
//! | [`weights`] | weights in and out of a model, by name |
//!
//! A model knows nothing of quantization: [`fake_quant::quantize`] attaches a bit plan to it from outside, and
//! [`activations::quantize`] fills the places where inputs may be rounded.

pub mod activations;
pub mod attention;
pub mod decoder;
pub mod device;
pub mod fake_quant;
pub mod linear;
pub mod mask;
pub mod mlp;
pub mod ops;
pub mod positions;
pub mod profile;
pub mod rms_norm;
pub mod rotary;
pub mod shared_number;
pub mod weights;

pub use decoder::{Block, Head, Llama, Site};
pub use device::device;
pub use mask::Mask;
pub use positions::Positions;
pub use shared_number::SharedNumber;
