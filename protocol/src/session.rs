//! The server's side of a session as a value: events in by `on_*` and `handle_*`, work out by `poll_*`, time handed in.
//! **Invariant:** what is told to the device is told in slot order, without a gap that was not proven untargeted,
//! and the cursor never passes a targeted slot that the device did not ack.

mod cursor;
mod delivery;
mod liveness;
mod reading;

use self::cursor::CursorWrites;
use self::delivery::{Delivery, Intake};
use self::liveness::Liveness;
use self::reading::Reading;
use crate::close::CloseCode;
use crate::envelope::{Page, Slot};
use crate::frame::{Limits, Role, ServerFrame};
use crate::id::{ConnectionId, DeviceId, Epoch, Seq};
use crate::internode::DeviceNews;
use crate::time::{Millis, Time};
use alloc::sync::Arc;

/// Settings that all sessions of a gateway share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionConfig {
    /// As told in Welcome; the window among them.
    pub limits: Limits,
    /// The window's bytes at first, counted in [`Slot::cost`]; they double with each window's worth of acks, up to
    /// `limits.window_bytes_max`. One envelope may always be in flight, however large.
    pub window_bytes_first: u32,
    /// Rows of one page.
    pub page_rows_max: usize,
    /// Bytes of one page.
    pub page_bytes_max: usize,
    /// Something un-acked and no frame of any kind for so long: close.
    pub ack_timeout: Millis,
    /// Cursors are written at most so late.
    pub advance_every: Millis,
    /// A failed read is tried again after this, doubling up to 16 times it.
    pub read_retry: Millis,
    /// A peek ends after so long.
    pub peek_max: Millis,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            window_bytes_first: 64 * 1024,
            page_rows_max: 64,
            page_bytes_max: 256 * 1024,
            ack_timeout: Millis::from_secs(20),
            advance_every: Millis::from_secs(5),
            read_retry: Millis(200),
            peek_max: Millis::from_secs(30),
        }
    }
}

/// What an attach or a resume found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Main or peek.
    pub role: Role,
    /// Who.
    pub device: DeviceId,
    /// The device's first cursor: slots up to it never target it.
    pub since: Seq,
    /// Delivery starts after this.
    pub from: Seq,
    /// The cursor as stored, at most `from`.
    pub stored: Seq,
    /// The mailbox's head at attach.
    pub head: Seq,
    /// This session's number.
    pub epoch: Epoch,
    /// Its socket.
    pub connection: ConnectionId,
    /// The client's cursor was of another incarnation: it is told so first.
    pub foreign_cursor: bool,
}

/// What the shell has to do for the session. At most one `Read` and one `Advance` are out at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the log; answer with `on_page` or `on_read_failed`.
    Read {
        /// Behind this slot.
        after: Seq,
        /// At most so many rows.
        rows_max: usize,
        /// At most so many bytes of [`Slot::cost`], but always one slot.
        bytes_max: usize,
    },
    /// Write the cursor; answer with `on_advanced` or `on_advance_failed`.
    Advance {
        /// The new cursor.
        upto: Seq,
    },
    /// Close the connection with this code. No frame is emitted after it was asked for; the shell sends what it had polled.
    Close(CloseCode),
}

/// One session of one device. Holds no heap memory while everything was acked.
#[derive(Debug, Clone)]
pub struct Session {
    config: Arc<SessionConfig>,
    device: DeviceId,
    since: Seq,
    epoch: Epoch,
    connection: ConnectionId,
    delivery: Delivery,
    reading: Reading,
    writes: CursorWrites,
    liveness: Liveness,
    pong: Option<u64>,
    closing: Option<CloseCode>,
    role: Role,
    close_polled: bool,
}

impl Session {
    /// A session that was just welcomed with `Welcome { from: start.from }`.
    pub fn new(now: Time, config: Arc<SessionConfig>, start: Start) -> Self {
        let window_bytes = config.window_bytes_first.min(config.limits.window_bytes_max);
        let foreign = start.foreign_cursor.then(|| start.since.next().min(start.from));
        let mut session = Self {
            config,
            device: start.device,
            since: start.since,
            epoch: start.epoch,
            connection: start.connection,
            delivery: Delivery::new(start.from, start.head, foreign, window_bytes),
            reading: Reading::default(),
            writes: CursorWrites::new(start.stored),
            liveness: Liveness::new(now),
            pong: None,
            closing: None,
            role: start.role,
            close_polled: false,
        };
        session.close_if_erased(start.head);
        session.touch(now);
        session
    }

