//! The router's side: takes requests from the bus, announces itself, and ends without losing one.
//! **Invariant:** a request that is refused was certainly not begun; one that was begun is answered unless the router dies.

use super::error::BusError;
use super::pulse::{BEAT_EVERY, Pulse};
use super::subjects::QUEUE_GROUP;
use super::{CLOSE_MAX, Shared};
use crate::Router;
use crate::permits::Permit;
use async_nats::{Message, Subject, Subscriber};
use bytes::Bytes;
use chappe_protocol::internode::{
    Announcement, Answer, InternodeError, Refusal, Reply, Request, RouterState, Stamp,
};
use chappe_protocol::time::{Millis, Time};
use futures_util::StreamExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An answer that the bus does not take for so long is given up; its gateway has stopped waiting.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Refusals that wait to be written; more are not told.
const REFUSALS_MAX: usize = 1024;
/// Announcements on demand come at most so often.
const ANNOUNCE_GAP_MIN: Millis = Millis(100);

/// A router on the bus. Dropping it takes it off the bus at once, without finishing anything.
pub struct RouterServer {
    server: Arc<Server>,
}

struct Server {
    shared: Arc<Shared>,
    router: Router,
    name: u64,
    pulse: Mutex<Pulse>,
    /// A beat has come back.
    beaten: Notify,
    /// The end has begun.
    draining: CancellationToken,
    /// Gateways have had time to hear of it.
    unsubscribe: CancellationToken,
    dead: CancellationToken,
    /// What takes messages.
    taking: TaskTracker,
    /// Requests under way, until their answer is written.
    requests: TaskTracker,
    refusals: mpsc::Sender<(Subject, Answer)>,
}

/// Subscribes, and waits until the first beat has come back.
pub(super) async fn start(shared: Arc<Shared>, router: Router, name: u64) -> Result<RouterServer, BusError> {
    let subjects = &shared.subjects;
    let own = shared.subscribe(subjects.router(name)).await?;
    let group = shared.client.queue_subscribe(subjects.any_router(), QUEUE_GROUP.to_owned());
    let any = group.await.map_err(|error| BusError::HungUp(error.to_string()))?;
    let who = shared.subscribe(subjects.who()).await?;
    let (refusals, refused) = mpsc::channel(REFUSALS_MAX);
    let server = Arc::new(Server {
        pulse: Mutex::new(Pulse::new(shared.world.now())),
        beaten: Notify::new(),
        draining: CancellationToken::new(),
        unsubscribe: CancellationToken::new(),
        dead: shared.closed.child_token(),
        taking: TaskTracker::new(),
        requests: TaskTracker::new(),
        shared,
        router,
        name,
        refusals,
    });
    let on_bus = RouterServer { server: Arc::clone(&server) };
    server.taking.spawn(server.until_dead(Arc::clone(&server).serve(own, any)));
    server.shared.tasks.spawn(server.until_dead(Arc::clone(&server).announce(who)));
    server.shared.tasks.spawn(server.until_dead(Arc::clone(&server).refuse(refused)));
    let wait = tokio::time::timeout(server.shared.config.connect_max.to_std(), server.beat_after(Time(0)));
    wait.await.map_err(|_| {
        BusError::HungUp("no message to this router came back; are its permissions right?".to_owned())
    })?;
    Ok(on_bus)
}

impl RouterServer {
    /// Ends in good order: says so, takes what still arrives, unsubscribes, finishes what is under way, says that it is gone.
    /// Takes as long as the longest append; the caller sets the limit and may drop the server at any time.
    pub async fn close(&self) {
        let (server, shared) = (&self.server, &self.server.shared);
        server.draining.cancel();
        server.say(RouterState::Draining).await;
        // Requests that were sent before the gateways heard this are still coming.
        tokio::time::sleep(shared.config.drain_linger.to_std()).await;
        let _ = tokio::time::timeout(CLOSE_MAX, server.beat_after(shared.world.now())).await;
        server.unsubscribe.cancel();
        server.taking.close();
        // While the connection is down nothing arrives, and nothing tells that it does not.
        let _ = tokio::time::timeout(CLOSE_MAX, server.taking.wait()).await;
        server.requests.close();
        server.requests.wait().await;
        server.router.close().await;
        server.say(RouterState::Gone).await;
        let _ = tokio::time::timeout(CLOSE_MAX, shared.client.flush()).await;
        server.dead.cancel();
    }
}

