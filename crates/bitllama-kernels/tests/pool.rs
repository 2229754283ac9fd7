//! The pool: every task once, whatever else the machine does, and nothing used when there is nothing to do.

use bitllama_kernels::pool::{Pool, default_threads};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// Phases of each test; Miri runs fewer.
const PHASES: usize = if cfg!(miri) { 40 } else { 100_000 };

/// The tests that measure time must not share the processors with others of this file.
static TIMED: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    TIMED.lock().unwrap_or_else(|e| e.into_inner())
}

#[test]
fn every_task_runs_once() {
    let _alone = alone();
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        let start = Instant::now();
        for phase in 0..PHASES {
            let tasks = phase % 5;
            let sum = AtomicUsize::new(0);
            pool.for_each(tasks, |i| _ = sum.fetch_add(1 << (8 * i), Relaxed));
            assert_eq!(sum.into_inner(), [0, 0x1, 0x101, 0x010101, 0x01010101][tasks]);
        }
        let each = start.elapsed() / PHASES as u32;
        println!("{threads} threads: {each:?} a phase");
        assert!(cfg!(any(miri, debug_assertions)) || each < Duration::from_millis(1), "{each:?} a phase");
    }
}

#[test]
fn chunks_cover_the_slice() {
    for threads in [1, 2, 3] {
        let pool = Pool::new(threads);
        for (len, chunk_len) in [(0, 3), (1, 3), (9, 3), (10, 3), (1000, 1), (7, 100)] {
            let mut data = vec![0; len];
            pool.for_each_chunk(&mut data, chunk_len, |i, chunk| {
                assert!(chunk.len() == chunk_len || (i + 1) * chunk_len > len);
                chunk.iter_mut().zip(i * chunk_len..).for_each(|(x, at)| *x += at + 1);
            });
            assert_eq!(data, (1..=len).collect::<Vec<_>>());
        }
    }
}

/// More tasks than fit into one phase.
#[test]
#[cfg_attr(miri, ignore)]
fn tasks_beyond_one_phase() {
    let tasks = (1 << 24) + 5;
    let (count, last) = (AtomicUsize::new(0), AtomicUsize::new(0));
    Pool::new(2).for_each(tasks, |i| {
        count.fetch_add(1, Relaxed);
        last.fetch_max(i, Relaxed);
    });
    assert_eq!((count.into_inner(), last.into_inner()), (tasks, tasks - 1));
}

#[test]
fn a_nested_call_runs_on_its_own_thread() {
    let pool = Pool::new(3);
    let count = AtomicUsize::new(0);
    for _ in 0..PHASES / 20 {
        pool.for_each(4, |_| {
            let outer = thread::current().id();
            pool.for_each(5, |_| {
                assert_eq!(thread::current().id(), outer);
                count.fetch_add(1, Relaxed);
            });
        });
    }
    assert_eq!(count.into_inner(), PHASES / 20 * 20);
}

#[test]
fn several_callers_at_once() {
    let pool = Pool::new(3);
    let count = AtomicUsize::new(0);
    let phases = PHASES / 20;
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..phases {
                    pool.for_each(4, |_| pool.for_each(5, |_| _ = count.fetch_add(1, Relaxed)));
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 3 * phases * 20);
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    for threads in [1, 2, 8] {
        let pool = Pool::new(threads);
        for bad in 0..4 {
            let inside = AtomicUsize::new(0);
            let caught = panic::catch_unwind(AssertUnwindSafe(|| {
                pool.for_each(4, |i| {
                    inside.fetch_add(1, Relaxed);
                    if i == bad {
                        inside.fetch_sub(1, Relaxed);
                        panic!("task {i}");
                    }
                    thread::sleep(Duration::from_micros(200));
                    inside.fetch_sub(1, Relaxed);
                });
            }));
            assert_eq!(inside.load(Relaxed), 0, "a thread is still in the closure");
            assert_eq!(*caught.unwrap_err().downcast::<String>().unwrap(), format!("task {bad}"));
            let count = AtomicUsize::new(0);
            pool.for_each(10, |_| _ = count.fetch_add(1, Relaxed));
            assert_eq!(count.into_inner(), 10);
        }
        let all = panic::catch_unwind(AssertUnwindSafe(|| pool.for_each(8, |_| panic!("all"))));
        assert_eq!(*all.unwrap_err().downcast::<&str>().unwrap(), "all");
    }
}

