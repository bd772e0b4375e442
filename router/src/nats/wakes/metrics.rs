//! What a router counts about wake hints on the bus. **Invariant:** handles are resolved once; no label carries an id.

use chappe_node::metrics::Family;
use prometheus::{IntCounter, IntGauge, Registry};

/// The metrics of wake hints in JetStream.
#[derive(Debug, Clone)]
pub struct WakeMetrics {
    /// `chappe_bus_wake_stream_up`: 1 while the stream takes hints.
    pub up: IntGauge,
    /// `chappe_bus_wake_streams_created_total`: streams created because there was none.
    pub created: IntCounter,
    /// `chappe_bus_wake_synced`: 1: JetStream syncs always; 0: not; -1: not known.
    pub synced: IntGauge,
    /// `chappe_bus_wakes_stored_total`: hints that JetStream has taken.
    pub stored: IntCounter,
    /// `chappe_bus_wakes_merged_total`: hints that became one with another of the same mailbox.
    pub merged: IntCounter,
    /// `chappe_bus_wakes_lost_total{why="no_stream"}`: there was no stream, or no connection.
    pub lost_no_stream: IntCounter,
    /// `chappe_bus_wakes_lost_total{why="full"}`: too many mailboxes waited.
    pub lost_full: IntCounter,
    /// `chappe_bus_wakes_lost_total{why="refused"}`: JetStream did not take it.
    pub lost_refused: IntCounter,
    /// `chappe_bus_wakes_lost_total{why="unanswered"}`: no answer in time; perhaps it is there.
    pub lost_unanswered: IntCounter,
    /// `chappe_bus_wake_queue`: mailboxes whose hint waits.
    pub queue: IntGauge,
    /// `chappe_bus_wakes_in_flight`: hints without an answer yet.
    pub in_flight: IntGauge,
}

impl WakeMetrics {
    /// Registers everything; fails if the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe_bus" };
        let lost = family.counters("wakes_lost_total", "Wake hints lost, by reason.", &["why"])?;
        let synced = family.gauge("wake_synced", "1: JetStream syncs always; 0: not; -1: not known.")?;
        synced.set(-1);
        Ok(Self {
            up: family.gauge("wake_stream_up", "1 while the stream takes wake hints.")?,
            created: family.counter("wake_streams_created_total", "Streams of wake hints created.")?,
            synced,
            stored: family.counter("wakes_stored_total", "Wake hints that JetStream has taken.")?,
            merged: family
                .counter("wakes_merged_total", "Wake hints that became one with another of their mailbox.")?,
            lost_no_stream: lost.with_label_values(&["no_stream"]),
            lost_full: lost.with_label_values(&["full"]),
            lost_refused: lost.with_label_values(&["refused"]),
            lost_unanswered: lost.with_label_values(&["unanswered"]),
            queue: family.gauge("wake_queue", "Mailboxes whose wake hint waits.")?,
            in_flight: family.gauge("wakes_in_flight", "Wake hints without an answer yet.")?,
        })
    }
}
