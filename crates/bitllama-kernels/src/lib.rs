//! Arithmetic on packed low-bit rows and on full-precision ones, and what a decoder computes between.
//!
//! | module | subject |
//! |---|---|
//! | [`product`] | matrix products: which kernel, which rows on which thread |
//! | [`matrix`] | a weight matrix: packed, in full precision, or as its file has it |
//! | [`weight`] | a packed matrix as the kernels read it |
//! | [`activations`] | activations in 8 bits, with outliers apart |
//! | [`signs`] | activations in one bit |
//! | [`operators`] | normalization, rotary embedding, gates, softmax |
//! | [`attention`] | grouped-query attention over cached keys and values |
//! | [`training`] | what training computes and inference does not: forward passes with gradients |
//! | [`kv`] | keys and values in f32, f16, 8 or 4 bits, all or those of a window |
//! | [`pool`] | threads that start and join phases of microseconds |
//! | [`bandwidth`] | how fast this machine reads memory |
//! | [`peak`] | how fast it multiplies bytes |
//! | [`mod@gemm`] | products of dense matrices, for training |
//! | [`isa`] | which instruction set is used |
//! | `packed` | products with packed weights, written once for all instruction sets and schemes |
//! | `simd` | vectors of sixteen lanes on each instruction set |
//! | [`allocator`] | what the system's allocator does with freed memory |
//! | `aligned` | numbers that start at a cache line |
//! | `full`, `batch` | products with full-precision rows; products of many rows of activations in f32 |
//! | `stored` | products with rows in 16 bits or in blocks |
//!
//! Integer products are the same to the bit on every instruction set and for every number of threads; those in f32 are
//! within float rounding of each other, and the same for every number of threads.

pub mod activations;
mod aligned;
pub mod allocator;
pub mod attention;
pub mod bandwidth;
mod batch;
mod full;
pub mod gemm;
pub mod isa;
pub mod kv;
pub mod matrix;
pub mod operators;
mod out;
mod packed;
pub mod peak;
pub mod pool;
pub mod product;
pub mod signs;
mod simd;
mod stored;
pub mod training;
pub mod weight;

pub use activations::Activations;
pub use batch::SAME_ORDER;
pub use isa::Isa;
pub use matrix::Matrix;
pub use packed::levels::ERROR as LEVEL_ERROR;
pub use pool::Pool;
pub use product::{Input, Precision, products};
pub use signs::Signs;
pub use weight::Weight;
