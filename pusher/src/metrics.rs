//! What a pusher counts. **Invariant:** handles are resolved once where they are hot; no label carries an id.

use crate::look::Look;
use crate::outbox::{OutboxConfig, Sizes};
use crate::provider::{Answer, ProviderKind, Verdict};
use chappe_node::metrics::Family;
use chappe_protocol::time::Millis;
use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use std::collections::BTreeMap;

/// With what is promised, 30 s, among them.
const WAKE_SECONDS: [f64; 13] = [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 30.0, 60.0, 120.0, 300.0];
/// What a look finds.
const FOUND: [&str; 6] = ["sleeper", "alive", "sealed", "unreachable", "later", "nothing"];
/// Why a wake is not sent.
const SKIPPED: [&str; 4] = ["acked", "expired", "no_target", "reborn"];
/// States of a wake in the outbox.
const STATES: [&str; 3] = ["due", "in_flight", "parked"];

/// The metrics of a pusher.
pub struct PusherMetrics {
    /// `chappe_pusher_hints_total`: hints of routers that arrived.
    pub hints: IntCounter,
    /// `chappe_pusher_hints_lost_total`: hints that found no place; the sweep finds their mailboxes.
    pub looks_lost: IntCounter,
    /// `chappe_pusher_looks_waiting`: mailboxes that wait to be looked at.
    pub looks_waiting: IntGauge,
    /// `chappe_pusher_looks_failed_total`: looks that the store did not answer; they are repeated.
    pub looks_failed: IntCounter,
    looks: IntCounterVec,
    /// `chappe_pusher_deferred_total`: wakes that wait in a note of a later minute: quiet hours, quotas, a full outbox.
    pub deferred: IntCounter,
    /// `chappe_pusher_parked_total`: wakes that will never pass.
    pub parked: IntCounter,
    /// `chappe_pusher_unwritten_total`: wakes whose trace the store did not take; they may be given once more.
    pub unwritten: IntCounter,
    /// `chappe_pusher_notes_total`: noted mailboxes that sweeps passed.
    pub notes: IntCounter,
    /// `chappe_pusher_sweeps_failed_total`: sweeps of a shard that the store did not answer.
    pub sweeps_failed: IntCounter,
    /// `chappe_pusher_shards`: shards that this pusher sweeps.
    pub shards: IntGauge,
    sweep_seconds: Histogram,
    sweep_behind_seconds: Gauge,
    answers: IntCounterVec,
    skipped: IntCounterVec,
    queue: IntGaugeVec,
    queue_max: IntGauge,
    oldest_seconds: Gauge,
    queue_bytes: IntGauge,
    apps_paused: IntGauge,
    by_provider: BTreeMap<ProviderKind, OfProvider>,
}

struct OfProvider {
    first: IntCounter,
    repeated: IntCounter,
    noise: IntCounter,
    buried: IntCounter,
    seconds: Histogram,
}

