//! What a router counts. **Invariant:** handles are resolved once; no label carries an id.

use chappe_node::metrics::Family;
use chappe_protocol::internode::Outcome;
use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};

/// The metrics of all routers of a process, of their links and of their directory.
#[derive(Debug, Clone)]
pub struct RouterMetrics {
    /// `chappe_router_submits_total`: submits received.
    pub submits: IntCounter,
    /// `chappe_router_entries_total{outcome}`: entries answered.
    pub entries: EntryCounters,
    /// `chappe_router_refused_total{why="full"}`: requests refused because a queue was full.
    pub refused_full: IntCounter,
    /// `chappe_router_refused_total{why="invalid"}`: requests refused because a gateway sent what it should not.
    pub refused_invalid: IntCounter,
    /// `chappe_router_batch_entries`: entries per append.
    pub batch_entries: Histogram,
    /// `chappe_router_append_seconds`: time of one call of the store's append.
    pub append_seconds: Histogram,
    /// `chappe_router_append_retries_total`: appends tried again under the same ids.
    pub append_retries: IntCounter,
    /// `chappe_router_shared_payloads_total`: payloads stored once for several mailboxes.
    pub shared_payloads: IntCounter,
    /// `chappe_router_queue_entries`: entries of submits under way.
    pub queue_entries: IntGauge,
    /// `chappe_router_queue_entries_max`: as many as there may be.
    pub queue_entries_max: IntGauge,
    /// `chappe_router_queue_bytes`: payload bytes of submits under way.
    pub queue_bytes: IntGauge,
    /// `chappe_router_mailboxes`: mailboxes with a round.
    pub mailboxes: IntGauge,
    /// `chappe_router_appends_in_flight`: appends under way in the store.
    pub appends_in_flight: IntGauge,
    /// `chappe_router_doorbell_queue`: doorbells that are being rung.
    pub doorbell_queue: IntGauge,
    /// `chappe_router_doorbell_queue_bytes`: their bytes.
    pub doorbell_bytes: IntGauge,
    /// `chappe_router_doorbells_total`: doorbells handed to the links.
    pub doorbells: IntCounter,
    /// `chappe_router_doorbells_dropped_total{where="router"}`: dropped because too many were being rung.
    pub doorbells_dropped_router: IntCounter,
    /// `chappe_router_doorbells_dropped_total{where="link"}`: dropped because the gateway was gone or its queue full.
    pub doorbells_dropped_link: IntCounter,
    /// `chappe_router_gateway_queue_bells`: doorbells that wait for the gateways of this process.
    pub gateway_queue_bells: IntGauge,
    /// `chappe_router_wake_hints_total`: wake hints handed on.
    pub wake_hints: IntCounter,
    /// `chappe_router_probes_total`: probes answered.
    pub probes: IntCounter,
    /// `chappe_router_probe_news_total`: mailboxes that probes reported.
    pub probe_news: IntCounter,
    /// `chappe_router_leases`: leases in the directory of this process.
    pub leases: IntGauge,
    /// `chappe_router_leases_dropped_total`: leases not taken because the directory was full.
    pub leases_dropped: IntCounter,
}

/// The metrics of presence in Redis.
#[derive(Debug, Clone)]
pub struct PresenceMetrics {
    /// `chappe_presence_calls_total{call, outcome}`: calls, by what became of them.
    pub calls: IntCounterVec,
    /// `chappe_presence_seconds`: time of a call.
    pub seconds: Histogram,
}

impl PresenceMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe_presence" };
        Ok(Self {
            calls: family.counters(
                "calls_total",
                "Calls of Redis, by what became of them.",
                &["call", "outcome"],
            )?,
            seconds: family.histogram("seconds", "Time of a call of Redis.", (0.0001, 2.0, 16))?,
        })
    }
}

