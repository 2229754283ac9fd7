//! Tests of the runtime, in one program, which compiles sooner than several; `memory` needs a process of its own.

mod decoder;
mod load;
mod stored;
#[path = "../../src/testing.rs"]
mod testing;
