//! A grid of runs: schemes, methods and seeds over one recipe, and what comes out of them.
//!
//! | module | subject |
//! |---|---|
//! | [`config`] | the file of a grid, and the runs that it asks for |
//! | [`child`] | runs as processes of their own |
//! | [`cache`] | what runs share: a teacher's cache, starts |
//! | [`run`] | one run, stage by stage |
//! | [`schedule`] | all runs, some at a time |
//! | [`measure`] | artifacts beside the teacher |
//! | [`energy`] | what the machine's counters say |
//! | [`others`] | models of other tools |
//! | [`results`] | all figures |
//! | [`report`] | what is shown of them |

pub mod cache;
pub mod child;
pub mod config;
pub mod energy;
pub mod measure;
pub mod others;
pub mod report;
pub mod results;
pub mod run;
pub mod schedule;
