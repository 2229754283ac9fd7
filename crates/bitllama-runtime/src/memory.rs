//! How much memory there is, and how much this process had at most, where Linux tells.

use std::fs;

pub use bitllama_kernels::bandwidth::available_memory as available;

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
