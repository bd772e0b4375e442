//! One socket: the server's session, the frames under way, and the checks on every frame and action of the session.
//! Which assertion stands for which invariant is written beside it.

use crate::Counters;
use chappe_protocol::close::CloseCode;
use chappe_protocol::envelope::SlotBody;
use chappe_protocol::frame::{Role, ServerFrame, TruncatedReason};
use chappe_protocol::id::{ConnectionId, Epoch, Seq};
use chappe_protocol::internode::DeviceNews;
use chappe_protocol::session::{Action, Session, SessionConfig, Start};
use chappe_protocol::testing::model::{Model, ModelDevice};
use chappe_protocol::time::{Millis, Time};
use std::collections::VecDeque;
use std::sync::Arc;

/// What the client has put on the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Up {
    Ack(Seq),
    Ping(u64),
}

/// A session and its socket.
pub(crate) struct Wire {
    pub(crate) session: Session,
    pub(crate) connection: ConnectionId,
    pub(crate) epoch: Epoch,
    pub(crate) role: Role,
    pub(crate) down: VecDeque<ServerFrame>,
    pub(crate) up: VecDeque<Up>,
    pub(crate) read: Option<(Seq, usize, usize)>,
    pub(crate) advance: Option<Seq>,
    pub(crate) closed: Option<CloseCode>,
    pub(crate) backlog_end: bool,
    config: Arc<SessionConfig>,
    device: ModelDevice,
    head_at_attach: Seq,
    /// The checker's own `prev`.
    told: Seq,
    frames: u64,
    foreign: bool,
    /// The checker's own list of what is un-acked: last slot and cost.
    unacked: VecDeque<(Seq, usize)>,
    acked_bytes: usize,
    max_acked: Seq,
    start_from: Seq,
    cursor: Seq,
    advanced: Seq,
    last_frame: Time,
    owed_since: Time,
    started: Time,
    news_newer: bool,
    rogue_ack: bool,
    close_checked: bool,
}

impl Wire {
    pub(crate) fn new(now: Time, config: &Arc<SessionConfig>, device: &ModelDevice, start: Start) -> Self {
        let (from, stored, foreign) = (start.from, start.stored, start.foreign_cursor);
        let (connection, epoch, role, head) = (start.connection, start.epoch, start.role, start.head);
        let session = Session::new(now, Arc::clone(config), start);
        Self {
            cursor: session.cursor(),
            session,
            connection,
            epoch,
            role,
            down: VecDeque::new(),
            up: VecDeque::new(),
            read: None,
            advance: None,
            closed: None,
            backlog_end: false,
            config: Arc::clone(config),
            device: device.clone(),
            head_at_attach: head,
            told: from,
            frames: 0,
            foreign,
            unacked: VecDeque::new(),
            acked_bytes: 0,
            max_acked: from,
            start_from: from,
            advanced: stored,
            last_frame: now,
            owed_since: now,
            started: now,
            news_newer: false,
            rogue_ack: false,
            close_checked: false,
        }
    }

    pub(crate) fn told(&self) -> Seq {
        self.told
    }

    /// News of the device's sessions reaches this one.
    pub(crate) fn news(&mut self, now: Time, news: &DeviceNews) {
        let newer = (news.epoch, news.connection) > (self.epoch, self.connection);
        self.news_newer |= newer && self.role == Role::Main;
        self.session.on_device_news(now, news);
        // I6: a superseded session knows it at once, and only a superseded one.
        assert_eq!(
            self.session.closing() == Some(CloseCode::ConnectedElsewhere),
            self.superseded(),
            "supersede"
        );
    }

    fn superseded(&self) -> bool {
        self.news_newer && self.session.closing().is_none_or(|code| code == CloseCode::ConnectedElsewhere)
    }

