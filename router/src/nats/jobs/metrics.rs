//! What a pusher counts about the hints it is given. **Invariant:** handles are resolved once; no label carries an id.

use chappe_node::metrics::Family;
use prometheus::{IntCounter, IntGauge, Registry};

/// The metrics of wake hints as jobs.
#[derive(Debug, Clone)]
pub struct WakeJobMetrics {
    /// `chappe_bus_wake_jobs_up`: 1 while hints can come.
    pub up: IntGauge,
    /// `chappe_bus_wake_consumers_created_total`: consumers created because there was none.
    pub created: IntCounter,
    /// `chappe_bus_wake_jobs_waiting`: hints behind the latest one.
    pub waiting: IntGauge,
    /// `chappe_bus_wake_jobs_total{fate="given"}`: given to this pusher's work.
    pub given: IntCounter,
    /// `chappe_bus_wake_jobs_total{fate="done"}`: seen to.
    pub done: IntCounter,
    /// `chappe_bus_wake_jobs_total{fate="later"}`: sent back for later.
    pub later: IntCounter,
    /// `chappe_bus_wake_jobs_total{fate="stale"}`: waited here until they were somebody else's.
    pub stale: IntCounter,
    /// `chappe_bus_wake_jobs_total{fate="refused"}`: could not be read, or of another cluster or version.
    pub refused: IntCounter,
    /// `chappe_bus_wake_jobs_repeated_total`: hints that have come before, to somebody.
    pub repeated: IntCounter,
    /// `chappe_bus_wake_job_answers_lost_total`: answers that found no room; their hints come again.
    pub answers_lost: IntCounter,
}

impl WakeJobMetrics {
    /// Registers everything; fails if the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe_bus" };
        let fates = family.counters("wake_jobs_total", "Wake hints of this pusher, by fate.", &["fate"])?;
        let fate = |word: &str| fates.with_label_values(&[word]);
        Ok(Self {
            up: family.gauge("wake_jobs_up", "1 while wake hints can come.")?,
            created: family.counter("wake_consumers_created_total", "Consumers of wake hints created.")?,
            waiting: family.gauge("wake_jobs_waiting", "Wake hints behind the latest one.")?,
            given: fate("given"),
            done: fate("done"),
            later: fate("later"),
            stale: fate("stale"),
            refused: fate("refused"),
            repeated: family.counter("wake_jobs_repeated_total", "Wake hints that have come before.")?,
            answers_lost: family
                .counter("wake_job_answers_lost_total", "Answers to wake hints that found no room.")?,
        })
    }
}