impl PusherMetrics {
    /// Registers everything; fails if the registry has one of the names already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let family = Family { registry, prefix: "chappe_pusher" };
        let wakes =
            family.counters("wakes_total", "Wakes that a provider took.", &["provider", "attempt"])?;
        let noise =
            family.counters("noise_total", "Wakes that came too late to be needed.", &["provider"])?;
        let buried = family.counters("dead_targets_total", "Push targets removed as dead.", &["provider"])?;
        let seconds = family.histograms_in(
            "wake_seconds",
            "From the acceptance of an envelope to the provider's.",
            &["provider"],
            &WAKE_SECONDS,
        )?;
        let of = |provider: ProviderKind| {
            let label = provider.label();
            let of = OfProvider {
                first: wakes.with_label_values(&[label, "first"]),
                repeated: wakes.with_label_values(&[label, "repeated"]),
                noise: noise.with_label_values(&[label]),
                buried: buried.with_label_values(&[label]),
                seconds: seconds.with_label_values(&[label]),
            };
            (provider, of)
        };
        let looks = family.counters("looks_total", "Looks at mailboxes, by what they found.", &["found"])?;
        let skipped = family.counters("skipped_total", "Wakes that were not sent, by reason.", &["why"])?;
        for found in FOUND {
            looks.with_label_values(&[found]).inc_by(0);
        }
        for why in SKIPPED {
            skipped.with_label_values(&[why]).inc_by(0);
        }
        let queue = family.gauges("queue", "Wakes in the outbox, by state.", &["state"])?;
        for state in STATES {
            queue.with_label_values(&[state]).set(0);
        }
        Ok(Self {
            hints: family.counter("hints_total", "Wake hints that arrived.")?,
            looks_lost: family.counter("hints_lost_total", "Wake hints that found no place.")?,
            looks_waiting: family.gauge("looks_waiting", "Mailboxes that wait to be looked at.")?,
            looks_failed: family.counter("looks_failed_total", "Looks that the store did not answer.")?,
            looks,
            deferred: family.counter("deferred_total", "Wakes put off to a later minute.")?,
            parked: family.counter("parked_total", "Wakes that will never pass.")?,
            unwritten: family.counter("unwritten_total", "Wakes whose trace the store did not take.")?,
            notes: family.counter("notes_total", "Noted mailboxes that sweeps passed.")?,
            sweeps_failed: family.counter("sweeps_failed_total", "Sweeps that the store did not answer.")?,
            shards: family.gauge("shards", "Shards that this pusher sweeps.")?,
            sweep_seconds: family.histogram(
                "sweep_seconds",
                "Time of a sweep of all shards.",
                (0.001, 4.0, 10),
            )?,
            sweep_behind_seconds: family
                .real_gauge("sweep_behind_seconds", "Age of the oldest unswept note.")?,
            answers: family.counters(
                "answers_total",
                "Answers of providers.",
                &["provider", "verdict", "reason"],
            )?,
            skipped,
            queue,
            queue_max: family.gauge("queue_max", "Wakes that the outbox takes at most.")?,
            oldest_seconds: family
                .real_gauge("oldest_wake_seconds", "Age of the wake that has been longest in the outbox.")?,
            queue_bytes: family.gauge("queue_bytes", "Bytes held for wakes in the outbox.")?,
            apps_paused: family.gauge("apps_paused", "Apps whose provider asked for a pause.")?,
            by_provider: ProviderKind::ALL.into_iter().map(of).collect(),
        })
    }

    fn of(&self, provider: ProviderKind) -> Option<&OfProvider> {
        self.by_provider.get(&provider)
    }

    pub(crate) fn looked(&self, look: &Look) {
        let found = if !look.sleepers.is_empty() {
            "sleeper"
        } else if look.alive > 0 {
            "alive"
        } else if look.sealed > 0 {
            "sealed"
        } else if look.unreachable > 0 {
            "unreachable"
        } else if look.again.is_some() {
            "later"
        } else {
            "nothing"
        };
        self.looks.with_label_values(&[found]).inc();
    }

    pub(crate) fn skipped(&self, why: &'static str) {
        self.skipped.with_label_values(&[why]).inc();
    }

    /// A provider has answered.
    pub fn answered(&self, provider: ProviderKind, answer: &Answer) {
        let verdict = match answer.verdict {
            Verdict::Done => "done",
            Verdict::Retry { .. } => "retry",
            Verdict::Drop { .. } => "drop",
            Verdict::FixConfiguration => "fix_configuration",
            Verdict::Park => "park",
            Verdict::Held { .. } => "held",
        };
        self.answers.with_label_values(&[provider.label(), verdict, answer.reason]).inc();
    }

    #[allow(clippy::cast_precision_loss, reason = "milliseconds of a wake, for a histogram")]
    pub(crate) fn woken(&self, provider: ProviderKind, attempt: u8, latency_ms: u64) {
        let Some(of) = self.of(provider) else { return };
        if attempt > 0 {
            return of.repeated.inc();
        }
        of.first.inc();
        of.seconds.observe(latency_ms as f64 / 1000.0);
    }

    pub(crate) fn noise(&self, provider: ProviderKind) {
        if let Some(of) = self.of(provider) {
            of.noise.inc();
        }
    }

    pub(crate) fn buried(&self, provider: ProviderKind) {
        if let Some(of) = self.of(provider) {
            of.buried.inc();
        }
    }

    pub(crate) fn swept(&self, took: Millis, behind: Millis) {
        self.sweep_seconds.observe(took.to_std().as_secs_f64());
        self.sweep_behind_seconds.set(behind.to_std().as_secs_f64());
    }

    pub(crate) fn bounds(&self, config: &OutboxConfig) {
        self.queue_max.set(i64::try_from(config.total_max).unwrap_or(i64::MAX));
    }

    pub(crate) fn sizes(&self, sizes: &Sizes) {
        for (state, count) in STATES.into_iter().zip([sizes.due, sizes.in_flight, sizes.parked]) {
            self.queue.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        self.oldest_seconds.set(sizes.oldest.to_std().as_secs_f64());
        self.queue_bytes.set(i64::try_from(sizes.bytes).unwrap_or(i64::MAX));
        self.apps_paused.set(i64::try_from(sizes.paused).unwrap_or(i64::MAX));
    }
}