    /// A client frame arrives at the session.
    pub(crate) fn arrive(&mut self, now: Time, frame: Up, rogue: bool) {
        self.session.handle_frame(now);
        self.last_frame = now;
        match frame {
            Up::Ping(nonce) => self.session.handle_ping(now, nonce),
            Up::Ack(upto) => {
                let open = self.session.closing().is_none() && self.role == Role::Main;
                if open && upto > self.told {
                    assert!(rogue, "the receiver acked beyond what was told: {upto} > {}", self.told);
                    self.rogue_ack = true;
                } else if open {
                    self.max_acked = self.max_acked.max(upto);
                    while self.unacked.front().is_some_and(|(last, _)| *last <= upto) {
                        self.acked_bytes += self.unacked.pop_front().map_or(0, |(_, cost)| cost);
                    }
                }
                self.session.handle_ack(now, upto);
                if self.rogue_ack {
                    assert!(self.session.closing().is_some(), "an ack beyond what was told closes");
                }
            }
        }
    }

    /// Polls one frame and checks it.
    pub(crate) fn poll_frame(&mut self, now: Time, model: &Model, counters: &mut Counters) -> bool {
        let closing = self.session.closing();
        let Some(frame) = self.session.poll_frame(now) else { return false };
        // I6: nothing after a supersede, a revocation or any other close.
        assert!(
            closing.is_none() && self.closed.is_none() && !self.news_newer,
            "a frame after the close: {frame:?}"
        );
        let first = self.frames == 0;
        self.frames += 1;
        match &frame {
            ServerFrame::Deliver(deliver) => {
                assert!(!(first && self.foreign), "a foreign cursor is told first");
                // I5: emit order is slot order, `prev` is the position last told.
                assert_eq!(deliver.prev, self.told, "prev chain");
                assert!(deliver.seq > self.told, "emit order");
                self.assert_nothing_between(model, Seq(deliver.seq.0 - 1), "deliver");
                // I6: only what targets the device. I7: the slot holds what it held.
                assert!(
                    model.targets(&self.device, deliver.seq),
                    "{} does not target the device",
                    deliver.seq
                );
                let slot = model.slot(deliver.seq).unwrap();
                assert_eq!(slot.envelope_id, deliver.envelope_id, "the slot's envelope");
                self.told = deliver.seq;
                self.owe(now, deliver.seq, 64 + deliver.payload.len());
                counters.delivered += 1;
            }
            ServerFrame::Truncated { from, to, why } => {
                self.check_truncated(now, model, counters, first, (*from, *to), *why);
            }
            ServerFrame::BacklogEnd { upto } => {
                assert!(!self.backlog_end, "BacklogEnd once");
                self.backlog_end = true;
                assert!(
                    *upto >= self.told && *upto >= self.head_at_attach,
                    "BacklogEnd is told at the head of attach"
                );
                self.assert_nothing_between(model, *upto, "BacklogEnd");
                self.told = *upto;
                counters.backlog_ends += 1;
            }
            ServerFrame::Pong { upto, .. } => {
                assert!(*upto >= self.told, "a Pong never goes back");
                self.assert_nothing_between(model, *upto, "Pong");
                counters.pongs_that_moved += u64::from(*upto > self.told);
                self.told = *upto;
            }
            other => panic!("a session does not emit {other:?}"),
        }
        assert_eq!(self.session.told(), self.told, "told");
        self.down.push_back(frame);
        self.check(model, counters);
        true
    }

