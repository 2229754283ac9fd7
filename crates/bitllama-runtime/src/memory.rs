//! How much memory there is, and how much this process had at most, where Linux tells.

use std::fs;

use crate::{Error, Result};

pub use bitllama_kernels::bandwidth::available_memory as available;

/// Memory of this machine, swap included, in bytes.
pub fn total() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let of = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim_end().parse::<u64>().ok()
    };
    Some((of("MemTotal:")? + of("SwapTotal:").unwrap_or(0)) << 10)
}

/// Refuses what `needed` bytes are asked for by, if that is more than `times` the memory of this machine.
///
/// # Errors
/// [`Error::Memory`].
pub fn ensure(needed: u128, times: u128) -> Result<()> {
    match total() {
        Some(there) if needed > times * u128::from(there) => Err(Error::Memory { needed, there }),
        _ => Ok(()),
    }
}

/// The most memory that this process had since its start or [`reset_peak`], in bytes.
pub fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// Lets [`peak`] start anew from what is in use now.
pub fn reset_peak() {
    // Where it cannot be done, the peak is that since the start.
    let _ = fs::write("/proc/self/clear_refs", "5");
}
