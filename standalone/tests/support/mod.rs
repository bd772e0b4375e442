//! What whole-cluster tests share: what devices send and receive, written down and audited.
//! **Invariant:** a submit is written down before it leaves, an envelope before it is acked.
#![allow(dead_code, unused_imports, reason = "each test target uses a part of it")]

mod audit;
mod history;

pub(crate) use audit::Verdict;

use chappe_client::{Client, DeviceFilter, Event, Millis, Outgoing, Receipt, TruncatedReason, UserId, World};
use chappe_loadtest::audit::{Fate, Received, SubmitKey};
use chappe_loadtest::payload::{Tag, Tagger};
use chappe_protocol::id::{DeviceId, EnvelopeId, MailboxId, Seq};
use chappe_protocol::internode::Outcome;
use chappe_storage::memory::MemoryRows;
use chappe_storage::rows::Rows as _;
use futures_util::FutureExt as _;
use history::History;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Signs the tokens of all tests.
pub(crate) const SECRET: [u8; 32] = [7; 32];

/// A device of the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) user: usize,
    pub(crate) device: String,
}

pub(crate) fn user_name(user: usize) -> String {
    format!("user{user}")
}

pub(crate) fn user_id(user: usize) -> UserId {
    UserId::new(&user_name(user)).unwrap()
}

/// A token without end.
pub(crate) fn token(user: &str, device: &str) -> String {
    let claims = serde_json::json!({ "sub": user, "device": device, "exp": 4_000_000_000u64 });
    let key = jsonwebtoken::EncodingKey::from_secret(&SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256), &claims, &key).unwrap()
}

/// One target of a submit.
#[derive(Debug, Clone)]
pub(crate) struct To {
    pub(crate) user: usize,
    pub(crate) filter: DeviceFilter,
}

/// What became of one target.
struct Sent {
    user: usize,
    devices: Vec<u32>,
    envelope: Option<EnvelopeId>,
    mortal: bool,
}

/// Everything that devices saw.
pub(crate) struct Record {
    pub(crate) people: Vec<Person>,
    rows: Arc<MemoryRows>,
    tagger: Tagger,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    history: History,
    sent: BTreeMap<SubmitKey, Vec<Sent>>,
    counters: BTreeMap<u32, u64>,
    told_gone: BTreeMap<u32, Vec<(Seq, Seq, TruncatedReason)>>,
    last_seq: BTreeMap<u32, Seq>,
    slots: BTreeMap<(usize, Seq), EnvelopeId>,
    cursors: BTreeMap<u32, Seq>,
    violations: Vec<String>,
    truncations: u64,
    trace: u64,
}