    fn check_truncated(
        &mut self,
        now: Time,
        model: &Model,
        counters: &mut Counters,
        first: bool,
        (from, to): (Seq, Seq),
        why: TruncatedReason,
    ) {
        if why == TruncatedReason::ForeignCursor {
            assert!(first && self.foreign, "ForeignCursor is the first frame");
            assert!(to == self.told && from <= to, "ForeignCursor does not move the position");
            counters.foreign += 1;
            return;
        }
        assert!(!(first && self.foreign), "a foreign cursor is told first");
        assert!(from > self.told && to >= from, "emit order of Truncated");
        self.assert_nothing_between(model, Seq(from.0 - 1), "Truncated");
        for seq in from.0..=to.0 {
            let seq = Seq(seq);
            let body = model.slot(seq).map(|slot| slot.body.clone());
            let gone = match why {
                TruncatedReason::Expired => {
                    body == Some(SlotBody::Expired) && model.targets(&self.device, seq)
                }
                TruncatedReason::Lost => body == Some(SlotBody::Lost) && model.targets(&self.device, seq),
                TruncatedReason::Trimmed => seq <= model.floor(),
                TruncatedReason::ForeignCursor => false,
            };
            // I1: nothing that can be delivered is told to be gone.
            assert!(gone, "slot {seq} was told to be gone ({why:?})");
        }
        match why {
            TruncatedReason::Expired => counters.expired += 1,
            TruncatedReason::Lost => counters.lost += 1,
            TruncatedReason::Trimmed | TruncatedReason::ForeignCursor => counters.trimmed += 1,
        }
        counters.merged += u64::from(to > from && why != TruncatedReason::Trimmed);
        self.told = to;
        self.owe(now, to, 64);
    }

    /// I1, I5: no targeted slot lies between the position last told and `upto`, that one included.
    fn assert_nothing_between(&self, model: &Model, upto: Seq, what: &str) {
        for seq in self.told.0 + 1..=upto.0 {
            assert!(!model.targets(&self.device, Seq(seq)), "{what} skips slot {seq}, told {}", self.told);
        }
    }

    fn owe(&mut self, now: Time, last: Seq, cost: usize) {
        if self.role == Role::Peek {
            return;
        }
        if self.unacked.is_empty() {
            self.owed_since = now;
        }
        self.unacked.push_back((last, cost));
    }

    /// Polls one action, checks it and notes what it asks for.
    pub(crate) fn poll_action(&mut self, now: Time, counters: &mut Counters) -> bool {
        self.check_close(now, counters);
        let held = self.session.held();
        let Some(action) = self.session.poll_action(now) else { return false };
        match action {
            Action::Read { after, rows_max, bytes_max } => {
                assert!(self.closed.is_none() && self.session.closing().is_none(), "no read after a close");
                assert!(self.read.is_none(), "one read at a time");
                // The window: never read when it is shut, never more than it leaves.
                let (items_max, window) =
                    (self.config.limits.window_envelopes_max as usize, self.session.window_bytes() as usize);
                assert!(held.0 == 0 || (held.0 < items_max && held.1 < window), "read through a shut window");
                assert!(rows_max >= 1 && rows_max <= (items_max - held.0).max(1), "rows beyond the window");
                assert!(
                    bytes_max >= 1 && bytes_max <= window.saturating_sub(held.1).max(1),
                    "bytes beyond the window"
                );
                assert!(
                    rows_max <= self.config.page_rows_max && bytes_max <= self.config.page_bytes_max,
                    "page"
                );
                assert!(after >= self.told && after < self.session.known_head(), "reads what it has");
                self.read = Some((after, rows_max, bytes_max));
            }
            Action::Advance { upto } => {
                assert!(self.role == Role::Main, "a peek moves no cursor");
                assert!(self.advance.is_none(), "one advance at a time");
                // I4: never lower than before, never for nothing.
                assert!(upto > self.advanced, "advance goes back");
                assert!(upto <= self.session.cursor(), "advance beyond the cursor");
                self.advance = Some(upto);
            }
            Action::Close(code) => {
                assert!(self.closed.is_none(), "closes once");
                assert_eq!(self.session.closing(), Some(code), "the reason stays");
                self.closed = Some(code);
            }
        }
        true
    }