/// One counter per [`Outcome`].
#[derive(Debug, Clone)]
pub struct EntryCounters {
    accepted: IntCounter,
    unknown_user: IntCounter,
    no_device: IntCounter,
    devices_changed: IntCounter,
    quota: IntCounter,
    unavailable: IntCounter,
    not_attempted: IntCounter,
    unknown: IntCounter,
}

impl EntryCounters {
    /// Its counter.
    pub fn of(&self, outcome: &Outcome) -> &IntCounter {
        match outcome {
            Outcome::Accepted => &self.accepted,
            Outcome::UnknownUser => &self.unknown_user,
            Outcome::NoDevice => &self.no_device,
            Outcome::DevicesChanged { .. } => &self.devices_changed,
            Outcome::Quota => &self.quota,
            Outcome::Unavailable => &self.unavailable,
            Outcome::NotAttempted => &self.not_attempted,
            Outcome::Unknown => &self.unknown,
        }
    }
}

impl RouterMetrics {
    /// Registers everything; fails if the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe_router" };
        let entries = family.counters("entries_total", "Entries answered, by outcome.", &["outcome"])?;
        let refused =
            family.counters("refused_total", "Requests refused as a whole, by reason.", &["why"])?;
        let dropped =
            family.counters("doorbells_dropped_total", "Doorbells dropped, by place.", &["where"])?;
        Ok(Self {
            submits: family.counter("submits_total", "Submits received.")?,
            entries: EntryCounters {
                accepted: entries.with_label_values(&["accepted"]),
                unknown_user: entries.with_label_values(&["unknown_user"]),
                no_device: entries.with_label_values(&["no_device"]),
                devices_changed: entries.with_label_values(&["devices_changed"]),
                quota: entries.with_label_values(&["quota"]),
                unavailable: entries.with_label_values(&["unavailable"]),
                not_attempted: entries.with_label_values(&["not_attempted"]),
                unknown: entries.with_label_values(&["unknown"]),
            },
            refused_full: refused.with_label_values(&["full"]),
            refused_invalid: refused.with_label_values(&["invalid"]),
            batch_entries: family.histogram("batch_entries", "Entries per append.", (1.0, 2.0, 7))?,
            append_seconds: family.histogram("append_seconds", "Time of one append.", (0.0001, 2.0, 18))?,
            append_retries: family
                .counter("append_retries_total", "Appends tried again under the same ids.")?,
            shared_payloads: family
                .counter("shared_payloads_total", "Payloads stored once for several mailboxes.")?,
            queue_entries: family.gauge("queue_entries", "Entries of submits under way.")?,
            queue_entries_max: family
                .gauge("queue_entries_max", "Entries of submits that may be under way at once.")?,
            queue_bytes: family.gauge("queue_bytes", "Payload bytes of submits under way.")?,
            mailboxes: family.gauge("mailboxes", "Mailboxes with a round.")?,
            appends_in_flight: family.gauge("appends_in_flight", "Appends under way in the store.")?,
            doorbell_queue: family.gauge("doorbell_queue", "Doorbells that are being rung.")?,
            doorbell_bytes: family
                .gauge("doorbell_queue_bytes", "Bytes of doorbells that are being rung.")?,
            doorbells: family.counter("doorbells_total", "Doorbells handed to the links.")?,
            doorbells_dropped_router: dropped.with_label_values(&["router"]),
            doorbells_dropped_link: dropped.with_label_values(&["link"]),
            gateway_queue_bells: family
                .gauge("gateway_queue_bells", "Doorbells that wait for the gateways of this process.")?,
            wake_hints: family.counter("wake_hints_total", "Wake hints handed on.")?,
            probes: family.counter("probes_total", "Probes answered.")?,
            probe_news: family.counter("probe_news_total", "Mailboxes that probes reported.")?,
            leases: family.gauge("leases", "Leases in the directory of this process.")?,
            leases_dropped: family
                .counter("leases_dropped_total", "Leases not taken because the directory was full.")?,
        })
    }
}
