//! How the connection is. **Invariant:** whatever may have cost this process a doorbell raises the alarm.

use super::metrics::BusMetrics;
use async_nats::Event;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// Whether the bus can be used, for readiness.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusHealth {
    /// Whether the connection stands.
    pub connected: bool,
    /// Since when this is so, on the process's monotonic clock.
    pub since: Time,
}

/// What the driver's events tell.
pub(crate) struct Status {
    world: Arc<dyn World>,
    metrics: Arc<BusMetrics>,
    health: Mutex<BusHealth>,
    /// How often the connection was made.
    connections: watch::Sender<u64>,
    alarms: watch::Sender<u64>,
    complained: AtomicU64,
}

/// One line in the log per this time, however many causes there are.
const COMPLAINTS_EVERY: Millis = Millis::from_secs(10);

impl Status {
    pub(crate) fn new(world: Arc<dyn World>, metrics: Arc<BusMetrics>) -> Self {
        let health = Mutex::new(BusHealth { connected: false, since: world.now() });
        let (connections, alarms) = (watch::channel(0).0, watch::channel(0).0);
        Self { world, metrics, health, connections, alarms, complained: AtomicU64::new(0) }
    }

    pub(crate) fn on_event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.set(true);
                self.connections.send_modify(|n| *n += 1);
                if *self.connections.borrow() > 1 {
                    self.metrics.reconnects.inc();
                    tracing::info!("connected to NATS again");
                }
            }
            Event::Disconnected | Event::Closed => {
                if self.set(false) {
                    self.metrics.disconnects.inc();
                    tracing::warn!("the connection to NATS is lost");
                }
            }
            Event::SlowConsumer(_) => {
                self.metrics.slow_consumers.inc();
                self.alarm();
                self.complain("this process reads too slowly from NATS, messages were dropped");
            }
            Event::ServerError(error) => {
                if error.to_string().to_ascii_lowercase().contains("permissions violation") {
                    self.metrics.denied.inc();
                }
                tracing::error!(%error, "NATS complains");
            }
            Event::ClientError(error) => self.complain(&format!("NATS: {error}")),
            Event::LameDuckMode => tracing::info!("the NATS server is about to end"),
            Event::Draining => {}
        }
    }

    /// `true`: it was otherwise before.
    pub(crate) fn set(&self, connected: bool) -> bool {
        self.metrics.connected.set(i64::from(connected));
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = health.connected != connected;
        if changed {
            *health = BusHealth { connected, since: self.world.now() };
        }
        changed
    }

    pub(crate) fn health(&self) -> BusHealth {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        self.connections.subscribe()
    }

    pub(crate) fn alarms(&self) -> watch::Receiver<u64> {
        self.alarms.subscribe()
    }

    /// Doorbells may have been lost.
    pub(crate) fn alarm(&self) {
        self.alarms.send_modify(|n| *n += 1);
    }

    /// A message of another cluster.
    pub(crate) fn foreign(&self) {
        self.metrics.foreign.inc();
        self.complain("nats_foreign: messages of another cluster on this NATS are refused: give each cluster its own name, or its own NATS");
    }

    /// Logs, but not more often than a reader can bear.
    pub(crate) fn complain(&self, what: &str) {
        let now = self.world.now().0 + 1;
        let last = self.complained.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= COMPLAINTS_EVERY.0;
        if due && self.complained.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            tracing::error!("{what}");
        }
    }
}