    /// Checks the reason of a close when it is first seen.
    fn check_close(&mut self, now: Time, counters: &mut Counters) {
        let Some(code) = self.session.closing().filter(|_| !self.close_checked) else { return };
        self.close_checked = true;
        let silent = now - self.last_frame;
        match code {
            CloseCode::ConnectedElsewhere => {
                assert!(self.news_newer, "superseded by nobody");
                counters.supersedes += 1;
            }
            CloseCode::AckTimeout => {
                let owed = now - self.owed_since;
                assert!(
                    !self.unacked.is_empty() && silent.min(owed) >= self.config.ack_timeout,
                    "ack timeout too early"
                );
                counters.ack_timeouts += 1;
            }
            CloseCode::HeartbeatMissed => {
                assert!(silent.0 >= 2 * self.config.limits.ping_every.0, "heartbeat too early");
                counters.heartbeats_missed += 1;
            }
            CloseCode::AckBeyondDelivered => {
                assert!(self.rogue_ack, "a good ack was refused");
                counters.rogue_acks += 1;
            }
            CloseCode::PeekEnded => {
                let over = now - self.started >= self.config.peek_max;
                assert!(self.role == Role::Peek && (self.backlog_end || over), "a peek ends at BacklogEnd");
                counters.peeks_ended += 1;
            }
            other => panic!("nothing asks for {other:?} here"),
        }
    }

    /// Hands the time in, if the session asked for it.
    pub(crate) fn tick(&mut self, now: Time, counters: &mut Counters) {
        self.check_close(now, counters);
        if self.session.poll_timeout().is_some_and(|at| at <= now) {
            self.session.handle_timeout(now);
        }
        self.check_close(now, counters);
        if self.session.closing().is_none() {
            let silent = now - self.last_frame;
            assert!(silent.0 < 2 * self.config.limits.ping_every.0, "a silent device was not noticed");
            let owed = silent.min(now - self.owed_since);
            assert!(
                self.unacked.is_empty() || owed < self.config.ack_timeout,
                "a device that does not ack was not noticed"
            );
        }
    }

    /// The cursor is stored, or not.
    pub(crate) fn advanced(&mut self, now: Time, stored: Option<Seq>) {
        match stored {
            Some(seq) => {
                self.advanced = self.advanced.max(seq);
                self.session.on_advanced(now);
            }
            None => self.session.on_advance_failed(now),
        }
    }

    /// What must hold after every step.
    pub(crate) fn check(&mut self, model: &Model, counters: &mut Counters) {
        let cursor = self.session.cursor();
        // I4: the cursor does not go back.
        assert!(cursor >= self.cursor, "the cursor went back");
        // I3: it passes no targeted slot that was not acked.
        for seq in self.cursor.0.max(self.start_from.0) + 1..=cursor.0 {
            let seq = Seq(seq);
            assert!(
                seq <= self.max_acked || !model.targets(&self.device, seq),
                "the cursor passed un-acked slot {seq}"
            );
        }
        self.cursor = cursor;
        // I12: the window bounds what is un-acked and what is held.
        let items_max = self.config.limits.window_envelopes_max as usize;
        let window = self.session.window_bytes() as usize;
        let bytes: usize = self.unacked.iter().map(|(_, cost)| cost).sum();
        assert!(self.unacked.len() <= items_max.max(1), "more envelopes in flight than the window");
        assert!(self.unacked.len() <= 1 || bytes <= window, "more bytes in flight than the window");
        if self.session.closing().is_none() {
            assert_eq!(self.session.unacked(), (self.unacked.len(), bytes), "un-acked");
        }
        let (items, held) = self.session.held();
        assert!(items <= items_max.max(1) && held <= window + crate::SLOT_COST_MAX, "held beyond the window");
        // The window grows only with acks, and only so far.
        let first = self.config.window_bytes_first as usize;
        assert!(
            window <= self.config.limits.window_bytes_max as usize && window <= first + self.acked_bytes,
            "grew"
        );
        counters.window_full += u64::from(self.unacked.len() >= items_max || bytes >= window);
        counters.window_grown += u64::from(window > first);
    }

    /// How long the client was silent.
    pub(crate) fn silent(&self, now: Time) -> Millis {
        now - self.last_frame
    }
}
