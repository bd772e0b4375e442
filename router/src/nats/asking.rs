//! One request, from the choice of a router to the answer. **Invariant:** *no router* and *unavailable* are said only if
//! certainly nobody did it; a request is sent to a second router only if doing it twice is the same as doing it once.
//!
//! A submit may be sent again because its entries carry their ids and a base learned before the first transmission: the store
//! takes each id once. So the request of a router that fell silent, or that was under way when the connection broke, is
//! asked of another within its budget, and whichever answer comes first counts.

use super::{COMMANDS_MAX, Shared};
use crate::links::LinkError;
use async_nats::{Message, StatusCode};
use chappe_protocol::id::{MailboxId, TraceId};
use chappe_protocol::internode::{Answer, InternodeError, Outcome, Refusal, Reply, Request, Stamp};
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use tokio::sync::mpsc;

/// Transmissions of one request.
const ATTEMPTS_MAX: usize = 8;
/// How long a request waits for any router to appear, if its budget lets it.
const NO_ROUTER_WAIT: Millis = Millis(1000);
/// How often it looks meanwhile.
const LOOK_EVERY: Millis = Millis(100);

/// A transmission without a final answer.
struct Attempt {
    token: u64,
    /// `None`: it went to whichever router the queue group chose.
    router: Option<u64>,
    /// The connection broke since: its answer is not to be expected.
    broken: bool,
}

struct Asking<'a> {
    shared: &'a Shared,
    inbox: &'a str,
    mailbox: MailboxId,
    request: &'a Request,
    trace: TraceId,
    deadline: Time,
    outstanding: Vec<Attempt>,
    /// Routers that are not worth asking again now.
    tried: Vec<u64>,
    sent: usize,
    answers: mpsc::Sender<(u64, Message)>,
}

/// A submit is traced by the id that its sender chose; of several in one request, the first.
fn trace_of(request: &Request, world: &dyn World) -> TraceId {
    let submit = match request {
        Request::Submit(submit) => submit.lists.iter().flat_map(|list| &list.entries).next(),
        Request::Ephemeral(_) | Request::Probe(_) | Request::Base(_) | Request::Attached(_) => None,
    };
    submit.map_or_else(|| TraceId::random(world), |entry| TraceId(entry.submit_id.0))
}

/// What came of an attempt to send.
enum Launch {
    /// To a router that was heard of.
    Sent,
    /// To the queue group.
    SentToAny,
    /// Nobody to send it to.
    Nobody,
    Oversize,
    /// Too many of this process wait.
    Full,
}

/// What an answer means.
enum Heard {
    Done(Reply),
    /// Certainly not done by that router.
    NotThere,
    /// Nobody is in the queue group.
    Nobody,
    /// Not of use.
    Nothing,
}

/// Asks, with all the metrics.
pub(super) async fn ask(
    shared: &Shared,
    inbox: &str,
    mailbox: MailboxId,
    request: &Request,
    budget: Millis,
) -> Result<Reply, LinkError> {
    let begun = shared.world.now();
    let (answers, received) = mpsc::channel(ATTEMPTS_MAX);
    let mut asking = Asking {
        shared,
        inbox,
        mailbox,
        request,
        trace: trace_of(request, &*shared.world),
        deadline: begun + budget,
        outstanding: Vec::new(),
        tried: Vec::new(),
        sent: 0,
        answers,
    };
    let result = asking.run(received).await;
    let took = shared.world.now() - begun;
    shared.metrics.request_seconds.observe(took.to_std().as_secs_f64());
    let requests = &shared.metrics.requests;
    match &result {
        Ok(Reply::Unavailable) => requests.unavailable.inc(),
        Ok(Reply::Submit(_) | Reply::Ephemeral | Reply::Probe(_) | Reply::Base(_) | Reply::Attached) => {
            requests.answered.inc();
        }
        Err(LinkError::NoRouter) => requests.no_router.inc(),
        Err(LinkError::Timeout) => {
            requests.timeout.inc();
            tracing::warn!(trace = %asking.trace, took_ms = took.0, "a request got no answer in time");
        }
    }
    result
}

