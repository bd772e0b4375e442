//! What a run measures while it goes on. **Invariant:** every latency counts from the intended time of the send, so a stall is
//! seen by all that it held up (coordinated omission: G. Tene, "How NOT to Measure Latency"); memory does not grow with the
//! length of the run.

mod latency;
mod timeline;

pub use latency::{Latency, Values};
pub use timeline::{Bucket, Timeline};

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The part of a run that a measurement belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Before everything is warm: not among the figures of the steady state.
    WarmUp,
    /// What the figures are about.
    Steady,
    /// Something was broken on purpose.
    Fault,
    /// Everybody came back at once.
    Storm,
    /// The server was restarted in order.
    Drain,
    /// It waited for a device that was away.
    Backlog,
    /// Its receiver takes his time.
    Slow,
}

impl Phase {
    /// As in the report.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarmUp => "warm-up",
            Self::Steady => "steady",
            Self::Fault => "fault",
            Self::Storm => "storm",
            Self::Drain => "drain",
            Self::Backlog => "backlog",
            Self::Slow => "slow",
        }
    }
}

/// One kind of latency, told apart by phase and by carrier.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Series {
    phases: BTreeMap<Phase, Values>,
    /// Of the steady phase.
    carriers: BTreeMap<String, Values>,
}

impl Series {
    /// Notes one, µs.
    pub fn record(&mut self, phase: Phase, carrier: Option<&'static str>, us: u64) {
        self.phases.entry(phase).or_default().record(us);
        if let Some(carrier) = carrier.filter(|_| phase == Phase::Steady) {
            match self.carriers.get_mut(carrier) {
                Some(values) => values.record(us),
                None => self.carriers.entry(carrier.to_owned()).or_default().record(us),
            }
        }
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        other.phases.iter().for_each(|(phase, values)| self.phases.entry(*phase).or_default().add(values));
        for (carrier, values) in &other.carriers {
            self.carriers.entry(carrier.clone()).or_default().add(values);
        }
    }

    /// Of one phase.
    pub fn of(&self, phase: Phase) -> Latency {
        self.phases.get(&phase).map(Values::latency).unwrap_or_default()
    }

    /// Of every phase that something was measured in, by its name.
    pub fn by_phase(&self) -> BTreeMap<&'static str, Latency> {
        self.phases.iter().map(|(phase, values)| (phase.as_str(), values.latency())).collect()
    }

    /// Of every carrier.
    pub fn by_carrier(&self) -> BTreeMap<String, Latency> {
        self.carriers.iter().map(|(carrier, values)| (carrier.clone(), values.latency())).collect()
    }

    /// All that was measured, whatever the phase.
    pub fn all(&self) -> Latency {
        let mut all = Values::default();
        self.phases.values().for_each(|values| all.add(values));
        all.latency()
    }

    /// Points of the steady phase (of all, if there was none): share of 1, µs.
    pub fn curve(&self) -> Vec<(f64, u64)> {
        let steady = self.phases.get(&Phase::Steady).or_else(|| self.phases.values().next());
        steady.map(Values::curve).unwrap_or_default()
    }
}

/// Everything that one worker measures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// From the intended send to the word *accepted*.
    pub accept: Series,
    /// From the intended send to the receiver's application.
    pub deliver: Series,
    /// From the loss of a connection to the next welcome.
    pub resume: Series,
    /// How much later than intended the harness itself sent.
    pub delay: Values,
    /// Refusals and errors, by code.
    pub errors: BTreeMap<String, u64>,
    /// Sends that were skipped, since the sender's queue or the ledger was full: load that was not put on.
    pub skipped: u64,
    /// Connections that were dropped on purpose.
    pub disconnects: u64,
    /// How it went over time.
    pub timeline: Timeline,
    /// CPU time of the worker, seconds.
    pub cpu_seconds: f64,
    /// Its memory at most, bytes.
    pub rss_bytes: u64,
    /// Users that were connected at the end, by carrier.
    pub carriers: BTreeMap<String, u32>,
    /// Users, by what drives their devices.
    #[serde(default)]
    pub engines: BTreeMap<String, u32>,
}

