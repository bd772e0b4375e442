//! Runs a scenario against a server. **Invariant:** the load is open: when the server is slow, sends are not.

mod clients;
mod outcome;
mod traffic;
mod troubles;

pub(crate) use clients::{builder, builder_to, connected};
pub(crate) use traffic::fate;
pub(crate) use troubles::DRAIN_HINT;

use crate::audit::Ledger;
use crate::carriers::Choice;
use crate::faults::Fault;
use crate::measure::{Measured, Phase};
use crate::payload::Tagger;
use crate::report::Report;
use crate::scenario::Scenario;
use crate::server::Spawned;
use crate::tokens::Issuer;
use crate::watch::Watch;
use anyhow::Result;
use chappe_client::Client;
use chappe_protocol::world::World;
use clients::Crowd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Hears a line of progress and the share that is done (0 to 1).
pub type Progress = Arc<dyn Fn(&str, f64) + std::marker::Send + Sync>;

/// Whom a run aims at, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// `wss://host:port` or `ws://host:port` of one gateway or several: each new connection goes to the next.
    pub servers: Vec<String>,
    /// What users connect with; `None`: what the servers' scheme says.
    pub carrier: Option<Choice>,
    /// Trusted instead of the public roots.
    pub roots_pem: Option<Vec<u8>>,
    /// Signs the users' tokens.
    pub issuer: Issuer,
    /// Users are called by this and their number.
    pub prefix: String,
}

/// Where and how a scenario is run.
pub struct Plan<S = Scenario> {
    /// The scenario.
    pub scenario: S,
    /// Whom it aims at.
    pub target: Target,
    /// A server of our own, to be killed.
    pub spawned: Option<Spawned>,
    /// How often it is killed, evenly over the duration.
    pub kills: u32,
    /// What is broken in a cluster.
    pub faults: Vec<Fault>,
    /// The folder of `cluster` and `deps`, the scripts that break a cluster of this machine; `None`: there is none.
    pub scripts: Option<PathBuf>,
    /// Processes of the server and addresses of their metrics.
    pub watch: Watch,
    /// How long to wait for the last decisions and deliveries.
    pub settle: Duration,
    /// Randomness of the run's key.
    pub world: Arc<dyn World>,
    /// Told now and then.
    pub progress: Progress,
}

/// A run under way.
struct Run {
    scenario: Scenario,
    tagger: Tagger,
    start: Instant,
    crowd: Crowd,
    record: Mutex<Record>,
    in_flight: AtomicU64,
    /// The load is over: nobody takes his time any more.
    hurry: AtomicBool,
    tasks: TaskTracker,
    progress: Progress,
}

struct Record {
    ledger: Ledger,
    measured: Measured,
}

#[expect(clippy::disallowed_methods, reason = "a harness measures in µs; the roles' clock counts ms")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Runs and audits.
pub async fn run(mut plan: Plan) -> Result<Report> {
    let mut key = [0; 32];
    plan.world.fill_random(&mut key);
    plan.watch.before();
    let crowd = Crowd::gather(&plan).await?;
    plan.watch.after(plan.scenario.users).await;
    let run = Arc::new(Run {
        scenario: plan.scenario.clone(),
        tagger: Tagger::new(&key),
        start: now(),
        crowd,
        record: Mutex::new(Record {
            ledger: Ledger::default(),
            measured: Measured::new(plan.scenario.duration),
        }),
        in_flight: AtomicU64::new(0),
        hurry: AtomicBool::new(false),
        tasks: TaskTracker::new(),
        progress: Arc::clone(&plan.progress),
    });
    run.begin();
    let watch = plan.watch.clone();
    let (sent, broken, watched) = tokio::join!(run.send(), run.troubles(&mut plan), run.sample(watch));
    broken?;
    plan.watch.ends(watched);
    let seconds = sent.as_secs_f64();
    run.settle(plan.settle).await?;
    let report = run.report(&plan, seconds);
    run.crowd.close().await;
    if let Some(server) = &mut plan.spawned {
        server.kill().await?;
    }
    Ok(report)
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn client(&self, user: u32) -> Client {
        self.crowd.client(user)
    }
}

impl Record {
    /// Where a measurement of this span belongs.
    fn phase(&self, scenario: &Scenario, from_us: u64, to_us: u64) -> Phase {
        let warm_us = u64::try_from(scenario.warm_up.as_micros()).unwrap_or(u64::MAX);
        match self.ledger.trouble(from_us, to_us) {
            Some(phase) => phase,
            None if from_us < warm_us => Phase::WarmUp,
            None => Phase::Steady,
        }
    }
}
