//! From a whole request to what happens to it. **Invariant:** script, judgement and record of one connection follow each
//! other under one lock, so that the last stream of a GOAWAY is true.

use crate::answer::Reply;
use crate::host::Shared;
use crate::record::{Carrier, Entry, Kind, Verdict};
use crate::rules::{Incoming, Judgement, Memory, Streams};
use crate::script::Step;
use crate::wire::Lever;
use bytes::Bytes;
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest body that is read, in bytes; longer ones are judged as too long.
pub(crate) const BODY_BYTES_MAX: usize = 64 * 1024;
/// The longest that a request is held.
pub(crate) const HOLD_MAX: Duration = Duration::from_mins(10);

/// One connection.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) number: u64,
    pub(crate) carrier: Carrier,
    /// Closes it at once.
    pub(crate) cut: CancellationToken,
    /// GOAWAY was sent.
    pub(crate) leaving: CancellationToken,
    lever: Option<Lever>,
    /// Answers that are still to come.
    pub(crate) owed: AtomicUsize,
    order: Mutex<Order>,
}

#[derive(Debug, Default)]
struct Order {
    memory: Memory,
    /// The highest stream that came.
    seen: u32,
    /// The highest stream that was judged.
    judged: u32,
    /// The last stream that GOAWAY named.
    last: Option<u32>,
}

/// What the carrier has to do.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Reply),
    ReplyAfter(Duration, Reply),
    ReplyAndLeave(Reply),
    HalfReply(Reply),
    Hold,
    LeaveAlone,
    Refuse,
    Close,
}

impl Link {
    pub(crate) fn new(number: u64, carrier: Carrier, cut: CancellationToken, lever: Option<Lever>) -> Self {
        let leaving = CancellationToken::new();
        Self { number, carrier, cut, leaving, lever, owed: AtomicUsize::new(0), order: Mutex::default() }
    }

    /// A stream was opened. `false`: over the limit.
    pub(crate) fn open(&self, stream: u32) -> bool {
        self.order().seen = stream;
        !self.lever.as_ref().is_some_and(|lever| lever.take_over_limit(stream))
    }

    fn order(&self) -> std::sync::MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_away(&self, last: u32) {
        if let Some(lever) = &self.lever {
            lever.go_away(last);
        }
        self.leaving.cancel();
    }
}

/// Decides what happens to a request, and records it.
pub(crate) fn decide(shared: &Shared, link: &Link, stream: u32, incoming: &Incoming) -> Outcome {
    let (kind, target) = (shared.rules.kind(incoming), shared.rules.target(incoming));
    let write = |verdict: Verdict, step: Option<&'static str>, plain: Option<Bytes>| {
        let entry = entry(link, stream, incoming, (kind, target.clone()), (verdict, step, plain));
        shared.record.add(entry);
    };
    let mut order = link.order();
    if order.last.is_some_and(|last| stream > last) {
        write(Verdict::Unprocessed, None, None);
        return Outcome::LeaveAlone;
    }
    let script = match kind {
        Kind::Wake => &shared.script,
        Kind::Login => &shared.login_script,
    };
    let mut step = script.take(target.as_deref());
    if step == Some(Step::GoAwayUnprocessed) && stream < order.judged {
        // A later stream was judged already: GOAWAY cannot leave this one out. The next one gets the step.
        script.give_back(Step::GoAwayUnprocessed);
        step = None;
    }
    let name = step.as_ref().map(Step::name);
    if step == Some(Step::GoAwayUnprocessed) {
        order.last = Some(order.judged);
        link.go_away(order.judged);
        write(Verdict::Unprocessed, name, None);
        return Outcome::LeaveAlone;
    }
    order.judged = order.judged.max(stream);
    let scripted = |status: Option<u16>| Verdict::Scripted { step: name.unwrap_or("judge"), status };
    let mut judge = || {
        let judgement = shared.rules.judge(incoming, &mut order.memory);
        let Judgement { reply, verdict, plain, streams } = judgement;
        write(verdict, name, plain);
        if let Some(lever) = &link.lever {
            match streams {
                Streams::Unchanged => (),
                Streams::One => lever.limit_streams(1),
                Streams::Many => lever.limit_streams(shared.streams_max),
            }
        }
        reply
    };
    match step.unwrap_or(Step::Judge) {
        Step::Judge => Outcome::Reply(judge()),
        Step::Slow(by) => Outcome::ReplyAfter(by.min(HOLD_MAX), judge()),
        Step::StallInBody => Outcome::HalfReply(judge()),
        Step::CloseAfter => {
            judge();
            Outcome::Close
        }
        Step::GoAway => {
            let reply = judge();
            order.last = Some(order.seen.max(stream));
            link.go_away(order.seen.max(stream));
            Outcome::ReplyAndLeave(reply)
        }
        Step::Answer(answer) => {
            let reply = Reply::scripted(&answer, shared.rules.scripted(&answer, incoming));
            write(scripted(Some(reply.status.as_u16())), name, None);
            // To Apple a refused token is a refused token, whoever wrote the answer.
            if let Some(lever) = link.lever.as_ref().filter(|_| shared.rules.starts_with_one_stream())
                && reply.status == http::StatusCode::FORBIDDEN
            {
                lever.limit_streams(1);
            }
            Outcome::Reply(reply)
        }
        Step::RefuseStream => {
            write(scripted(None), name, None);
            Outcome::Refuse
        }
        Step::StallBeforeHeaders => {
            write(scripted(None), name, None);
            Outcome::Hold
        }
        Step::CloseBefore | Step::GoAwayUnprocessed => {
            write(scripted(None), name, None);
            Outcome::Close
        }
    }
}

/// Records a stream that was over the limit.
pub(crate) fn refuse_over_limit(shared: &Shared, link: &Link, stream: u32, incoming: &Incoming) {
    let (kind, target) = (shared.rules.kind(incoming), shared.rules.target(incoming));
    shared.record.count(|counts| counts.over_limit += 1);
    let entry =
        entry(link, stream, incoming, (kind, target), (Verdict::Unprocessed, Some("over_limit"), None));
    shared.record.add(entry);
}

fn entry(
    link: &Link,
    stream: u32,
    incoming: &Incoming,
    (kind, target): (Kind, Option<String>),
    (verdict, step, plain): (Verdict, Option<&'static str>, Option<Bytes>),
) -> Entry {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = incoming.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value)));
    Entry {
        number: 0,
        kind,
        connection: link.number,
        stream,
        carrier: link.carrier,
        at_ms: incoming.now_ms,
        method: incoming.method.to_string(),
        path: incoming.path.clone(),
        headers: headers.collect(),
        body: incoming.body.clone(),
        plain,
        target,
        step,
        verdict,
    }
}
