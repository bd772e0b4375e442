//! What users send and receive. **Invariant:** a submit is noted before its first byte leaves, and an envelope before it is
//! acked.

use super::Run;
use super::clients::carrier;
use crate::audit::{Fate, Received, SubmitKey};
use crate::measure::Phase;
use crate::payload::Tag;
use crate::scenario::Send;
use chappe_client::{Client, Event, Outcome, Outgoing, Pending};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// Sends that wait for one user's client at most; beyond it they are skipped and counted.
const QUEUE_MAX: usize = 1024;

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

/// By which name a report counts it.
fn code(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Accepted => None,
        Outcome::UnknownUser => Some("unknown_user"),
        Outcome::NoDevice => Some("no_device"),
        Outcome::DevicesChanged { .. } => Some("devices_changed"),
        Outcome::Quota => Some("quota"),
        Outcome::Unavailable => Some("unavailable"),
        Outcome::NotAttempted => Some("not_attempted"),
        Outcome::Unknown => Some("unknown"),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Run {
    /// Puts the load on. Returns how long it took.
    pub(crate) async fn load(self: &Arc<Self>) -> Duration {
        self.begin();
        tokio::join!(self.send(), self.sample()).0
    }

    /// Receives for all who are there, and follows their connections.
    fn begin(self: &Arc<Self>) {
        for user in 0..self.scenario.users {
            if !self.is_away(user) {
                self.attend(user, self.client(user));
            }
        }
        self.tasks.spawn(Arc::clone(self).disconnect());
        self.tasks.spawn(Arc::clone(self).trouble_ways());
    }

    /// From now on this client's envelopes are received and its connections watched.
    pub(super) fn attend(self: &Arc<Self>, user: u32, client: Client) {
        self.tasks.spawn(Arc::clone(self).follow(client.clone()));
        self.tasks.spawn(Arc::clone(self).receive(user, client));
    }

    /// Whether this user is away while the load is on.
    pub(super) fn is_away(&self, user: u32) -> bool {
        self.scenario.is_last(self.scenario.sessions.away_percent, user)
    }

    /// Sends by the plan, whatever the answers do. Returns how long it took.
    async fn send(self: &Arc<Self>) -> Duration {
        let mut queues: Vec<Option<mpsc::Sender<Send>>> = vec![None; self.scenario.users as usize];
        let mut shown = Duration::ZERO;
        for send in self.scenario.sends() {
            if send.targets.is_empty() {
                continue;
            }
            tokio::time::sleep_until(self.start() + send.at).await;
            if send.at >= shown {
                self.pulse("sending", send.at.as_secs_f64() / self.scenario.duration.as_secs_f64());
                shown = send.at + Duration::from_millis(250);
            }
            let sender = send.sender;
            let queue = queues[sender as usize].get_or_insert_with(|| {
                let (queue, sends) = mpsc::channel(QUEUE_MAX);
                self.tasks.spawn(Arc::clone(self).submit(sender, sends));
                queue
            });
            if queue.try_send(send).is_err() {
                self.lock().measured.skipped += 1;
            }
        }
        self.start().elapsed()
    }

    /// One user's submits, in order.
    async fn submit(self: Arc<Self>, user: u32, mut sends: mpsc::Receiver<Send>) {
        let client = self.client(user);
        let mut counter = 0;
        while let Some(send) = sends.recv().await {
            let intended_us = micros(send.at);
            let key = SubmitKey { sender: user, counter };
            {
                let at_us = self.elapsed_us();
                let mut record = self.lock();
                if !record.ledger.has_room() {
                    record.measured.skipped += 1;
                    continue;
                }
                record.ledger.invoke(key, at_us, &send.targets);
                record.measured.sent(intended_us, at_us);
            }
            counter += 1;
            let tag = Tag { sender: user, counter: key.counter, intended_us, targets: send.targets };
            let payload = self.tagger.write(&tag, self.scenario.payload);
            let outgoing = tag
                .targets
                .iter()
                .fold(Outgoing::new(payload), |outgoing, target| outgoing.to(self.target.name(*target)));
            self.in_flight.fetch_add(1, Ordering::Relaxed);
            match client.submit_queued(outgoing).await {
                Ok(pending) => {
                    let (run, client) = (Arc::clone(&self), client.clone());
                    self.tasks.spawn(run.decide(key, intended_us, client, pending));
                }
                // Stays undecided: the client has ended.
                Err(_) => return,
            }
        }
    }

    async fn decide(self: Arc<Self>, key: SubmitKey, intended_us: u64, client: Client, pending: Pending) {
        let Ok(receipt) = pending.receipt().await else { return };
        let fates: Vec<Fate> = receipt.targets.iter().map(|target| fate(&target.outcome)).collect();
        let (at_us, carrier) = (self.elapsed_us(), carrier(&client.state()));
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut record = self.lock();
        record.ledger.decide(key, at_us, &fates);
        for code in receipt.targets.iter().filter_map(|target| code(&target.outcome)) {
            record.measured.error(code, at_us);
        }
        let phase = record.phase(&self.scenario, intended_us, at_us);
        record.measured.decided(phase, carrier, intended_us, at_us);
    }

    /// One user's deliveries, until the client ends.
    async fn receive(self: Arc<Self>, user: u32, client: Client) {
        let slow = self.is_slow(user);
        while let Some(event) = client.next_event().await {
            let Event::Envelope(envelope) = event else { continue };
            let at_us = self.elapsed_us();
            // What comes in another's name was never sent by him.
            let from = envelope.sender.as_ref().and_then(|from| self.target.number(from.user.as_str()));
            let tag = self.tagger.read(&envelope.payload).filter(|tag| Some(tag.sender) == from);
            let received = Received {
                by: user,
                key: tag.as_ref().map(|tag| SubmitKey { sender: tag.sender, counter: tag.counter }),
                addressed: tag.as_ref().is_some_and(|tag| tag.targets.contains(&user)),
            };
            let carrier = carrier(&client.state());
            {
                let mut record = self.lock();
                record.ledger.receive(received);
                if let Some(tag) = tag {
                    let phase = match () {
                        () if self.is_away(user) => Phase::Backlog,
                        () if slow => Phase::Slow,
                        () => record.phase(&self.scenario, tag.intended_us, at_us),
                    };
                    record.measured.delivered(phase, carrier, tag.intended_us, at_us);
                }
            }
            if slow && !self.hurry.load(Ordering::Relaxed) {
                tokio::time::sleep(self.scenario.sessions.slow_pause).await;
            }
            envelope.ack();
        }
    }

    /// The first ones, so that they are others than those who are away or have a bad path.
    fn is_slow(&self, user: u32) -> bool {
        let slow = f64::from(self.scenario.users) * self.scenario.sessions.slow_percent / 100.0;
        f64::from(user) < slow
    }

    /// Drops connections as a bad network would.
    async fn disconnect(self: Arc<Self>) {
        let per_second = f64::from(self.scenario.users) * self.scenario.sessions.disconnects_percent / 100.0;
        if per_second <= 0.0 {
            return;
        }
        let pause = Duration::from_secs_f64(1.0 / per_second);
        let mut random = StdRng::seed_from_u64(self.scenario.seed ^ 0xd15c_0ec7);
        while self.start().elapsed() < self.scenario.duration {
            tokio::time::sleep(pause).await;
            self.client(random.random_range(0..self.scenario.users)).disconnect_now();
            self.lock().measured.disconnects += 1;
        }
    }
}
