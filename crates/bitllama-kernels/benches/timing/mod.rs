//! How long a call takes, for benches.

use std::time::{Duration, Instant};

/// Seconds of a call, the median and the least of as many calls as take `time` in all, and of five at least; one more comes first
/// and is not counted.
pub fn seconds(time: Duration, mut run: impl FnMut()) -> [f64; 2] {
    run();
    let start = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < 5 || start.elapsed() < time {
        let start = Instant::now();
        run();
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    [seconds[seconds.len() / 2], seconds[0]]
}
