//! This program once more, in a process of its own: what a run takes of memory, and how it ends, is its own matter.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::training::interrupt;

/// How a child ended, unless it failed.
pub enum Ended {
    /// With this on standard output.
    Done(String),
    /// Ctrl-C, with a checkpoint.
    Interrupted,
}

/// Runs this program with `args` on so many threads (all cores if `None`), and tells `line` each line of its standard error. The child
/// ends when this process does, however that ends: its standard input is a pipe from here, and it stops with that.
///
/// # Errors
/// If it cannot be started, or fails: its own message.
pub fn run(args: &[String], threads: Option<usize>, mut line: impl FnMut(&str)) -> Result<Ended> {
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let mut command = Command::new(program);
    command.arg("--stop-with-stdin").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(threads) = threads {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    let mut child = command.spawn().context("cannot start a run")?;
    let _lifeline = child.stdin.take();
    let mut last = String::new();
    if let Some(errors) = child.stderr.take() {
        for found in BufReader::new(errors).lines() {
            let found = found.context("reading what a run says")?;
            line(&found);
            if !found.trim().is_empty() {
                last = found;
            }
        }
    }
    let mut output = String::new();
    if let Some(mut out) = child.stdout.take() {
        // A few lines at the end, which the pipe holds until then.
        out.read_to_string(&mut output).context("reading what a run found")?;
    }
    let status = child.wait().context("waiting for a run")?;
    match status.code() {
        Some(0) => Ok(Ended::Done(output)),
        Some(interrupt::EXIT_CODE) => Ok(Ended::Interrupted),
        Some(_) => bail!("{}", last.strip_prefix("error: ").unwrap_or(&last)),
        None => bail!("{status}, after: {last}"),
    }
}

/// Ends this process as soon as its standard input does.
pub fn stop_with_stdin() {
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        let mut ignored = [0; 64];
        while input.read(&mut ignored).is_ok_and(|n| n > 0) {}
        std::process::exit(interrupt::EXIT_CODE);
    });
}
