//! Runs a scenario against a server. **Invariant:** the load is open: when the server is slow, sends are not.

use crate::balancer::Balancer;
use crate::carriers::{self, Choice};
use crate::checker::{Audit, audit};
use crate::faults::Fault;
use crate::history::{Fate, FaultWindow, History, Received, SubmitKey};
use crate::payload::{Tag, Tagger};
use crate::report::{Latency, Report};
use crate::scenario::{Chat, Send};
use crate::server::Spawned;
use crate::tokens::Issuer;
use anyhow::{Context, Result};
use chappe_client::{Builder, Client, Event, Outcome, Outgoing};
use chappe_protocol::world::World;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Hears a line of progress and the share that is done (0 to 1).
pub type Progress = Arc<dyn Fn(&str, f64) + std::marker::Send + Sync>;

/// Where and how a scenario is run.
pub struct Plan<S = Chat> {
    /// The scenario.
    pub scenario: S,
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
    /// A server of our own, to be killed.
    pub spawned: Option<Spawned>,
    /// How often it is killed, evenly over the duration.
    pub kills: u32,
    /// What is broken in a cluster, and where the scripts are that do it.
    pub faults: Vec<Fault>,
    /// The folder of `cluster` and `deps`.
    pub scripts: PathBuf,
    /// How long to wait for the last decisions and deliveries.
    pub settle: Duration,
    /// Randomness of the run's key.
    pub world: Arc<dyn World>,
    /// Told now and then.
    pub progress: Progress,
}

/// Sends that wait for one user's client at most; beyond it they are skipped and counted.
const QUEUE_MAX: usize = 1024;
/// After a restart the clients have so long to come back before the fault window ends anyway.
const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// All users must be connected within this.
const CONNECT_MAX: Duration = Duration::from_mins(1);

struct Run {
    chat: Chat,
    tagger: Tagger,
    prefix: String,
    start: Instant,
    clients: Vec<Client>,
    record: Mutex<Record>,
    in_flight: AtomicU64,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Record {
    history: History,
    /// (intended, took), µs.
    accepts: Vec<(u64, u64)>,
    delivers: Vec<(u64, u64)>,
    delays: Vec<u64>,
    skipped: u64,
    disconnects: u64,
}

#[expect(clippy::disallowed_methods, reason = "a harness measures in µs; the roles' clock counts ms")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Runs and audits.
pub async fn run(mut plan: Plan) -> Result<Report> {
    let mut key = [0; 32];
    plan.world.fill_random(&mut key);
    (plan.progress)("connecting", 0.0);
    let clients = connect(&plan).await?;
    let run = Arc::new(Run {
        chat: plan.scenario.clone(),
        tagger: Tagger::new(&key),
        prefix: plan.prefix.clone(),
        start: now(),
        clients,
        record: Mutex::default(),
        in_flight: AtomicU64::new(0),
        tasks: TaskTracker::new(),
    });
    let stop = CancellationToken::new();
    for user in 0..plan.scenario.users {
        run.tasks.spawn(Arc::clone(&run).receive(user));
    }
    run.tasks.spawn(Arc::clone(&run).disconnect(stop.clone()));
    let breaking = async {
        run.kill(&mut plan.spawned, plan.kills).await?;
        run.break_and_mend(&plan.faults, &plan.scripts).await
    };
    let (sent, broken) = tokio::join!(run.send(&plan.progress), breaking);
    stop.cancel();
    broken?;
    let seconds = sent.as_secs_f64();
    let audit = run.settle(plan.settle, &plan.progress).await;
    let report = run.report(audit, seconds);
    run.clients.iter().for_each(Client::disconnect_now);
    let closing = run.clients.iter().map(Client::close);
    // A client that cannot say goodbye any more does not change the verdict.
    let _ = tokio::time::timeout(Duration::from_secs(10), futures_util::future::join_all(closing)).await;
    Ok(report)
}

/// One connected client per user; users exist from their first token on.
async fn connect(plan: &Plan) -> Result<Vec<Client>> {
    let balancer = Arc::new(Balancer::of(&plan.servers).map_err(anyhow::Error::msg)?);
    let mut clients = Vec::new();
    for user in 0..plan.scenario.users {
        clients.push(builder(plan, &balancer, user)?.start());
        // A handful of handshakes at a time: a storm of its own is another scenario.
        if user % 32 == 31 {
            connected(&clients[clients.len() - 32..], CONNECT_MAX).await?;
            (plan.progress)("connecting", f64::from(user) / f64::from(plan.scenario.users));
        }
    }
    connected(&clients, CONNECT_MAX).await?;
    Ok(clients)
}

/// The client of a user, through the servers in turn.
pub(crate) fn builder<S>(plan: &Plan<S>, balancer: &Arc<Balancer>, user: u32) -> Result<Builder> {
    let server = plan.servers.first().map_or("", String::as_str);
    let address = match plan.carrier {
        Some(choice) => choice.address(server, user).map_err(anyhow::Error::msg)?,
        None => server.to_owned(),
    };
    Ok(builder_to(plan, balancer, address, user))
}

/// The same, to an address of its own.
pub(crate) fn builder_to<S>(plan: &Plan<S>, balancer: &Arc<Balancer>, address: String, user: u32) -> Builder {
    let (name, device) = (format!("{}{user}", plan.prefix), "load".to_owned());
    let builder = Client::builder(address)
        .connector(Arc::<Balancer>::clone(balancer))
        .device(device.clone())
        .token(plan.issuer.source(name, device));
    match &plan.roots_pem {
        Some(roots) => builder.root_certificates_pem(roots),
        None => builder,
    }
}

/// Waits for all of them.
pub(crate) async fn connected(clients: &[Client], max: Duration) -> Result<()> {
    let all = futures_util::future::try_join_all(clients.iter().map(Client::connected));
    tokio::time::timeout(max, all)
        .await
        .with_context(|| {
            let max = max.as_secs();
            format!(
                "not all users were connected within {max} s; is the server up, and is it the right address?"
            )
        })?
        .context("a user could not connect")?;
    Ok(())
}

/// What an outcome means for the audit.
pub(crate) fn fate(outcome: &Outcome) -> Fate {
    match outcome {
        Outcome::Accepted => Fate::Ok,
        Outcome::UnknownUser | Outcome::NoDevice | Outcome::DevicesChanged { .. } | Outcome::Quota => {
            Fate::Fail
        }
        Outcome::Unavailable | Outcome::NotAttempted | Outcome::Unknown => Fate::Unknown,
    }
}

impl Run {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Sends by the plan, whatever the answers do. Returns how long it took.
    async fn send(self: &Arc<Self>, progress: &Progress) -> Duration {
        let queues: Vec<mpsc::Sender<Send>> = (0..self.chat.users)
            .map(|user| {
                let (queue, sends) = mpsc::channel(QUEUE_MAX);
                self.tasks.spawn(Arc::clone(self).submit(user, sends));
                queue
            })
            .collect();
        let mut shown = Duration::ZERO;
        for send in self.chat.sends() {
            tokio::time::sleep_until(self.start + send.at).await;
            if send.at >= shown {
                let line = format!("sending, {} in flight", self.in_flight.load(Ordering::Relaxed));
                progress(&line, send.at.as_secs_f64() / self.chat.duration.as_secs_f64());
                shown = send.at + Duration::from_millis(250);
            }
            let sender = send.sender as usize;
            if queues[sender].try_send(send).is_err() {
                self.lock().skipped += 1;
            }
        }
        self.start.elapsed()
    }

