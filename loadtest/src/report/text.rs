//! A run's result for people. **Invariant:** the verdict comes first and says why.

use super::Report;
use crate::audit::{Audit, Offenders, Verdict};
use crate::measure::Latency;
use crate::thresholds::{Unit, shown};
use std::fmt::Write;

impl Report {
    /// For people: verdict first.
    pub fn text(&self) -> String {
        let mut text = verdict_line(self.verdict, &self.audit);
        // Writing to a String does not fail, here and below.
        for reason in &self.audit.void {
            let _ = writeln!(text, "  void: {reason}");
        }
        for (kind, offenders) in self.audit.kinds() {
            list(&mut text, kind, offenders);
        }
        self.wakes_told(&mut text);
        for judged in &self.thresholds {
            let word = if judged.held { "held" } else { "CROSSED" };
            let _ = writeln!(text, "  threshold {word}: {}, measured {}", judged.threshold, judged.measured);
        }
        let scenario = &self.scenario;
        let _ = writeln!(
            text,
            "  {} users, {} submits/s intended, {:.1} s; {} refused, {} undecided, {} skipped, {} disconnects, {} faults",
            scenario.users,
            scenario.rate_end.map_or(scenario.rate.to_string(), |end| format!("{} to {end}", scenario.rate)),
            self.seconds,
            self.audit.refused,
            self.audit.unknown,
            self.generator.skipped,
            self.disconnects,
            self.faults.len()
        );
        self.faults_told(&mut text);
        self.latencies_told(&mut text);
        for (code, count) in &self.errors {
            let _ = writeln!(text, "  error        {code}: {count}");
        }
        let carriers: Vec<String> =
            self.carriers.iter().map(|(name, users)| format!("{users} on {name}")).collect();
        let engines: Vec<String> =
            self.engines.iter().map(|(name, users)| format!("{users} {name}")).collect();
        let _ = writeln!(
            text,
            "  connected at the end: {}; sessions: {}",
            carriers.join(", "),
            engines.join(", ")
        );
        self.server_told(&mut text);
        let generator = &self.generator;
        #[expect(clippy::cast_precision_loss, reason = "bytes of memory")]
        let rss = shown(generator.rss_bytes as f64, Unit::Bytes);
        let _ = writeln!(text, "  harness      {:.1} s of CPU, {rss} at most", generator.cpu_seconds);
        if let Some(why) = &generator.bottleneck {
            let _ = writeln!(text, "  the harness was the bottleneck: {why}");
        }
        text
    }

    fn wakes_told(&self, text: &mut String) {
        let Some(wakes) = &self.wakes else { return };
        let _ = writeln!(
            text,
            "  wakes: {} late, {} never, {} after the ack, {} extra, {} to strangers; {} asked, {} taken, {} crossed on the way, {} excused by faults, {} envelopes came again",
            wakes.late.count,
            wakes.never.count,
            wakes.after_ack.count,
            wakes.extra.count,
            wakes.strangers,
            wakes.attempts,
            wakes.taken,
            wakes.noise,
            wakes.excused,
            wakes.again
        );
        for (kind, offenders) in wakes.kinds() {
            for one in &offenders.first {
                let _ = writeln!(text, "  {kind:<13} {}", one.told());
            }
        }
        let _ = writeln!(text, "  {} were for devices that slept or were silent", wakes.asleep);
    }

    fn faults_told(&self, text: &mut String) {
        for fault in &self.faults {
            let (from, to) = (fault.from_us / 1_000_000, fault.to_us / 1_000_000);
            let _ = writeln!(
                text,
                "  {:<12} {from:>6} s to {to} s: {}, {} in flight",
                fault.phase.as_str(),
                fault.what,
                fault.in_flight
            );
        }
    }

    fn latencies_told(&self, text: &mut String) {
        let mut lines: Vec<(String, Latency)> = Vec::new();
        for (name, told) in [("accepted", &self.accept), ("delivered", &self.deliver)] {
            let steady = told.phases.iter().filter(|(phase, _)| *phase == "steady");
            lines.extend(steady.map(|(_, latency)| (name.to_owned(), *latency)));
            let others = told.phases.iter().filter(|(phase, _)| *phase != "steady");
            lines.extend(others.map(|(phase, latency)| (format!("{name}, {phase}"), *latency)));
            if told.carriers.len() > 1 {
                let by = told.carriers.iter();
                lines.extend(by.map(|(carrier, latency)| (format!("{name}, {carrier}"), *latency)));
            }
        }
        lines.extend(self.wakes.iter().map(|wakes| ("woken after".to_owned(), wakes.latency)));
        lines.push(("resumed".into(), self.resume.all));
        lines.push(("sent late by".into(), self.generator.delay));
        for (name, latency) in lines.into_iter().filter(|(_, latency)| latency.count > 0) {
            let _ = writeln!(
                text,
                "  {name:<20} p50 {:>10} p90 {:>10} p99 {:>10} max {:>10}   ({} measured)",
                millis(latency.p50_us),
                millis(latency.p90_us),
                millis(latency.p99_us),
                millis(latency.max_us),
                latency.count
            );
        }
    }

    fn server_told(&self, text: &mut String) {
        let Some(server) = &self.server else { return };
        let figure = |name: &str| self.figures.get(name).map(|figure| shown(figure.value, figure.unit));
        let session = figure("rss_per_session").unwrap_or_else(|| "not measured".into());
        let cpu =
            server.cpu_seconds.map_or_else(|| "CPU not known".into(), |used| format!("{used:.1} s of CPU"));
        let each =
            figure("cpu_per_envelope").map_or_else(String::new, |each| format!(", {each} per envelope"));
        let _ = writeln!(text, "  server       {session} of memory per session; {cpu}{each}");
    }
}

/// The first line.
fn verdict_line(verdict: Verdict, audit: &Audit) -> String {
    format!(
        "{}: {} accepted, {} received; {} lost, {} phantom, {} misrouted, {} reordered, {} duplicate\n",
        verdict.word(),
        audit.accepted,
        audit.received,
        audit.lost.count,
        audit.phantom.count,
        audit.misrouted.count,
        audit.reordered.count,
        audit.duplicate.count
    )
}

fn list(text: &mut String, kind: &str, offenders: &Offenders) {
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

fn millis(us: u64) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}
