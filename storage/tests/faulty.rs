//! The laws, on a database that fails now and then: every caller repeats what is not decided.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::Backend;
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
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
