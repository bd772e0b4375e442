//! What a run found, for programs: the JSON document. **Invariant:** the verdict comes first and says why; a figure that was
//! not measured is left out, never zero.

mod charts;
pub mod compare;
mod figures;
mod html;
mod text;

pub use html::page;

use crate::audit::{Audit, FaultWindow, Verdict};
use crate::measure::{Latency, Measured, Series};
use crate::scenario::Scenario;
use crate::scrape::Scraped;
use crate::thresholds::{Figures, Judged};
use crate::wake::WakeAudit;
use crate::watch::ServerUse;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The shape of the JSON document.
pub const FORMAT: &str = "chappe-loadtest/2";
/// Exit code when every promise was kept and a threshold did not hold.
pub const EXIT_THRESHOLD: u8 = 3;

/// The whole result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// Passed, failed or void.
    pub verdict: Verdict,
    /// Thresholds, in the scenario's order.
    pub thresholds: Vec<Judged>,
    /// What was run.
    pub scenario: Scenario,
    /// What the audit found.
    pub audit: Audit,
    /// What was found of the wakes, where devices slept.
    pub wakes: Option<WakeAudit>,
    /// From the intended send time to *accepted*.
    pub accept: Told,
    /// From the intended send time to the receiver's application.
    pub deliver: Told,
    /// From the loss of a connection to the next welcome.
    pub resume: Told,
    /// Refusals and errors, by code.
    pub errors: BTreeMap<String, u64>,
    /// Connections that were dropped on purpose.
    pub disconnects: u64,
    /// What was broken, and what happened.
    pub faults: Vec<FaultWindow>,
    /// Wall time of the load, seconds.
    pub seconds: f64,
    /// Users that were connected at the end, by carrier.
    pub carriers: BTreeMap<String, u32>,
    /// Users, by what drives their devices: `lean` or `sdk`.
    #[serde(default)]
    pub engines: BTreeMap<String, u32>,
    /// The server's processes, if they could be seen.
    pub server: Option<ServerUse>,
    /// Metrics of its own that moved, where its admin ports were named.
    pub scraped: Scraped,
    /// The harness itself.
    pub generator: Generator,
    /// The run over time.
    pub timeline: Vec<Point>,
    /// How long a point of the timeline is, seconds.
    pub point_seconds: u64,
    /// Everything that a threshold can be about, by name.
    pub figures: Figures,
}

/// One kind of latency.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Told {
    /// By phase; the figures of the steady state are `steady`.
    pub phases: BTreeMap<String, Latency>,
    /// Of the steady phase, by carrier.
    pub carriers: BTreeMap<String, Latency>,
    /// Whatever the phase.
    pub all: Latency,
    /// Share of 1 and µs, of the steady phase.
    pub curve: Vec<(f64, u64)>,
}

impl Told {
    fn of(series: &Series) -> Self {
        let phases = series.by_phase().into_iter().map(|(phase, latency)| (phase.to_owned(), latency));
        Self {
            phases: phases.collect(),
            carriers: series.by_carrier(),
            all: series.all(),
            curve: series.curve(),
        }
    }
}

/// The harness itself: whether the figures are the server's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Generator {
    /// CPU time, seconds.
    pub cpu_seconds: f64,
    /// Cores of its machine.
    pub cores: usize,
    /// Memory at most, bytes.
    pub rss_bytes: u64,
    /// How much later than intended it sent.
    pub delay: Latency,
    /// Sends that it did not make.
    pub skipped: u64,
    /// Why it was the bottleneck; `None`: it was not.
    pub bottleneck: Option<String>,
}

/// A part of the run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// From the start of the load, seconds.
    pub at: u64,
    /// Submits that left in it.
    pub sent: u64,
    /// Submits that were decided in it.
    pub accepted: u64,
    /// Envelopes that arrived in it.
    pub delivered: u64,
    /// Refusals and errors in it.
    pub errors: u64,
    /// Of the submits that were due in it.
    pub accept: Latency,
    /// Of the envelopes that were due in it.
    pub deliver: Latency,
    /// Sessions.
    pub sessions: u64,
    /// Memory of the server, bytes; 0: not seen.
    pub server_rss: u64,
    /// Cores that the server used, on average; 0: not seen.
    pub server_cores: f64,
}

impl Report {
    /// Without faults, wakes, thresholds, and what is known of the server.
    pub(crate) fn new(scenario: Scenario, mut audit: Audit, measured: &Measured) -> Self {
        figures::skipped(&mut audit, measured.skipped);
        let point_seconds = measured.timeline.every_seconds();
        Self {
            format: FORMAT.to_owned(),
            verdict: audit.verdict(),
            thresholds: Vec::new(),
            scenario,
            audit,
            wakes: None,
            accept: Told::of(&measured.accept),
            deliver: Told::of(&measured.deliver),
            resume: Told::of(&measured.resume),
            errors: measured.errors.clone(),
            disconnects: measured.disconnects,
            faults: Vec::new(),
            seconds: 0.0,
            carriers: measured.carriers.clone(),
            engines: measured.engines.clone(),
            server: None,
            scraped: Scraped::default(),
            generator: Generator::of(measured),
            timeline: points(measured, point_seconds),
            point_seconds,
            figures: Figures::new(),
        }
    }

    /// 0 passed, 1 a promise was broken, 2 the run proves nothing, 3 a threshold did not hold.
    pub fn exit_code(&self) -> u8 {
        match self.verdict {
            Verdict::Passed if self.thresholds.iter().any(|judged| !judged.held) => EXIT_THRESHOLD,
            Verdict::Passed | Verdict::Failed | Verdict::Void => self.verdict.exit_code(),
        }
    }
}

fn points(measured: &Measured, every: u64) -> Vec<Point> {
    let mut cpu = 0.0;
    let point = |(index, bucket): (usize, &crate::measure::Bucket)| {
        #[expect(clippy::cast_precision_loss, reason = "at most some days of seconds")]
        let used =
            if cpu > 0.0 && bucket.server_cpu > cpu { (bucket.server_cpu - cpu) / every as f64 } else { 0.0 };
        cpu = bucket.server_cpu;
        Point {
            at: index as u64 * every,
            sent: bucket.sent,
            accepted: bucket.accepted,
            delivered: bucket.delivered,
            errors: bucket.errors,
            accept: bucket.accept.latency(),
            deliver: bucket.deliver.latency(),
            sessions: bucket.sessions,
            server_rss: bucket.server_rss,
            server_cores: used,
        }
    };
    measured.timeline.buckets().iter().enumerate().map(point).collect()
}

#[cfg(test)]
pub(crate) mod tests;
