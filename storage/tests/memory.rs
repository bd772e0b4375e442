//! The laws, on the reference database.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::Backend;
use chappe_storage::memory::MemoryRows;
use std::sync::Arc;

struct Memory(Arc<MemoryRows>);

#[async_trait]
impl Backend for Memory {
    type Rows = MemoryRows;

    async fn open(world: Arc<dyn World>) -> Self {
        Self(Arc::new(MemoryRows::new(world)))
    }

    fn rows(&self) -> Arc<MemoryRows> {
        self.0.clone()
    }

    /// The tables live as long as the process; only the caches above them go.
    async fn reopen(self, _world: Arc<dyn World>) -> Self {
        assert_eq!(Arc::strong_count(&self.0), 1, "a law has dropped its logs before a restart");
        self
    }
}

chappe_storage::conformance!(Memory);
