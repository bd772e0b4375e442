//! The store's own counters as metrics. **Invariant:** a counter here is the store's, as of the last look.

use chappe_node::metrics::Family;
use chappe_storage::scylla::ScyllaStats;
use chappe_storage::slotlog::LogStats;
use prometheus::{CounterVec, IntCounter, IntCounterVec, IntGauge, Registry};

/// What the store has done in this process.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    up: IntGauge,
    statements: IntCounterVec,
    seconds: CounterVec,
    errors: IntCounterVec,
    slots: IntCounter,
    coalesced: IntCounter,
    log: LogMetrics,
}

/// What a slot log has met in this process, whatever it is written to.
#[derive(Debug, Clone)]
pub struct LogMetrics(IntCounterVec);

impl LogMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let log = Family { registry, prefix: "chappe_log" };
        let events = log.counters(
            "events_total",
            "What the slot log met: commits, refusals, look-backs and the like.",
            &["event"],
        )?;
        let own = Self(events);
        own.observe(&LogStats::default());
        Ok(own)
    }

    /// Takes over what the log counted.
    pub fn observe(&self, log: &LogStats) {
        for (event, count) in [
            ("committed", log.committed),
            ("duplicate", log.duplicates),
            ("refused", log.refused),
            ("undecided", log.undecided),
            ("crossing", log.crossings),
            ("look_back_read", log.look_back_reads),
            ("look_back_hit", log.look_back_hits),
            ("head_read", log.head_reads),
            ("galloped", log.galloped),
            ("quota_refused", log.quota_refused),
            ("hole", log.holes),
            ("hole_healed", log.holes_healed),
            ("lost", log.lost),
            ("truncated", log.truncated),
            ("trimmed", log.trimmed),
            ("cursor_ahead", log.cursors_ahead),
            ("head_back", log.heads_back),
        ] {
            raise(&self.0.with_label_values(&[event]), count);
        }
    }
}

impl StoreMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let store = Family { registry, prefix: "chappe_store" };
        Ok(Self {
            up: store.gauge("up", "1 if the store answered the last look, else 0.")?,
            statements: store.counters(
                "statements_total",
                "Statements sent to the database, by kind.",
                &["kind"],
            )?,
            seconds: store.sums("seconds_total", "Time that these statements took, together.", &["kind"])?,
            errors: store.counters(
                "errors_total",
                "Statements that failed, by what it means.",
                &["class"],
            )?,
            slots: store.counter("slots_total", "Slots sent in conditional batches.")?,
            coalesced: store.counter(
                "coalesced_total",
                "Reads that joined an equal one instead of a statement of their own.",
            )?,
            log: LogMetrics::new(registry)?,
        })
    }

    /// Takes over what the store counted.
    pub fn observe(&self, rows: &ScyllaStats, log: &LogStats, up: bool) {
        self.up.set(i64::from(up));
        for (kind, count, ms) in [
            ("read", rows.reads, rows.reads_ms),
            ("serial_read", rows.serial_reads, rows.serial_reads_ms),
            ("write", rows.writes, rows.writes_ms),
            ("conditional", rows.conditionals, rows.conditionals_ms),
            ("append", rows.appends, rows.appends_ms),
        ] {
            raise(&self.statements.with_label_values(&[kind]), count);
            let seconds = self.seconds.with_label_values(&[kind]);
            seconds.inc_by((ms_to_seconds(ms) - seconds.get()).max(0.0));
        }
        for (class, count) in [
            ("unavailable", rows.unavailable),
            ("unknown", rows.unknown),
            ("invalid", rows.invalid),
            ("misshapen", rows.misshapen),
            ("full", rows.refused_full),
            ("append_refused", rows.appends_refused),
        ] {
            raise(&self.errors.with_label_values(&[class]), count);
        }
        raise(&self.slots, rows.append_slots);
        raise(&self.coalesced, rows.coalesced);
        self.log.observe(log);
    }
}

fn raise(counter: &IntCounter, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

#[expect(clippy::cast_precision_loss, reason = "a sum of milliseconds in a metric")]
fn ms_to_seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}
