//! The figures of a run by name, and what becomes of its thresholds. **Invariant:** every figure is one of
//! [`crate::thresholds::NAMES`].

use super::{Generator, Report};
use crate::audit::{Audit, Verdict};
use crate::measure::{Measured, Phase};
use crate::thresholds::{Figure, Figures, Threshold, Unit};
use crate::wake::WakeAudit;

/// A harness that sends this much later than intended measures itself.
const DELAY_MAX_US: u64 = 20_000;

impl Report {
    /// What was found of the wakes: a broken promise of either kind fails a run; where nothing was proven, it is void.
    pub(crate) fn woken(&mut self, wakes: WakeAudit) {
        let verdicts = [self.verdict, wakes.verdict()];
        let bad = [Verdict::Failed, Verdict::Void].into_iter().find(|bad| verdicts.contains(bad));
        self.verdict = bad.unwrap_or(Verdict::Passed);
        if wakes.asleep == 0 {
            let why = "nobody was asleep when something was sent: lower --rate, or more --users";
            self.audit.void.push(why.to_owned());
        }
        self.wakes = Some(wakes);
    }

    /// Names its figures and judges the scenario's thresholds: the last thing that is done to it.
    pub(crate) fn judge(&mut self) {
        self.figures = figures(self);
        let read = self.scenario.thresholds.iter().filter_map(|text| Threshold::read(text).ok());
        self.thresholds = read.map(|threshold| threshold.judge(&self.figures)).collect();
    }
}

impl Generator {
    pub(super) fn of(measured: &Measured) -> Self {
        let delay = measured.delay.latency();
        Self {
            cpu_seconds: measured.cpu_seconds,
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            rss_bytes: measured.rss_bytes,
            delay,
            skipped: measured.skipped,
            bottleneck: bottleneck(delay.p99_us, measured.skipped),
        }
    }
}

/// More than one skipped send of ten: the load was not put on.
pub(super) fn skipped(audit: &mut Audit, skipped: u64) {
    if skipped * 10 > skipped + audit.submits {
        audit.void.push(format!("{skipped} sends were skipped: the load was not put on"));
    }
}

/// Why the figures are the harness's rather than the server's.
fn bottleneck(delay_us: u64, skipped: u64) -> Option<String> {
    let told =
        |why: String| Some(format!("{why}; take fewer users or a lower rate, or run several harnesses"));
    match () {
        () if skipped > 0 => told(format!("{skipped} sends were not made")),
        () if delay_us > DELAY_MAX_US => {
            told(format!("one of a hundred sends left {} ms later than intended", delay_us / 1000))
        }
        () => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn figures(report: &Report) -> Figures {
    let mut figures = Figures::new();
    let mut add = |name: &str, value: f64, unit: Unit| {
        figures.insert(name.to_owned(), Figure { value, unit });
    };
    let audit = &report.audit;
    for (name, offenders) in audit.kinds() {
        add(name, offenders.count as f64, Unit::Count);
    }
    add("accepted", audit.accepted as f64, Unit::Count);
    add("refused", audit.refused as f64, Unit::Count);
    add("undecided", audit.unknown as f64, Unit::Count);
    add("errors", report.errors.values().sum::<u64>() as f64, Unit::Count);
    add("skipped", report.generator.skipped as f64, Unit::Count);
    if report.seconds > 0.0 {
        add("rate", audit.accepted as f64 / report.seconds, Unit::PerSecond);
    }
    let steady = Phase::Steady.as_str();
    let latencies = [
        ("accept", report.accept.phases.get(steady).copied()),
        ("deliver", report.deliver.phases.get(steady).copied()),
        ("resume", Some(report.resume.all)),
        ("send_delay", Some(report.generator.delay)),
        ("wake", report.wakes.as_ref().map(|wakes| wakes.latency)),
    ];
    for (name, latency) in latencies {
        let Some(latency) = latency.filter(|latency| latency.count > 0) else { continue };
        latency
            .parts()
            .into_iter()
            .for_each(|(part, us)| add(&format!("{name}.{part}"), us as f64, Unit::Us));
    }
    if let Some(server) = &report.server {
        if let Some(bytes) = server.rss_per_session {
            add("rss_per_session", bytes, Unit::Bytes);
        }
        if let Some(seconds) = server.cpu_seconds.filter(|_| audit.received > 0) {
            add("cpu_per_envelope", seconds * 1e6 / audit.received as f64, Unit::Us);
        }
    }
    if let Some(wakes) = &report.wakes {
        add("late_wakes", (wakes.late.count + wakes.never.count) as f64, Unit::Count);
        add("extra_wakes", (wakes.after_ack.count + wakes.extra.count) as f64, Unit::Count);
    }
    figures
}
