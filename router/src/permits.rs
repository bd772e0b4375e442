//! Bounds in items and bytes at once. **Invariant:** what a permit took is given back when it is dropped, and the gauges say how much is taken.

use prometheus::IntGauge;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bound on something that waits or is under way.
pub(crate) struct Bound {
    items: Arc<Semaphore>,
    kibibytes: Arc<Semaphore>,
    items_gauge: IntGauge,
    bytes_gauge: IntGauge,
}

/// A place within a [`Bound`].
pub(crate) struct Permit {
    _items: OwnedSemaphorePermit,
    _kibibytes: OwnedSemaphorePermit,
    items: i64,
    bytes: i64,
    items_gauge: IntGauge,
    bytes_gauge: IntGauge,
}

impl Bound {
    pub(crate) fn new(
        items_max: usize,
        bytes_max: usize,
        items_gauge: IntGauge,
        bytes_gauge: IntGauge,
    ) -> Self {
        let semaphore = |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self { items: semaphore(items_max), kibibytes: semaphore(bytes_max / 1024), items_gauge, bytes_gauge }
    }

    /// Takes a place for so much, or `None` if there is none now. Bytes count in whole KiB, rounded up.
    pub(crate) fn try_take(&self, items: usize, bytes: usize) -> Option<Permit> {
        let take = |of: &Arc<Semaphore>, n: usize| {
            Arc::clone(of).try_acquire_many_owned(u32::try_from(n).ok()?).ok()
        };
        let item_permits = take(&self.items, items)?;
        let kibibyte_permits = take(&self.kibibytes, bytes.div_ceil(1024))?;
        let (items, bytes) = (i64::try_from(items).ok()?, i64::try_from(bytes).ok()?);
        self.items_gauge.add(items);
        self.bytes_gauge.add(bytes);
        let (items_gauge, bytes_gauge) = (self.items_gauge.clone(), self.bytes_gauge.clone());
        Some(Permit {
            _items: item_permits,
            _kibibytes: kibibyte_permits,
            items,
            bytes,
            items_gauge,
            bytes_gauge,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.items_gauge.sub(self.items);
        self.bytes_gauge.sub(self.bytes);
    }
}
