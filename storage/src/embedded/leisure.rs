//! How fast a memtable goes into the pages. **Invariant:** nothing waits for pages that are written at leisure: whoever would hurries
//! them first.
//!
//! Pages share the disk and the processors with the batches that people wait for, and have until the next memtable is full. So their
//! writer rests after each bit of work, and stops resting once it is late.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long a rest is: longer than most syncs of the journal take.
const REST: Duration = Duration::from_millis(1);

/// Whether there is time.
#[derive(Debug, Default)]
pub(super) struct Leisure {
    hurried: AtomicBool,
}

impl Leisure {
    /// A checkpoint begins, with time.
    pub(super) fn begin(&self) {
        self.hurried.store(false, Ordering::Relaxed);
    }

    /// It is waited for, or soon will be.
    pub(super) fn hurry(&self) {
        self.hurried.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_hurried(&self) -> bool {
        self.hurried.load(Ordering::Relaxed)
    }

    /// After a bit of work: lets others have the disk and the processor, if there is time.
    pub(super) fn rest(&self) {
        if !self.is_hurried() {
            std::thread::sleep(REST);
        }
    }
}
