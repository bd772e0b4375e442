//! Looks at the server's processes from outside: memory and CPU time as the kernel counts them. **Invariant:** what cannot be
//! seen is told as not measured, never as nothing.

use crate::measure::Timeline;
use crate::server::Spawned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// The kernel counts CPU time in ticks of 10 ms (`proc(5)`, `stat`, fields 14 and 15).
const TICKS_PER_SECOND: f64 = 100.0;
/// Memory settles after the last connection.
const SETTLE: Duration = Duration::from_secs(1);

/// What was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Seen {
    /// Resident memory of all processes, bytes.
    pub rss_bytes: u64,
    /// User and system time of all processes, seconds.
    pub cpu_seconds: f64,
}

/// Of the server, in a report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerUse {
    /// Before the first session, bytes.
    pub rss_before: u64,
    /// With all sessions and before the load, bytes.
    pub rss_connected: u64,
    /// Growth by session, bytes.
    pub rss_per_session: Option<f64>,
    /// CPU time in the load, seconds; not known if the server was started anew meanwhile.
    pub cpu_seconds: Option<f64>,
}

/// The server over the load.
pub(crate) struct Followed {
    /// Its memory and CPU time.
    pub(crate) timeline: Timeline,
    /// CPU time in the load, seconds. A server that was started anew counts anew: then it is not known.
    pub(crate) cpu_seconds: Option<f64>,
}

/// Which processes are looked at.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// By number; those of `dev/cluster` or of a server on this machine.
    pids: Vec<u32>,
    /// Of the server that the harness started: it changes with each restart.
    spawned: Option<Arc<AtomicU32>>,
    told: ServerUse,
}

impl Watch {
    /// At these processes, and at the one that the harness started.
    pub fn new(pids: Vec<u32>, spawned: Option<&Spawned>) -> Self {
        Self { pids, spawned: spawned.map(Spawned::pid), told: ServerUse::default() }
    }

    /// Now. `None`: there is nothing to look at, or it is not there.
    pub fn look(&self) -> Option<Seen> {
        let spawned = self.spawned.iter().map(|pid| pid.load(Ordering::Relaxed));
        let all: Vec<Seen> = self.pids.iter().copied().chain(spawned).map(process).collect::<Option<_>>()?;
        (!all.is_empty()).then(|| Seen {
            rss_bytes: all.iter().map(|seen| seen.rss_bytes).sum(),
            cpu_seconds: all.iter().map(|seen| seen.cpu_seconds).sum(),
        })
    }

    /// Once a second until the load is over.
    pub(crate) async fn follow(&self, start: Instant, duration: Duration) -> Followed {
        let first = self.look();
        let mut timeline = Timeline::new(duration);
        let (mut last, mut restarted, mut due) = (first, false, start);
        while first.is_some() && due < start + duration {
            tokio::time::sleep_until(due).await;
            let at_us = u64::try_from((due - start).as_micros()).unwrap_or(u64::MAX);
            due += Duration::from_secs(1);
            let Some(seen) = self.look() else {
                restarted = true;
                continue;
            };
            let bucket = timeline.at(at_us);
            bucket.server_rss = bucket.server_rss.max(seen.rss_bytes);
            bucket.server_cpu = seen.cpu_seconds;
            restarted |= last.is_some_and(|last| last.cpu_seconds > seen.cpu_seconds);
            last = Some(seen);
        }
        let used = last.zip(first).map(|(last, first)| last.cpu_seconds - first.cpu_seconds);
        Followed { timeline, cpu_seconds: used.filter(|_| !restarted) }
    }

    /// Before the first session.
    pub(crate) fn before(&mut self) {
        self.told.rss_before = self.look().map_or(0, |seen| seen.rss_bytes);
    }

    /// With all sessions.
    pub(crate) async fn after(&mut self, sessions: u32) {
        if self.told.rss_before == 0 {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        let Some(seen) = self.look() else { return };
        self.told.rss_connected = seen.rss_bytes;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let grown = seen.rss_bytes.saturating_sub(self.told.rss_before) as f64;
        self.told.rss_per_session = Some(grown / f64::from(sessions.max(1)));
    }

    /// The load is over.
    pub(crate) fn ends(&mut self, cpu_seconds: Option<f64>) {
        self.told.cpu_seconds = cpu_seconds;
    }

    /// For the report; `None` if nothing was seen.
    pub fn told(&self) -> Option<ServerUse> {
        (self.told.rss_before > 0).then_some(self.told)
    }
}

/// This process.
pub fn own() -> Seen {
    process(std::process::id()).unwrap_or_default()
}

fn process(pid: u32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold blanks.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = rss.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Seen { rss_bytes: kib * 1024, cpu_seconds: ticks / TICKS_PER_SECOND })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_by_session_is_what_it_grew_by() {
        let mut watch = Watch::new(vec![std::process::id()], None);
        watch.before();
        // So much that the other tests of this process are nothing beside it.
        let grown = vec![7u8; 512 << 20];
        watch.after(512).await;
        let told = watch.told().unwrap();
        let by_session = told.rss_per_session.unwrap();
        assert!((900_000.0..1_300_000.0).contains(&by_session), "{by_session} {}", grown.len());
        assert!(watch.look().unwrap().cpu_seconds >= 0.0);
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_measured() {
        let mut watch = Watch::new(vec![std::process::id(), u32::MAX], None);
        watch.before();
        watch.after(1).await;
        assert_eq!((watch.look(), watch.told()), (None, None));
        assert_eq!(Watch::default().look(), None);
    }
}