    /// One user's submits, in order.
    async fn submit(self: Arc<Self>, user: u32, mut sends: mpsc::Receiver<Send>) {
        let client = self.clients[user as usize].clone();
        let mut counter = 0;
        while let Some(send) = sends.recv().await {
            let intended_us = u64::try_from(send.at.as_micros()).unwrap_or(u64::MAX);
            let key = SubmitKey { sender: user, counter };
            counter += 1;
            let tag = Tag { sender: user, counter: key.counter, intended_us, targets: send.targets.clone() };
            let payload = self.tagger.write(&tag, self.chat.payload_bytes);
            let outgoing = send.targets.iter().fold(Outgoing::new(payload), |outgoing, target| {
                outgoing.to(format!("{}{target}", self.prefix))
            });
            {
                let at_us = self.elapsed_us();
                let mut record = self.lock();
                record.history.invoke(key, at_us, &send.targets);
                record.delays.push(at_us.saturating_sub(intended_us));
            }
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            match client.submit_queued(outgoing).await {
                Ok(pending) => {
                    self.tasks.spawn(Arc::clone(&self).decide(key, intended_us, pending));
                }
                // Stays undecided: the client has ended.
                Err(_) => return,
            }
        }
    }

    async fn decide(self: Arc<Self>, key: SubmitKey, intended_us: u64, pending: chappe_client::Pending) {
        let Ok(receipt) = pending.receipt().await else { return };
        let fates: Vec<Fate> = receipt.targets.iter().map(|target| fate(&target.outcome)).collect();
        let at_us = self.elapsed_us();
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut record = self.lock();
        record.history.decide(key, at_us, &fates);
        record.accepts.push((intended_us, at_us.saturating_sub(intended_us)));
    }

    /// One user's deliveries, until the client ends.
    async fn receive(self: Arc<Self>, user: u32) {
        let client = self.clients[user as usize].clone();
        while let Some(event) = client.next_event().await {
            let Event::Envelope(envelope) = event else { continue };
            let at_us = self.elapsed_us();
            let tag = self.tagger.read(&envelope.payload);
            let received = Received {
                by: user,
                key: tag.as_ref().map(|tag| SubmitKey { sender: tag.sender, counter: tag.counter }),
                addressed: tag.as_ref().is_some_and(|tag| tag.targets.contains(&user)),
            };
            {
                let mut record = self.lock();
                record.history.received.push(received);
                if let Some(tag) = tag {
                    record.delivers.push((tag.intended_us, at_us.saturating_sub(tag.intended_us)));
                }
            }
            envelope.ack();
        }
    }