    /// A doorbell: slot `seq` was committed; with the slot if it was small enough to ride along. A slot that is exactly the
    /// next one is taken at once if the window has room and no read is out (the read brings it); else it is read later.
    pub fn on_doorbell(&mut self, now: Time, seq: Seq, slot: Option<&Slot>) {
        if self.closing.is_some() {
            return;
        }
        if let Some(slot) = slot.filter(|slot| slot.seq == seq && !self.reading.is_out()) {
            self.delivery.take_rung(slot, &self.device, self.since, &self.config.limits);
        }
        self.on_head(now, seq);
    }

    /// A probe, or a read for another session of the mailbox, has seen this head. [`Seq::MAX`]: the user was erased.
    pub fn on_head(&mut self, now: Time, head: Seq) {
        self.close_if_erased(head);
        if self.closing.is_none() {
            self.delivery.raise_head(head);
            self.touch(now);
        }
    }

    /// A session of this device exists with this epoch and connection, or the device was revoked.
    /// A peek stands beside the main session: only a revocation ends it.
    pub fn on_device_news(&mut self, _now: Time, news: &DeviceNews) {
        if news.device != self.device {
            return;
        }
        if news.revoked {
            self.close(CloseCode::DeviceRevoked);
        } else if self.role == Role::Main && (news.epoch, news.connection) > (self.epoch, self.connection) {
            self.close(CloseCode::ConnectedElsewhere);
        }
    }

    /// The answer to [`Action::Read`]. Taken as far as it joins on; a page that brings nothing counts as a failed read.
    pub fn on_page(&mut self, now: Time, page: Page) {
        if self.closing.is_some() || !self.reading.is_out() {
            return;
        }
        match self.delivery.take_page(page, &self.device, self.since, &self.config.limits) {
            Intake::Progress => self.reading.done(),
            Intake::Nothing => self.reading.failed(now, self.config.read_retry),
        }
        self.close_if_erased(self.delivery.known_head());
        self.touch(now);
    }

    /// [`Action::Read`] failed; it will be asked for again.
    pub fn on_read_failed(&mut self, now: Time) {
        if self.reading.is_out() {
            self.reading.failed(now, self.config.read_retry);
        }
    }

    /// [`Action::Advance`] is durable.
    pub fn on_advanced(&mut self, now: Time) {
        self.writes.done();
        self.touch(now);
    }

    /// [`Action::Advance`] failed; it will be asked for again.
    pub fn on_advance_failed(&mut self, now: Time) {
        self.writes.failed();
        self.touch(now);
    }

    /// A frame of any kind came in (call before the frame's own handler).
    pub fn handle_frame(&mut self, now: Time) {
        self.liveness.frame(now);
    }

    /// The device acks. An ack beyond what was told asks for a close. A peek's acks count for nothing.
    pub fn handle_ack(&mut self, now: Time, upto: Seq) {
        if self.closing.is_some() || self.role == Role::Peek {
            return;
        }
        if upto > self.delivery.told() {
            self.close(CloseCode::AckBeyondDelivered);
            return;
        }
        let opened = self.delivery.ack(upto, &self.config.limits);
        if opened {
            self.writes.hurry(self.cursor());
        }
        self.liveness.owed(now, self.delivery.has_unacked());
        self.touch(now);
    }

    /// The device pings. Pings that were not answered yet are answered by one Pong, with the last nonce.
    pub fn handle_ping(&mut self, _now: Time, nonce: u64) {
        self.pong = Some(nonce);
    }

