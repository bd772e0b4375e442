//! What a pusher keeps in the store: how far devices were woken, the scan of the mailboxes that were noted, how far it has come.
//! **Invariant:** a scan of a shard names every note that was there when it began and whose minute has come, each once, in
//! (minute, mailbox) order.

use crate::error::{Result, StoreError};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::time::{Millis, UnixMillis};

/// Bytes of a device's sealed push targets.
pub const PUSH_BYTES_MAX: usize = 16 * 1024;
/// Mailboxes in a [`PendingPage`].
pub const PENDING_PAGE_MAX: usize = 4096;
/// How long a note is kept, in milliseconds.
pub(crate) const PENDING_MS: u64 = 24 * 3_600_000;
/// Notes are kept by the minute.
pub(crate) const MINUTE_MS: u64 = 60_000;
/// A watermark may lie so far ahead of the store's clock, since another process's clock may be a little ahead.
pub(crate) const AHEAD: Millis = Millis(MINUTE_MS);

/// How far a device was woken, how often, and when. Ordered by slot, then by attempt; of two with the same the later is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Woken {
    /// For slots up to this one; 1 to 2^59 - 1.
    pub seq: Seq,
    /// Which attempt it was; 0 to 15.
    pub attempt: u8,
    /// When it was given, by the store's clock as the pusher knows it; before 2^62.
    // Last, so that it decides between equals only.
    pub at: UnixMillis,
}

impl Woken {
    /// The last attempt that can be told apart.
    pub const ATTEMPT_MAX: u8 = 15;
    /// The first slot that is too large.
    const SEQ_END: u64 = 1 << 59;
    /// The first time that is too late to be one.
    const AT_END: u64 = 1 << 62;

    /// `seq` · 16 + `attempt`: as a timestamp it keeps the greatest, and fits 63 bits. Between two that share it `at` decides:
    /// databases keep the greater of two values with one timestamp. `Invalid` beyond its bounds.
    pub(crate) fn stamp(self) -> Result<u64> {
        if self.seq.0 == 0 || self.seq.0 >= Self::SEQ_END || self.attempt > Self::ATTEMPT_MAX {
            return Err(StoreError::Invalid("a wake is for slot 1 to 2^59 - 1, in attempt 0 to 15"));
        }
        if self.at.0 >= Self::AT_END {
            return Err(StoreError::Invalid("a wake was given before 2^62 ms"));
        }
        Ok(self.seq.0 * 16 + u64::from(self.attempt))
    }
}

/// A place among the notes of a shard: where a scan begins, or goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PendingFrom {
    minute: u64,
    /// Behind this one of the minute; `None`: from its first.
    after: Option<MailboxId>,
}

impl PendingFrom {
    /// Before every note of this time's minute.
    pub fn since(at: UnixMillis) -> Self {
        Self { minute: at.0 / MINUTE_MS, after: None }
    }

    /// Behind one note.
    pub(crate) fn behind((minute, mailbox): (u64, MailboxId)) -> Self {
        Self { minute, after: Some(mailbox) }
    }

    /// Before every note of a minute.
    pub(crate) fn minute_of(minute: u64) -> Self {
        Self { minute, after: None }
    }

    /// The first minute that is read.
    pub(crate) fn minute(self) -> u64 {
        self.minute
    }

    /// Behind which mailbox of that minute.
    pub(crate) fn after(self) -> Option<MailboxId> {
        self.after
    }

    /// Whether a note lies behind this place.
    pub(crate) fn precedes(self, (minute, mailbox): (u64, MailboxId)) -> bool {
        (self.minute, self.after) < (minute, Some(mailbox))
    }

    /// This place, but not among what is past its time.
    pub(crate) fn kept(self, now: UnixMillis) -> Self {
        self.max(Self::since(UnixMillis(now.0.saturating_sub(PENDING_MS))))
    }
}

/// The last minute that a scan reads: one more than the present one, since another process's clock may be a little ahead.
pub(crate) fn last_minute(now: UnixMillis) -> u64 {
    now.0 / MINUTE_MS + 1
}

/// Where a note for this time goes: into the present minute if it is past, at most 24 h ahead.
pub(crate) fn note_minute(at: UnixMillis, now: UnixMillis) -> u64 {
    at.clamp(now, now + Millis(PENDING_MS)).0 / MINUTE_MS
}

/// A part of a shard's notes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingPage {
    /// In (minute, mailbox) order: once for each minute in which it was noted, so across pages perhaps several times. May be
    /// empty though there is a `next`.
    pub mailboxes: Vec<MailboxId>,
    /// Where the scan goes on; `None`: this was all.
    pub next: Option<PendingFrom>,
    /// The store's clock at the start of this read.
    pub as_of: UnixMillis,
}

impl PendingPage {
    /// The first of these notes, which are in order, behind a place.
    pub(crate) fn cut(
        notes: impl Iterator<Item = (u64, MailboxId)>,
        from: PendingFrom,
        rows_max: usize,
        as_of: UnixMillis,
    ) -> Self {
        let (from, last) = (from.kept(as_of), last_minute(as_of));
        // Behind the last minute there may be a day of notes for later.
        let mut notes = notes.take_while(|note| note.0 <= last).filter(|note| from.precedes(*note));
        let page: Vec<_> = notes.by_ref().take(page_rows(rows_max)).collect();
        let more = notes.next().is_some();
        let next = page.last().copied().filter(|_| more).map(PendingFrom::behind);
        Self { mailboxes: page.into_iter().map(|(_, mailbox)| mailbox).collect(), next, as_of }
    }
}

/// How many mailboxes a page holds if a caller asks for so many.
pub(crate) fn page_rows(rows_max: usize) -> usize {
    rows_max.clamp(1, PENDING_PAGE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_is_a_timestamp_that_fits() {
        let woken = |seq, attempt| Woken { seq: Seq(seq), attempt, at: UnixMillis(5) }.stamp();
        assert_eq!((woken(1, 0), woken(3, 15)), (Ok(16), Ok(63)));
        assert_eq!(woken((1 << 59) - 1, 15), Ok(i64::MAX.unsigned_abs()));
        for (seq, attempt) in [(0, 1), (1 << 59, 0), (u64::MAX, 0), (1, 16)] {
            assert!(matches!(woken(seq, attempt), Err(StoreError::Invalid(_))), "{seq}, {attempt}");
        }
        assert!(woken(2, 0).unwrap() > woken(1, 15).unwrap() && woken(2, 1).unwrap() > woken(2, 0).unwrap());
        let late = |at| Woken { seq: Seq(1), attempt: 0, at: UnixMillis(at) }.stamp();
        assert_eq!(late((1 << 62) - 1), Ok(16));
        assert!(matches!(late(1 << 62), Err(StoreError::Invalid(_))));
    }

    #[test]
    fn a_note_is_for_a_minute_from_now_to_a_day_ahead() {
        let now = UnixMillis(10_000 * MINUTE_MS + 59_999);
        let minute = |at| note_minute(UnixMillis(at), now);
        assert_eq!((minute(0), minute(now.0), minute(now.0 + 1)), (10_000, 10_000, 10_001));
        let day = now.0 + PENDING_MS;
        assert_eq!((minute(day), minute(day + 1), minute(u64::MAX)), (11_440, 11_440, 11_440));
    }
}
