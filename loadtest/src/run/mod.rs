//! Runs a scenario against a server. **Invariant:** the load is open: when the server is slow, sends are not.

mod clients;
mod host;
mod outcome;
mod traffic;
mod troubles;

pub(crate) use clients::{balancer, builder, builder_to, connected};
pub use outcome::Outcome;
pub(crate) use traffic::fate;
pub(crate) use troubles::DRAIN_HINT;

use crate::agents::{Crew, Workers};
use crate::audit::{Ledger, SubmitKey};
use crate::carriers::Choice;
use crate::faults::Fault;
use crate::measure::{Measured, Phase};
use crate::payload::Tagger;
use crate::pulse::{Live, Progress, Pulse};
use crate::report::Report;
use crate::scenario::Scenario;
use crate::scrape::Scrape;
use crate::server::Spawned;
use crate::tokens::Issuer;
use crate::watch::Watch;
use anyhow::Result;
use chappe_protocol::world::World;
use clients::Crowd;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

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
    /// The number of the first user.
    pub first: u32,
    /// TCP connections leave from here; `None`: the system chooses. One address has some 28,000 ports.
    pub source: Option<IpAddr>,
}

impl Target {
    /// What a user is called.
    pub(crate) fn name(&self, user: u32) -> String {
        format!("{}{}", self.prefix, self.first + user)
    }

    /// Who is called this, if he is of this run.
    pub(crate) fn number(&self, name: &str) -> Option<u32> {
        name.strip_prefix(&self.prefix)?.parse::<u32>().ok()?.checked_sub(self.first)
    }
}

/// Where and how a scenario is run.
pub struct Plan<S = Scenario> {
    /// The scenario.
    pub scenario: S,
    /// Whom it aims at.
    pub target: Target,
    /// Who puts the load on.
    pub workers: Workers,
    /// A server of our own, to be killed.
    pub spawned: Option<Spawned>,
    /// How often it is killed, evenly over the duration.
    pub kills: u32,
    /// What is broken in a cluster.
    pub faults: Vec<Fault>,
    /// The folder of `cluster` and `deps`, the scripts that break a cluster of this machine; `None`: there is none.
    pub scripts: Option<PathBuf>,
    /// Processes of the server.
    pub watch: Watch,
    /// Its admin ports.
    pub scrape: Scrape,
    /// How long to wait for the last decisions and deliveries.
    pub settle: Duration,
    /// Randomness of the run's key.
    pub world: Arc<dyn World>,
    /// Told now and then.
    pub progress: Progress,
}

/// One worker's part of a run.
pub(crate) struct Run {
    scenario: Scenario,
    target: Target,
    tagger: Tagger,
    /// When the load began.
    start: OnceLock<Instant>,
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
    plan.watch.before();
    let crew = Arc::new(Crew::gather(&plan).await?);
    plan.watch.after(plan.scenario.users).await;
    let (duration, start) = (plan.scenario.duration, now());
    let (watch, scrape) = (plan.watch.clone(), plan.scrape.clone());
    let (loaded, broken, watched, scraped) = tokio::join!(
        crew.load(),
        troubles::all(&crew, &mut plan, start),
        watch.follow(start, duration),
        scrape.follow(start, duration)
    );
    broken?;
    let seconds = loaded?.as_secs_f64();
    let mut outcome = crew.finish(plan.settle).await?;
    outcome.measured.timeline.add(&watched.timeline);
    outcome.audit.prove(&outcome.faults);
    plan.watch.ends(watched.cpu_seconds);
    let mut report = Report::new(plan.scenario.clone(), outcome.audit, &outcome.measured);
    report.faults = outcome.faults;
    report.seconds = seconds;
    report.server = plan.watch.told();
    report.scraped = scraped;
    report.judge();
    crew.end().await;
    if let Some(server) = &mut plan.spawned {
        server.kill().await?;
    }
    Ok(report)
}

impl Run {
    /// Connects all users; the load has not begun.
    pub(crate) async fn prepare(
        scenario: Scenario,
        target: Target,
        world: &Arc<dyn World>,
        progress: Progress,
    ) -> Result<Arc<Self>> {
        let mut key = [0; 32];
        world.fill_random(&mut key);
        let crowd = Crowd::gather(&scenario, &target, world, &progress).await?;
        let measured = Measured::new(scenario.duration);
        let run = Arc::new(Self {
            scenario,
            target,
            tagger: Tagger::new(&key),
            start: OnceLock::new(),
            crowd,
            record: Mutex::new(Record { ledger: Ledger::default(), measured }),
            in_flight: AtomicU64::new(0),
            hurry: AtomicBool::new(false),
            tasks: TaskTracker::new(),
            progress,
        });
        run.crowd.serve(Arc::downgrade(&run));
        Ok(run)
    }

    /// When the load began; now, if it has not.
    fn start(&self) -> Instant {
        *self.start.get_or_init(now)
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.start().elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Tells how it goes on.
    fn pulse(&self, line: &str, share: f64) {
        let live = self.lock().live(self.crowd.sessions());
        (self.progress)(0, &Pulse { line: line.to_owned(), share, live });
    }
}

impl Record {
    fn live(&self, sessions: u64) -> Live {
        Live { sessions, errors: self.measured.errors.values().sum(), ..self.ledger.live() }
    }

    /// Notes a submit before it leaves. `false`: it must not, since the ledger is full; it is counted as skipped.
    fn invoke(&mut self, key: SubmitKey, intended_us: u64, targets: &[u32], at_us: u64) -> bool {
        if !self.ledger.has_room() {
            self.measured.skipped += 1;
            return false;
        }
        self.ledger.invoke(key, at_us, targets);
        self.measured.sent(intended_us, at_us);
        true
    }

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