    /// The time of [`Session::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, now: Time) {
        let (at, why) = self.liveness.deadline(self.role, &self.config);
        if at <= now {
            self.close(why);
        }
        self.reading.handle_timeout(now);
    }

    /// The gateway drains or the connection ends: the cursor is to be written now, not within `advance_every`.
    pub fn flush(&mut self) {
        self.writes.hurry(self.cursor());
    }

    /// The next frame to write. The shell stops polling while the socket is full: nothing counts as told until it is polled.
    pub fn poll_frame(&mut self, now: Time) -> Option<ServerFrame> {
        if self.closing.is_some() {
            return None;
        }
        if let Some(frame) = self.delivery.poll_foreign() {
            return Some(frame);
        }
        if let Some(frame) = self.delivery.poll_backlog_end() {
            if self.role == Role::Peek {
                self.close(CloseCode::PeekEnded);
            }
            return Some(frame);
        }
        if let Some(nonce) = self.pong.take() {
            return Some(ServerFrame::Pong { nonce, upto: self.delivery.tell_position() });
        }
        let frame = self.delivery.poll_item(self.role, &self.config.limits);
        self.liveness.owed(now, self.delivery.has_unacked());
        frame
    }

    /// The next thing to do.
    pub fn poll_action(&mut self, now: Time) -> Option<Action> {
        if let Some(code) = self.closing {
            // What the device has acked is written before the connection goes, so that little is delivered again.
            if let Some(upto) = self.writes.poll(now, self.cursor()) {
                return Some(Action::Advance { upto });
            }
            let first = !core::mem::replace(&mut self.close_polled, true);
            return first.then_some(Action::Close(code));
        }
        if self.reading.may_start(now)
            && let Some((rows, bytes)) = self.delivery.wanted(&self.config.limits)
        {
            self.reading.start();
            return Some(Action::Read {
                after: self.delivery.walked(),
                rows_max: rows.min(self.config.page_rows_max).max(1),
                bytes_max: bytes.min(self.config.page_bytes_max).max(1),
            });
        }
        self.writes.poll(now, self.cursor()).map(|upto| Action::Advance { upto })
    }

    /// When to call [`Session::handle_timeout`], and then to poll again. `None` once a close was asked for.
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.closing.is_some() {
            return None;
        }
        let (silence, _) = self.liveness.deadline(self.role, &self.config);
        [self.reading.timeout(), self.writes.timeout()].into_iter().flatten().chain([silence]).min()
    }

    /// Everything up to here was acked by the device or does not target it. A peek's stays as stored.
    pub fn cursor(&self) -> Seq {
        match self.role {
            Role::Main => self.delivery.cursor(),
            Role::Peek => self.writes.stored(),
        }
    }

    /// The highest head this session has heard of.
    pub fn known_head(&self) -> Seq {
        self.delivery.known_head()
    }

    /// The position last told on this connection: an ack beyond it is refused.
    pub fn told(&self) -> Seq {
        self.delivery.told()
    }

    /// Items and bytes ([`Slot::cost`]) that were told and not acked: at most the window, or one envelope.
    pub fn unacked(&self) -> (usize, usize) {
        self.delivery.unacked()
    }

    /// Items and bytes held in memory: un-acked or waiting to be told. At most the window and one slot.
    pub fn held(&self) -> (usize, usize) {
        self.delivery.held()
    }

    /// The window's bytes at present.
    pub fn window_bytes(&self) -> u32 {
        self.delivery.window_bytes()
    }

    /// Everything that is known of was told, acked and stored; nothing is out.
    pub fn is_idle(&self) -> bool {
        let walked = self.delivery.walked() >= self.known_head() && !self.reading.is_out();
        walked && self.held().0 == 0 && self.pong.is_none() && self.writes.is_settled(self.cursor())
    }

    /// Why the session asks for a close, once it does.
    pub fn closing(&self) -> Option<CloseCode> {
        self.closing
    }

    /// The settings.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }

    /// The first reason stays.
    fn close(&mut self, code: CloseCode) {
        if self.closing.is_none() {
            self.closing = Some(code);
            self.flush();
        }
    }

    fn close_if_erased(&mut self, head: Seq) {
        if head == Seq::MAX {
            self.close(CloseCode::UserErased);
        }
    }

    fn touch(&mut self, now: Time) {
        self.writes.touch(now, self.cursor(), self.config.advance_every);
    }
}

#[cfg(test)]
mod tests;
