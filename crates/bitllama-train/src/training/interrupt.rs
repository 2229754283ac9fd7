//! Ctrl-C: once asks the loop to write a checkpoint and stop, twice stops at once.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Exit code of a run stopped by Ctrl-C, by convention 128 + SIGINT.
pub const EXIT_CODE: i32 = 130;

/// Listens from now on.
///
/// # Errors
/// If the system does not let us.
pub fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_CODE);
        }
        eprintln!("\nstopping after this step, with a checkpoint; once more to stop at once");
    })?;
    Ok(())
}

/// Whether the run shall stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
