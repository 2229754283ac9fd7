//! `bitllama`: runs, evaluates and describes packed models. One file a command; the work is in the library.

mod eval;
mod inspect;
mod run;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use bitllama_runtime::one_line;
use clap::{Args, Parser, Subcommand};

/// Run low-bit Llama-family models
#[derive(Debug, Parser)]
#[command(name = "bitllama", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Options),
    Eval(eval::Options),
    Inspect(inspect::Options),
}

/// Flags of every command that computes.
#[derive(Debug, Args)]
struct Threads {
    /// Threads to compute with [default: one for each core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
}

impl Threads {
    /// Sizes the pool that everything runs in. To be called once, before any work.
    fn apply(&self) -> anyhow::Result<()> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(self.threads.unwrap_or(0).into());
        pool.build_global().context("cannot start threads")
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(options) => run::run(&options),
        Command::Eval(options) => eval::run(&options),
        Command::Inspect(options) => inspect::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has enough of it, as in `bitllama run .. | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even stderr is closed there is nobody left to tell.
            let _ = writeln!(io::stderr(), "error: {}", one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes `value` as one line of JSON to stdout.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_string(value)?;
    Ok(writeln!(io::stdout().lock(), "{json}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
