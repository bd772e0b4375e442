//! What every process tells of itself: its version, whether it serves, what it takes of the machine.
//! **Invariant:** all of it is read when it is asked for, and costs nothing in between.

use crate::metrics::Family;
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Registry};
use tokio::sync::watch;

/// The version of all crates and binaries of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Registers `chappe_build_info`, `chappe_ready` and `process_*` (CPU, memory, open files, start, threads).
/// Fails if the registry has one of the names already.
pub fn register(
    registry: &Registry,
    role: &str,
    ready: watch::Receiver<bool>,
) -> Result<(), prometheus::Error> {
    let own = Family { registry, prefix: "chappe" };
    let info = own.gauges("build_info", "1; the labels say what runs.", &["version", "role"])?;
    info.with_label_values(&[VERSION, role]).set(1);
    let help = "1 if the process serves, 0 while it starts, drains or lacks a part it needs.";
    let gauge = IntGauge::new("chappe_ready", help)?;
    registry.register(Box::new(Ready { gauge, ready }))?;
    registry.register(Box::new(ProcessCollector::for_self()))
}

struct Ready {
    gauge: IntGauge,
    ready: watch::Receiver<bool>,
}

impl Collector for Ready {
    fn desc(&self) -> Vec<&Desc> {
        self.gauge.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.gauge.set(i64::from(*self.ready.borrow()));
        self.gauge.collect()
    }
}
