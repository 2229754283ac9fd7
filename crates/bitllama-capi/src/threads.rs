//! The `threads` argument.

use std::ffi::c_int;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bitllama_kernels::Pool;

/// How many threads a `threads` of 1 or more asks for: no more than there are processors, as more would only wait. `None`,
/// the pool of the process, for 0 or less.
pub fn wanted(threads: c_int) -> Option<usize> {
    let threads = usize::try_from(threads).ok().filter(|threads| *threads > 0)?;
    Some(threads.min(thread::available_parallelism().map_or(1, usize::from)))
}

/// Threads to compute on.
pub enum Threads {
    /// Those of the process.
    Global,
    /// Some of its own.
    Own(Arc<Pool>),
}

impl Threads {
    /// As many as [`wanted`].
    pub fn new(threads: c_int) -> Self {
        wanted(threads).map_or(Self::Global, |threads| Self::Own(own_pool(threads)))
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        match self {
            Self::Global => Pool::global(),
            Self::Own(pool) => pool,
        }
    }
}

/// A pool of `threads`. The last one is kept: callers ask for the same number again and again.
fn own_pool(threads: usize) -> Arc<Pool> {
    static LAST: Mutex<Option<(usize, Arc<Pool>)>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    match &*last {
        Some((kept, pool)) if *kept == threads => Arc::clone(pool),
        _ => {
            let pool = Arc::new(Pool::new(threads));
            *last = Some((threads, Arc::clone(&pool)));
            pool
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_bounded_and_kept() {
        assert!(matches!(Threads::new(0), Threads::Global) && matches!(Threads::new(-4), Threads::Global));
        let many = Threads::new(i32::MAX).pool().threads();
        assert!((1..=thread::available_parallelism().unwrap().get()).contains(&many));
    }
}