impl Asking<'_> {
    async fn run(&mut self, mut received: mpsc::Receiver<(u64, Message)>) -> Result<Reply, LinkError> {
        let mut routers = self.shared.routers.changes();
        let mut connections = self.shared.status.connections();
        let mut permit = None;
        let mut nobody_since = None;
        let mut send = true;
        loop {
            if std::mem::take(&mut send) {
                match self.launch(&mut permit).await {
                    Launch::Sent => nobody_since = None,
                    Launch::SentToAny => {}
                    Launch::Nobody => {
                        nobody_since = nobody_since.or(Some(self.shared.world.now()));
                    }
                    Launch::Oversize | Launch::Full => return Ok(Reply::Unavailable),
                }
            }
            let wait = self.wait(nobody_since);
            if wait == Millis(0) {
                return Err(self.give_up());
            }
            tokio::select! {
                biased;
                Some((token, message)) = received.recv() => match self.hear(token, message) {
                    Heard::Done(reply) => return Ok(reply),
                    Heard::NotThere => send = self.is_lost(),
                    Heard::Nobody => nobody_since = nobody_since.or(Some(self.shared.world.now())),
                    Heard::Nothing => {}
                },
                Ok(()) = connections.changed() => {
                    for attempt in &mut self.outstanding {
                        attempt.broken = true;
                    }
                    self.tried.clear();
                    send = self.is_lost();
                }
                Ok(()) = routers.changed() => send = self.is_lost(),
                () = tokio::time::sleep(wait.to_std()) => {
                    if self.is_lost() {
                        self.tried.clear();
                        send = true;
                    }
                }
            }
        }
    }

    /// How long to wait for the next thing; zero: it is over.
    fn wait(&self, nobody_since: Option<Time>) -> Millis {
        let now = self.shared.world.now();
        let left = self.deadline - now;
        let Some(since) = nobody_since.filter(|_| self.is_lost()) else { return left };
        match (self.outstanding.is_empty(), self.sent < ATTEMPTS_MAX) {
            (true, true) => left.min((since + NO_ROUTER_WAIT) - now).min(LOOK_EVERY),
            (true, false) => Millis(0),
            (false, true) => left.min(LOOK_EVERY),
            (false, false) => left,
        }
    }

    /// The answer of everybody who was asked is not to be expected, and another may be asked.
    fn is_lost(&self) -> bool {
        let lost = |attempt: &Attempt| {
            attempt.broken || attempt.router.is_some_and(|name| self.shared.routers.is_lost(name))
        };
        self.outstanding.iter().all(lost) && (self.outstanding.is_empty() || self.may_repeat())
    }

    /// Doing it twice is the same as doing it once. A second ephemeral would ring twice.
    fn may_repeat(&self) -> bool {
        match self.request {
            Request::Submit(_) | Request::Probe(_) | Request::Base(_) | Request::Attached(_) => true,
            Request::Ephemeral(_) => self.outstanding.is_empty(),
        }
    }

    async fn launch(&mut self, permit: &mut Option<crate::permits::Permit>) -> Launch {
        let shared = self.shared;
        let now = shared.world.now();
        if !shared.is_connected() || self.sent >= ATTEMPTS_MAX || now >= self.deadline {
            return Launch::Nobody;
        }
        let router = shared.routers.pick(self.mailbox, now, &self.tried);
        let subject = match router {
            Some(name) => shared.subjects.ask(name),
            None if shared.routers.is_empty() => shared.subjects.any_router(),
            None => return Launch::Nobody,
        };
        let stamp = Stamp { budget: self.deadline - now, trace: self.trace };
        let payload = self.request.encode(shared.config.cluster, stamp);
        if payload.len() > shared.config.message_bytes_max {
            shared.metrics.requests.oversize.inc();
            shared.status.complain("a request is larger than the bus takes; it was not sent");
            return Launch::Oversize;
        }
        if permit.is_none() {
            *permit = shared.asking.try_take(1, payload.len());
            if permit.is_none() {
                shared.metrics.requests.full.inc();
                return Launch::Full;
            }
        }
        let token = shared.pending.wait(self.answers.clone());
        self.outstanding.push(Attempt { token, router, broken: false });
        let reply = format!("{}.{token}", self.inbox);
        let sending = shared.client.publish_with_reply(subject, reply, payload.into());
        let Ok(Ok(())) = tokio::time::timeout(stamp.budget.to_std(), sending).await else {
            // It did not come so far as to the driver's queue.
            self.finished(token);
            return Launch::Nobody;
        };
        if self.sent > 0 {
            shared.metrics.repeated.inc();
        }
        self.sent += 1;
        self.tried.extend(router);
        if router.is_some() { Launch::Sent } else { Launch::SentToAny }
    }

    fn hear(&mut self, token: u64, message: Message) -> Heard {
        let shared = self.shared;
        let Some(router) = self.finished(token) else { return Heard::Nothing };
        if message.status == Some(StatusCode::NO_RESPONDERS) {
            self.sent -= 1;
            let Some(router) = router else { return Heard::Nobody };
            shared.routers.gone(router);
            return Heard::NotThere;
        }
        let now = shared.world.now();
        let alone = self.outstanding.is_empty();
        match Answer::decode(message.payload, shared.config.cluster) {
            Ok(Answer::Reply(reply)) => {
                if let Some(router) = router {
                    shared.routers.heard(router, now);
                }
                if alone {
                    Heard::Done(reply)
                } else if reply == Reply::Unavailable {
                    // Somebody else was asked too, and perhaps does it.
                    Heard::Nothing
                } else {
                    Heard::Done(weaken(reply))
                }
            }
            Ok(Answer::Refused(refusal)) => self.refused(router, refusal, now),
            Err(error) => {
                shared.useless(error);
                if error == InternodeError::Foreign {
                    // Another cluster's router does nothing for us.
                    return Heard::NotThere;
                }
                // Whatever it says, it perhaps did it.
                self.outstanding.push(Attempt { token, router, broken: false });
                Heard::Nothing
            }
        }
    }

    fn refused(&mut self, router: Option<u64>, refusal: Refusal, now: Time) -> Heard {
        let routers = &self.shared.routers;
        match (refusal, router) {
            (Refusal::Invalid, _) => {
                self.shared.metrics.invalid.inc();
                self.shared.status.complain("a router could not read a request of this gateway");
                return if self.outstanding.is_empty() {
                    Heard::Done(Reply::Unavailable)
                } else {
                    Heard::Nothing
                };
            }
            (Refusal::Draining, Some(router)) => routers.draining(router),
            (Refusal::Stale | Refusal::Foreign | Refusal::Version, Some(router)) => {
                routers.suspect(router, now);
            }
            (Refusal::Draining | Refusal::Stale | Refusal::Foreign | Refusal::Version, None) => {}
        }
        Heard::NotThere
    }

    /// Takes an attempt out; which router it went to.
    #[allow(clippy::option_option, reason = "no such attempt; an attempt to nobody in particular")]
    fn finished(&mut self, token: u64) -> Option<Option<u64>> {
        let at = self.outstanding.iter().position(|attempt| attempt.token == token)?;
        self.shared.pending.forget(token);
        Some(self.outstanding.swap_remove(at).router)
    }

    fn give_up(&self) -> LinkError {
        if self.outstanding.is_empty() {
            return LinkError::NoRouter;
        }
        let now = self.shared.world.now();
        for router in self.outstanding.iter().filter_map(|attempt| attempt.router) {
            self.shared.routers.suspect(router, now);
        }
        LinkError::Timeout
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        for attempt in &self.outstanding {
            self.shared.pending.forget(attempt.token);
        }
    }
}

