//! Runs the scenario `wake`. **Invariant:** what is noted of a device is in the order of time, on one clock.

use super::audit::{Attempt, Life, Rules, Sent, WakeAudit};
use super::device::BadPath;
use super::provider::Provider;
use super::{SENDERS, Send, Wake};
use crate::audit::{Fate, Ledger, Received, SubmitKey};
use crate::balancer::Balancer;
use crate::measure::{Latency, Measured, Phase};
use crate::payload::{Tag, Tagger};
use crate::pulse::Pulse;
use crate::report::Report;
use crate::run::{Plan, balancer, builder, connected, fate, now};
use crate::server::Spawned;
use crate::watch;
use anyhow::Result;
use chappe_client::{Client, Outgoing, Pending};
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Devices that register at once: a storm of handshakes is another scenario.
const REGISTER_AT_ONCE: usize = 32;
/// A server that is started by hand, with the settings that this run writes, has so long to come up.
const SERVER_MAX: Duration = Duration::from_mins(5);

pub(super) struct Run {
    pub(super) plan: Plan<Wake>,
    pub(super) balancer: Arc<Balancer>,
    pub(super) provider: Provider,
    /// Each device sleeps at its own.
    pub(super) beds: Vec<Notify>,
    tagger: Tagger,
    /// When the load began.
    start: OnceLock<Instant>,
    lives: Vec<Mutex<Life>>,
    record: Mutex<Record>,
    tasks: TaskTracker,
    ends: CancellationToken,
}

struct Record {
    ledger: Ledger,
    measured: Measured,
    /// Who had what, and when first, milliseconds since 1970: an app would know it, too.
    received: BTreeMap<(u32, SubmitKey), u64>,
    /// Envelopes that were accepted.
    accepted: u64,
    /// Envelopes that came again, since their ack went down with what was killed.
    again: u64,
    strangers: u64,
    /// When something was broken, milliseconds since 1970.
    hurt: Vec<(u64, u64)>,
}

