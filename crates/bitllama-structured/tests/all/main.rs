//! Tests of grammars, in one program: each program that is linked with `tokenizers` takes long to compile.

mod common;
mod hostile;
mod schemas;
mod speed;
mod tools;