#[test]
fn drop_joins_in_any_state() {
    for wait in [Duration::ZERO, Duration::from_micros(50), Duration::from_millis(2)] {
        for _ in 0..PHASES / 1000 + 1 {
            let pool = Pool::new(4);
            pool.for_each(3, |_| ());
            thread::sleep(wait);
        }
    }
}

/// Its threads live as long as the process, which Miri takes for a leak.
#[test]
#[cfg_attr(miri, ignore)]
fn the_global_pool_keeps_its_threads() {
    assert!(default_threads() >= 1);
    Pool::set_global_threads(3).unwrap();
    assert_eq!(Pool::global().threads(), 3);
    Pool::set_global_threads(3).unwrap();
    let error = Pool::set_global_threads(2).unwrap_err();
    assert_eq!((error.threads, error.to_string()), (3, "the thread pool runs already, with 3 threads".to_owned()));
}

#[cfg(all(target_os = "linux", not(miri)))]
#[test]
fn an_idle_pool_uses_no_processor_time() {
    /// Nanoseconds on a processor, of all threads with the name of a worker.
    fn worker_time() -> u64 {
        let tasks = std::fs::read_dir("/proc/self/task").unwrap();
        tasks
            .filter_map(|task| {
                let task = task.unwrap().path();
                // A thread of another test may end meanwhile.
                let name = std::fs::read_to_string(task.join("comm")).ok()?;
                let time = std::fs::read_to_string(task.join("schedstat")).ok()?;
                let time = time.split(' ').next()?.parse::<u64>().ok()?;
                Some(if name.starts_with("bitllama-") { time } else { 0 })
            })
            .sum()
    }
    let _alone = alone();
    let pool = Pool::new(2);
    for _ in 0..1000 {
        pool.for_each(2, |_| _ = std::hint::black_box((0..1000).sum::<u64>()));
    }
    thread::sleep(Duration::from_millis(20));
    let before = worker_time();
    assert!(before > 0, "the workers took no part");
    thread::sleep(Duration::from_millis(200));
    let used = worker_time() - before;
    assert!(used < 5_000_000, "{used} ns in 200 ms of idling");
}

/// `cargo test --release -p bitllama-kernels --test pool -- --ignored --nocapture` prints what a phase costs beyond its
/// work: for tasks of `work` each, one a thread, the time of the phase less that of one task.
#[test]
#[ignore = "a measurement"]
fn phase_overhead() {
    fn work(length: Duration) {
        let start = Instant::now();
        while start.elapsed() < length {}
    }
    let _alone = alone();
    for threads in [2, 4, 8] {
        let pool = Pool::new(threads);
        for length in [0, 2, 10, 50].map(Duration::from_micros) {
            for gap in [0, 5, 200].map(Duration::from_micros) {
                let mut samples: Vec<Duration> = (0..20_000)
                    .map(|_| {
                        work(gap);
                        let start = Instant::now();
                        pool.for_each(threads.min(2), |_| work(length));
                        start.elapsed().saturating_sub(length)
                    })
                    .collect();
                samples.sort_unstable();
                let at = |percent: usize| samples[samples.len() * percent / 100];
                let (p10, median, p90, p99) = (at(10), at(50), at(90), at(99));
                println!("{threads} threads, {length:?} a task, {gap:?} between phases:");
                println!("  overhead {median:?} (10 % {p10:?}, 90 % {p90:?}, 99 % {p99:?})");
            }
        }
    }
}
