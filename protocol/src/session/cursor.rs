//! When the cursor is written. **Invariant:** one write is out at a time, none lower than one before it, and a cursor
//! that has moved is written within `advance_every` of the move or of the write before it.

use crate::id::Seq;
use crate::time::{Millis, Time};

/// Batches the writes of one device's cursor.
#[derive(Debug, Clone)]
pub(super) struct CursorWrites {
    /// As stored for certain.
    stored: Seq,
    /// The write that is out.
    out: Option<Seq>,
    /// When the next write is due.
    due: Option<Time>,
    /// Do not wait for `due`.
    hurry: bool,
}

impl CursorWrites {
    pub(super) fn new(stored: Seq) -> Self {
        Self { stored, out: None, due: None, hurry: false }
    }

    pub(super) fn stored(&self) -> Seq {
        self.stored
    }

    /// Whether `cursor` is stored and nothing is out.
    pub(super) fn is_settled(&self, cursor: Seq) -> bool {
        self.out.is_none() && cursor <= self.stored
    }

    /// The cursor may have moved.
    pub(super) fn touch(&mut self, now: Time, cursor: Seq, every: Millis) {
        if self.due.is_none() && self.news(cursor) {
            self.due = Some(now + every);
        }
    }

    /// Write as soon as may be.
    pub(super) fn hurry(&mut self, cursor: Seq) {
        self.hurry |= self.news(cursor);
    }

    /// The write to do now.
    pub(super) fn poll(&mut self, now: Time, cursor: Seq) -> Option<Seq> {
        let due = self.hurry || self.due.is_some_and(|due| due <= now);
        if self.out.is_some() || !due || cursor <= self.stored {
            return None;
        }
        self.out = Some(cursor);
        self.due = None;
        self.hurry = false;
        self.out
    }

    /// The write that is out is durable.
    pub(super) fn done(&mut self) {
        if let Some(seq) = self.out.take() {
            self.stored = self.stored.max(seq);
        }
    }

    /// The write that is out failed; it is tried again when the next one would be due.
    pub(super) fn failed(&mut self) {
        self.out = None;
        self.due = None;
        self.hurry = false;
    }

    /// When to poll again.
    pub(super) fn timeout(&self) -> Option<Time> {
        if self.out.is_some() { None } else { self.due }
    }

    fn news(&self, cursor: Seq) -> bool {
        cursor > self.stored && self.out.is_none_or(|out| cursor > out)
    }
}
