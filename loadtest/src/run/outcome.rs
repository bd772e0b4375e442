//! The end of a run, and what is told of it. **Invariant:** nothing is told lost before it had the time to come.

use super::{Plan, Run, now};
use crate::report::Report;
use crate::watch::{self, Watch};
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Run {
    /// Once a second until the load is over: sessions, and the server's memory and CPU. Returns the server's CPU time in the
    /// load, seconds.
    pub(super) async fn sample(&self, watch: Watch) -> Option<f64> {
        let first = watch.look();
        let (mut last, mut restarted) = (first, false);
        let mut due = self.start;
        while due < self.start + self.scenario.duration {
            tokio::time::sleep_until(due).await;
            due += Duration::from_secs(1);
            let seen = watch.look();
            let (at_us, sessions) = (self.elapsed_us(), self.crowd.sessions());
            let mut record = self.lock();
            let bucket = record.measured.timeline.at(at_us);
            bucket.sessions = bucket.sessions.max(sessions);
            if let Some(seen) = &seen {
                bucket.server_rss = bucket.server_rss.max(seen.rss_bytes);
                bucket.server_cpu = seen.cpu_seconds;
                restarted |= last.as_ref().is_some_and(|last| last.cpu_seconds > seen.cpu_seconds);
            }
            let own = watch::own();
            record.measured.rss_bytes = record.measured.rss_bytes.max(own.rss_bytes);
            drop(record);
            last = seen;
        }
        // A server that was started anew counts anew.
        let used = last?.cpu_seconds - first?.cpu_seconds;
        (!restarted).then_some(used)
    }

    /// Fetches those who were away, waits until everything accepted has arrived and nothing is undecided, at most `max`; then
    /// a second more, for late repetitions.
    pub(super) async fn settle(self: &Arc<Self>, max: Duration) -> Result<()> {
        self.hurry.store(true, Ordering::Relaxed);
        for user in (0..self.scenario.users).filter(|user| self.is_away(*user)) {
            let client = self.crowd.renew(user)?;
            self.attend(user, client);
        }
        let end = now() + max;
        loop {
            let (undecided, missing) = {
                let record = self.lock();
                (record.ledger.undecided(), record.ledger.missing())
            };
            (self.progress)(&format!("settling, {undecided} undecided, {missing} to arrive"), 1.0);
            if (undecided == 0 && missing == 0) || now() >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    pub(super) fn report(&self, plan: &Plan, seconds: f64) -> Report {
        let mut record = self.lock();
        let own = watch::own();
        record.measured.cpu_seconds = own.cpu_seconds;
        record.measured.rss_bytes = record.measured.rss_bytes.max(own.rss_bytes);
        record.measured.carriers = self.crowd.carriers();
        let (audit, faults) = (record.ledger.audit(), record.ledger.faults().to_vec());
        let mut report = Report::new(self.scenario.clone(), audit, &record.measured);
        report.faults = faults;
        report.seconds = seconds;
        report.server = plan.watch.told();
        report.judge();
        report
    }
}
