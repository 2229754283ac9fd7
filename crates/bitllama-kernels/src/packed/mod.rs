//! Products with packed weights: kernels written once over [`Simd`](crate::simd::Simd), for every scheme and instruction set.
//!
//! | file | subject |
//! |---|---|
//! | `fields` | how the fields of a scheme come out of a block |
//! | `integer` | activations in 8 bits: a panel with a tile of tokens |
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
mod outliers;
mod sums;
pub(crate) mod xnor;

/// Bytes ahead of the block at work that are asked for.
const PREFETCH: usize = 2048;
