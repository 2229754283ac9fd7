//! A fork-join pool for phases of 5 to 100 us, of which decoding one token has about 150.
//!
//! A general work-stealing pool needs several microseconds to start and to join such a phase. Here the workers spin on
//! one word for [`SPIN`] after a phase, so that the next one starts within a cache-line transfer or two, and sleep
//! after that. Threads take tasks from that word one at a time. A phase ends when its last task is done: a worker that
//! sleeps, or whose core is taken by another process, is not waited for unless it holds a task.
//!
//! # How a phase works
//!
//! `Shared::word` holds the number of the phase and how many of its tasks are left, in one atomic. A worker takes its
//! first task of a phase by compare-exchange of the whole word, which fails if another phase has begun meanwhile. From
//! then on the phase stays open, and its closure alive, until that worker has reported in `Shared::finished`. A worker
//! that comes too late finds no task left, or another phase number, and never looks at the closure.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::fs;
use std::hint;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a worker waits for the next phase before it sleeps: more than the serial part between two phases of a
/// token takes, and about what it costs to wake a sleeper.
const SPIN: Duration = Duration::from_micros(80);

/// How long a thread spins before it offers its core to others between looks, for the case that the thread which it
/// waits for is to run on this very core.
const SPIN_ALONE: Duration = Duration::from_micros(20);

/// Turns of a waiting loop between two looks at the clock.
const TURNS: usize = 32;

/// The low bits of `Shared::word`, for the tasks left. The 40 bits above them count phases: a worker would have to
/// stall for 2^40 of them to take one for another.
const TASK_BITS: u32 = 24;

/// What the low bits hold when no task is left. Every thread may count one task too many, so this bounds the threads.
const EMPTY: u64 = 1 << 20;

/// The most tasks of one phase; [`Pool::for_each`] has several phases for more.
const MAX_TASKS: usize = (1 << TASK_BITS) - 1 - EMPTY as usize;

/// Threads that share the tasks of one [`for_each`](Pool::for_each) at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// The most threads that take part in a phase, the caller included.
    awake: usize,
}

impl Pool {
    /// Threads of a pool, at most. Where the system has no more memory for a thread's stack, starting one ends the process.
    pub const MAX_THREADS: usize = 1024;

    /// A pool of `threads`, of which the caller of [`for_each`](Pool::for_each) counts as one: 1 starts no thread. If
    /// the system refuses a thread, the pool has those that it got; it has never more than [`Pool::MAX_THREADS`].
    ///
    /// Where there are fewer processors than threads, no more threads than processors take part in a phase.
    pub fn new(threads: usize) -> Pool {
        Self::with_awake(threads, available_parallelism())
    }

    fn with_awake(threads: usize, awake: usize) -> Pool {
        let shared = Arc::new(Shared {
            open: Padded(Open { word: AtomicU64::new(EMPTY), job: JobCell(UnsafeCell::new(Job::NONE)) }),
            finished: Padded(AtomicUsize::new(0)),
            busy: Padded(AtomicBool::new(false)),
            asleep: Padded(AtomicUsize::new(0)),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
            beds: Mutex::new(Beds { wakeups: 0, shutdown: false }),
            alarm: Condvar::new(),
        });
        let start = |i| {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name(format!("bitllama-{i}")).spawn(move || shared.work()).ok()
        };
        let workers: Vec<_> = (1..threads.min(Self::MAX_THREADS)).map_while(start).collect();
        let awake = awake.min(workers.len() + 1);
        Pool { shared, workers, awake }
    }

