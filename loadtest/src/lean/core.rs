//! What a session knows, and what it writes and waits for. **Invariant:** all of it stands behind the session's lock.

use super::Decided;
use super::line::{Frames, Line};
use bytes::Bytes;
use chappe_client::parts::{End, Link, Outbox, Reconnect, Upgraded, Urgent};
use chappe_client::{ClientError, EnvelopeId, Receipt, Role, Seq, Tuning, UnixMillis};
use chappe_protocol::frame::{ClientFrame, Deliver};
use chappe_protocol::receiver::Receiver;
use chappe_protocol::time::{Millis, Time};
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Waker};

/// The server must take what is written within this, as with the SDK.
pub(super) const WRITE_TIMEOUT: Millis = Millis::from_secs(20);
/// What leaves at once.
const BURST_BYTES: usize = 64 * 1024;

pub(super) type Dialling = Pin<Box<dyn Future<Output = Result<Upgraded, End>> + Send>>;

pub(super) struct Core {
    pub(super) stage: Stage,
    pub(super) outbox: Outbox,
    pub(super) receiver: Receiver,
    pub(super) reconnect: Reconnect,
    pub(super) resume_token: Bytes,
    /// Came, and the application has not taken it.
    pub(super) inbox: VecDeque<Deliver>,
    /// What the application takes its time with, and until when.
    pub(super) busy: Option<(Time, Seq, EnvelopeId)>,
    /// Whether the application takes anything.
    pub(super) attended: bool,
    /// By order: when submits should have been sent.
    pub(super) intended: VecDeque<(u64, u64)>,
    /// Of the task.
    pub(super) waker: Option<Waker>,
    /// The earliest alarm that was set.
    pub(super) alarm: Option<Time>,
    /// When it was lost, µs of the run's clock.
    pub(super) lost_us: Option<u64>,
    /// Close was asked for.
    pub(super) closing: bool,
}

pub(super) enum Stage {
    /// Until then; `None`: for ever, another socket of the device has taken over.
    Resting(Option<Time>),
    /// Until the deadline of the Welcome.
    Connecting(Dialling, Time),
    Open(Box<Open>),
    /// Why; for people.
    Over(String),
}

/// A connection behind its handshake.
pub(super) struct Open {
    pub(super) line: Line,
    /// The socket takes nothing since.
    pub(super) stuck_since: Option<Time>,
    pub(super) phase: Phase,
}

pub(super) enum Phase {
    /// Hello was said.
    Greeting {
        by: Time,
        retry_after: Millis,
        expires: Option<UnixMillis>,
    },
    Talking(Box<Talk>),
}

/// A connection that was welcomed.
pub(super) struct Talk {
    pub(super) link: Link,
    /// When.
    pub(super) since: Time,
    /// When the last ack left.
    pub(super) acked_at: Time,
}

impl Talk {
    /// Something was acked by the application: the ack leaves at once, unless one has just left.
    pub(super) fn plan_ack(&mut self, now: Time, tuning: &Tuning) {
        let at = now.max(self.acked_at + tuning.ack_delay);
        self.link.ack_at.get_or_insert(at);
    }
}

