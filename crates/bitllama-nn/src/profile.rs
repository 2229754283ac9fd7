//! Where the time of a training step goes, by phase and operator. Off unless asked for; then a phase or an operator costs two
//! readings of the clock.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static SPENT: Mutex<BTreeMap<Key, Spent>> = Mutex::new(BTreeMap::new());

thread_local! {
    static PHASE: Cell<&'static str> = const { Cell::new("") };
}

/// A phase, and an operator in it, or `""` for the phase as a whole.
type Key = (&'static str, &'static str);

/// Calls and their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// How often.
    pub calls: usize,
    /// How long, all together.
    pub time: Duration,
}

/// Starts counting from nothing.
pub fn start() {
    if let Ok(mut spent) = SPENT.lock() {
        spent.clear();
    }
    ON.store(true, Ordering::Relaxed);
}

/// Stops counting: what was spent, by phase and operator, `""` for a phase as a whole.
pub fn stop() -> BTreeMap<Key, Spent> {
    ON.store(false, Ordering::Relaxed);
    SPENT.lock().map(|mut spent| std::mem::take(&mut *spent)).unwrap_or_default()
}

/// Calls `f` as a phase of a step. Phases do not nest.
pub fn phase<T>(name: &'static str, f: impl FnOnce() -> T) -> T {
    let before = PHASE.replace(name);
    let result = timed("", f);
    PHASE.set(before);
    result
}

/// Calls `f` as an operator in the phase under way on this thread.
pub fn operator<T>(name: &'static str, f: impl FnOnce() -> T) -> T {
    timed(name, f)
}

fn timed<T>(name: &'static str, f: impl FnOnce() -> T) -> T {
    if !ON.load(Ordering::Relaxed) {
        return f();
    }
    let start = Instant::now();
    let result = f();
    let time = start.elapsed();
    if let Ok(mut spent) = SPENT.lock() {
        let spent = spent.entry((PHASE.get(), name)).or_default();
        spent.calls += 1;
        spent.time += time;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_where_it_was_spent() {
        start();
        let two = phase("forward", || operator("add", || 1) + operator("add", || 1));
        assert_eq!(two, 2);
        let spent = stop();
        assert_eq!(spent[&("forward", "add")].calls, 2);
        assert!(spent[&("forward", "")].time >= spent[&("forward", "add")].time);
        phase("forward", || ());
        assert!(stop().is_empty(), "it is off");
    }
}
