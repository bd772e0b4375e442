//! The device's side of a delivery as a value: what it has, what the app still holds, what may be acked.
//! **Invariant:** the cursor passes no envelope that the app has not acked, and never goes back under one tag;
//! an envelope that the app has acked is never given to it again (among the last [`Receiver::SEEN_MAX`]).
//!
//! The SDK calls `on_*` with each frame of the connection, gives the app what [`Received::Take`] says, and reports back with
//! [`Receiver::app_acked`] or [`Receiver::app_dropped`]. Before it sends what [`Receiver::poll_ack`] returns it makes
//! [`Receiver::cursor`] and [`Receiver::seen`] durable.

use crate::frame::{Cursor, Deliver, TruncatedReason};
use crate::id::{CursorTag, EnvelopeId, Seq};
use alloc::collections::{BTreeSet, VecDeque};

/// What to do with something that was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// New: give it to the app.
    Take,
    /// The app has it, or had it: nothing to do.
    AlreadyHave,
    /// It does not join on to what came before, or more is open than any window allows: connect again.
    Broken,
}

/// How an open envelope stands with the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// The app has it and has not acked it.
    Held,
    /// The app let go of it without an ack: it is delivered again after the next connect.
    Dropped,
    /// Acked, but something before it is not.
    Acked,
}

/// An envelope behind the cursor.
#[derive(Debug, Clone, Copy)]
struct Open {
    seq: Seq,
    envelope_id: EnvelopeId,
    hold: Hold,
}

/// The receiving half of one device. Bounded: [`Receiver::OPEN_MAX`] open envelopes and [`Receiver::SEEN_MAX`] ids.
#[derive(Debug, Clone, Default)]
pub struct Receiver {
    /// Of the mailbox and store incarnation; `None` before the first Welcome.
    tag: Option<CursorTag>,
    /// The position that this connection has told.
    have: Seq,
    /// Everything up to here was acked by the app or is not for this device.
    cursor: Seq,
    /// Delivered and behind the cursor, in seq order.
    open: VecDeque<Open>,
    /// The last ack of this connection, or where it started.
    ack_sent: Seq,
    /// The last thing this connection delivered: the server waits until it is acked.
    owed: Seq,
    /// Ids that the app has acked, oldest first, and the same for looking up.
    seen: VecDeque<EnvelopeId>,
    seen_ids: BTreeSet<EnvelopeId>,
}

impl Receiver {
    /// How many acked ids are remembered.
    pub const SEEN_MAX: usize = 4096;
    /// How many envelopes may be open at once; more than any window, so only a broken server gets there.
    pub const OPEN_MAX: usize = 4096;

    /// A device that has nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A device that starts again with what it had made durable: its cursor, and ids oldest first.
    pub fn restore(cursor: Option<Cursor>, seen: impl IntoIterator<Item = EnvelopeId>) -> Self {
        let mut receiver = Self::new();
        if let Some(Cursor { tag, seq }) = cursor {
            receiver.tag = Some(tag);
            receiver.cursor = seq;
            receiver.have = seq;
        }
        for id in seen {
            receiver.remember(id);
        }
        receiver
    }

    /// For the next Hello, and to be made durable before an ack is sent. `None` before the first Welcome.
    pub fn cursor(&self) -> Option<Cursor> {
        self.tag.map(|tag| Cursor { tag, seq: self.cursor })
    }

