//! What a connection knows and does beside its socket. **Invariant:** one read, one cursor write at a time; what a peer
//! makes wait is bounded, because its socket is not read while it does.

mod frames;
mod leaving;

use crate::connection::{End, Event, OUT_BYTES_MAX, queue_frame};
use crate::handle::{Handle, Inbox};
use crate::limits::{Bucket, FrameRate};
use crate::reads::Span;
use crate::requests::Requests;
use crate::shared::Gateway;
use crate::submits::Submits;
use crate::timers::Armed;
use crate::transport::{Transport, TransportError};
use chappe_node::spans::Value;
use chappe_protocol::close::CloseCode;
use chappe_protocol::envelope::Page;
use chappe_protocol::frame::{ServerFrame, SubmitResult};
use chappe_protocol::id::{Seq, UserId};
use chappe_protocol::session::{Action, Session};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_router::trace::Step;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::sync::Arc;
use std::task::{Context, Poll};

/// The close code of RFC 6455 for a message beyond its bound.
const TOO_LARGE: u16 = 1009;
/// A peek that has seen its backlog may still submit: it ends when it was silent for so long.
const PEEK_LINGER: Millis = Millis::from_secs(2);

/// When a peek that has seen its backlog ends.
struct PeekEnd {
    /// Since its last frame, or the end of its last submit.
    idle_since: Time,
    until: Time,
}

/// A connection without its socket.
pub(crate) struct Core {
    gateway: Arc<Gateway>,
    handle: Arc<Handle>,
    user: UserId,
    session: Session,
    now: Time,
    armed: Armed,
    /// Answers that are not the session's, until the next pump.
    answers: Vec<ServerFrame>,
    read: Option<BoxFuture<'static, chappe_storage::Result<Page>>>,
    /// A read that waits for the out buffer to empty.
    held_read: Option<Span>,
    advance: Option<BoxFuture<'static, chappe_storage::Result<()>>>,
    head: Option<BoxFuture<'static, chappe_storage::Result<Seq>>>,
    submits: Option<Box<Submits>>,
    requests: Option<Box<Requests>>,
    frames: FrameRate,
    ephemerals: Bucket,
    requests_rate: Bucket,
    valid_until: Time,
    /// Since when the session stands.
    attached_at: UnixMillis,
    /// Since when bytes wait and the peer takes none.
    stalled_since: Option<Time>,
    /// The drain closes it then.
    drained_at: Option<Time>,
    /// The peek has seen its backlog.
    peek: Option<PeekEnd>,
    ending: Option<End>,
}

impl Core {
    /// A session that stands in the registry under this handle.
    pub(crate) fn new(
        gateway: Arc<Gateway>,
        handle: Arc<Handle>,
        user: UserId,
        session: Session,
        valid_until: Time,
    ) -> Self {
        let (now, attached_at) = (gateway.world.now(), gateway.world.wall());
        let limits = &gateway.config.session.limits;
        gateway.metrics.sessions.inc();
        Self {
            frames: FrameRate::new(now, limits),
            ephemerals: Bucket::full(now, gateway.config.ephemerals_burst),
            requests_rate: Bucket::full(now, gateway.config.requests_per_minute),
            gateway,
            handle,
            user,
            session,
            now,
            armed: Armed::default(),
            answers: Vec::new(),
            read: None,
            held_read: None,
            advance: None,
            head: None,
            submits: None,
            requests: None,
            valid_until,
            attached_at,
            stalled_since: None,
            drained_at: None,
            peek: None,
            ending: None,
        }
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    pub(crate) fn handle(&self) -> &Arc<Handle> {
        &self.handle
    }

    pub(crate) fn look_at_clock(&mut self) {
        self.now = self.gateway.world.now();
    }

    /// Why the connection ends, once it does.
    pub(crate) fn ending(&mut self) -> Option<End> {
        self.ending.take()
    }

    /// Reads the head once more: slots that were committed before the lease stood rang for nobody.
    pub(crate) fn read_head(&mut self) {
        let (store, mailbox) = (Arc::clone(&self.gateway.store), self.handle.mailbox);
        self.head = Some(async move { store.head(mailbox, false).await }.boxed());
    }

    /// Whether the socket may be read: not while its own answers or submits wait.
    pub(crate) fn may_receive(&self, queued_bytes: usize) -> bool {
        let working =
            self.submits.as_ref().is_some_and(|s| s.bytes() >= self.gateway.config.submit_bytes_max);
        queued_bytes < OUT_BYTES_MAX && !working
    }

    /// The peer took `before - after` bytes.
    pub(crate) fn on_flush(&mut self, before: usize, after: usize) {
        if after == 0 {
            self.stalled_since = None;
        } else if after < before || self.stalled_since.is_none() {
            self.stalled_since = Some(self.now);
        }
        // Its frames are not read while so much waits: that it takes bytes is its sign of life.
        if before >= OUT_BYTES_MAX && after < before {
            self.session.handle_frame(self.now);
        }
    }

    /// Drives what is out.
    pub(crate) fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Some(Poll::Ready(page)) = self.read.as_mut().map(|read| read.poll_unpin(cx)) {
            self.read = None;
            return Poll::Ready(Event::Page(page));
        }
        if let Some(Poll::Ready(done)) = self.advance.as_mut().map(|advance| advance.poll_unpin(cx)) {
            self.advance = None;
            return Poll::Ready(Event::Advanced(done));
        }
        if let Some(Poll::Ready(head)) = self.head.as_mut().map(|head| head.poll_unpin(cx)) {
            self.head = None;
            return Poll::Ready(Event::Head(head));
        }
        if let Some(Poll::Ready(())) = self.submits.as_mut().map(|submits| submits.poll_work(self.now, cx)) {
            return Poll::Ready(Event::Submitted);
        }
        if let Some(Poll::Ready((id, done))) = self.requests.as_mut().map(|requests| requests.poll_done(cx)) {
            return Poll::Ready(Event::Asked(id, done));
        }
        Poll::Pending
    }

