//! What the embedded store counts, as metrics. **Invariant:** a counter here is the store's, as of the last look.

use chappe_node::metrics::Family;
use chappe_router::store_metrics::LogMetrics;
use chappe_storage::embedded::{EmbeddedRows, EmbeddedStats};
use chappe_storage::slotlog::{LogStats, SlotLog};
use prometheus::{IntCounter, Registry};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the store is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// The counters of an embedded store and of the slot log above it.
#[derive(Debug, Clone)]
pub struct EmbeddedMetrics {
    reads: IntCounter,
    range_reads: IntCounter,
    writes: IntCounter,
    batches: IntCounter,
    checkpoints: IntCounter,
    log: LogMetrics,
}

impl EmbeddedMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let of = Family { registry, prefix: "chappe_embedded" };
        Ok(Self {
            reads: of.counter("reads_total", "Reads of a few rows.")?,
            range_reads: of.counter("range_reads_total", "Reads of a range of rows, or of a large one.")?,
            writes: of.counter("writes_total", "Writes that were queued.")?,
            batches: of.counter("batches_total", "Batches of writes, each journalled with one sync.")?,
            checkpoints: of.counter("checkpoints_total", "Memtables taken into the pages.")?,
            log: LogMetrics::new(registry)?,
        })
    }

    /// Takes over what the store counted.
    pub fn observe(&self, stats: EmbeddedStats, log: &LogStats) {
        self.log.observe(log);
        for (counter, now) in [
            (&self.reads, stats.reads),
            (&self.range_reads, stats.range_reads),
            (&self.writes, stats.writes),
            (&self.batches, stats.batches),
            (&self.checkpoints, stats.checkpoints),
        ] {
            counter.inc_by(now.saturating_sub(counter.get()));
        }
    }

    /// Looks again and again, until the end.
    pub(crate) async fn follow(
        self,
        rows: Arc<EmbeddedRows>,
        log: Arc<SlotLog<EmbeddedRows>>,
        ended: CancellationToken,
    ) {
        let mut ticks = tokio::time::interval(EVERY);
        while ended.run_until_cancelled(ticks.tick()).await.is_some() {
            self.observe(rows.stats(), &log.stats());
        }
    }
}