    /// The ids that the app has acked, oldest first; to be made durable with the cursor.
    pub fn seen(&self) -> impl Iterator<Item = EnvelopeId> + '_ {
        self.seen.iter().copied()
    }

    /// Envelopes that the app has not acked, or has acked before an earlier one.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// A connection begins: delivery starts after `from`. A tag other than the last one means another log, in which our
    /// places mean nothing; ids still do. What the app holds it goes on holding.
    pub fn on_welcome(&mut self, from: Seq, tag: CursorTag) {
        if self.tag.is_some_and(|old| old != tag) {
            self.open.clear();
            self.cursor = from;
        }
        if self.tag.is_none() {
            self.cursor = from;
        }
        self.tag = Some(tag);
        self.have = from;
        self.ack_sent = from;
        self.owed = from;
        // What the app let go of comes again: `have` lies before it, so the cursor cannot pass it meanwhile.
        self.open.retain(|open| open.hold != Hold::Dropped);
        self.settle();
    }

    /// An envelope came.
    pub fn on_deliver(&mut self, deliver: &Deliver) -> Received {
        if deliver.seq <= self.have {
            return Received::AlreadyHave;
        }
        let place = self.open.binary_search_by_key(&deliver.seq, |open| open.seq);
        let full = place.is_err() && self.open.len() >= Self::OPEN_MAX;
        if deliver.prev > self.have || full {
            return Received::Broken;
        }
        self.have = deliver.seq;
        self.owed = deliver.seq;
        let id = deliver.envelope_id;
        // The same id in another place is the same envelope: its first place keeps the cursor back until the app acks.
        let known = self.seen_ids.contains(&id) || self.open.iter().any(|open| open.envelope_id == id);
        let settled = deliver.seq <= self.cursor;
        if let (Err(at), false) = (place, settled) {
            let hold = if known { Hold::Acked } else { Hold::Held };
            self.open.insert(at, Open { seq: deliver.seq, envelope_id: id, hold });
        }
        self.settle();
        if settled || known || place.is_ok() { Received::AlreadyHave } else { Received::Take }
    }

    /// Slots up to `to` cannot be delivered any more. [`Received::Take`]: tell the app. It needs no ack of the app.
    pub fn on_truncated(&mut self, to: Seq, why: TruncatedReason) -> Received {
        let news = to > self.have && to > self.cursor;
        self.owed = self.owed.max(to);
        self.on_upto(to);
        if news || why == TruncatedReason::ForeignCursor { Received::Take } else { Received::AlreadyHave }
    }

    /// The `upto` of a `BacklogEnd` or a `Pong`: nothing up to here is still to come on this connection.
    /// It moves the position, and the cursor only past what the app has acked.
    pub fn on_upto(&mut self, upto: Seq) {
        self.have = self.have.max(upto);
        self.settle();
    }

    /// The app has taken the envelope of slot `seq`, for good. Late, repeated and out of order is all right.
    pub fn app_acked(&mut self, seq: Seq, envelope_id: EnvelopeId) {
        self.remember(envelope_id);
        if let Some(open) = self.find(seq, envelope_id) {
            open.hold = Hold::Acked;
        }
        self.settle();
    }

    /// The app let go of the envelope without an ack: after the next connect it is given to it again.
    pub fn app_dropped(&mut self, seq: Seq, envelope_id: EnvelopeId) {
        if let Some(open) = self.find(seq, envelope_id).filter(|open| open.hold == Hold::Held) {
            open.hold = Hold::Dropped;
        }
    }

    /// The ack to send now, if the server waits for one: never beyond what this connection has told.
    pub fn poll_ack(&mut self) -> Option<Seq> {
        let upto = self.cursor.min(self.have);
        if upto <= self.ack_sent || self.ack_sent >= self.owed {
            return None;
        }
        self.ack_sent = upto;
        Some(upto)
    }

    fn find(&mut self, seq: Seq, envelope_id: EnvelopeId) -> Option<&mut Open> {
        let at = self.open.binary_search_by_key(&seq, |open| open.seq).ok()?;
        self.open.get_mut(at).filter(|open| open.envelope_id == envelope_id)
    }

    /// Moves the cursor up to the first envelope that the app has not acked, but not beyond what was told:
    /// there may be something in between that is still to come again.
    fn settle(&mut self) {
        let have = self.have;
        while self.open.pop_front_if(|open| open.hold == Hold::Acked && open.seq <= have).is_some() {}
        let free = self.open.front().map_or(have, |open| Seq(open.seq.0.saturating_sub(1)).min(have));
        self.cursor = self.cursor.max(free);
        if self.open.is_empty() {
            self.open = VecDeque::new();
        }
    }

    fn remember(&mut self, id: EnvelopeId) {
        if !self.seen_ids.insert(id) {
            return;
        }
        self.seen.push_back(id);
        if self.seen.len() > Self::SEEN_MAX
            && let Some(oldest) = self.seen.pop_front()
        {
            self.seen_ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Urgency;
    use crate::time::UnixMillis;

    const TAG: CursorTag = CursorTag([7; 16]);

    fn id(seq: u64) -> EnvelopeId {
        EnvelopeId(u128::from(seq).to_be_bytes())
    }

    fn deliver(seq: u64, prev: u64) -> Deliver {
        Deliver {
            seq: Seq(seq),
            prev: Seq(prev),
            envelope_id: id(seq),
            sender: None,
            at: UnixMillis(0),
            expires_at: UnixMillis(0),
            payload: bytes::Bytes::new(),
            urgency: Urgency::Message,
        }
    }

    #[test]
    fn a_delivery_that_does_not_join_on_breaks_the_connection() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(4), TAG);
        assert_eq!(receiver.on_deliver(&deliver(5, 4)), Received::Take);
        assert_eq!(receiver.on_deliver(&deliver(5, 4)), Received::AlreadyHave);
        assert_eq!(receiver.on_deliver(&deliver(8, 6)), Received::Broken);
        receiver.on_upto(Seq(6));
        assert_eq!(receiver.on_deliver(&deliver(8, 6)), Received::Take);
        // Nothing was acked by the app: nothing may be acked to the server.
        assert_eq!(receiver.poll_ack(), None);
    }

    #[test]
    fn a_chain_may_begin_before_what_is_here_and_what_comes_late_again_takes_nothing_back() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        assert_eq!(receiver.on_deliver(&deliver(1, 0)), Received::Take);
        assert_eq!(receiver.on_deliver(&deliver(4, 0)), Received::Take, "prev < have < seq");
        assert_eq!(receiver.on_deliver(&deliver(1, 0)), Received::AlreadyHave);
        assert_eq!(receiver.on_deliver(&deliver(5, 4)), Received::Take, "the position is still 4");
    }

    #[test]
    fn an_envelope_in_a_second_place_is_not_given_twice_and_keeps_no_cursor_back() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        assert_eq!(receiver.on_deliver(&deliver(1, 0)), Received::Take);
        let again = Deliver { envelope_id: id(1), ..deliver(2, 1) };
        assert_eq!(receiver.on_deliver(&again), Received::AlreadyHave, "the app holds it");
        receiver.app_acked(Seq(1), id(1));
        assert_eq!(receiver.poll_ack(), Some(Seq(2)));
        let again = Deliver { envelope_id: id(1), ..deliver(3, 2) };
        assert_eq!(receiver.on_deliver(&again), Received::AlreadyHave, "the app has acked it");
        assert_eq!(receiver.poll_ack(), Some(Seq(3)));
    }

    #[test]
    fn what_is_gone_is_told_once_and_a_foreign_cursor_always() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        assert_eq!(receiver.on_truncated(Seq(5), TruncatedReason::Expired), Received::Take);
        assert_eq!(receiver.on_truncated(Seq(5), TruncatedReason::Expired), Received::AlreadyHave);
        assert_eq!(receiver.on_truncated(Seq(0), TruncatedReason::ForeignCursor), Received::Take);
        assert_eq!(receiver.poll_ack(), Some(Seq(5)));
    }

    #[test]
    fn in_another_log_nothing_of_the_old_one_counts_but_ids() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        assert_eq!(receiver.on_deliver(&deliver(1, 0)), Received::Take);
        receiver.on_welcome(Seq(0), CursorTag([8; 16]));
        let other = Deliver { envelope_id: id(9), ..deliver(1, 0) };
        assert_eq!(receiver.on_deliver(&other), Received::Take, "another envelope in the same place");
        receiver.app_acked(Seq(1), id(1));
        assert_eq!(receiver.poll_ack(), None, "the app has not acked this one");
        receiver.app_acked(Seq(1), id(9));
        assert_eq!(receiver.poll_ack(), Some(Seq(1)));
    }

    #[test]
    fn what_the_cursor_has_passed_is_not_given_again_though_its_id_is_forgotten() {
        let mut receiver = Receiver::restore(Some(Cursor { tag: TAG, seq: Seq(5) }), []);
        receiver.on_welcome(Seq(3), TAG);
        assert_eq!(receiver.on_deliver(&deliver(4, 3)), Received::AlreadyHave);
        assert_eq!(receiver.cursor(), Some(Cursor { tag: TAG, seq: Seq(5) }));
        assert_eq!(receiver.poll_ack(), Some(Seq(4)));
    }

    #[test]
    fn a_drop_after_the_ack_changes_nothing_and_a_position_alone_asks_for_no_ack() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        receiver.on_upto(Seq(3));
        assert_eq!(receiver.poll_ack(), None, "the server waits for none");
        for seq in 4..=5 {
            assert_eq!(receiver.on_deliver(&deliver(seq, seq - 1)), Received::Take);
        }
        receiver.app_acked(Seq(5), id(5));
        receiver.app_dropped(Seq(5), id(5));
        receiver.app_acked(Seq(4), id(4));
        assert_eq!(receiver.poll_ack(), Some(Seq(5)));
    }

    #[test]
    fn acks_are_contiguous_and_never_beyond_what_this_connection_told() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        for seq in 1..=3 {
            assert_eq!(receiver.on_deliver(&deliver(seq, seq - 1)), Received::Take);
        }
        receiver.app_acked(Seq(2), id(2));
        assert_eq!(receiver.poll_ack(), None);
        receiver.app_acked(Seq(1), id(1));
        assert_eq!((receiver.poll_ack(), receiver.poll_ack()), (Some(Seq(2)), None));
        // A new connection that starts where the Hello said, before the last ack of the app.
        receiver.app_acked(Seq(3), id(3));
        receiver.on_welcome(Seq(1), TAG);
        assert_eq!(receiver.poll_ack(), None);
        assert_eq!(receiver.on_deliver(&deliver(2, 1)), Received::AlreadyHave);
        assert_eq!(receiver.poll_ack(), Some(Seq(2)));
        assert_eq!(receiver.cursor(), Some(Cursor { tag: TAG, seq: Seq(3) }));
    }

    #[test]
    fn the_memory_of_ids_is_bounded_and_survives_a_restart() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        let count = Receiver::SEEN_MAX as u64 + 10;
        for seq in 1..=count {
            assert_eq!(receiver.on_deliver(&deliver(seq, seq - 1)), Received::Take);
            receiver.app_acked(Seq(seq), id(seq));
        }
        assert_eq!(receiver.seen().count(), Receiver::SEEN_MAX);
        assert_eq!(receiver.seen_ids.len(), Receiver::SEEN_MAX);
        // The ids were durable, the cursor was not.
        let mut again = Receiver::restore(Some(Cursor { tag: TAG, seq: Seq(count - 1) }), receiver.seen());
        again.on_welcome(Seq(count - 1), TAG);
        assert_eq!(again.on_deliver(&deliver(count, count - 1)), Received::AlreadyHave);
        assert_eq!(again.poll_ack(), Some(Seq(count)));
    }

    #[test]
    fn more_open_envelopes_than_any_window_break_the_connection() {
        let mut receiver = Receiver::new();
        receiver.on_welcome(Seq(0), TAG);
        let max = Receiver::OPEN_MAX as u64;
        for seq in 1..=max {
            assert_eq!(receiver.on_deliver(&deliver(seq, seq - 1)), Received::Take);
        }
        assert_eq!(receiver.on_deliver(&deliver(max + 1, max)), Received::Broken);
    }
}
