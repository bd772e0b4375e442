//! The laws, on three replicas that are all there.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::Backend;
use chappe_storage::quorum::{QuorumFaults, QuorumRows, REPLICAS};
use std::sync::Arc;

struct Quorum(Arc<QuorumRows>);

#[async_trait]
impl Backend for Quorum {
    type Rows = QuorumRows;

    async fn open(world: Arc<dyn World>) -> Self {
        let seed = world.random_below(u64::MAX);
        Self(Arc::new(QuorumRows::new(world, seed, QuorumFaults::NONE, None)))
    }

    fn rows(&self) -> Arc<QuorumRows> {
        self.0.clone()
    }

    async fn reopen(self, _world: Arc<dyn World>) -> Self {
        assert_eq!(Arc::strong_count(&self.0), 1, "a law has dropped its logs before a restart");
        (0..REPLICAS).for_each(|replica| self.0.power_loss(replica));
        self
    }
}

chappe_storage::conformance!(Quorum, seeds: 0..3);
