//! The commands of the binary, one file each: arguments, and the calls that answer them.

pub mod distill;
pub mod eval;
pub mod export;
mod outcome;
mod prepare;
pub mod quantize;
