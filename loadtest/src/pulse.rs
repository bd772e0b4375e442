//! How a run goes on, for whoever watches: a bar on the terminal, and metrics for Prometheus. **Invariant:** watching never holds
//! the load up.

use anyhow::Result;
use chappe_node::admin::{Admin, Process};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use prometheus::{IntGauge, Registry};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What one worker says of itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// For people.
    pub line: String,
    /// How much is done, 0 to 1.
    pub share: f64,
    /// In figures.
    pub live: Live,
}

/// Counts from the beginning, and what is the case now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Sessions that are connected.
    pub sessions: u64,
    /// Submits that left.
    pub submits: u64,
    /// Entries that were accepted.
    pub accepted: u64,
    /// Envelopes that arrived.
    pub received: u64,
    /// Refusals and errors.
    pub errors: u64,
    /// Submits that are undecided.
    pub undecided: u64,
    /// Entries that were accepted and have not arrived yet.
    pub missing: u64,
    /// Broken promises other than a loss, which only the end can tell.
    pub broken: u64,
}

impl Live {
    fn named(&self) -> [(&'static str, &'static str, u64); 8] {
        [
            ("sessions", "Sessions that are connected.", self.sessions),
            ("submits", "Submits that left.", self.submits),
            ("accepted", "Entries that were accepted.", self.accepted),
            ("received", "Envelopes that arrived.", self.received),
            ("errors", "Refusals and errors.", self.errors),
            ("undecided", "Submits that are undecided.", self.undecided),
            ("missing", "Entries that were accepted and have not arrived yet.", self.missing),
            ("broken", "Phantom, misrouted, reordered and duplicate envelopes.", self.broken),
        ]
    }

    fn add(&mut self, other: &Self) {
        self.sessions += other.sessions;
        self.submits += other.submits;
        self.accepted += other.accepted;
        self.received += other.received;
        self.errors += other.errors;
        self.undecided += other.undecided;
        self.missing += other.missing;
        self.broken += other.broken;
    }
}

/// Hears the pulse of the worker of this number.
pub type Progress = Arc<dyn Fn(usize, &Pulse) + Send + Sync>;

/// Shows it all.
pub struct Board {
    bar: ProgressBar,
    lives: Mutex<Vec<Live>>,
    gauges: Vec<IntGauge>,
    registry: Registry,
}

impl Board {
    /// For so many workers; the bar is shown on a terminal only.
    pub fn new(workers: usize) -> Result<Arc<Self>> {
        let bar = ProgressBar::with_draw_target(Some(1000), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3} % {elapsed} {msg}") {
            bar.set_style(style);
        }
        let registry = Registry::new();
        let mut gauges = Vec::new();
        for (name, help, _) in Live::default().named() {
            let gauge = IntGauge::new(format!("chappe_loadtest_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            gauges.push(gauge);
        }
        let lives = Mutex::new(vec![Live::default(); workers]);
        Ok(Arc::new(Self { bar, lives, gauges, registry }))
    }

    /// What hears the workers.
    pub fn progress(self: &Arc<Self>) -> Progress {
        let board = Arc::clone(self);
        Arc::new(move |worker, pulse| board.hear(worker, pulse))
    }

    fn hear(&self, worker: usize, pulse: &Pulse) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 1000")]
        self.bar.set_position((pulse.share.clamp(0.0, 1.0) * 1000.0) as u64);
        let mut sum = Live::default();
        {
            let mut lives = self.lives.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(live) = lives.get_mut(worker) {
                *live = pulse.live;
            }
            lives.iter().for_each(|live| sum.add(live));
        }
        self.bar
            .set_message(format!("{}; {} undecided, {} to arrive", pulse.line, sum.undecided, sum.missing));
        for (gauge, (_, _, value)) in self.gauges.iter().zip(sum.named()) {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    }

    /// What `/metrics` and its like show at this address. Only once: the registry takes each name once.
    pub fn admin(&self, at: SocketAddr, stop: &CancellationToken) -> Result<Admin, prometheus::Error> {
        let (_ready, ready) = watch::channel(true);
        let (registry, stop) = (self.registry.clone(), stop.clone());
        Admin::new(Process { role: "loadtest", registry, ready, stop, handler: None }, at)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::task::TaskTracker;

    #[tokio::test]
    async fn prometheus_sees_all_workers_together() {
        let board = Board::new(2).unwrap();
        let progress = board.progress();
        for worker in 0..2 {
            for accepted in [1, 20] {
                let live = Live { accepted, sessions: 7, ..Live::default() };
                progress(worker, &Pulse { line: "sending".into(), share: 0.5, live });
            }
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let asked = async {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stop.cancel();
            text
        };
        let admin = board.admin(address, &stop).unwrap();
        let serving = chappe_node::admin::serve(listener, admin, stop.clone(), TaskTracker::new());
        let ((), text) = tokio::join!(serving, asked);
        assert!(text.contains("\nchappe_loadtest_accepted 40\n"), "{text}");
        assert!(text.contains("\nchappe_loadtest_sessions 14\n"), "{text}");
    }
}
