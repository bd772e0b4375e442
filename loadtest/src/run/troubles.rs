//! What is broken in a run, and what happens at its times. **Invariant:** only a server that the harness started, or a cluster
//! of this machine's scripts, is ever touched; each trouble is noted with its beginning and its end.

use super::{Plan, Run, now};
use crate::faults::{self, Fault};
use crate::measure::Phase;
use crate::proxy::Carriers;
use crate::scenario::{Event, Happening};
use crate::server::Spawned;
use anyhow::{Context, Result, bail};
use chappe_client::Client;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// After a restart the clients have so long to come back before the fault window ends anyway.
const RECONNECT_MAX: Duration = Duration::from_mins(1);
/// Gateways that `dev/cluster` starts.
const GATEWAYS: [&str; 3] = ["gateway-1", "gateway-2", "gateway-3"];

/// One thing that is done at its time.
enum Trouble {
    Kill,
    Break(Fault),
    Event(Happening),
}

impl Run {
    /// Everything that the plan breaks, by time, one after the other.
    pub(super) async fn troubles(self: &Arc<Self>, plan: &mut Plan) -> Result<()> {
        let duration = self.scenario.duration;
        let kills = if plan.spawned.is_some() { plan.kills } else { 0 };
        let mut all: Vec<(Duration, Trouble)> = Vec::new();
        all.extend((1..=kills).map(|number| (duration * number / (kills + 1), Trouble::Kill)));
        all.extend(plan.faults.iter().map(|fault| (fault.at, Trouble::Break(fault.clone()))));
        all.extend(self.scenario.events.iter().map(|Event { at, what }| (*at, Trouble::Event(*what))));
        all.sort_by_key(|(at, _)| *at);
        for (at, trouble) in all {
            tokio::time::sleep_until(self.start + at).await;
            // Earlier ones took longer than planned: after the load's end there is nothing to break.
            let lasts = if let Trouble::Break(fault) = &trouble { fault.lasts } else { Duration::ZERO };
            if now() + lasts >= self.start + duration {
                break;
            }
            self.trouble(plan, trouble).await?;
        }
        Ok(())
    }

    async fn trouble(self: &Arc<Self>, plan: &mut Plan, trouble: Trouble) -> Result<()> {
        let scripts = plan.scripts.clone();
        match trouble {
            Trouble::Kill => {
                let Some(server) = &mut plan.spawned else { return Ok(()) };
                let number = self.begins("kill", Phase::Fault).await;
                server.kill().await?;
                server.restart().await?;
                // The next one may come before all are back.
                let run = Arc::clone(self);
                self.tasks.spawn(async move { run.all_back(number).await });
            }
            Trouble::Break(fault) => {
                let scripts = scripts.context("--faults needs --scripts")?;
                let number = self.begins(&fault.what, Phase::Fault).await;
                faults::run(&scripts, &fault.begin).await?;
                tokio::time::sleep(fault.lasts).await;
                faults::run(&scripts, &fault.end).await?;
                self.all_back(number).await;
            }
            Trouble::Event(Happening::Storm) => {
                let number = self.begins("storm", Phase::Storm).await;
                self.crowd.all().iter().for_each(Client::disconnect_now);
                self.all_back(number).await;
            }
            Trouble::Event(Happening::Drain) => match (&mut plan.spawned, scripts) {
                (Some(server), _) => self.drain_own(server).await?,
                (None, Some(scripts)) => self.drain_cluster(&scripts).await?,
                (None, None) => bail!("drain: whose server is it? {DRAIN_HINT}"),
            },
        }
        Ok(())
    }

    async fn drain_own(self: &Arc<Self>, server: &mut Spawned) -> Result<()> {
        let number = self.begins("drain", Phase::Drain).await;
        server.terminate().await?;
        server.restart().await?;
        self.all_back(number).await;
        Ok(())
    }

    async fn drain_cluster(self: &Arc<Self>, scripts: &Path) -> Result<()> {
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        for gateway in GATEWAYS {
            let what = format!("drain {gateway}");
            let number = self.begins(&what, Phase::Drain).await;
            faults::run(scripts, &words(format!("cluster {what}"))).await?;
            faults::run(scripts, &words("cluster start".into())).await?;
            self.all_back(number).await;
        }
        Ok(())
    }

    /// A fault between two submits would prove little: waits (at most 2 s) for one to be in flight, and notes its beginning.
    async fn begins(&self, what: &str, phase: Phase) -> usize {
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
    async fn all_back(&self, number: usize) {
        // Clients notice the loss only now: give them a moment.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let there = (0..self.scenario.users).filter(|user| !self.is_away(*user));
        let clients: Vec<Client> = there.map(|user| self.client(user)).collect();
        let back = futures_util::future::join_all(clients.iter().map(Client::connected));
        // Those who are not back by then are the run's findings, not a reason to wait.
        let _ = tokio::time::timeout(RECONNECT_MAX, back).await;
        let at_us = self.elapsed_us();
        self.lock().ledger.fault_ends(number, at_us);
    }

    /// What happens on the bad ways until the load is over.
    pub(super) async fn trouble_ways(self: Arc<Self>) {
        let Some(path) = &self.scenario.path else { return };
        let roam = async {
            while !path.roam_every.is_zero() && self.start.elapsed() < self.scenario.duration {
                tokio::time::sleep(path.roam_every).await;
                self.crowd.ways.iter().for_each(crate::proxy::Proxy::rebind);
            }
        };
        let silence = async {
            while !path.silent_every.is_zero() && self.start.elapsed() < self.scenario.duration {
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

/// What `drain` needs.
pub(crate) const DRAIN_HINT: &str = "name the server's command behind --, or the scripts of a local cluster with --scripts; \
    elsewhere let your own tool do the rolling update while `chat` runs";