    /// The number of threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The pool of this process. The first call starts it, with [`default_threads`] threads unless
    /// [`set_global_threads`](Pool::set_global_threads) came before.
    pub fn global() -> &'static Pool {
        GLOBAL.get_or_init(|| Pool::new(default_threads()))
    }

    /// Starts the pool of this process with `threads` threads.
    ///
    /// # Errors
    /// If it runs already, with another number of threads.
    pub fn set_global_threads(threads: usize) -> Result<(), GlobalPoolError> {
        let pool = GLOBAL.get_or_init(|| Pool::new(threads));
        match pool.threads() == threads.max(1) {
            true => Ok(()),
            false => Err(GlobalPoolError { threads: pool.threads() }),
        }
    }

    /// Calls `f(0)`, .., `f(tasks - 1)`, each once, on all threads, and returns when all calls have. A thread takes the
    /// next task when it is done with one: the tasks of one phase should take at least a microsecond each.
    ///
    /// While a phase is under way on this pool, another call runs its tasks on its own thread, be it from within a task
    /// or from elsewhere.
    ///
    /// # Panics
    /// If a task does, with its payload, after all threads have left `f`. Tasks that nobody had taken are not run.
    pub fn for_each(&self, tasks: usize, f: impl Fn(usize) + Sync) {
        if tasks <= 1 || self.awake <= 1 || self.shared.busy.swap(true, Acquire) {
            return (0..tasks).for_each(f);
        }
        let mut panic = None;
        for base in (0..tasks).step_by(MAX_TASKS) {
            panic = self.phase(MAX_TASKS.min(tasks - base), &|task| f(base + task));
            if panic.is_some() {
                break;
            }
        }
        self.shared.busy.store(false, Release);
        if let Some(payload) = panic {
            panic::resume_unwind(payload);
        }
    }

    /// [`for_each`](Pool::for_each) over the chunks of `data`: `f` gets the index of a chunk and its elements, which
    /// are `chunk_len` except in the last one.
    ///
    /// # Panics
    /// If `chunk_len` is 0, or `f` panics.
    pub fn for_each_chunk<T: Send>(&self, data: &mut [T], chunk_len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        assert!(chunk_len > 0, "chunks of no elements");
        let (len, start) = (data.len(), SharedMut(data.as_mut_ptr()));
        self.for_each(len.div_ceil(chunk_len), |i| {
            let first = i * chunk_len;
            // SAFETY: `i < len.div_ceil(chunk_len)`, so `first < len` and the slice ends within `data`, which is
            // borrowed mutably until all tasks are done. Each `i` is called once, and chunks do not overlap.
            let chunk = unsafe { std::slice::from_raw_parts_mut(start.at(first), chunk_len.min(len - first)) };
            f(i, chunk);
        });
    }

    /// One phase, of 2 to [`MAX_TASKS`] tasks: the payload if a task panicked. `Shared::busy` must be set.
    fn phase<F: Fn(usize) + Sync>(&self, tasks: usize, f: &F) -> Option<Box<dyn Any + Send>> {
        let shared = &*self.shared;
        // SAFETY: `busy` keeps other callers out. A worker reads the job only between taking a task and reporting it,
        // and all tasks taken in the phases before have been reported.
        unsafe { *shared.open.job.0.get() = Job { call: call::<F>, data: (&raw const *f).cast(), tasks } };
        shared.finished.store(0, Relaxed);
        let phase = (shared.open.word.load(Relaxed) >> TASK_BITS) + 1;
        // One task fewer: the first is the caller's own.
        shared.open.word.swap(phase << TASK_BITS | (EMPTY + tasks as u64 - 1), SeqCst);
        shared.wake(self.workers.len(), self.awake.min(tasks) - 1);

        // SAFETY: task 0 is taken, and what this thread has run is counted below.
        let own = unsafe { shared.run(tasks as u64) };
        let done = || shared.finished.load(Acquire) == tasks - own;
        spin(Duration::MAX, done);
        match shared.panicked.swap(false, Relaxed) {
            true => lock(&shared.panic).take(),
            false => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.beds).shutdown = true;
        self.shared.alarm.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so it ends without one.
            let _ = worker.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

static GLOBAL: OnceLock<Pool> = OnceLock::new();

/// The pool of this process runs already, with another number of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GlobalPoolError {
    /// The threads that it has.
    pub threads: usize,
}

impl fmt::Display for GlobalPoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the thread pool runs already, with {} threads", self.threads)
    }
}

impl std::error::Error for GlobalPoolError {}

/// The number of physical cores that this process may use where `/sys` tells (Linux), else of processors: a second
/// hardware thread of a core shares the units and the caches that the kernels saturate.
pub fn default_threads() -> usize {
    let processors = available_parallelism();
    physical_cores().map_or(processors, |cores| cores.clamp(1, processors))
}

fn available_parallelism() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

/// The cores among the processors that the scheduler gives this process.
fn physical_cores() -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    let mut cores: Vec<String> = parse_cpu_list(allowed)?
        .map(|cpu| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok())
        .collect::<Option<_>>()?;
    cores.sort_unstable();
    cores.dedup();
    Some(cores.len())
}

/// The numbers in a list like `0-3,8`.
fn parse_cpu_list(list: &str) -> Option<impl Iterator<Item = usize>> {
    let parse_range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    let ranges: Vec<_> = list.trim().split(',').map(parse_range).collect::<Option<_>>()?;
    Some(ranges.into_iter().flatten())
}

