//! What a node counts on the bus. **Invariant:** handles are resolved once; no label carries an id.

use chappe_node::metrics::Family;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};

/// The metrics of the bus of a process.
#[derive(Debug, Clone)]
pub struct BusMetrics {
    /// `chappe_bus_connected`: 1 while the connection stands.
    pub connected: IntGauge,
    /// `chappe_bus_disconnects_total`: connections lost.
    pub disconnects: IntCounter,
    /// `chappe_bus_reconnects_total`: connections made again.
    pub reconnects: IntCounter,
    /// `chappe_bus_slow_consumers_total`: messages dropped because this process read too slowly.
    pub slow_consumers: IntCounter,
    /// `chappe_bus_denied_total`: what NATS's permissions forbade.
    pub denied: IntCounter,
    /// `chappe_bus_foreign_total`: messages of another cluster, refused.
    pub foreign: IntCounter,
    /// `chappe_bus_invalid_total`: messages that could not be read.
    pub invalid: IntCounter,
    /// `chappe_bus_requests_total{outcome}`: requests of this process.
    pub requests: RequestCounters,
    /// `chappe_bus_request_seconds`: from a request to its answer.
    pub request_seconds: Histogram,
    /// `chappe_bus_requests_repeated_total`: requests sent again, to another router or after a reconnect.
    pub repeated: IntCounter,
    /// `chappe_bus_requests_in_flight`: requests that wait for an answer.
    pub in_flight: IntGauge,
    /// `chappe_bus_requests_in_flight_bytes`: their bytes.
    pub in_flight_bytes: IntGauge,
    /// `chappe_bus_routers`: routers heard of and not gone.
    pub routers: IntGauge,
    /// `chappe_bus_routers_suspected_total`: routers avoided because they were silent or late.
    pub suspected: IntCounter,
    /// `chappe_bus_announcements_total`: announcements heard.
    pub announcements: IntCounter,
    /// `chappe_bus_served_total{outcome}`: requests that reached this process.
    pub served: ServedCounters,
    /// `chappe_bus_serving`: requests under way here.
    pub serving: IntGauge,
    /// `chappe_bus_serving_bytes`: their bytes.
    pub serving_bytes: IntGauge,
    /// `chappe_bus_lag_seconds`: an upper bound of how long messages wait before this router reads them.
    pub lag_seconds: Gauge,
    /// `chappe_bus_doorbells_sent_total`: doorbells given to the connection.
    pub bells_sent: IntCounter,
    /// `chappe_bus_doorbells_dropped_total{why="disconnected"}`.
    pub bells_dropped_disconnected: IntCounter,
    /// `chappe_bus_doorbells_dropped_total{why="full"}`: too many waited, here or in the gateway.
    pub bells_dropped_full: IntCounter,
    /// `chappe_bus_doorbells_dropped_total{why="oversize"}`.
    pub bells_dropped_oversize: IntCounter,
    /// `chappe_bus_doorbells_heard_total`: doorbells heard.
    pub bells_heard: IntCounter,
    /// `chappe_bus_doorbell_queue`: doorbells that wait to be written.
    pub bell_queue: IntGauge,
    /// `chappe_bus_doorbell_queue_bytes`: their bytes.
    pub bell_queue_bytes: IntGauge,
}

/// One counter per way in which a request ends.
#[derive(Debug, Clone)]
pub struct RequestCounters {
    /// A router answered.
    pub answered: IntCounter,
    /// A router answered *unavailable*.
    pub unavailable: IntCounter,
    /// No router took it.
    pub no_router: IntCounter,
    /// No answer within the budget.
    pub timeout: IntCounter,
    /// Too many wait here.
    pub full: IntCounter,
    /// Larger than the bus takes.
    pub oversize: IntCounter,
}

/// One counter per fate of a request that reached a router.
#[derive(Debug, Clone)]
pub struct ServedCounters {
    /// Answered.
    pub answered: IntCounter,
    /// Refused: too many are under way.
    pub full: IntCounter,
    /// Refused: too old when it was read.
    pub stale: IntCounter,
    /// Refused: this router ends.
    pub draining: IntCounter,
    /// Refused: could not be read, or of another cluster or version.
    pub refused: IntCounter,
    /// The answer could not be sent.
    pub unanswered: IntCounter,
}

impl BusMetrics {
    /// Registers everything; fails if the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe_bus" };
        let requests =
            family.counters("requests_total", "Requests of this process, by outcome.", &["outcome"])?;
        let served = family.counters(
            "served_total",
            "Requests that reached this router, by outcome.",
            &["outcome"],
        )?;
        let dropped = family.counters(
            "doorbells_dropped_total",
            "Doorbells dropped on the bus, by reason.",
            &["why"],
        )?;
        Ok(Self {
            connected: family.gauge("connected", "1 while the connection to the bus stands.")?,
            disconnects: family.counter("disconnects_total", "Connections to the bus lost.")?,
            reconnects: family.counter("reconnects_total", "Connections to the bus made again.")?,
            slow_consumers: family
                .counter("slow_consumers_total", "Messages dropped because this process read too slowly.")?,
            denied: family.counter("denied_total", "What the permissions of the bus forbade.")?,
            foreign: family.counter("foreign_total", "Messages of another cluster, refused.")?,
            invalid: family.counter("invalid_total", "Messages that could not be read.")?,
            requests: RequestCounters {
                answered: requests.with_label_values(&["answered"]),
                unavailable: requests.with_label_values(&["unavailable"]),
                no_router: requests.with_label_values(&["no_router"]),
                timeout: requests.with_label_values(&["timeout"]),
                full: requests.with_label_values(&["full"]),
                oversize: requests.with_label_values(&["oversize"]),
            },
            request_seconds: family.histogram(
                "request_seconds",
                "From a request to its answer.",
                (0.0001, 2.0, 18),
            )?,
            repeated: family.counter("requests_repeated_total", "Requests sent again.")?,
            in_flight: family.gauge("requests_in_flight", "Requests that wait for an answer.")?,
            in_flight_bytes: family.gauge("requests_in_flight_bytes", "Bytes of requests that wait.")?,
            routers: family.gauge("routers", "Routers heard of and not gone.")?,
            suspected: family.counter("routers_suspected_total", "Routers avoided as silent or late.")?,
            announcements: family.counter("announcements_total", "Announcements of routers heard.")?,
            served: ServedCounters {
                answered: served.with_label_values(&["answered"]),
                full: served.with_label_values(&["full"]),
                stale: served.with_label_values(&["stale"]),
                draining: served.with_label_values(&["draining"]),
                refused: served.with_label_values(&["refused"]),
                unanswered: served.with_label_values(&["unanswered"]),
            },
            serving: family.gauge("serving", "Requests under way in this router.")?,
            serving_bytes: family.gauge("serving_bytes", "Bytes of requests under way in this router.")?,
            lag_seconds: family
                .real_gauge("lag_seconds", "Upper bound of the wait before a message is read.")?,
            bells_sent: family.counter("doorbells_sent_total", "Doorbells given to the connection.")?,
            bells_dropped_disconnected: dropped.with_label_values(&["disconnected"]),
            bells_dropped_full: dropped.with_label_values(&["full"]),
            bells_dropped_oversize: dropped.with_label_values(&["oversize"]),
            bells_heard: family.counter("doorbells_heard_total", "Doorbells heard from the bus.")?,
            bell_queue: family.gauge("doorbell_queue", "Doorbells that wait to be written.")?,
            bell_queue_bytes: family.gauge("doorbell_queue_bytes", "Bytes of doorbells that wait.")?,
        })
    }
}
