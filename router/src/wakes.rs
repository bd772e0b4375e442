//! The seam to whoever wakes devices that are not attached. **Invariant:** a hint is never waited for and may be lost: what must be
//! woken stands in the store's `pending` rows, and whoever sweeps those finds it within half a minute.

use chappe_protocol::internode::WakeHint;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes wake hints of routers.
pub trait Wakes: Send + Sync + 'static {
    /// Tells that a mailbox grew. Best effort: never waits, drops what does not fit.
    fn hint(&self, hint: WakeHint);
}

/// Hints that stay in the process: counted, and the latest of them kept.
#[derive(Debug)]
pub struct LocalWakes {
    count: AtomicU64,
    latest_max: usize,
    latest: Mutex<VecDeque<WakeHint>>,
}

impl LocalWakes {
    /// Keeps at most so many hints; all are counted.
    pub fn new(latest_max: usize) -> Self {
        Self { count: AtomicU64::new(0), latest_max, latest: Mutex::default() }
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The latest, oldest first.
    pub fn latest(&self) -> Vec<WakeHint> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<WakeHint>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for LocalWakes {
    /// Counts, and keeps none.
    fn default() -> Self {
        Self::new(0)
    }
}

impl Wakes for LocalWakes {
    fn hint(&self, hint: WakeHint) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if self.latest_max == 0 {
            return;
        }
        let mut latest = self.lock();
        if latest.len() >= self.latest_max {
            latest.pop_front();
        }
        latest.push_back(hint);
    }
}
