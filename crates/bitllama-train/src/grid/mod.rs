//! A grid of runs: schemes, methods and seeds over one recipe, and what comes out of them.

pub mod report;
pub mod results;
