//! The commands of the binary, one file each: arguments, and the calls that answer them.

pub mod bench_step;
pub mod cache_teacher;
mod corpus;
pub mod dequantize;
pub mod distill;
pub mod eval;
pub mod export;
pub mod generate_data;
pub mod grid;
mod identity;
pub mod import;
pub mod outcome;
mod outputs;
mod prepare;
pub mod quantize;
pub mod quick;
mod recipe_args;
pub mod report;
pub mod speed;
