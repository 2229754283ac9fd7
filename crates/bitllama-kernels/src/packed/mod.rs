//! Products with packed weights: kernels written once over [`Simd`](crate::simd::Simd), for every scheme and instruction set.
//!
//! | file | subject |
//! |---|---|
//! | `fields` | how the fields of a scheme come out of a block |
//! | `integer` | activations in 8 bits: a panel with a tile of tokens |
//! | `one_token` | one token with groups of common sizes, for decoding |
//! | `nested` | groups whose scales are whole multiples of a factor |
//! | `offset` | how sums of fields become sums of codes |
//! | `sums` | the sums of fields times activations that it needs |
//! | `levels` | such sums of codes out of a table, in fixed point |
//! | `outliers` | activations that are multiplied in f32 instead |
//! | `float` | one row of activations in f32, and panels unpacked to f32 |
//! | `xnor` | binary weights with signs |
//!
//! Loops over arrays of vectors count: an iterator's or closure's function may be compiled apart, without the instruction set of
//! the kernel, and vectors then go through memory.

#![allow(clippy::needless_range_loop, clippy::manual_map)]

pub(crate) mod fields;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod levels;
mod nested;
mod offset;
mod one_token;
mod outliers;
mod sums;
pub(crate) mod xnor;