/// Runs and audits; `provider` is what the server asks.
pub async fn run(mut plan: Plan<Wake>, provider: Provider) -> Result<Report> {
    let mut key = [0; 32];
    plan.world.fill_random(&mut key);
    let mut spawned = plan.spawned.take();
    let run = Arc::new(Run {
        balancer: Arc::new(balancer(&plan.target)?),
        provider,
        beds: (0..plan.scenario.devices).map(|_| Notify::new()).collect(),
        tagger: Tagger::new(&key),
        start: OnceLock::new(),
        lives: (0..plan.scenario.devices).map(|_| Mutex::default()).collect(),
        record: Mutex::new(Record {
            ledger: Ledger::default(),
            measured: Measured::new(plan.scenario.duration),
            received: BTreeMap::new(),
            accepted: 0,
            again: 0,
            strangers: 0,
            hurt: Vec::new(),
        }),
        tasks: TaskTracker::new(),
        ends: CancellationToken::new(),
        plan,
    });
    let senders = run.senders().await?;
    run.register_all().await?;
    run.put_to_bed().await?;
    let start = *run.start.get_or_init(now);
    let breaking = async {
        run.kill(&mut spawned, start).await?;
        run.break_and_mend(start).await
    };
    let duration = run.plan.scenario.duration;
    let (sent, broken, (), watched, scraped) = tokio::join!(
        run.send(&senders, start),
        breaking,
        run.fail_provider(start),
        run.plan.watch.follow(start, duration),
        run.plan.scrape.follow(start, duration)
    );
    broken?;
    run.settle().await;
    run.lock().measured.timeline.add(&watched.timeline);
    let mut report = run.report(sent.as_secs_f64());
    report.scraped = scraped;
    run.ends.cancel();
    let closing = futures_util::future::join_all(senders.iter().map(Client::close));
    // A client that cannot say goodbye any more does not change the verdict.
    let _ = tokio::time::timeout(Duration::from_secs(10), closing).await;
    run.tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(10), run.tasks.wait()).await;
    run.provider.close().await;
    if let Some(server) = &mut spawned {
        server.kill().await?;
    }
    Ok(report)
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn life(&self, device: u32) -> MutexGuard<'_, Life> {
        self.lives[device as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds since 1970, as the provider counts too.
    pub(super) fn wall(&self) -> u64 {
        self.plan.world.wall().0
    }

    fn elapsed_us(&self) -> u64 {
        self.start.get().map_or(0, |start| micros(start.elapsed()))
    }

    fn progress(&self, line: &str, share: f64) {
        let live = self.lock().ledger.live();
        (self.plan.progress)(0, &Pulse { line: line.to_owned(), share, live });
    }

    /// Those who write; users behind the devices'.
    async fn senders(&self) -> Result<Vec<Client>> {
        self.progress("waiting for the server", 0.0);
        let all = (0..SENDERS)
            .map(|sender| Ok(builder(&self.plan.target, &self.balancer, self.name_of(sender))?.start()));
        let all = all.collect::<Result<Vec<Client>>>()?;
        connected(&all, SERVER_MAX).await?;
        Ok(all)
    }

    fn name_of(&self, sender: u32) -> u32 {
        self.plan.scenario.devices + sender
    }

    async fn register_all(&self) -> Result<()> {
        let devices = self.plan.scenario.devices;
        let mut registered = futures_util::stream::iter((0..devices).map(|device| self.register(device)))
            .buffer_unordered(REGISTER_AT_ONCE);
        let mut done = 0;
        while let Some(registered) = registered.next().await {
            registered?;
            done += 1;
            if done % 64 == 0 {
                self.progress("registering devices", f64::from(done) / f64::from(devices));
            }
        }
        Ok(())
    }

    /// From now on devices sleep, and come when they are woken.
    async fn put_to_bed(self: &Arc<Self>) -> Result<()> {
        let server = self.plan.target.servers.first().cloned().unwrap_or_default();
        for device in 0..self.plan.scenario.devices {
            let path =
                if self.plan.scenario.is_silent(device) { Some(BadPath::to(&server).await?) } else { None };
            if path.is_some() {
                // A visit, at whose end it falls silent.
                self.beds[device as usize].notify_one();
            }
            self.spawn(Arc::clone(self).live(device, path));
        }
        let run = Arc::clone(self);
        self.spawn(async move { run.provider.follow(|device, attempt| run.woken(device, attempt)).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(())
    }

    fn spawn(&self, task: impl Future<Output = ()> + std::marker::Send + 'static) {
        let ends = self.ends.clone();
        self.tasks.spawn(async move { ends.run_until_cancelled(task).await });
    }

    fn woken(&self, device: Option<u32>, attempt: Attempt) {
        let Some(device) = device.filter(|device| *device < self.plan.scenario.devices) else {
            self.lock().strangers += 1;
            return;
        };
        self.life(device).attempts.push(attempt);
        if attempt.taken {
            self.beds[device as usize].notify_one();
        }
    }

    /// Sends by the plan, whatever the answers do. Returns how long it took.
    async fn send(self: &Arc<Self>, senders: &[Client], start: Instant) -> Duration {
        let wake = &self.plan.scenario;
        let mut counters = vec![0; senders.len()];
        let mut shown = Duration::ZERO;
        for send in wake.sends() {
            tokio::time::sleep_until(start + send.at).await;
            if send.at >= shown {
                self.progress(
                    "sending to sleeping devices",
                    send.at.as_secs_f64() / wake.duration.as_secs_f64(),
                );
                shown = send.at + Duration::from_millis(250);
            }
            let counter = &mut counters[send.sender as usize];
            let key = SubmitKey { sender: self.name_of(send.sender), counter: *counter };
            *counter += 1;
            let client = &senders[send.sender as usize];
            if self.submit(client, key, send).await.is_err() {
                break;
            }
        }
        start.elapsed()
    }

    async fn submit(self: &Arc<Self>, client: &Client, key: SubmitKey, send: Send) -> Result<()> {
        let intended_us = micros(send.at);
        let tag = Tag { sender: key.sender, counter: key.counter, intended_us, targets: vec![send.device] };
        let payload = self.tagger.write(&tag, self.plan.scenario.payload_bytes);
        let outgoing = Outgoing::new(payload).to(self.plan.target.name(send.device));
        {
            let at_us = self.elapsed_us();
            let mut record = self.lock();
            record.ledger.invoke(key, at_us, &[send.device]);
            record.measured.sent(intended_us, at_us);
        }
        let sent_ms = self.wall();
        let pending = client.submit_queued(outgoing).await?;
        let run = Arc::clone(self);
        self.spawn(async move { run.decide(key, send, sent_ms, pending).await });
        Ok(())
    }

    async fn decide(&self, key: SubmitKey, send: Send, sent_ms: u64, pending: Pending) {
        let Ok(receipt) = pending.receipt().await else { return };
        let fates: Vec<Fate> = receipt.targets.iter().map(|target| fate(&target.outcome)).collect();
        let (at_us, accepted_ms) = (self.elapsed_us(), self.wall());
        let mut record = self.lock();
        record.ledger.decide(key, at_us, &fates);
        let intended_us = micros(send.at);
        let phase = record.ledger.trouble(intended_us, at_us).unwrap_or(Phase::Steady);
        record.measured.decided(phase, None, intended_us, at_us);
        record.accepted += fates.iter().filter(|fate| **fate == Fate::Ok).count() as u64;
        drop(record);
        if fates.contains(&Fate::Ok) {
            // When it was received is filled in at the end: it may be at this very moment.
            self.life(send.device).sent.push(Sent { key, sent_ms, accepted_ms, received_ms: None });
        }
    }

    /// A device has an envelope.
    pub(super) fn received(&self, device: u32, payload: &[u8]) {
        let tag = self.tagger.read(payload);
        let key = tag.as_ref().map(|tag| SubmitKey { sender: tag.sender, counter: tag.counter });
        let now = self.wall();
        let mut record = self.lock();
        if let Some(key) = key
            && record.received.insert((device, key), now).is_some()
        {
            record.again += 1;
            return;
        }
        let addressed = tag.as_ref().is_some_and(|tag| tag.targets.contains(&device));
        record.ledger.receive(Received { by: device, key, addressed });
        if let Some(tag) = tag {
            // Whoever sleeps has to be woken first.
            record.measured.delivered(Phase::Backlog, None, tag.intended_us, self.elapsed_us());
        }
    }

    /// Kills the server evenly over the duration, and starts it again.
    async fn kill(&self, spawned: &mut Option<Spawned>, start: Instant) -> Result<()> {
        let Some(server) = spawned else { return Ok(()) };
        for number in 1..=self.plan.kills {
            tokio::time::sleep_until(start + self.plan.scenario.duration * number / (self.plan.kills + 1))
                .await;
            let begin = self.begin("kill").await;
            server.kill().await?;
            server.restart().await?;
            self.end(begin);
        }
        Ok(())
    }

    /// Breaks and mends a cluster by its schedule.
    async fn break_and_mend(&self, start: Instant) -> Result<()> {
        let scripts = self.plan.scripts.clone().unwrap_or_default();
        for fault in &self.plan.faults {
            tokio::time::sleep_until(start + fault.at).await;
            // Earlier faults took longer to mend than planned: after the load's end there is nothing to break.
            if now() + fault.lasts >= start + self.plan.scenario.duration {
                break;
            }
            let begin = self.begin(&fault.what).await;
            crate::faults::run(&scripts, &fault.begin).await?;
            tokio::time::sleep(fault.lasts).await;
            crate::faults::run(&scripts, &fault.end).await?;
            self.end(begin);
        }
        Ok(())
    }

    /// A fault while nothing is under way would prove little: waits (at most 2 s) until a submit is undecided or an envelope
    /// on its way to a device that has to be woken for it.
    async fn begin(&self, what: &str) -> (usize, u64) {
        for _ in 0..2000 {
            if self.under_way() > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (from_us, in_flight) = (self.elapsed_us(), self.under_way());
        (self.lock().ledger.fault_begins(what, Phase::Fault, from_us, in_flight), self.wall())
    }

    fn under_way(&self) -> u64 {
        let record = self.lock();
        record.ledger.undecided() + record.accepted.saturating_sub(record.received.len() as u64)
    }

    fn end(&self, (number, from_ms): (usize, u64)) {
        let (to_us, to_ms) = (self.elapsed_us(), self.wall());
        let mut record = self.lock();
        record.ledger.fault_ends(number, to_us);
        record.hurt.push((from_ms, to_ms));
    }

    /// The provider answers 503 for a while in the middle.
    async fn fail_provider(&self, start: Instant) {
        let (duration, fails) = (self.plan.scenario.duration, self.plan.scenario.sleep.provider_fails);
        if fails.is_zero() {
            return;
        }
        tokio::time::sleep_until(start + duration.saturating_sub(fails) / 2).await;
        self.provider.fail(true);
        tokio::time::sleep(fails).await;
        self.provider.fail(false);
    }

    /// Waits until everything accepted has arrived, then watches that nobody is woken any more.
    async fn settle(&self) {
        let end = now() + self.plan.settle;
        loop {
            let (undecided, missing) = {
                let record = self.lock();
                (record.ledger.undecided(), record.ledger.missing())
            };
            self.progress("settling", 1.0);
            if (undecided == 0 && missing == 0) || now() >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.progress("watching that nobody is woken any more", 1.0);
        tokio::time::sleep(self.plan.scenario.sleep.quiet).await;
    }

    fn report(&self, seconds: f64) -> Report {
        let mut record = self.lock();
        let mut rules = Rules {
            bound_ms: u64::try_from(self.plan.scenario.sleep.bound.as_millis()).unwrap_or(u64::MAX),
            end_ms: self.wall(),
            faults: record.hurt.clone(),
        };
        rules.faults.sort_unstable();
        let mut wakes =
            WakeAudit { strangers: record.strangers, again: record.again, ..WakeAudit::default() };
        for device in 0..self.plan.scenario.devices {
            let mut life = self.life(device).clone();
            for sent in &mut life.sent {
                sent.received_ms = record.received.get(&(device, sent.key)).copied();
            }
            wakes.judge(device, &life, &rules);
        }
        wakes.latency = Latency::of(wakes.latencies_us.drain(..));
        let own = watch::own();
        record.measured.cpu_seconds = own.cpu_seconds;
        record.measured.rss_bytes = own.rss_bytes;
        let (mut audit, faults) = (record.ledger.audit(), record.ledger.faults().to_vec());
        audit.prove(&faults);
        let mut report = Report::new(self.plan.scenario.whole.clone(), audit, &record.measured);
        report.seconds = seconds;
        report.faults = faults;
        report.woken(wakes);
        report.judge();
        report
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