impl Core {
    /// Of a device that has nothing yet.
    pub(super) fn new(tuning: &Tuning) -> Self {
        Self {
            // The first look of its task lets it connect.
            stage: Stage::Resting(Some(Time(0))),
            outbox: Outbox::new(tuning.lane_depth),
            receiver: Receiver::new(),
            reconnect: Reconnect::new(tuning.backoff_min, tuning.backoff_max, Role::Main),
            resume_token: Bytes::new(),
            inbox: VecDeque::new(),
            busy: None,
            attended: false,
            intended: VecDeque::new(),
            waker: None,
            alarm: None,
            lost_us: None,
            closing: false,
        }
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    /// Writes what may leave now, all of it at once.
    pub(super) fn flush(&mut self, now: Time, cx: &mut Context<'_>) -> Result<(), End> {
        let Stage::Open(open) = &mut self.stage else { return Ok(()) };
        let Open { line, stuck_since, phase } = &mut **open;
        loop {
            let mut more = false;
            line.flush(cx, |frames| {
                if let Phase::Talking(talk) = phase {
                    fill(frames, now, talk, &mut self.outbox, &mut self.receiver);
                    more = frames.len() >= BURST_BYTES;
                }
            })?;
            if line.is_stuck() {
                stuck_since.get_or_insert(now);
                return Ok(());
            }
            *stuck_since = None;
            if !more {
                return Ok(());
            }
        }
    }

    pub(super) fn is_talking(&self) -> bool {
        matches!(&self.stage, Stage::Open(open) if matches!(open.phase, Phase::Talking { .. }))
    }

    pub(super) fn talk(&mut self) -> Option<&mut Talk> {
        let Stage::Open(open) = &mut self.stage else { return None };
        let Phase::Talking(talk) = &mut open.phase else { return None };
        Some(talk)
    }

    /// While the application has too much, the server waits, as with the SDK.
    pub(super) fn may_read(&self, tuning: &Tuning) -> bool {
        self.closing || self.receiver.open() < tuning.inbox_items_max
    }

    pub(super) fn app_acked(&mut self, now: Time, seq: Seq, id: EnvelopeId, tuning: &Tuning) {
        self.receiver.app_acked(seq, id);
        if let Some(talk) = self.talk() {
            talk.plan_ack(now, tuning);
        }
    }

    /// With what was given with them. What was given up stays undecided.
    pub(super) fn decided(&mut self, finished: Vec<(u64, Result<Receipt, ClientError>)>) -> Vec<Decided> {
        let mut decided = Vec::with_capacity(finished.len());
        for (order, result) in finished {
            let at = self.intended.iter().position(|(of, _)| *of == order);
            let intended = at.and_then(|at| self.intended.remove(at));
            if let (Some((order, intended_us)), Ok(receipt)) = (intended, result) {
                decided.push(Decided { order, intended_us, receipt });
            }
        }
        if self.intended.is_empty() {
            self.intended = VecDeque::new();
        }
        decided
    }

    /// When it is to be looked at if nothing happens.
    pub(super) fn next_time(&self, now: Time) -> Option<Time> {
        let own = match &self.stage {
            Stage::Over(_) => return None,
            Stage::Resting(until) => *until,
            Stage::Connecting(_, by) => Some(*by),
            Stage::Open(open) => {
                let stuck = open.stuck_since.map(|since| since + WRITE_TIMEOUT);
                let own = match &open.phase {
                    Phase::Greeting { by, .. } => Some(*by),
                    Phase::Talking(talk) => {
                        let link = &talk.link;
                        let busy = open.line.is_arriving() || self.receiver.open() > 0;
                        let wants = open.stuck_since.is_none()
                            && self.outbox.wants(now, link.limits.submits_in_flight_max as usize);
                        let times = [
                            Some(link.ping_at(busy)),
                            link.ack_at,
                            link.refresh_at,
                            link.move_at,
                            link.close_by,
                            link.answer_by(self.outbox.oldest_flight()),
                            link.paced_until().filter(|_| wants),
                        ];
                        times.into_iter().flatten().min()
                    }
                };
                [stuck, own].into_iter().flatten().min()
            }
        };
        let busy = self.busy.map(|(until, ..)| until);
        [own, busy, self.outbox.next_time()].into_iter().flatten().min()
    }
}

/// What goes out now: the most urgent first, as much as the rules allow.
fn fill(frames: &mut Frames<'_>, now: Time, talk: &mut Talk, outbox: &mut Outbox, receiver: &mut Receiver) {
    let Talk { link, acked_at, .. } = talk;
    if link.close_sent {
        return;
    }
    if link.ack_at.is_some_and(|at| at <= now) {
        link.ack_at = None;
        if let Some(upto) = receiver.poll_ack() {
            link.ack = Some(upto);
            *acked_at = now;
        }
    }
    while let Some(urgent) = link.poll_urgent() {
        match urgent {
            Urgent::Pong(bytes) => frames.pong(&bytes),
            Urgent::Frame(frame) => {
                link.on_sent(now);
                frames.message(&frame);
            }
        }
    }
    if link.close_by.is_some() {
        link.close_sent = true;
        return frames.close(1000);
    }
    while frames.len() < BURST_BYTES && link.may_send(now) {
        let Some(submit) = outbox.poll_send(now, link.limits.submits_in_flight_max as usize) else { return };
        link.on_sent(now);
        frames.message(&ClientFrame::Submit(submit));
    }
}
