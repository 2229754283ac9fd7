//! Tests of the modules on Burn, in one program, which compiles sooner than several.

mod activations;
mod common;
mod ops;
mod quantized_model;
mod quantizers;
mod torchao;
