//! Requests to stop. The first signal asks the loop for a checkpoint, a second one ends the process at once.
//!
//! | signal | exit code |
//! |---|---|
//! | SIGINT (Ctrl-C) | 130 |
//! | SIGTERM | 143 |
//! | SIGHUP, unless it was ignored when the process started, as under `nohup` | 129 |
//!
//! If nothing listens, that is before the loop and in commands that go on by themselves where they were stopped, signals end
//! the process as they do by default: files are whole or not there.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::{Context, Result};

use crate::monitor::progress::tell;

/// True once signals are requests.
static LISTENING: AtomicBool = AtomicBool::new(false);
/// The exit code that the first request asks for; 0 before it.
static ASKED: AtomicU8 = AtomicU8::new(0);

/// Exit code of a request that no signal brought: 128 + SIGINT.
const BY_DEFAULT: u8 = 130;

/// Listens from now on.
///
/// # Errors
/// If the system does not let us.
#[cfg(unix)]
pub fn listen() -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    let mut wanted = vec![SIGINT, SIGTERM];
    wanted.extend((!hang_ups_are_ignored()).then_some(SIGHUP));
    let mut signals = signal_hook::iterator::Signals::new(wanted).context("cannot listen to signals")?;
    let each = move || signals.forever().for_each(|signal| received(128 + signal as u8));
    std::thread::Builder::new().name("signals".into()).spawn(each).context("cannot listen to signals")?;
    LISTENING.store(true, Ordering::SeqCst);
    Ok(())
}

/// Listens from now on.
///
/// # Errors
/// If the system does not let us.
#[cfg(not(unix))]
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| received(BY_DEFAULT)).context("cannot listen to Ctrl-C")?;
    LISTENING.store(true, Ordering::SeqCst);
    Ok(())
}

/// True if this process was started with hang-ups ignored, which it keeps.
#[cfg(unix)]
fn hang_ups_are_ignored() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action nothing changes, and there is room for the present one, all of whose bits may be zero.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// A signal, with the exit code that is its.
fn received(code: u8) {
    if ASKED.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst).is_err() {
        std::process::exit(code.into());
    }
    tell("\nstopping after this step, with a checkpoint; once more to stop at once");
}

/// A request of the program that started this one. Asked again, it changes nothing: both may have had the same signal.
pub fn ask() {
    if !LISTENING.load(Ordering::SeqCst) {
        std::process::exit(BY_DEFAULT.into());
    }
    let _ = ASKED.compare_exchange(0, BY_DEFAULT, Ordering::SeqCst, Ordering::SeqCst);
}

/// True once the run shall stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst) != 0
}

/// The exit code of a run that was asked to stop.
pub fn exit_code() -> u8 {
    match ASKED.load(Ordering::SeqCst) {
        0 => BY_DEFAULT,
        code => code,
    }
}

/// True for exit codes of processes that were asked to stop.
pub fn is_exit_code(code: i32) -> bool {
    [129, 130, 143].contains(&code)
}