/// One router says that certainly nothing was written; another was asked the same and perhaps writes it.
fn weaken(reply: Reply) -> Reply {
    let Reply::Submit(mut lists) = reply else { return reply };
    for result in lists.iter_mut().flat_map(|list| &mut list.results) {
        if result.outcome == Outcome::Unavailable {
            result.outcome = Outcome::Unknown;
        }
    }
    Reply::Submit(lists)
}

const _: () = assert!(ATTEMPTS_MAX < COMMANDS_MAX, "one request does not fill the driver's queue");

#[cfg(test)]
mod tests {
    use super::{Outcome, Reply, weaken};
    use chappe_protocol::id::{EnvelopeId, MailboxId};
    use chappe_protocol::internode::{EntryResult, ListReply};

    #[test]
    fn who_was_asked_second_cannot_say_that_certainly_nothing_was_written() {
        let list = |outcomes: [Outcome; 3]| {
            let results =
                outcomes.map(|outcome| EntryResult { envelope_id: EnvelopeId::default(), outcome }).into();
            Reply::Submit(vec![ListReply { mailbox: MailboxId::default(), head_bucket: None, results }])
        };
        let said = list([Outcome::Accepted, Outcome::Unavailable, Outcome::NotAttempted]);
        assert_eq!(weaken(said), list([Outcome::Accepted, Outcome::Unknown, Outcome::NotAttempted]));
    }
}
