//! The server's side of a session as a value: events in by `on_*` and `handle_*`, work out by `poll_*`, time handed in.
//! **Invariant:** what is told to the device is told in slot order, without a gap that was not proven untargeted,
//! and the cursor never passes a targeted slot that the device did not ack.

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
    /// The window's bytes at first; it doubles with each window's worth of acks up to `limits.window_bytes_max`.
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
    /// Close the connection with this code, after the frames that are still to be polled.
    Close(CloseCode),
}

/// One session of one device.
#[derive(Debug, Clone)]
pub struct Session {
    config: Arc<SessionConfig>,
    start: Start,
}

impl Session {
    /// A session that was just welcomed.
    pub fn new(_now: Time, config: Arc<SessionConfig>, start: Start) -> Self {
        Self { config, start }
    }

    /// A doorbell: slot `seq` was committed; with the slot if it was small enough to ride along.
    pub fn on_doorbell(&mut self, _now: Time, _seq: Seq, _slot: Option<&Slot>) {}

    /// A probe, or a read for another session of the mailbox, has seen this head.
    pub fn on_head(&mut self, _now: Time, _head: Seq) {}

    /// A session of this device exists with this epoch and connection, or the device was revoked.
    pub fn on_device_news(&mut self, _now: Time, _news: &DeviceNews) {}

    /// The answer to [`Action::Read`].
    pub fn on_page(&mut self, _now: Time, _page: Page) {}

    /// [`Action::Read`] failed; it will be asked for again.
    pub fn on_read_failed(&mut self, _now: Time) {}

    /// [`Action::Advance`] is durable.
    pub fn on_advanced(&mut self, _now: Time) {}

    /// [`Action::Advance`] failed; it will be asked for again.
    pub fn on_advance_failed(&mut self, _now: Time) {}

    /// A frame of any kind came in (call before the frame's own handler).
    pub fn handle_frame(&mut self, _now: Time) {}

    /// The device acks. An ack beyond what was told asks for a close.
    pub fn handle_ack(&mut self, _now: Time, _upto: Seq) {}

    /// The device pings.
    pub fn handle_ping(&mut self, _now: Time, _nonce: u64) {}

    /// The time of [`Session::poll_timeout`] has come.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The next frame to write. The shell stops polling while the socket is full: nothing counts as told until it is polled.
    pub fn poll_frame(&mut self, _now: Time) -> Option<ServerFrame> {
        None
    }

    /// The next thing to do.
    pub fn poll_action(&mut self, _now: Time) -> Option<Action> {
        None
    }

    /// When to call [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// Everything up to here was acked by the device or does not target it.
    pub fn cursor(&self) -> Seq {
        self.start.from
    }

    /// The highest head this session has heard of.
    pub fn known_head(&self) -> Seq {
        self.start.head
    }

    /// The settings.
    pub fn config(&self) -> &SessionConfig {
        &self.config
    }
}
