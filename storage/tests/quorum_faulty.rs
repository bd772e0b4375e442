//! The laws, on three replicas that fail as real ones do: every caller repeats what is not decided.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::Backend;
use chappe_storage::quorum::{QuorumFaults, QuorumRows, REPLICAS};
use std::sync::Arc;

/// Fast clocks only: some laws lose rows on purpose by deleting them from a bucket that is in use, and a clock that is an hour
/// behind could not write there for an hour. Nothing is written to a bucket behind a real delete.
const FAULTS: QuorumFaults = QuorumFaults { fast_only: true, ..QuorumFaults::MANY };

struct FaultyQuorum(Arc<QuorumRows>);

#[async_trait]
impl Backend for FaultyQuorum {
    type Rows = QuorumRows;

    async fn open(world: Arc<dyn World>) -> Self {
        let seed = world.random_below(u64::MAX);
        Self(Arc::new(QuorumRows::new(world, seed, FAULTS, None)))
    }

    fn rows(&self) -> Arc<QuorumRows> {
        self.0.clone()
    }

    async fn reopen(self, _world: Arc<dyn World>) -> Self {
        assert_eq!(Arc::strong_count(&self.0), 1, "a law has dropped its logs before a restart");
        (0..REPLICAS).for_each(|replica| self.0.power_loss(replica));
        self
    }

    fn fails() -> bool {
        true
    }
}

chappe_storage::conformance!(FaultyQuorum, seeds: 0..20);
