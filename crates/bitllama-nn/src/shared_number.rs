//! A number that changes from step to step, for those who hold a part of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// One number, shared by its clones.
#[derive(Debug, Clone)]
pub struct SharedNumber(Arc<AtomicU32>);

impl SharedNumber {
    /// `value`, until it is set.
    pub fn new(value: f32) -> Self {
        Self(Arc::new(AtomicU32::new(value.to_bits())))
    }

    /// Sets it, for all clones.
    pub fn set(&self, value: f32) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// What it was set to last.
    pub fn get(&self) -> f32 {
        f32::from_bits(self.0.load(Ordering::Relaxed))
    }
}
