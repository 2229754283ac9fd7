//! Standard output and error of the command-line programs, and the flags that they share.
//!
//! Whoever reads a program's output may have enough of it: `bitllama-train report DIR | head -3` closes the pipe. What is
//! printed after that goes nowhere, and the command comes to its end as if it had been read: files it was to write are
//! written, and its exit code is that of its work. Output that is lost for another reason, such as a full disk, makes the
//! command fail at its end ([`finish`]).

#![forbid(unsafe_code)]

mod text_flags;

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::Mutex;

use bitllama_runtime::{one_line, short_quotations};
use clap::Parser;
use clap::error::ErrorKind as Fault;

pub use text_flags::TextFlags;

/// Why standard output has lost something, if it has.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Prints to standard output, as `print!` does, without a panic where nobody reads.
pub fn out(text: fmt::Arguments) {
    let mut stdout = io::stdout().lock();
    keep(stdout.write_fmt(text));
}

/// Prints to standard error; where that cannot be written there is nobody to tell.
pub fn note(text: fmt::Arguments) {
    drop(io::stderr().lock().write_fmt(text));
}

/// Writes out what [`out`] has left in memory.
///
/// # Errors
/// The first reason why something was lost, other than that the reader had enough.
pub fn finish() -> anyhow::Result<()> {
    keep(io::stdout().lock().flush());
    let lost = LOST.lock().map_or(None, |mut lost| lost.take());
    lost.map_or(Ok(()), |error| Err(anyhow::Error::new(error).context("standard output")))
}

fn keep(result: io::Result<()>) {
    if let Err(error) = result
        && error.kind() != ErrorKind::BrokenPipe
        && let Ok(mut lost) = LOST.lock()
    {
        lost.get_or_insert(error);
    }
}

/// The command line, or the code to end with: `--help` and `--version` were printed, or one line said what is wrong.
pub fn parse<C: Parser>() -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| {
        if matches!(error.kind(), Fault::DisplayHelp | Fault::DisplayVersion) || error.exit_code() == 0 {
            drop(error.print());
            return ExitCode::SUCCESS;
        }
        if error.kind() == Fault::DisplayHelpOnMissingArgumentOrSubcommand {
            drop(error.print());
        } else {
            note(format_args!("{}\n", fault(&error.to_string())));
        }
        ExitCode::from(error.exit_code() as u8)
    })
}

/// The fault that `clap` reports, on one line, without usage and advice.
fn fault(message: &str) -> String {
    let usage = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|mark| message.find(mark)).min();
    let message = &message[..usage.unwrap_or(message.len())];
    one_line(&io::Error::other(short_quotations(message, &['\''])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_a_command_line_take_one_line() {
        let message = "error: invalid value 'x' for '--ctx <N>': invalid digit found in string\n\n  tip: a tip\n\n\
                       Usage: a\n\nFor more information, try '--help'.\n";
        assert_eq!(
            fault(message),
            "error: invalid value 'x' for '--ctx <N>': invalid digit found in string tip: a tip"
        );
        let long = format!("error: unexpected argument '{}' found\n\nFor more information", "x".repeat(1000));
        assert_eq!(fault(&long), format!("error: unexpected argument '{}..' found", "x".repeat(80)));
    }
}
