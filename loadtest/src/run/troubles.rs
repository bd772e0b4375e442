//! What is broken in a run, and what happens at its times. **Invariant:** only a server that the harness started, or a cluster
//! of this machine's scripts, is ever touched; each trouble is noted by every worker with its beginning and its end.

use super::clients::User;
use super::{Plan, Run, now};
use crate::agents::Crew;
use crate::faults::{self, Fault};
use crate::measure::Phase;
use crate::proxy::{Carriers, Proxy};
use crate::scenario::{Event, Happening};
use crate::server::Spawned;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// After a restart the clients have so long to come back before the fault window ends anyway.
const RECONNECT_MAX: Duration = Duration::from_mins(1);
/// Gateways that `dev/cluster` starts.
const GATEWAYS: [&str; 3] = ["gateway-1", "gateway-2", "gateway-3"];
/// What `drain` needs.
pub(crate) const DRAIN_HINT: &str = "name the server's command behind --, or the scripts of a local cluster with --scripts; \
    elsewhere let your own tool do the rolling update while `chat` runs";

/// One thing that is done at its time.
enum Trouble {
    Kill,
    Break(Fault),
    Event(Happening),
}

/// Everything that the plan breaks, by time, one after the other.
pub(super) async fn all(crew: &Arc<Crew>, plan: &mut Plan, start: Instant) -> Result<()> {
    let duration = plan.scenario.duration;
    let kills = if plan.spawned.is_some() { plan.kills } else { 0 };
    let mut all: Vec<(Duration, Trouble)> = Vec::new();
    all.extend((1..=kills).map(|number| (duration * number / (kills + 1), Trouble::Kill)));
    all.extend(plan.faults.iter().map(|fault| (fault.at, Trouble::Break(fault.clone()))));
    all.extend(plan.scenario.events.iter().map(|Event { at, what }| (*at, Trouble::Event(*what))));
    all.sort_by_key(|(at, _)| *at);
    let tasks = TaskTracker::new();
    for (at, trouble) in all {
        tokio::time::sleep_until(start + at).await;
        // Earlier ones took longer than planned: after the load's end there is nothing to break.
        let lasts = if let Trouble::Break(fault) = &trouble { fault.lasts } else { Duration::ZERO };
        if now() + lasts >= start + duration {
            break;
        }
        one(crew, plan, trouble, &tasks).await?;
    }
    tasks.close();
    tasks.wait().await;
    Ok(())
}

async fn one(crew: &Arc<Crew>, plan: &mut Plan, trouble: Trouble, tasks: &TaskTracker) -> Result<()> {
    match trouble {
        Trouble::Kill => {
            let Some(server) = &mut plan.spawned else { return Ok(()) };
            let number = crew.begins("kill", Phase::Fault).await?;
            server.kill().await?;
            server.restart().await?;
            // The next one may come before all are back.
            let crew = Arc::clone(crew);
            tasks.spawn(async move { crew.back(number).await });
        }
        Trouble::Break(fault) => {
            let scripts = plan.scripts.as_deref().context("--faults needs --scripts")?;
            let number = crew.begins(&fault.what, Phase::Fault).await?;
            faults::run(scripts, &fault.begin).await?;
            tokio::time::sleep(fault.lasts).await;
            faults::run(scripts, &fault.end).await?;
            crew.back(number).await?;
        }
        Trouble::Event(Happening::Storm) => {
            let number = crew.begins("storm", Phase::Storm).await?;
            crew.storm().await?;
            crew.back(number).await?;
        }
        Trouble::Event(Happening::Drain) => match (&mut plan.spawned, &plan.scripts) {
            (Some(server), _) => drain_own(crew, server).await?,
            (None, Some(scripts)) => drain_cluster(crew, scripts).await?,
            (None, None) => bail!("drain: whose server is it? {DRAIN_HINT}"),
        },
    }
    Ok(())
}

async fn drain_own(crew: &Crew, server: &mut Spawned) -> Result<()> {
    let number = crew.begins("drain", Phase::Drain).await?;
    server.terminate().await?;
    server.restart().await?;
    crew.back(number).await
}

async fn drain_cluster(crew: &Crew, scripts: &Path) -> Result<()> {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for gateway in GATEWAYS {
        let what = format!("drain {gateway}");
        let number = crew.begins(&what, Phase::Drain).await?;
        faults::run(scripts, &words(&format!("cluster {what}"))).await?;
        faults::run(scripts, &words("cluster start")).await?;
        crew.back(number).await?;
    }
    Ok(())
}

impl Run {
    /// A fault between two submits would prove little: waits (at most 2 s) for one to be in flight, and notes its beginning.
    pub(crate) async fn begins(&self, what: &str, phase: Phase) -> usize {
        for _ in 0..2000 {
            if self.in_flight.load(Ordering::Relaxed) > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let at_us = self.elapsed_us();
        self.lock().ledger.fault_begins(what, phase, at_us, in_flight)
    }

    /// Waits until every client that is there was connected once since; those dropped on purpose come and go meanwhile. Then
    /// it is over.
    pub(crate) async fn back(&self, number: usize) {
        // Clients notice the loss only now: give them a moment.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let there = (0..self.scenario.users).filter(|user| !self.is_away(*user));
        let users: Vec<User> = there.map(|user| self.crowd.user(user)).collect();
        let back = futures_util::future::join_all(users.iter().map(User::connected));
        // Those who are not back by then are the run's findings, not a reason to wait.
        let _ = tokio::time::timeout(RECONNECT_MAX, back).await;
        let at_us = self.elapsed_us();
        self.lock().ledger.fault_ends(number, at_us);
    }

    /// Cuts every connection.
    pub(crate) fn storm(&self) {
        self.crowd.all().iter().for_each(User::cut);
    }

    /// What happens on the bad ways until the load is over.
    pub(super) async fn trouble_ways(self: Arc<Self>) {
        let Some(path) = &self.scenario.path else { return };
        let loaded = || self.start().elapsed() < self.scenario.duration;
        let roam = async {
            while !path.roam_every.is_zero() && loaded() {
                tokio::time::sleep(path.roam_every).await;
                self.crowd.ways.iter().for_each(Proxy::rebind);
            }
        };
        let silence = async {
            while !path.silent_every.is_zero() && loaded() {
                tokio::time::sleep(path.silent_every).await;
                self.silent(true);
                tokio::time::sleep(path.silent_for).await;
                self.silent(false);
            }
        };
        tokio::join!(roam, silence);
    }

    fn silent(&self, on: bool) {
        self.crowd.ways.iter().for_each(|way| way.black_hole(Carriers::Both, on));
    }
}
