//! What users send and receive. **Invariant:** a submit is noted before its first byte leaves, and an envelope before it is
//! acked.

use super::clients::{User, carrier};
use super::{Record, Run};
use crate::audit::{Fate, Received, SubmitKey};
use crate::lean::Session;
use crate::measure::Phase;
use crate::payload::Tag;
use crate::scenario::Send;
use chappe_client::{
    Client, DeviceFilter, Event, Millis, Outcome, Outgoing, Pending, Receipt, Sender, SubmitId, Urgency,
};
use chappe_protocol::frame::{Submit, Target};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;

/// Sends that wait for one user's client at most; beyond it they are skipped and counted.
const QUEUE_MAX: usize = 1024;

/// Sends that are due are submitted together, so many at most.
const BATCH: usize = 256;

/// An envelope as the audit sees it.
pub(super) struct Got {
    received: Received,
    /// If it is of this run and from whom it says.
    tag: Option<Tag>,
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
                self.attend(user, self.crowd.user(user));
            }
        }
        self.tasks.spawn(Arc::clone(self).disconnect());
        self.tasks.spawn(Arc::clone(self).trouble_ways());
    }

    /// From now on this user's envelopes are received and his connections watched.
    pub(super) fn attend(self: &Arc<Self>, user: u32, by: User) {
        match by {
            User::Lean(session) => session.attend(),
            User::Sdk(client) => {
                self.tasks.spawn(Arc::clone(self).follow(client.clone()));
                self.tasks.spawn(Arc::clone(self).receive(user, client));
            }
        }
    }

    /// Whether this user is away while the load is on.
    pub(super) fn is_away(&self, user: u32) -> bool {
        self.scenario.is_last(self.scenario.sessions.away_percent, user)
    }

    /// Sends by the plan, whatever the answers do. Returns how long it took.
    async fn send(self: &Arc<Self>) -> Duration {
        let users: Vec<User> = self.crowd.all();
        let mut queues: HashMap<u32, mpsc::Sender<Send>> = HashMap::new();
        let mut counters: Vec<u64> = vec![0; users.len()];
        let mut due: Vec<(Send, &Arc<Session>)> = Vec::new();
        let mut shown = Duration::ZERO;
        for send in self.scenario.sends() {
            if send.targets.is_empty() {
                continue;
            }
            if due.len() >= BATCH || (!due.is_empty() && send.at > self.start().elapsed()) {
                self.submit_all(&mut due, &mut counters);
                // Sessions whose socket was full, and those that hear something, have their turn.
                tokio::task::yield_now().await;
            }
            if send.at > self.start().elapsed() {
                tokio::time::sleep_until(self.start() + send.at).await;
            }
            if send.at >= shown {
                self.pulse("sending", send.at.as_secs_f64() / self.scenario.duration.as_secs_f64());
                shown = send.at + Duration::from_millis(250);
            }
            match &users[send.sender as usize] {
                User::Lean(session) => due.push((send, session)),
                User::Sdk(client) => {
                    let queue = queues.entry(send.sender).or_insert_with(|| {
                        let (queue, sends) = mpsc::channel(QUEUE_MAX);
                        self.tasks.spawn(Arc::clone(self).submit(send.sender, client.clone(), sends));
                        queue
                    });
                    if queue.try_send(send).is_err() {
                        self.lock().measured.skipped += 1;
                    }
                }
            }
        }
        self.submit_all(&mut due, &mut counters);
        self.start().elapsed()
    }

    /// Notes all these sends, then lets them leave: what one session sends now leaves at once.
    fn submit_all(&self, due: &mut Vec<(Send, &Arc<Session>)>, counters: &mut [u64]) {
        let sends = due.len();
        due.retain(|(_, session)| session.has_room());
        let at_us = self.elapsed_us();
        {
            let mut record = self.lock();
            record.measured.skipped += (sends - due.len()) as u64;
            due.retain(|(send, _)| {
                let counter = &mut counters[send.sender as usize];
                let key = SubmitKey { sender: send.sender, counter: *counter };
                let noted = record.invoke(key, micros(send.at), &send.targets, at_us);
                *counter += u64::from(noted);
                noted
            });
        }
        self.in_flight.fetch_add(due.len() as u64, Ordering::Relaxed);
        // Those of one session stand in the order of their counters, which end here.
        let mut left: HashMap<u32, u64> = HashMap::new();
        for (send, _) in due.iter() {
            *left.entry(send.sender).or_default() += 1;
        }
        for (send, session) in due.iter_mut() {
            let left = left.entry(send.sender).or_default();
            let counter = counters[send.sender as usize] - *left;
            *left -= 1;
            let intended_us = micros(send.at);
            let targets = std::mem::take(&mut send.targets);
            let tag = Tag { sender: send.sender, counter, intended_us, targets };
            session.submit(counter, self.submit_of(&tag), intended_us);
            if *left == 0 {
                session.flush();
            }
        }
        due.clear();
    }

    fn submit_of(&self, tag: &Tag) -> Submit {
        let target = |(number, user): (u32, &u32)| Target {
            number,
            user: self.crowd.names[*user as usize].clone(),
            devices: DeviceFilter::All,
            device_set_version: None,
            payload: 0,
        };
        Submit {
            submit_id: SubmitId(rand::random()),
            attempt: 1,
            payloads: vec![self.tagger.write(tag, self.scenario.payload)],
            targets: (0..).zip(&tag.targets).map(target).collect(),
            ttl: Millis(0),
            urgency: Urgency::default(),
            ephemeral: false,
        }
    }

    /// One user's submits, in order.
    async fn submit(self: Arc<Self>, user: u32, client: Client, mut sends: mpsc::Receiver<Send>) {
        let mut counter = 0;
        while let Some(send) = sends.recv().await {
            let intended_us = micros(send.at);
            let key = SubmitKey { sender: user, counter };
            let at_us = self.elapsed_us();
            if !self.lock().invoke(key, intended_us, &send.targets, at_us) {
                continue;
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
        let (at_us, carrier) = (self.elapsed_us(), carrier(&client.state()));
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.note_decided(&mut self.lock(), key, intended_us, &receipt, carrier, at_us);
    }

    /// Writes down what became of a submit.
    pub(super) fn note_decided(
        &self,
        record: &mut Record,
        key: SubmitKey,
        intended_us: u64,
        receipt: &Receipt,
        carrier: Option<&'static str>,
        at_us: u64,
    ) {
        let fates: Vec<Fate> = receipt.targets.iter().map(|target| fate(&target.outcome)).collect();
        record.ledger.decide(key, at_us, &fates);
        for code in receipt.targets.iter().filter_map(|target| code(&target.outcome)) {
            record.measured.error(code, at_us);
        }
        let phase = record.phase(&self.scenario, intended_us, at_us);
        record.measured.decided(phase, carrier, intended_us, at_us);
    }

    /// What an envelope of this sender says of itself.
    pub(super) fn read(&self, by: u32, sender: Option<&Sender>, payload: &[u8]) -> Got {
        // What comes in another's name was never sent by him.
        let from = sender.and_then(|from| self.target.number(from.user.as_str()));
        let tag = self.tagger.read(payload).filter(|tag| Some(tag.sender) == from);
        let received = Received {
            by,
            key: tag.as_ref().map(|tag| SubmitKey { sender: tag.sender, counter: tag.counter }),
            addressed: tag.as_ref().is_some_and(|tag| tag.targets.contains(&by)),
        };
        Got { received, tag }
    }

    /// Writes down an envelope.
    pub(super) fn note_received(
        &self,
        record: &mut Record,
        got: Got,
        carrier: Option<&'static str>,
        at_us: u64,
    ) {
        record.ledger.receive(got.received);
        let Some(tag) = got.tag else { return };
        let phase = match got.received.by {
            user if self.is_away(user) => Phase::Backlog,
            user if self.is_slow(user) => Phase::Slow,
            _ => record.phase(&self.scenario, tag.intended_us, at_us),
        };
        record.measured.delivered(phase, carrier, tag.intended_us, at_us);
    }

    /// One user's deliveries, until the client ends.
    async fn receive(self: Arc<Self>, user: u32, client: Client) {
        let slow = self.is_slow(user);
        while let Some(event) = client.next_event().await {
            let Event::Envelope(envelope) = event else { continue };
            let at_us = self.elapsed_us();
            let got = self.read(user, envelope.sender.as_ref(), &envelope.payload);
            let carrier = carrier(&client.state());
            self.note_received(&mut self.lock(), got, carrier, at_us);
            if slow && !self.hurry.load(Ordering::Relaxed) {
                tokio::time::sleep(self.scenario.sessions.slow_pause).await;
            }
            envelope.ack();
        }
    }

    /// The first ones, so that they are others than those who are away or have a bad path.
    pub(super) fn is_slow(&self, user: u32) -> bool {
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
            self.crowd.user(random.random_range(0..self.scenario.users)).cut();
            self.lock().measured.disconnects += 1;
        }
    }
}