impl Record {
    pub(crate) fn new(people: Vec<Person>, rows: Arc<MemoryRows>) -> Arc<Self> {
        Arc::new(Self { people, rows, tagger: Tagger::new(&[3; 32]), inner: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Folds an event into the trace (FNV-1a over its text).
    pub(crate) fn note(&self, event: &str) {
        let mut inner = self.lock();
        for byte in event.bytes() {
            inner.trace = (inner.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.lock().trace
    }

    pub(crate) fn violate(&self, what: String) {
        self.note(&what);
        let mut inner = self.lock();
        if inner.violations.len() < 20 {
            inner.violations.push(what);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.lock().history.in_flight()
    }

    /// The submits that are not decided, at most ten.
    pub(crate) fn undecided(&self) -> Vec<SubmitKey> {
        let inner = self.lock();
        let open = inner.history.submits.iter().filter(|(_, invoked)| invoked.decided_us.is_none());
        open.map(|(key, _)| *key).take(10).collect()
    }

    /// Envelopes that devices took.
    pub(crate) fn received(&self) -> usize {
        self.lock().history.received.len()
    }

    /// The sequence that a device has seen: its slots' envelopes, in the order of arrival.
    pub(crate) fn seen(&self, by: u32) -> Vec<(u32, u64)> {
        let inner = self.lock();
        let mine = inner.history.received.iter().filter(|received| received.by == by);
        mine.filter_map(|received| received.key).map(|key| (key.sender, key.counter)).collect()
    }

    /// The devices of a user that pass a filter.
    fn devices(&self, to: &To) -> Vec<u32> {
        let all = (0u32..).zip(&self.people);
        let of = all.filter(|(_, person)| person.user == to.user);
        let named = of.filter(|(_, person)| to.filter.names(&DeviceId::new(&person.device).unwrap()));
        named.map(|(index, _)| index).collect()
    }

    pub(crate) fn mailbox(&self, user: usize) -> Option<MailboxId> {
        self.rows.user(&user_id(user), false).now_or_never().unwrap().unwrap().map(|user| user.mailbox)
    }

    /// The stored cursor of a device.
    pub(crate) fn cursor(&self, device: u32) -> Seq {
        let person = &self.people[device as usize];
        let Some(mailbox) = self.mailbox(person.user) else { return Seq(0) };
        let id = DeviceId::new(&person.device).unwrap();
        self.rows.cursor(mailbox, &id).now_or_never().unwrap().unwrap()
    }

    /// I4: looks whether a stored cursor went back.
    pub(crate) fn watch_cursors(&self) {
        for device in (0u32..).take(self.people.len()) {
            let now = self.cursor(device);
            let before = self.lock().cursors.insert(device, now).unwrap_or_default();
            if now < before {
                self.violate(format!("I4: the cursor of device {device} went from {before} back to {now}"));
            }
        }
    }

    fn begin(&self, by: u32, at_ms: u64, to: &[To], mortal: bool) -> (SubmitKey, bytes::Bytes) {
        let lists: Vec<Vec<u32>> = to.iter().map(|to| self.devices(to)).collect();
        let mut inner = self.lock();
        let counter = inner.counters.entry(by).or_default();
        let key = SubmitKey { sender: by, counter: *counter };
        *counter += 1;
        let targets: Vec<u32> = lists.iter().flatten().copied().collect();
        inner.history.invoke(key, at_ms * 1000, &targets);
        let sent = to.iter().zip(lists);
        let sent = sent.map(|(to, devices)| Sent { user: to.user, devices, envelope: None, mortal });
        inner.sent.insert(key, sent.collect());
        let tag = Tag { sender: by, counter: key.counter, intended_us: at_ms * 1000, targets };
        (key, self.tagger.write(&tag, 0))
    }

    fn decide(&self, key: SubmitKey, at_ms: u64, receipt: &Receipt) {
        let mut inner = self.lock();
        let mut fates = Vec::new();
        for (sent, target) in inner.sent.get_mut(&key).unwrap().iter_mut().zip(&receipt.targets) {
            let accepted = target.outcome == Outcome::Accepted;
            sent.envelope = target.envelope_id.filter(|_| accepted);
            let fate = if accepted { Fate::Ok } else { Fate::Fail };
            fates.extend(sent.devices.iter().map(|_| fate));
        }
        inner.history.decide(key, at_ms * 1000, &fates);
    }

    fn take(&self, by: u32, envelope: &chappe_client::Envelope) {
        let user = self.people[by as usize].user;
        // I3: nobody may have passed what the application has not acked.
        let stored = self.cursor(by);
        if stored >= envelope.seq {
            self.violate(format!("I3: device {by} gets slot {} behind its cursor {stored}", envelope.seq));
        }
        let tag = self.tagger.read(&envelope.payload);
        let key = tag.as_ref().map(|tag| SubmitKey { sender: tag.sender, counter: tag.counter });
        let addressed = tag.is_some_and(|tag| tag.targets.contains(&by));
        let mut inner = self.lock();
        let last = inner.last_seq.insert(by, envelope.seq).unwrap_or_default();
        let there = *inner.slots.entry((user, envelope.seq)).or_insert(envelope.id);
        inner.history.received.push(Received { by, key, addressed });
        drop(inner);
        if last >= envelope.seq {
            self.violate(format!("I5: device {by} gets slot {} after slot {last}", envelope.seq));
        }
        if there != envelope.id {
            self.violate(format!("I7: two envelopes in slot {} of user {user}", envelope.seq));
        }
    }

    fn truncated(&self, by: u32, from: Seq, to: Seq, why: TruncatedReason) {
        let mut inner = self.lock();
        inner.truncations += 1;
        inner.told_gone.entry(by).or_default().push((from, to, why));
    }
}

/// The application of one device.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) index: u32,
    pub(crate) client: Client,
    pub(crate) record: Arc<Record>,
    pub(crate) world: Arc<dyn World>,
}

impl App {
    /// Queues a submit; the returned future notes its fate. Polling order is the order of calls.
    pub(crate) async fn send(
        &self,
        to: Vec<To>,
        ttl: Option<Millis>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let app = self.clone();
        let (key, payload) = self.record.begin(self.index, self.world.now().0, &to, ttl.is_some());
        self.record.note(&format!("{} {key:?} to {to:?} {ttl:?}", self.world.now().0));
        let mut outgoing = Outgoing::new(payload);
        for to in to {
            outgoing = outgoing.to_devices(user_name(to.user), to.filter);
        }
        let outgoing = outgoing.ttl(ttl.unwrap_or(Millis(0)));
        let pending = self.client.submit_queued(outgoing).await;
        async move {
            let decided = match pending {
                Ok(pending) => pending.receipt().await,
                Err(error) => Err(error),
            };
            let now = app.world.now().0;
            match decided {
                Ok(receipt) => {
                    app.record.decide(key, now, &receipt);
                    let outcomes: Vec<_> = receipt.targets.iter().map(|target| &target.outcome).collect();
                    app.record.note(&format!("{now} {key:?} {outcomes:?}"));
                }
                Err(error) => app.record.violate(format!("{now} {key:?} failed: {error}")),
            }
        }
    }

    /// Takes events until the client ends; `slow` says how long the application thinks about an envelope.
    pub(crate) async fn receive(self, slow: impl Fn() -> Millis) {
        while let Some(event) = self.client.next_event().await {
            let now = self.world.now().0;
            match event {
                Event::Envelope(envelope) => {
                    let pause = slow();
                    if pause > Millis(0) {
                        tokio::time::sleep(pause.to_std()).await;
                    }
                    self.record.take(self.index, &envelope);
                    self.record
                        .note(&format!("{now} {} gets {} {:?}", self.index, envelope.seq, envelope.id));
                    envelope.ack();
                }
                Event::Truncated { from, to, why } => {
                    self.record.truncated(self.index, from, to, why);
                    self.record.note(&format!("{now} {} misses {from} to {to}: {why:?}", self.index));
                }
                Event::Ephemeral { .. } | Event::BacklogEnd | _ => {}
            }
        }
    }
}
