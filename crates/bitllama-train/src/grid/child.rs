//! This program once more, in a process of its own: what a run takes of memory, and how it ends, is its own matter.
//!
//! The child's standard input is a pipe from here. A byte in it asks the child to stop, as a signal would; its end, which comes
//! with that of this process, ends the child at once.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::training::interrupt;

/// How a child ended, unless it failed.
pub enum Ended {
    /// With this on standard output.
    Done(String),
    /// Asked to stop; with a checkpoint, if it had come so far.
    Interrupted,
}

/// How long a request to stop may take to reach a child.
const PATIENCE: Duration = Duration::from_millis(100);

/// Runs this program with `args` on so many threads (all cores if `None`), and tells `line` each line of its standard error. What
/// this process is asked, the child is asked too.
///
/// # Errors
/// If it cannot be started, or fails: its own message.
pub fn run(args: &[String], threads: Option<usize>, line: impl FnMut(&str)) -> Result<Ended> {
    let program = std::env::current_exe().context("this program's own file is not known")?;
    let mut command = Command::new(program);
    command.arg("--stop-with-stdin").args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(threads) = threads {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    let mut child = command.spawn().context("cannot start a run")?;
    let (lifeline, ended) = (child.stdin.take(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| pass_on(lifeline, &ended));
        let result = follow(&mut child, line);
        ended.store(true, Ordering::Relaxed);
        result
    })
}

/// Passes a request to stop on to a child, until it has `ended`.
fn pass_on(mut lifeline: Option<ChildStdin>, ended: &AtomicBool) {
    let mut passed = false;
    while !ended.load(Ordering::Relaxed) {
        if interrupt::asked()
            && !passed
            && let Some(lifeline) = &mut lifeline
        {
            // One that is gone needs no asking.
            let _ = lifeline.write_all(b"s");
            passed = true;
        }
        std::thread::sleep(PATIENCE);
    }
}

/// Listens to a child until it ends.
fn follow(child: &mut Child, mut line: impl FnMut(&str)) -> Result<Ended> {
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
        Some(code) if interrupt::is_exit_code(code) => Ok(Ended::Interrupted),
        // A signal that reached both, before the child listened.
        None if interrupt::asked() => Ok(Ended::Interrupted),
        Some(_) => bail!("{}", last.strip_prefix("error: ").unwrap_or(&last)),
        None => bail!("{status}, after: {last}"),
    }
}

/// Does what standard input says: each byte asks this process to stop, and the end of it ends the process.
pub fn stop_with_stdin() {
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        let mut ignored = [0; 64];
        while input.read(&mut ignored).is_ok_and(|n| n > 0) {
            interrupt::ask();
        }
        std::process::exit(interrupt::exit_code().into());
    });
}
