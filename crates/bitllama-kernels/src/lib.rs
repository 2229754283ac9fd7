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
//! | `integer`, `float`, `xnor` | the kernels, written once for all instruction sets and schemes |
//! | `fields` | how the fields of a scheme come out of a block |
//! | [`levels`] | codes out of a table, in fixed point |
//! | `simd` | what a kernel needs of an instruction set |
//! | `scalar`, `avx2`, `avx512`, `neon` | what each instruction set can do |
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
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod bandwidth;
mod batch;
mod fields;
mod float;
mod full;
pub mod gemm;
mod integer;
pub mod isa;
pub mod kv;
pub mod levels;
pub mod matrix;
#[cfg(target_arch = "aarch64")]
mod neon;
pub mod operators;
mod out;
pub mod peak;
pub mod pool;
pub mod product;
mod scalar;
pub mod signs;
mod simd;
mod stored;
pub mod training;
pub mod weight;
mod xnor;

pub use activations::Activations;
pub use isa::Isa;
pub use matrix::Matrix;
pub use pool::Pool;
pub use product::{Input, Precision, products};
pub use signs::Signs;
pub use weight::Weight;
