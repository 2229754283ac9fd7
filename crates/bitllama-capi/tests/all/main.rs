//! Tests of the C ABI, in one program, which compiles sooner than several.

mod c_program;
mod common;
mod header;
mod matmul;
mod model;
