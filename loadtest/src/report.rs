//! What a run found, for people and for programs. **Invariant:** the verdict comes first and says why.

use crate::checker::{Audit, Offenders, Verdict};
use crate::history::FaultWindow;
use crate::scenario::Chat;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// The whole result. `format` names the shape of the JSON document.
#[derive(Debug, Serialize)]
pub struct Report {
    /// `chappe-loadtest/1`.
    pub format: &'static str,
    /// Passed, failed or void.
    pub verdict: Verdict,
    /// What was run.
    pub scenario: Chat,
    /// What the checker found.
    pub audit: Audit,
    /// From the intended send time to *accepted*, outside of fault windows.
    pub accept: Latency,
    /// From the intended send time to the receiver's application, outside of fault windows.
    pub deliver: Latency,
    /// As `accept`, with what a fault delayed.
    pub accept_all: Latency,
    /// As `deliver`, with what a fault delayed.
    pub deliver_all: Latency,
    /// How much later than intended the harness itself sent: if this is large, the harness was the bottleneck.
    pub send_delay: Latency,
    /// Sends that were skipped because a user's queue was full: load that was not put on.
    pub skipped: u64,
    /// Connections that were dropped on purpose.
    pub disconnects: u64,
    /// When the server was killed.
    pub faults: Vec<FaultWindow>,
    /// Wall time of the load, seconds.
    pub seconds: f64,
    /// Users that were connected at the end, by carrier.
    pub carriers: BTreeMap<&'static str, u32>,
    /// CPU time of the harness, seconds.
    pub harness_cpu_seconds: f64,
}

/// A distribution, µs.
#[derive(Debug, Default, Serialize)]
pub struct Latency {
    /// How many were measured.
    pub count: u64,
    /// Median.
    pub p50_us: u64,
    /// Ninety of a hundred are faster.
    pub p90_us: u64,
    /// Ninety-nine of a hundred are faster.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Latency {
    /// Of these values, to three digits.
    pub fn of(values: impl Iterator<Item = u64>) -> Self {
        let Ok(mut histogram) = Histogram::<u64>::new_with_bounds(1, 3_600_000_000, 3) else {
            return Self::default();
        };
        values.for_each(|value| histogram.saturating_record(value.max(1)));
        if histogram.is_empty() {
            return Self::default();
        }
        Self {
            count: histogram.len(),
            p50_us: histogram.value_at_quantile(0.50),
            p90_us: histogram.value_at_quantile(0.90),
            p99_us: histogram.value_at_quantile(0.99),
            max_us: histogram.max(),
        }
    }
}

impl Report {
    /// For people: verdict first.
    pub fn text(&self) -> String {
        let audit = &self.audit;
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{}: {} accepted, {} received; {} lost, {} phantom, {} misrouted, {} reordered, {} duplicate",
            self.verdict.word(),
            audit.accepted,
            audit.received,
            audit.lost.count,
            audit.phantom.count,
            audit.misrouted.count,
            audit.reordered.count,
            audit.duplicate.count
        );
        for reason in &audit.void {
            let _ = writeln!(text, "  void: {reason}");
        }
        for (kind, offenders) in audit.kinds() {
            list(&mut text, kind, offenders);
        }
        let _ = writeln!(
            text,
            "  {} users, {} submits/s intended, {:.1} s; {} refused, {} undecided, {} skipped, {} disconnects, {} faults",
            self.scenario.users,
            self.scenario.rate,
            self.seconds,
            audit.refused,
            audit.unknown,
            self.skipped,
            self.disconnects,
            self.faults.len()
        );
        for fault in &self.faults {
            let (from, to) = (fault.from_us / 1_000_000, fault.to_us / 1_000_000);
            let _ = writeln!(
                text,
                "  fault        {from:>6} s to {to} s: {}, {} in flight",
                fault.what, fault.in_flight
            );
        }
        let mut latencies = vec![
            ("accepted", &self.accept),
            ("delivered", &self.deliver),
            ("sent late by", &self.send_delay),
        ];
        if !self.faults.is_empty() {
            latencies.extend([("accepted *", &self.accept_all), ("delivered *", &self.deliver_all)]);
        }
        for (name, latency) in latencies {
            let _ = writeln!(
                text,
                "  {name:<12} p50 {:>9} p90 {:>9} p99 {:>9} max {:>9}   ({} measured, from the intended time)",
                millis(latency.p50_us),
                millis(latency.p90_us),
                millis(latency.p99_us),
                millis(latency.max_us),
                latency.count
            );
        }
        if !self.faults.is_empty() {
            text.push_str("  * faults included; the other lines leave out what a fault touched\n");
        }
        let carriers: Vec<String> =
            self.carriers.iter().map(|(name, users)| format!("{users} on {name}")).collect();
        let _ = writeln!(text, "  connected at the end: {}", carriers.join(", "));
        let _ = writeln!(text, "  harness CPU {:.1} s", self.harness_cpu_seconds);
        text
    }
}

pub(crate) fn list(text: &mut String, kind: &str, offenders: &Offenders) {
    for offender in &offenders.first {
        let submit = offender.submit.map_or_else(
            || "bytes of no submit".to_owned(),
            |key| format!("submit {} of user {}", key.counter, key.sender),
        );
        let _ = writeln!(text, "  {kind}: {submit}, at user {}", offender.user);
    }
    let more = offenders.count.saturating_sub(offenders.first.len() as u64);
    if more > 0 {
        let _ = writeln!(text, "  {kind}: … and {more} more");
    }
}

pub(crate) fn millis(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_values() {
        let latency = Latency::of(1..=1000);
        assert_eq!(latency.count, 1000);
        assert_eq!((latency.p50_us, latency.p90_us, latency.p99_us, latency.max_us), (500, 900, 990, 1000));
        assert_eq!(Latency::of(std::iter::empty()).count, 0);
    }

    #[test]
    fn the_verdict_decides_the_exit_code_and_stands_first() {
        let report = |verdict| Report {
            format: "chappe-loadtest/1",
            verdict,
            scenario: Chat::default(),
            audit: Audit::default(),
            accept: Latency::default(),
            deliver: Latency::default(),
            accept_all: Latency::default(),
            deliver_all: Latency::default(),
            send_delay: Latency::default(),
            skipped: 0,
            disconnects: 0,
            faults: vec![],
            seconds: 1.0,
            carriers: BTreeMap::from([("quic", 7)]),
            harness_cpu_seconds: 0.5,
        };
        for (verdict, code, word) in
            [(Verdict::Passed, 0, "PASSED"), (Verdict::Failed, 1, "FAILED"), (Verdict::Void, 2, "VOID")]
        {
            assert_eq!(verdict.exit_code(), code);
            let text = report(verdict).text();
            assert!(text.starts_with(word) && text.contains("7 on quic"), "{text}");
        }
    }
}