/// What the threads of a pool share. Fields that different threads write lie in different cache lines.
struct Shared {
    open: Padded<Open>,
    /// Tasks of this phase that workers have reported; the caller counts its own.
    finished: Padded<AtomicUsize>,
    /// Set while a caller has a phase.
    busy: Padded<AtomicBool>,
    /// Workers in bed; changes under the lock of `beds`.
    asleep: Padded<AtomicUsize>,
    panicked: AtomicBool,
    /// The payload of the first panic in this phase.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    beds: Mutex<Beds>,
    alarm: Condvar,
}

struct Open {
    /// The number of the phase, then [`EMPTY`] plus the tasks left.
    word: AtomicU64,
    job: JobCell,
}

struct Beds {
    /// Sleepers that were called and are not up yet; `Shared::asleep` has them no more.
    wakeups: usize,
    shutdown: bool,
}

impl Shared {
    /// The life of a worker.
    fn work(&self) {
        let mut seen = 0;
        loop {
            while !spin(SPIN, || self.open.word.load(Relaxed) >> TASK_BITS != seen) {
                if !self.sleep(seen) {
                    return;
                }
            }
            let (phase, first) = self.join();
            seen = phase;
            if let Some(first) = first {
                // SAFETY: `join` took `first`, and its report follows.
                let own = unsafe { self.run(first) };
                self.finished.fetch_add(own, Release);
            }
        }
    }

    /// The number of the current phase, and a task of it if one is left.
    fn join(&self) -> (u64, Option<u64>) {
        let word = &self.open.word;
        let mut seen = word.load(Relaxed);
        loop {
            let (phase, left) = (seen >> TASK_BITS, tasks_left(seen));
            if left == 0 {
                return (phase, None);
            }
            match word.compare_exchange_weak(seen, seen - 1, Acquire, Relaxed) {
                Ok(_) => return (phase, Some(left)),
                Err(now) => seen = now,
            }
        }
    }

    /// Runs the task that was taken when `left` were left, then others until none is left, and returns how many. A
    /// panic is kept in `panic`, and the tasks left then are counted as if they had run.
    ///
    /// # Safety
    /// The thread has taken that task of the current phase, and reports the tasks when this returns.
    unsafe fn run(&self, left: u64) -> usize {
        // SAFETY: the job was written before the phase was opened, which taking a task synchronizes with, and is
        // written again only when this thread has reported.
        let job = unsafe { *self.open.job.0.get() };
        let mut left = left;
        let mut count = 0;
        let run = panic::catch_unwind(AssertUnwindSafe(|| {
            loop {
                count += 1;
                // SAFETY: `data` is the closure that `call` was made for. It outlives the phase, which lasts until
                // this thread has reported.
                unsafe { (job.call)(job.data, job.tasks - left as usize) };
                match self.take() {
                    Some(now) => left = now,
                    None => break,
                }
            }
        }));
        if let Err(payload) = run {
            self.panicked.store(true, Relaxed);
            let mut first = lock(&self.panic);
            if first.is_none() {
                *first = Some(payload);
            } else {
                // To drop it might panic again.
                std::mem::forget(payload);
            }
            drop(first);
            while self.take().is_some() {
                count += 1;
            }
        }
        count
    }

    /// The tasks left before this call took one, for a thread that has taken a task of this phase and not reported.
    fn take(&self) -> Option<u64> {
        match tasks_left(self.open.word.fetch_sub(1, Relaxed)) {
            0 => None,
            left => Some(left),
        }
    }

    /// Sleeps until called, unless a phase after `seen` has begun. False if the pool shuts down.
    fn sleep(&self, seen: u64) -> bool {
        let mut beds = lock(&self.beds);
        if !beds.shutdown {
            // The caller writes the word, then reads `asleep`: one of both sees what the other wrote.
            self.asleep.fetch_add(1, SeqCst);
            if self.open.word.load(SeqCst) >> TASK_BITS != seen {
                self.asleep.fetch_sub(1, Relaxed);
                return true;
            }
        }
        while !beds.shutdown {
            if beds.wakeups > 0 {
                beds.wakeups -= 1;
                return true;
            }
            beds = self.alarm.wait(beds).unwrap_or_else(PoisonError::into_inner);
        }
        false
    }

