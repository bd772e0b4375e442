//! The laws, on the embedded store; a restart closes the directory and opens it again.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use async_trait::async_trait;
use chappe_protocol::world::World;
use chappe_storage::conformance::Backend;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use std::sync::Arc;
use tempfile::TempDir;

/// With so many bytes of journal.
struct Embedded<const JOURNAL: u64> {
    rows: Arc<EmbeddedRows>,
    directory: TempDir,
}

impl<const JOURNAL: u64> Embedded<JOURNAL> {
    fn at(directory: TempDir, world: Arc<dyn World>) -> Self {
        let mut config = EmbeddedConfig::default();
        config.journal_bytes_max = JOURNAL;
        let rows = EmbeddedRows::open(directory.path(), world, config).unwrap();
        Self { rows: Arc::new(rows), directory }
    }
}

#[async_trait]
impl<const JOURNAL: u64> Backend for Embedded<JOURNAL> {
    type Rows = EmbeddedRows;

    async fn open(world: Arc<dyn World>) -> Self {
        Self::at(tempfile::tempdir().unwrap(), world)
    }

    fn rows(&self) -> Arc<EmbeddedRows> {
        self.rows.clone()
    }

    async fn reopen(self, world: Arc<dyn World>) -> Self {
        let rows = Arc::into_inner(self.rows).expect("a law has dropped its logs before a restart");
        drop(rows);
        Self::at(self.directory, world)
    }
}

chappe_storage::conformance!(Embedded<{ 32 << 20 }>);

/// Every batch goes into the pages, while the next ones are written: reads find rows in memory, on their way and in the pages.
mod always_turning {
    chappe_storage::conformance!(super::Embedded<1>);
}