    pub(crate) fn on_event(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Told(inbox) => self.on_inbox(inbox),
            Event::Page(Ok(page)) => self.session.on_page(now, page),
            Event::Page(Err(_)) => {
                self.gateway.metrics.read_failed_total.inc();
                self.session.on_read_failed(now);
            }
            Event::Advanced(Ok(())) => self.session.on_advanced(now),
            Event::Advanced(Err(_)) => self.session.on_advance_failed(now),
            Event::Head(Ok(head)) => self.session.on_head(now, head),
            // The probe will tell.
            Event::Head(Err(_)) | Event::Submitted | Event::Flushed | Event::Received => {}
            Event::Asked(id, done) => self.on_done(id, done),
            Event::Failed(TransportError::Violation(violation)) => {
                let large = violation.code == TOO_LARGE;
                self.end(if large { CloseCode::FrameTooLarge } else { CloseCode::BadFrame });
            }
            Event::Failed(TransportError::Closed | TransportError::Gone | TransportError::Io(_)) => {
                self.ending = Some(End::Gone);
            }
        }
    }

    fn on_inbox(&mut self, inbox: Inbox) {
        let now = self.now;
        if inbox.kill {
            self.ending = Some(End::Gone);
            return;
        }
        if let Some(code) = inbox.close {
            self.end(code);
        }
        if let Some(news) = inbox.news {
            self.session.on_device_news(now, &news);
        }
        for slot in &inbox.slots {
            self.session.on_doorbell(now, slot.seq, Some(slot));
        }
        if let Some(head) = inbox.head {
            self.session.on_head(now, head);
        }
        for whisper in inbox.whispers {
            self.answers.push(ServerFrame::Ephemeral {
                sender: Some(whisper.sender),
                payload: whisper.payload,
                urgency: whisper.urgency,
            });
        }
        if let Some(go_away) = inbox.go_away {
            let (go_away, grace) = *go_away;
            self.drained_at = Some(now + grace);
            self.session.flush();
            self.answers.push(ServerFrame::GoAway(go_away));
        }
        if inbox.timer {
            self.armed.fired();
            self.on_timer();
        }
    }

    fn on_timer(&mut self) {
        let now = self.now;
        let due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if due(self.session.poll_timeout()) {
            self.session.handle_timeout(now);
        }
        if due(self.drained_at) {
            self.end(CloseCode::Drained);
        }
        if due(self.write_deadline()) {
            self.end(CloseCode::WriteTimeout);
        }
        if self.valid_until <= now {
            self.end(CloseCode::TokenExpired);
        }
        if due(self.peek_deadline()) {
            self.end(CloseCode::PeekEnded);
        }
    }

    fn write_deadline(&self) -> Option<Time> {
        self.stalled_since.map(|since| since + self.gateway.config.write_timeout)
    }

    fn peek_deadline(&self) -> Option<Time> {
        self.peek.as_ref().map(|peek| (peek.idle_since + PEEK_LINGER).min(peek.until))
    }

    /// Does all that can be done without waiting.
    pub(crate) fn pump<T: Transport>(&mut self, transport: &mut T) {
        loop {
            self.take_results();
            if self.submits.as_ref().is_some_and(|submits| submits.owes_too_much()) {
                self.end(CloseCode::Overloaded);
            }
            for answer in std::mem::take(&mut self.answers) {
                self.answer(transport, &answer);
            }
            if transport.queued_bytes() < OUT_BYTES_MAX
                && let Some(span) = self.held_read.take()
            {
                self.start_read(span);
            }
            while self.ending.is_none() && transport.queued_bytes() < OUT_BYTES_MAX {
                let Some(frame) = self.session.poll_frame(self.now) else { break };
                self.tell(transport, &frame);
            }
            match self.session.poll_action(self.now) {
                Some(action) => self.act(&action, transport.queued_bytes()),
                None => break,
            }
        }
        self.handle.set_known_head(self.session.known_head());
        self.arm();
    }

    /// Answers wait for nothing, since what makes them is not read while much waits; what others send, best effort, may.
    fn answer<T: Transport>(&self, transport: &mut T, answer: &ServerFrame) {
        let whisper = matches!(answer, ServerFrame::Ephemeral { .. });
        if !whisper {
            queue_frame(transport, answer);
        } else if transport.queued_bytes() >= OUT_BYTES_MAX {
            self.gateway.metrics.ephemerals_dropped_total.inc();
        } else {
            transport.queue_lossy_with(&mut |out| answer.encode_into(out));
        }
    }

    fn tell<T: Transport>(&mut self, transport: &mut T, frame: &ServerFrame) {
        queue_frame(transport, frame);
        if let ServerFrame::Deliver(deliver) = frame {
            self.gateway.metrics.delivered_total.inc();
            tracing::debug!(envelope = %deliver.envelope_id, "delivered");
            let (mailbox, at) = (self.handle.mailbox, self.gateway.world.wall());
            // What waited for the device says nothing about how fast we are.
            if deliver.at >= self.attached_at {
                let seconds = (at - deliver.at).to_std().as_secs_f64();
                self.gateway.metrics.deliver_seconds.observe(seconds);
            }
            let (traces, id) = (&self.gateway.traces, deliver.envelope_id);
            traces.delivered(id, mailbox, deliver.seq, at);
            traces.step(id, Step::Deliver, (deliver.at.max(self.attached_at), at), || {
                vec![("chappe.waited_for_device", Value::Flag(deliver.at < self.attached_at))]
            });
            #[cfg(feature = "testing")]
            if self.gateway.has_bug(crate::faults::Bug::AckOnSend) {
                self.session.handle_ack(self.now, self.session.told());
            }
        }
    }

    fn take_results(&mut self) {
        let Some(submits) = &mut self.submits else { return };
        while let Some(finished) = submits.poll_finished() {
            for target in &finished.result.results {
                let word = target.outcome.word();
                self.gateway.metrics.outcomes_total.with_label_values(&[word]).inc();
            }
            let took = self.now - finished.started;
            self.gateway.metrics.submit_seconds.observe(took.to_std().as_secs_f64());
            tell_answer(&self.gateway, took, &finished.result);
            self.answers.push(ServerFrame::SubmitResult(finished.result));
        }
        self.answers.extend(submits.take_ephemeral_results().map(ServerFrame::SubmitResult));
        if submits.is_idle() {
            self.submits = None;
        }
    }

    fn act(&mut self, action: &Action, queued_bytes: usize) {
        match *action {
            Action::Read { after, rows_max, bytes_max } => {
                let span = Span { mailbox: self.handle.mailbox, after, rows_max, bytes_max };
                if queued_bytes < OUT_BYTES_MAX {
                    self.start_read(span);
                } else {
                    self.held_read = Some(span);
                }
            }
            Action::Advance { upto } => {
                let device = self.handle.device.clone();
                self.advance = Some(self.gateway.cursors.advance(self.handle.mailbox, device, upto));
            }
            Action::Close(CloseCode::PeekEnded) => {
                let until = self.now + self.gateway.config.session.peek_max;
                self.peek = Some(PeekEnd { idle_since: self.now, until });
            }
            Action::Close(code) => self.end(code),
        }
    }

    fn start_read(&mut self, span: Span) {
        let shared = self.gateway.registry.is_shared(span.mailbox);
        self.read = Some(self.gateway.reads.page(span, shared));
    }

    fn end(&mut self, code: CloseCode) {
        if self.ending.is_none() {
            self.ending = Some(End::Close(code));
        }
    }

    fn arm(&mut self) {
        // A peek waits for its own submits: looked at again after the next linger.
        let working = self.submits.as_ref().is_some_and(|submits| submits.is_working());
        if let Some(peek) = self.peek.as_mut().filter(|_| working) {
            peek.idle_since = self.now;
        }
        let optional =
            [self.session.poll_timeout(), self.drained_at, self.write_deadline(), self.peek_deadline()];
        let Some(at) = optional.into_iter().flatten().chain([self.valid_until]).min() else { return };
        self.gateway.timers.arm(&self.handle, &mut self.armed, at);
    }
}

/// The sender knows these ids, too; they lead to the lines and spans of router and store.
fn tell_answer(gateway: &Gateway, took: Millis, answer: &SubmitResult) {
    let (submit, now) = (answer.submit_id, gateway.world.wall());
    for target in &answer.results {
        let (envelope, outcome) = (target.envelope_id.unwrap_or_default(), target.outcome.word());
        tracing::debug!(%submit, attempt = answer.attempt, %envelope, outcome, "answered");
        // It has an id if it was accepted.
        let Some(id) = target.envelope_id else { continue };
        gateway.traces.step(id, Step::Submit, (now - took, now), || {
            vec![("chappe.attempt", answer.attempt.into()), ("chappe.targets", answer.results.len().into())]
        });
    }
}
