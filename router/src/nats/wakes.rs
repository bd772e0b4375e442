//! Wake hints on JetStream: published behind the appends, and never in their way.
//! **Invariant:** a hint costs its append no wait, whatever JetStream does: what cannot be published is merged with others of its
//! mailbox, or dropped and counted. Nothing is lost with it, for the truth is the store's `pending` rows.
//!
//! The stream (see [`stream`]) is bounded by bytes and age and drops the oldest. Hints of one mailbox collapse here, before
//! they cost a synced write: they wait a moment, longer if nobody needs them soon, and while too many are without an answer.
//! They bear no `Nats-Msg-Id`: a hint that is there twice costs its reader one look, a table of ids would cost the server memory.

mod metrics;
mod queue;
mod stream;

pub use metrics::WakeMetrics;

use super::config::BusRole;
use super::{BusError, NatsBus, Shared};
use crate::wakes::Wakes;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Message, StatusCode, Subscriber};
use chappe_protocol::envelope::Urgency;
use chappe_protocol::internode::WakeHint;
use chappe_protocol::time::{Millis, Time};
use futures_util::StreamExt;
use queue::{Pushed, Queue};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// How often answers that do not come are looked for.
const TICK: Millis = Millis(250);

/// What the stream may hold, and how much of it one router may keep busy.
#[derive(Debug, Clone)]
pub struct WakeConfig {
    /// Copies of the stream, 1 to 5; more than one needs as many servers.
    pub replicas: usize,
    /// Bytes of the stream; the oldest hints go first. Some 130 are one hint.
    pub stream_bytes_max: u64,
    /// The age at which a hint goes: whoever sweeps `pending` has long been there.
    pub stream_age_max: Millis,
    /// How long a hint waits for others of its mailbox if it is due at once; a call does not wait.
    pub linger: Millis,
    /// The same if it is due later.
    pub linger_later: Millis,
    /// Mailboxes whose hint waits here; each takes some 100 bytes. Beyond it hints are dropped.
    pub mailboxes_max: usize,
    /// Hints without an answer; beyond it hints wait.
    pub in_flight_max: usize,
    /// An answer of JetStream that has not come after so long is not waited for.
    pub answer_max: Millis,
    /// How often the stream is looked for, a third more or less.
    pub look_every: Millis,
}

impl Default for WakeConfig {
    fn default() -> Self {
        Self {
            replicas: 1,
            stream_bytes_max: 64 * 1024 * 1024,
            stream_age_max: Millis::from_secs(60),
            linger: Millis(100),
            linger_later: Millis::from_secs(2),
            mailboxes_max: 16_384,
            in_flight_max: 256,
            answer_max: Millis::from_secs(5),
            look_every: Millis::from_secs(30),
        }
    }
}

/// The wake hints of one router.
pub struct JetStreamWakes {
    publisher: Arc<Publisher>,
}

pub(super) struct Publisher {
    shared: Arc<Shared>,
    config: WakeConfig,
    metrics: Arc<WakeMetrics>,
    /// Where JetStream's answers arrive.
    inbox: String,
    queue: Mutex<Queue>,
    /// Something was pushed.
    pushed: Notify,
    flight: Mutex<Flight>,
    places: Arc<Semaphore>,
    /// The stream takes hints, as far as is known.
    up: AtomicBool,
    /// Why it does not.
    trouble: watch::Sender<Option<&'static str>>,
    /// Look for the stream, now.
    look: Notify,
}

/// Hints without an answer yet, oldest first.
#[derive(Default)]
struct Flight {
    last: u64,
    sent: BTreeMap<u64, (Time, OwnedSemaphorePermit)>,
}

impl NatsBus {
    /// Publishes wake hints on JetStream from now on. Makes the stream in the background, and again when it is gone; JetStream
    /// need not be there. Once per router.
    pub async fn wakes(
        &self,
        config: WakeConfig,
        metrics: Arc<WakeMetrics>,
    ) -> Result<Arc<JetStreamWakes>, BusError> {
        let shared = Arc::clone(&self.shared);
        if shared.config.role != BusRole::Router {
            return Err(BusError::Config("role"));
        }
        let inbox = shared.client.new_inbox();
        let answers = shared.subscribe(format!("{inbox}.*")).await?;
        let publisher = Arc::new(Publisher {
            queue: Mutex::new(Queue::new(config.mailboxes_max)),
            places: Arc::new(Semaphore::new(config.in_flight_max.clamp(1, Semaphore::MAX_PERMITS))),
            config,
            metrics,
            inbox,
            pushed: Notify::new(),
            flight: Mutex::default(),
            up: AtomicBool::new(false),
            trouble: watch::channel(None).0,
            look: Notify::new(),
            shared,
        });
        let start = |task| publisher.shared.start(task);
        start(Box::pin(Arc::clone(&publisher).publish()) as futures_util::future::BoxFuture<'static, ()>);
        start(Box::pin(Arc::clone(&publisher).hear(answers)));
        start(Box::pin(stream::keep(Arc::clone(&publisher))));
        Ok(Arc::new(JetStreamWakes { publisher }))
    }
}

impl JetStreamWakes {
    /// The code of what keeps hints from being published, as it was logged; `None`: nothing known.
    pub fn trouble(&self) -> Option<&'static str> {
        *self.publisher.trouble.borrow()
    }
}