impl Measured {
    /// For a run of about this length.
    pub fn new(duration: Duration) -> Self {
        Self {
            accept: Series::default(),
            deliver: Series::default(),
            resume: Series::default(),
            delay: Values::default(),
            errors: BTreeMap::new(),
            skipped: 0,
            disconnects: 0,
            timeline: Timeline::new(duration),
            cpu_seconds: 0.0,
            rss_bytes: 0,
            carriers: BTreeMap::new(),
            engines: BTreeMap::new(),
        }
    }

    /// An accepted entry, or one that was refused for good.
    pub fn decided(&mut self, phase: Phase, carrier: Option<&'static str>, intended_us: u64, at_us: u64) {
        let took = at_us.saturating_sub(intended_us);
        self.accept.record(phase, carrier, took);
        let bucket = self.timeline.at(intended_us);
        bucket.accept.record(took);
        self.timeline.at(at_us).accepted += 1;
    }

    /// An envelope in its receiver's application.
    pub fn delivered(&mut self, phase: Phase, carrier: Option<&'static str>, intended_us: u64, at_us: u64) {
        let took = at_us.saturating_sub(intended_us);
        self.deliver.record(phase, carrier, took);
        self.timeline.at(intended_us).deliver.record(took);
        self.timeline.at(at_us).delivered += 1;
    }

    /// A submit left, so long after its time.
    pub fn sent(&mut self, intended_us: u64, at_us: u64) {
        self.delay.record(at_us.saturating_sub(intended_us));
        self.timeline.at(at_us).sent += 1;
    }

    /// Something went wrong, by its code.
    pub fn error(&mut self, code: &str, at_us: u64) {
        match self.errors.get_mut(code) {
            Some(count) => *count += 1,
            None => drop(self.errors.insert(code.to_owned(), 1)),
        }
        self.timeline.at(at_us).errors += 1;
    }

    /// Adds another worker's.
    pub fn add(&mut self, other: &Self) {
        self.accept.add(&other.accept);
        self.deliver.add(&other.deliver);
        self.resume.add(&other.resume);
        self.delay.add(&other.delay);
        for (code, count) in &other.errors {
            *self.errors.entry(code.clone()).or_default() += count;
        }
        for (carrier, users) in &other.carriers {
            *self.carriers.entry(carrier.clone()).or_default() += users;
        }
        for (engine, users) in &other.engines {
            *self.engines.entry(engine.clone()).or_default() += users;
        }
        self.skipped += other.skipped;
        self.disconnects += other.disconnects;
        self.timeline.add(&other.timeline);
        self.cpu_seconds += other.cpu_seconds;
        self.rss_bytes += other.rss_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_and_carriers_are_told_apart_and_workers_added_up() {
        let mut one = Measured::new(Duration::from_secs(10));
        for us in 1..=1000 {
            one.delivered(Phase::Steady, Some("quic"), 1_000_000, 1_000_000 + us);
        }
        one.delivered(Phase::WarmUp, Some("quic"), 0, 900_000);
        one.error("unavailable", 5);
        let mut two = Measured::new(Duration::from_secs(10));
        two.delivered(Phase::Fault, None, 2_000_000, 7_000_000);
        two.decided(Phase::Fault, None, 3_000_000, 6_000_000);
        two.error("unavailable", 5);
        two.add(&one);
        assert_eq!(
            (two.timeline.buckets()[6].accepted, two.timeline.buckets()[6].accept.latency().count),
            (1, 0)
        );
        assert_eq!(two.timeline.buckets()[3].accept.latency().max_us, 3_014_655, "two digits");
        assert_eq!(two.deliver.of(Phase::Steady).p99_us, 990);
        assert_eq!(two.deliver.of(Phase::Fault).count, 1);
        assert_eq!(two.deliver.all().count, 1002);
        assert_eq!(two.deliver.by_carrier()["quic"].count, 1000, "of the steady phase");
        assert_eq!(two.errors["unavailable"], 2);
        assert_eq!(two.timeline.buckets()[1].delivered, 1000);
        assert_eq!(two.timeline.buckets()[7].delivered, 1, "when it came");
        assert_eq!(two.timeline.buckets()[2].deliver.latency().count, 1, "when it should have been sent");
    }
}
