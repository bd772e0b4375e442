//! The laws, on a database that fails now and then: every caller repeats what is not decided.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::{Backend, Bench};
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::planted::Planted;
use chappe_storage::{Store, StoreError};
use std::sync::Arc;

struct FaultyMemory(Arc<Faulty<MemoryRows>>);

#[async_trait]
impl Backend for FaultyMemory {
    type Rows = Faulty<MemoryRows>;

    async fn open(world: Arc<dyn World>) -> Self {
        let seed = world.random_below(u64::MAX);
        let rows = Arc::new(MemoryRows::new(world));
        Self(Arc::new(Faulty::new(rows, seed, Faults::MANY)))
    }

    fn rows(&self) -> Arc<Faulty<MemoryRows>> {
        self.0.clone()
    }

    async fn reopen(self, _world: Arc<dyn World>) -> Self {
        assert_eq!(Arc::strong_count(&self.0), 1, "a law has dropped its logs before a restart");
        self
    }

    fn fails() -> bool {
        true
    }
}

chappe_storage::conformance!(FaultyMemory, seeds: 0..20);

/// Appends lists over a failing database, and looks what those left behind that "certainly wrote nothing".
async fn lies_about_unavailable(seed: u64, planted: Option<Planted>) -> bool {
    let mut bench = Bench::<FaultyMemory>::open_seeded(seed).await;
    bench.planted = planted;
    let (log, rows) = (bench.log().0, bench.rows());
    let mut refused = Vec::new();
    for first in (0..40).step_by(5) {
        // Each crosses an edge: its first part may be written when the second meets an error.
        let list: Vec<_> = (first..first + 5).map(|n| bench.entry(n)).collect();
        if let Err(StoreError::Unavailable(_)) = log.append(bench.mailbox, &list, None).await {
            refused.extend(first..first + 5);
        }
    }
    rows.switch(false);
    rows.settle().await;
    let numbers = bench.numbers(&bench.log()).await;
    refused.iter().any(|n| numbers.contains(n))
}

/// `Unavailable` is a promise.
#[tokio::test(start_paused = true)]
async fn unavailable_has_written_nothing() {
    let mut noticed = false;
    for seed in 0..300 {
        assert!(!lies_about_unavailable(seed, None).await, "seed {seed}: it was written after all");
        noticed |= lies_about_unavailable(seed, Some(Planted::UnknownToldAsUnavailable)).await;
    }
    assert!(noticed, "the defect goes unnoticed");
}