impl Drop for RouterServer {
    fn drop(&mut self) {
        self.server.dead.cancel();
    }
}

impl Server {
    fn until_dead<F>(&self, task: F) -> impl Future<Output = ()> + Send + use<F>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let dead = self.dead.clone();
        async move {
            dead.run_until_cancelled(task).await;
        }
    }

    fn now(&self) -> Time {
        self.shared.world.now()
    }

    /// Takes messages until both subscriptions are drained. What goes to the queue group is read first, so that a beat, which
    /// comes with the rest, proves that the group's queue is read as far.
    async fn serve(self: Arc<Self>, mut own: Subscriber, mut any: Subscriber) {
        let mut ending = false;
        loop {
            let message = tokio::select! {
                biased;
                () = self.unsubscribe.cancelled(), if !ending => {
                    ending = true;
                    let _ = tokio::time::timeout(CLOSE_MAX, async {
                        let _ = any.drain().await;
                        let _ = own.drain().await;
                    })
                    .await;
                    continue;
                }
                Some(message) = any.next() => message,
                Some(message) = own.next() => message,
                else => return,
            };
            self.take(message);
        }
    }

    fn take(self: &Arc<Self>, message: Message) {
        let shared = &self.shared;
        if message.subject.as_str().rsplit('.').next() == Some("beat") {
            self.beat(&message.payload);
            return;
        }
        let Some(reply) = message.reply else {
            shared.metrics.invalid.inc();
            return;
        };
        let now = self.now();
        let Some(permit) = shared.serving.try_take(1, message.payload.len()) else {
            shared.metrics.served.full.inc();
            self.answer_soon(reply, Answer::Reply(Reply::Unavailable));
            return;
        };
        let work = Arc::clone(self).work(now, message.payload, reply, permit);
        self.requests.spawn(self.until_dead(work));
    }

    async fn work(self: Arc<Self>, arrived: Time, payload: Bytes, reply: Subject, permit: Permit) {
        let served = &self.shared.metrics.served;
        let answer = match self.begin(arrived, payload) {
            Err(refusal) => Answer::Refused(refusal),
            Ok((stamp, request)) => {
                tracing::debug!(trace = %stamp.trace, budget_ms = stamp.budget.0, "a request");
                match self.router.serve(request) {
                    None => {
                        served.draining.inc();
                        Answer::Refused(Refusal::Draining)
                    }
                    Some(done) => match done.await {
                        Some(reply) => Answer::Reply(reply),
                        // A router that was killed does not say so.
                        None => return,
                    },
                }
            }
        };
        let done = matches!(answer, Answer::Reply(_));
        let sent = self.answer(reply, &answer).await;
        match (sent, done) {
            (true, true) => served.answered.inc(),
            (false, _) => served.unanswered.inc(),
            (true, false) => {}
        }
        drop(permit);
    }

    /// Reads a request and takes off its budget what it has waited.
    fn begin(&self, arrived: Time, payload: Bytes) -> Result<(Stamp, Request), Refusal> {
        let shared = &self.shared;
        let served = &shared.metrics.served;
        let (mut stamp, mut request) = Request::decode(payload, shared.config.cluster).map_err(|error| {
            served.refused.inc();
            shared.useless(error);
            match error {
                InternodeError::Foreign => Refusal::Foreign,
                InternodeError::Version(_) => Refusal::Version,
                InternodeError::Garbage | InternodeError::UnknownKind | InternodeError::Field(_) => {
                    Refusal::Invalid
                }
            }
        })?;
        let left = self.pulse().left(stamp.budget, arrived);
        let here = self.now() - arrived;
        let left = left.and_then(|left| left.0.checked_sub(here.0)).filter(|left| *left > 0);
        stamp.budget = Millis(left.ok_or_else(|| {
            served.stale.inc();
            Refusal::Stale
        })?);
        if let Request::Submit(submit) = &mut request {
            submit.budget = stamp.budget;
        }
        Ok((stamp, request))
    }

    /// Whether the bus took it.
    async fn answer(&self, reply: Subject, answer: &Answer) -> bool {
        let shared = &self.shared;
        let payload = answer.encode(shared.config.cluster);
        if payload.len() > shared.config.message_bytes_max {
            shared.status.complain("an answer is larger than the bus takes; it was not sent");
            return false;
        }
        if !shared.is_connected() {
            return false;
        }
        let sending = shared.client.publish(reply, payload.into());
        matches!(tokio::time::timeout(ANSWER_MAX, sending).await, Ok(Ok(())))
    }

    /// Refusals cost no task each: whoever floods a full router would get one otherwise.
    fn answer_soon(&self, reply: Subject, answer: Answer) {
        if self.refusals.try_send((reply, answer)).is_err() {
            self.shared.metrics.served.unanswered.inc();
        }
    }

    async fn refuse(self: Arc<Self>, mut refused: mpsc::Receiver<(Subject, Answer)>) {
        while let Some((reply, answer)) = refused.recv().await {
            if !self.answer(reply, &answer).await {
                self.shared.metrics.served.unanswered.inc();
            }
        }
    }

    /// Sends beats all the time, and announcements now and then or when a gateway asks who is there.
    async fn announce(self: Arc<Self>, mut who: Subscriber) {
        let every = self.shared.config.announce_every;
        let (mut last, mut due) = (Time(0), Time(0));
        loop {
            let now = self.now();
            if now >= due && !self.draining.is_cancelled() {
                self.say(RouterState::Live).await;
                last = now;
                let third = every.0 / 3;
                due = now + Millis(every.0 - third + self.shared.world.random_below(2 * third + 1));
            }
            self.send_beat().await;
            let pause = (due - self.now()).min(BEAT_EVERY).max(Millis(1));
            tokio::select! {
                biased;
                Some(_) = who.next() => due = due.min((last + ANNOUNCE_GAP_MIN).max(self.now())),
                () = tokio::time::sleep(pause.to_std()) => {}
            }
        }
    }

    async fn say(&self, state: RouterState) {
        let announcement = Announcement { router: self.name, state }.encode(self.shared.config.cluster);
        self.send(self.shared.subjects.announcements(), announcement.into()).await;
    }

    async fn send_beat(&self) {
        let sent = Bytes::copy_from_slice(&self.now().0.to_be_bytes());
        self.send(self.shared.subjects.beat(self.name), sent).await;
    }

    /// What nobody should get late is not sent while the connection is down.
    async fn send(&self, subject: String, payload: Bytes) {
        if self.shared.is_connected() {
            let sending = self.shared.client.publish(subject, payload);
            let _ = tokio::time::timeout(BEAT_EVERY.to_std(), sending).await;
        }
    }

    fn beat(&self, payload: &[u8]) {
        let Ok(sent) = payload.try_into().map(u64::from_be_bytes) else { return };
        let now = self.now();
        // Nobody else knows when we did not exist yet, or will.
        if sent > now.0 {
            return;
        }
        let wait = {
            let mut pulse = self.pulse();
            pulse.returned(Time(sent));
            pulse.wait_max(now)
        };
        self.shared.metrics.lag_seconds.set(wait.to_std().as_secs_f64());
        self.beaten.notify_waiters();
    }

    /// Waits for a beat that was sent at this time or later.
    async fn beat_after(&self, time: Time) {
        loop {
            let beaten = self.beaten.notified();
            let pulse = *self.pulse();
            if pulse.has_returned_since(time) {
                return;
            }
            beaten.await;
        }
    }

    fn pulse(&self) -> std::sync::MutexGuard<'_, Pulse> {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