impl Wakes for JetStreamWakes {
    fn hint(&self, hint: WakeHint) {
        let (publisher, metrics) = (&self.publisher, &self.publisher.metrics);
        if !publisher.is_up() {
            metrics.lost_no_stream.inc();
            return;
        }
        let at = publisher.now() + publisher.config.linger(&hint);
        let mut queue = publisher.queue();
        let pushed = queue.push(hint, at);
        metrics.queue.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
        drop(queue);
        match pushed {
            Pushed::Waits | Pushed::Merged => publisher.pushed.notify_one(),
            Pushed::Full => metrics.lost_full.inc(),
        }
        if pushed == Pushed::Merged {
            metrics.merged.inc();
        }
    }
}

impl WakeConfig {
    /// How long a hint may wait for others of its mailbox.
    fn linger(&self, hint: &WakeHint) -> Millis {
        if hint.due > hint.at {
            return self.linger_later;
        }
        match hint.urgency {
            Urgency::Call => Millis(0),
            Urgency::Message | Urgency::Background => self.linger,
        }
    }
}

impl Publisher {
    fn now(&self) -> Time {
        self.shared.world.now()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flight(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed) && self.shared.is_connected()
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
        self.metrics.up.set(i64::from(up));
    }

    /// Takes a place first and a hint then, so that hints merge while there is no place.
    async fn publish(self: Arc<Self>) {
        while let Ok(place) = Arc::clone(&self.places).acquire_owned().await {
            let hint = self.next().await;
            if !self.is_up() {
                self.metrics.lost_no_stream.inc();
                continue;
            }
            let token = self.sent(place);
            let subject = self.shared.subjects.wake(hint.mailbox.shard());
            let payload = hint.encode(self.shared.config.cluster);
            let reply = format!("{}.{token}", self.inbox);
            if self.shared.client.publish_with_reply(subject, reply, payload.into()).await.is_err() {
                self.landed(token);
                self.metrics.lost_no_stream.inc();
            }
        }
    }

    /// Waits for a hint whose time has come.
    async fn next(&self) -> WakeHint {
        loop {
            let pushed = self.pushed.notified();
            let now = self.now();
            let next_at = {
                let mut queue = self.queue();
                if let Some(hint) = queue.pop(now) {
                    self.metrics.queue.set(i64::try_from(queue.len()).unwrap_or(i64::MAX));
                    return hint;
                }
                queue.next_at()
            };
            let wait = next_at.map(|at| at - now);
            tokio::select! {
                biased;
                () = pushed => {}
                () = tokio::time::sleep(wait.unwrap_or_default().to_std()), if wait.is_some() => {}
            }
        }
    }

    fn sent(&self, place: OwnedSemaphorePermit) -> u64 {
        let now = self.now();
        let mut flight = self.flight();
        flight.last += 1;
        let token = flight.last;
        flight.sent.insert(token, (now, place));
        self.measure(&flight);
        token
    }

    /// `false`: it was not waited for any more.
    fn landed(&self, token: u64) -> bool {
        let mut flight = self.flight();
        let waited = flight.sent.remove(&token).is_some();
        self.measure(&flight);
        waited
    }

    fn measure(&self, flight: &Flight) {
        self.metrics.in_flight.set(i64::try_from(flight.sent.len()).unwrap_or(i64::MAX));
    }

    async fn hear(self: Arc<Self>, mut answers: Subscriber) {
        let mut tick = tokio::time::interval(TICK.to_std());
        loop {
            tokio::select! {
                biased;
                _ = tick.tick() => self.expire(),
                answer = answers.next() => match answer {
                    Some(answer) => self.answered(&answer),
                    None => return,
                },
            }
        }
    }

    /// Gives up answers that have not come. A hint without one is perhaps in the stream; it is not sent again.
    fn expire(&self) {
        let now = self.now();
        let mut flight = self.flight();
        while let Some(first) = flight.sent.first_entry() {
            if now - first.get().0 < self.config.answer_max {
                break;
            }
            drop(first.remove());
            self.metrics.lost_unanswered.inc();
        }
        self.measure(&flight);
    }

    fn answered(&self, answer: &Message) {
        let token = answer.subject.as_str().rsplit('.').next().and_then(|token| token.parse().ok());
        if !token.is_some_and(|token| self.landed(token)) {
            return;
        }
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            // Nobody listens to the subject: the stream was deleted, or JetStream is off.
            self.metrics.lost_no_stream.inc();
            self.set_up(false);
            self.look.notify_one();
            return;
        }
        match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
            Ok(Response::Ok(_)) => self.metrics.stored.inc(),
            Ok(Response::Err { error }) => self.refused(&error.to_string()),
            Err(_) => self.refused("an answer that is none of JetStream's"),
        }
    }

    fn refused(&self, why: &str) {
        self.metrics.lost_refused.inc();
        self.shared.status.complain(&format!("wakes_refused: JetStream does not take a wake hint: {why}"));
        self.look.notify_one();
    }
}
