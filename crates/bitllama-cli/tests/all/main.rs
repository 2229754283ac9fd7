//! Tests of the program `bitllama`, in one program, which compiles sooner than several.

mod checkpoint;
mod cli;
mod flags;
mod serve;
#[path = "../../../bitllama-runtime/src/testing.rs"]
mod testing;
mod text;
#[path = "../../../../tests/common/texts.rs"]
mod texts;
