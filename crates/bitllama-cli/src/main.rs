//! `bitllama`: runs, evaluates and describes packed models. One file a command; the work is in the library.

mod bench;
mod bench_kernels;
mod bench_random;
mod chat;
mod eval;
mod inspect;
mod run;
mod sampling;
mod serve;
mod source;

use std::io::{self, Write};
use std::process::ExitCode;

use bitllama_console as console;
use bitllama_runtime::one_line;
use clap::{Parser, Subcommand};

/// Run low-bit Llama-family models
#[derive(Debug, Parser)]
#[command(name = "bitllama", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bench(bench::Options),
    Run(run::Options),
    Chat(chat::Options),
    Serve(serve::Options),
    Eval(eval::Options),
    Inspect(inspect::Options),
}

fn main() -> ExitCode {
    bitllama_formats::notes::listen(|remark| console::note(format_args!("note: {remark}\n")));
    let cli: Cli = match console::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        Command::Bench(options) => bench::run(&options),
        Command::Run(options) => run::run(&options),
        Command::Chat(options) => chat::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Eval(options) => eval::run(&options),
        Command::Inspect(options) => inspect::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has enough of it, as in `bitllama run .. | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            console::note(format_args!("error: {}\n", one_line(error.as_ref())));
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
