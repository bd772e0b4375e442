//! The end of a worker's part, and what it has found. **Invariant:** nothing is told lost before it had the time to come.

use super::{Run, now};
use crate::audit::{Audit, FaultWindow};
use crate::measure::Measured;
use crate::watch;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// What one worker has found, or several together.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Of the envelopes.
    pub audit: Audit,
    /// How long everything took.
    pub measured: Measured,
    /// What was broken meanwhile.
    pub faults: Vec<FaultWindow>,
}

impl Outcome {
    /// Adds what another worker has found, whose first user has this number.
    pub(crate) fn add(&mut self, other: &Self, first: u32) {
        self.audit.add(&other.audit, first);
        self.measured.add(&other.measured);
        for (own, theirs) in self.faults.iter_mut().zip(&other.faults) {
            own.from_us = own.from_us.min(theirs.from_us);
            own.to_us = own.to_us.max(theirs.to_us);
            own.in_flight += theirs.in_flight;
        }
    }
}

impl Run {
    /// Once a second until the load is over: sessions, and what this process takes.
    pub(super) async fn sample(&self) {
        let mut due = self.start();
        let end = due + self.scenario.duration;
        while due < end {
            tokio::time::sleep_until(due).await;
            due += Duration::from_secs(1);
            let (at_us, sessions, own) = (self.elapsed_us(), self.crowd.sessions(), watch::own());
            let mut record = self.lock();
            let bucket = record.measured.timeline.at(at_us);
            bucket.sessions = bucket.sessions.max(sessions);
            record.measured.rss_bytes = record.measured.rss_bytes.max(own.rss_bytes);
        }
    }

    /// Fetches those who were away, waits until everything accepted has arrived and nothing is undecided, at most `max`; then
    /// a second more, for late repetitions.
    pub(crate) async fn finish(self: &Arc<Self>, max: Duration) -> Result<Outcome> {
        self.hurry.store(true, Ordering::Relaxed);
        for user in (0..self.scenario.users).filter(|user| self.is_away(*user)) {
            let new = self.crowd.renew(user)?;
            self.attend(user, new);
        }
        let end = now() + max;
        loop {
            let (undecided, missing) = {
                let record = self.lock();
                (record.ledger.undecided(), record.ledger.missing())
            };
            self.pulse("settling", 1.0);
            if (undecided == 0 && missing == 0) || now() >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let own = watch::own();
        let mut record = self.lock();
        record.measured.cpu_seconds = own.cpu_seconds;
        record.measured.rss_bytes = record.measured.rss_bytes.max(own.rss_bytes);
        record.measured.carriers = self.crowd.carriers();
        record.measured.engines = self.crowd.engines();
        Ok(Outcome {
            audit: record.ledger.audit(),
            measured: record.measured.clone(),
            faults: record.ledger.faults().to_vec(),
        })
    }

    /// Ends all connections.
    pub(crate) async fn end(&self) {
        self.crowd.close().await;
    }
}