    /// Calls sleepers until `wanted` of the `workers` are up.
    fn wake(&self, workers: usize, wanted: usize) {
        let missing = |asleep: usize| (wanted + asleep).saturating_sub(workers);
        if missing(self.asleep.load(SeqCst)) == 0 {
            return;
        }
        let mut beds = lock(&self.beds);
        let asleep = self.asleep.load(Relaxed);
        let called = missing(asleep);
        beds.wakeups += called;
        self.asleep.store(asleep - called, Relaxed);
        drop(beds);
        match called == asleep {
            true => self.alarm.notify_all(),
            false => (0..called).for_each(|_| self.alarm.notify_one()),
        }
    }
}

fn tasks_left(word: u64) -> u64 {
    (word & ((1 << TASK_BITS) - 1)).saturating_sub(EMPTY)
}

/// Whether `ready` within `limit`.
fn spin(limit: Duration, ready: impl Fn() -> bool) -> bool {
    let turns = || {
        (0..TURNS).any(|_| {
            hint::spin_loop();
            ready()
        })
    };
    if ready() || turns() {
        return true;
    }
    let start = Instant::now();
    loop {
        if turns() {
            return true;
        }
        let waited = start.elapsed();
        if waited > limit {
            return false;
        }
        if waited > SPIN_ALONE {
            thread::yield_now();
        }
    }
}

/// A closure of `for_each` without its type and lifetime.
#[derive(Clone, Copy)]
struct Job {
    call: unsafe fn(*const (), usize),
    data: *const (),
    tasks: usize,
}

impl Job {
    const NONE: Job = Job { call: call::<fn(usize)>, data: std::ptr::null(), tasks: 0 };
}

/// # Safety
/// `data` points to an `F`.
unsafe fn call<F: Fn(usize)>(data: *const (), task: usize) {
    // SAFETY: of the caller.
    unsafe { (*data.cast::<F>())(task) }
}

struct JobCell(UnsafeCell<Job>);

// SAFETY: the closure behind `data` is `Sync` by the bound of `for_each`; `Shared::word` and `Shared::finished` order
// the caller's writes of the cell and the workers' reads.
unsafe impl Send for JobCell {}
// SAFETY: as above.
unsafe impl Sync for JobCell {}

/// The start of a slice that threads share disjoint chunks of.
struct SharedMut<T>(*mut T);

// SAFETY: threads get elements of it, which is sending them.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// # Safety
    /// `i` elements in, or at the end of, the slice.
    unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: of the caller.
        unsafe { self.0.add(i) }
    }
}

/// Its value in cache lines of its own; processors fetch them in pairs.
#[repr(align(128))]
struct Padded<T>(T);

impl<T> std::ops::Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Enough for the races to happen, few enough for Miri.
    const PHASES: usize = if cfg!(miri) { 60 } else { 100_000 };

    /// More threads awake than processors: workers are interrupted anywhere.
    #[test]
    fn every_task_runs_once_however_threads_are_interrupted() {
        for threads in [2, 3, 8] {
            let pool = Pool::with_awake(threads, threads);
            let phases = if threads > 3 { PHASES / 10 } else { PHASES };
            for phase in 0..phases {
                let tasks = phase % 7 + 2;
                let runs: [AtomicUsize; 8] = Default::default();
                pool.for_each(tasks, |i| _ = runs[i].fetch_add(phase + 1, Relaxed));
                for (i, runs) in runs.iter().enumerate() {
                    assert_eq!(runs.load(Relaxed), if i < tasks { phase + 1 } else { 0 });
                }
            }
        }
    }

    #[test]
    fn sleepers_are_called() {
        let pool = Pool::with_awake(4, 4);
        for _ in 0..5 {
            while pool.shared.asleep.load(SeqCst) < 3 {
                thread::yield_now();
            }
            let barrier = std::sync::Barrier::new(4);
            pool.for_each(4, |_| _ = barrier.wait());
        }
    }

    #[test]
    fn no_more_threads_than_awake_take_part() {
        let pool = Pool::with_awake(4, 2);
        while pool.shared.asleep.load(SeqCst) < 3 {
            thread::yield_now();
        }
        for _ in 0..20 {
            pool.for_each(8, |_| ());
            assert!(pool.shared.asleep.load(SeqCst) >= 2);
        }
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("\t0-2,8\n").map(Iterator::collect), Some(vec![0, 1, 2, 8]));
        assert!(parse_cpu_list("").is_none() && parse_cpu_list("0-x").is_none());
        assert!((1..=available_parallelism()).contains(&default_threads()));
    }
}