    /// Drops connections as a bad network would.
    async fn disconnect(self: Arc<Self>, stop: CancellationToken) {
        let per_second = f64::from(self.chat.users) * self.chat.disconnects_percent / 100.0;
        if per_second <= 0.0 {
            return;
        }
        let pause = Duration::from_secs_f64(1.0 / per_second);
        let mut random = StdRng::seed_from_u64(self.chat.seed ^ 0xd15c_0ec7);
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            self.clients[random.random_range(0..self.clients.len())].disconnect_now();
            self.lock().disconnects += 1;
        }
    }

    /// Kills the server in the middle of submits, evenly over the duration, and starts it again.
    async fn kill(self: &Arc<Self>, spawned: &mut Option<Spawned>, kills: u32) -> Result<()> {
        let Some(server) = spawned else { return Ok(()) };
        let mut windows = Vec::new();
        for number in 1..=kills {
            tokio::time::sleep_until(self.start + self.chat.duration * number / (kills + 1)).await;
            let (from_us, in_flight) = self.in_the_middle().await;
            server.kill().await?;
            server.restart().await?;
            let run = Arc::clone(self);
            windows.push(self.tasks.spawn(async move {
                run.all_back().await;
                FaultWindow { what: "kill".into(), from_us, to_us: run.elapsed_us(), in_flight }
            }));
        }
        for window in windows {
            let window = window.await.context("a fault window was not measured")?;
            self.lock().history.faults.push(window);
        }
        Ok(())
    }

    /// A fault between two submits would prove little: waits (at most 2 s) for one to be in flight. Returns when, and how many.
    async fn in_the_middle(&self) -> (u64, u64) {
        for _ in 0..2000 {
            if self.in_flight.load(Ordering::Relaxed) > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        (self.elapsed_us(), self.in_flight.load(Ordering::Relaxed))
    }

    /// Breaks and mends a cluster by its schedule.
    async fn break_and_mend(&self, faults: &[Fault], scripts: &Path) -> Result<()> {
        for fault in faults {
            tokio::time::sleep_until(self.start + fault.at).await;
            // Earlier faults took longer to mend than planned: after the load's end there is nothing to break.
            if now() + fault.lasts >= self.start + self.chat.duration {
                break;
            }
            let (from_us, in_flight) = self.in_the_middle().await;
            crate::faults::run(scripts, &fault.begin).await?;
            tokio::time::sleep(fault.lasts).await;
            crate::faults::run(scripts, &fault.end).await?;
            self.all_back().await;
            let window =
                FaultWindow { what: fault.what.clone(), from_us, to_us: self.elapsed_us(), in_flight };
            self.lock().history.faults.push(window);
        }
        Ok(())
    }

    /// Waits until every client was connected once since the restart; those dropped on purpose come and go meanwhile.
    async fn all_back(&self) {
        // Clients notice the loss only now: give them a moment.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let back = futures_util::future::join_all(self.clients.iter().map(Client::connected));
        // Those who are not back by then are the run's findings, not a reason to wait.
        let _ = tokio::time::timeout(RECONNECT_MAX, back).await;
    }

    /// Waits until everything accepted has arrived and nothing is undecided, at most `max`; then a second more, for late
    /// repetitions.
    async fn settle(&self, max: Duration, progress: &Progress) -> Audit {
        let end = now() + max;
        loop {
            let (found, undecided) = {
                let record = self.lock();
                (audit(&record.history), record.history.in_flight())
            };
            progress(&format!("settling, {undecided} undecided, {} to arrive", found.lost.count), 1.0);
            if (undecided == 0 && found.lost.count == 0) || now() >= end {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        audit(&self.lock().history)
    }

    fn report(&self, audit: Audit, seconds: f64) -> Report {
        let record = self.lock();
        let faults = record.history.faults.clone();
        let steady = |(at, took): &(u64, u64)| {
            let hurt = faults.iter().any(|fault| *at <= fault.to_us && at + took >= fault.from_us);
            (!hurt).then_some(*took)
        };
        Report {
            format: "chappe-loadtest/1",
            verdict: audit.verdict(),
            scenario: self.chat.clone(),
            audit,
            accept: Latency::of(record.accepts.iter().filter_map(steady)),
            deliver: Latency::of(record.delivers.iter().filter_map(steady)),
            accept_all: Latency::of(record.accepts.iter().map(|(_, took)| *took)),
            deliver_all: Latency::of(record.delivers.iter().map(|(_, took)| *took)),
            send_delay: Latency::of(record.delays.iter().copied()),
            skipped: record.skipped,
            disconnects: record.disconnects,
            faults: faults.clone(),
            seconds,
            carriers: carriers::count(&self.clients),
            harness_cpu_seconds: cpu_seconds().unwrap_or_default(),
        }
    }
}

/// User and system time of this process (`proc(5)`, fields 14 and 15, in ticks of 10 ms).
pub(crate) fn cpu_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}
