//! What a run of `wake` found, for people and for programs. **Invariant:** the verdict comes first and says why.

use super::Wake;
use super::audit::WakeAudit;
use crate::checker::{Audit, Verdict};
use crate::history::FaultWindow;
use crate::report::{Latency, list, millis};
use serde::Serialize;
use std::fmt::Write;

/// The whole result. `format` names the shape of the JSON document.
#[derive(Debug, Serialize)]
pub struct WakeReport {
    /// `chappe-loadtest-wake/1`.
    pub format: &'static str,
    /// Passed, failed or void.
    pub verdict: Verdict,
    /// What was run.
    pub scenario: Wake,
    /// What the checker found of the envelopes.
    pub audit: Audit,
    /// What was found of the wakes.
    pub wakes: WakeAudit,
    /// From the acceptance to the provider, of devices that slept or were silent.
    pub latency: Latency,
    /// Envelopes that came again, since their ack went down with what was killed.
    pub again: u64,
    /// When something was broken.
    pub faults: Vec<FaultWindow>,
    /// Wall time of the load, seconds.
    pub seconds: f64,
    /// CPU time of the harness, seconds.
    pub harness_cpu_seconds: f64,
}

impl WakeReport {
    /// A broken promise of either kind fails it; where nothing was proven, it is void.
    pub(super) fn new(scenario: Wake, audit: Audit, wakes: WakeAudit) -> Self {
        let verdicts = [audit.verdict(), wakes.verdict()];
        let verdict = [Verdict::Failed, Verdict::Void].into_iter().find(|bad| verdicts.contains(bad));
        Self {
            format: "chappe-loadtest-wake/1",
            verdict: verdict.unwrap_or(Verdict::Passed),
            latency: Latency::of(wakes.latencies_us.iter().copied()),
            scenario,
            audit,
            wakes,
            again: 0,
            faults: Vec::new(),
            seconds: 0.0,
            harness_cpu_seconds: 0.0,
        }
    }

    /// For people: verdict first.
    pub fn text(&self) -> String {
        let (audit, wakes) = (&self.audit, &self.wakes);
        let mut text = format!(
            "{}: {} accepted, {} received; {} lost, {} phantom, {} misrouted, {} reordered, {} duplicate\n",
            self.verdict.word(),
            audit.accepted,
            audit.received,
            audit.lost.count,
            audit.phantom.count,
            audit.misrouted.count,
            audit.reordered.count,
            audit.duplicate.count
        );
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "  wakes: {} late, {} never, {} after the ack, {} extra, {} to strangers; {} asked, {} taken, {} crossed on the way, {} excused by faults",
            wakes.late.count,
            wakes.never.count,
            wakes.after_ack.count,
            wakes.extra.count,
            wakes.strangers,
            wakes.attempts,
            wakes.taken,
            wakes.noise,
            wakes.excused
        );
        for reason in &audit.void {
            let _ = writeln!(text, "  void: {reason}");
        }
        if wakes.asleep == 0 {
            text.push_str(
                "  void: nobody was asleep when something was sent: lower --rate, or more --users\n",
            );
        }
        for (kind, offenders) in audit.kinds() {
            list(&mut text, kind, offenders);
        }
        for (kind, offenders) in wakes.kinds() {
            for one in &offenders.first {
                let after = one
                    .after_ms
                    .map_or_else(String::new, |ms| format!(", woken {} after it", millis(ms * 1000)));
                let _ = writeln!(
                    text,
                    "  {kind:<13} device {}, at {} (ms since 1970){after}",
                    one.device, one.at_ms
                );
            }
        }
        let _ = writeln!(
            text,
            "  {} devices, {} submits/s intended, {:.1} s; {} refused, {} undecided, {} came again, {} faults, {:.1} s of CPU here",
            self.scenario.devices,
            self.scenario.rate,
            self.seconds,
            audit.refused,
            audit.unknown,
            self.again,
            self.faults.len(),
            self.harness_cpu_seconds,
        );
        let latency = &self.latency;
        let _ = writeln!(
            text,
            "  woken after  p50 {:>9} p90 {:>9} p99 {:>9} max {:>9}   ({} of {} who slept, from the acceptance)",
            millis(latency.p50_us),
            millis(latency.p90_us),
            millis(latency.p99_us),
            millis(latency.max_us),
            latency.count,
            wakes.asleep
        );
        text
    }
}
