//! The shell around [`Receiver`]: what the application holds, in items and bytes. **Invariant:** an envelope is in the
//! application's hands at most once; nothing is taken from the socket that finds no room here.

use crate::builder::Tuning;
use crate::event::{Envelope, Event};
use chappe_protocol::frame::{Cursor, Deliver, TruncatedReason, Welcome};
use chappe_protocol::id::{EnvelopeId, Seq};
use chappe_protocol::receiver::{Received, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};

/// Ids of acked envelopes that are remembered, so that a restored or repaired log repeats nothing.
pub(crate) const SEEN_MAX: usize = Receiver::SEEN_MAX;

/// Bytes an envelope counts beyond its payload.
const FLAT_BYTES: usize = 256;

/// The driver's side.
pub(crate) struct Inbox {
    shared: Arc<Shared>,
    events: mpsc::Sender<Queued>,
    items_max: usize,
    bytes_max: usize,
}

struct Shared {
    book: Mutex<Book>,
    wake: Notify,
}

#[derive(Default)]
struct Book {
    receiver: Receiver,
    /// In the application's hands.
    bytes: usize,
    /// Ids that were acked since the last `take_progress`; at most as many as are remembered.
    fresh: Vec<EnvelopeId>,
}

/// The server broke the chain: what it sent does not join on to what is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server skipped envelopes")]
pub(crate) struct ChainBroken;

/// What has moved since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// To be persisted; `None` before the first Welcome.
    pub(crate) cursor: Option<Cursor>,
    /// Ids to be remembered with it.
    pub(crate) fresh: Vec<EnvelopeId>,
    /// The ack that may be sent once the rest is durable. Taken in the same look: what the application acks later is
    /// not covered by it.
    pub(crate) ack: Option<Seq>,
}

/// An event in the queue.
pub(crate) struct Queued {
    event: Event,
    shared: Arc<Shared>,
}

impl Queued {
    /// Hands the event out.
    pub(crate) fn take(self) -> Event {
        self.shared.wake.notify_one();
        self.event
    }
}

/// The right to ack one envelope.
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    seq: Seq,
    id: EnvelopeId,
    bytes: usize,
    done: bool,
}

impl Ticket {
    pub(crate) fn ack(mut self) {
        self.settle(true);
    }

    fn settle(&mut self, acked: bool) {
        self.done = true;
        let mut book = self.shared.lock();
        book.bytes = book.bytes.saturating_sub(self.bytes);
        if acked {
            book.receiver.app_acked(self.seq, self.id);
            if book.fresh.len() < SEEN_MAX {
                book.fresh.push(self.id);
            }
        } else {
            book.receiver.app_dropped(self.seq, self.id);
        }
        drop(book);
        self.shared.wake.notify_one();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.settle(false);
        }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket").field("seq", &self.seq).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    pub(crate) fn new(tuning: &Tuning) -> (Self, mpsc::Receiver<Queued>) {
        let shared = Arc::new(Shared { book: Mutex::default(), wake: Notify::new() });
        let (events, out) = mpsc::channel(tuning.inbox_items_max.saturating_add(64).min(1 << 20));
        let inbox =
            Self { shared, events, items_max: tuning.inbox_items_max, bytes_max: tuning.inbox_bytes_max };
        (inbox, out)
    }

    /// What an earlier process left.
    pub(crate) fn restore(&self, cursor: Option<Cursor>, seen: Vec<EnvelopeId>) {
        self.shared.lock().receiver = Receiver::restore(cursor, seen);
    }

    /// A connection begins.
    pub(crate) fn begin(&self, welcome: &Welcome) {
        self.shared.lock().receiver.on_welcome(welcome.from, welcome.tag);
    }

    /// Whether the next frame may be taken: its envelope would find room.
    pub(crate) fn has_room(&self) -> bool {
        let book = self.shared.lock();
        book.receiver.open() < self.items_max && book.bytes < self.bytes_max && self.events.capacity() > 0
    }

    /// Whether the server waits for an ack.
    pub(crate) fn is_owing(&self) -> bool {
        self.shared.lock().receiver.open() > 0
    }

    /// Resolves when an ack came or room was made.
    pub(crate) async fn changed(&self) {
        self.shared.wake.notified().await;
    }

    pub(crate) fn on_deliver(&self, deliver: Deliver) -> Result<(), ChainBroken> {
        let bytes = deliver.payload.len() + FLAT_BYTES;
        let mut book = self.shared.lock();
        match book.receiver.on_deliver(&deliver) {
            Received::Take => book.bytes += bytes,
            Received::AlreadyHave => {
                // The application acks nothing here, and the server waits for an ack all the same.
                drop(book);
                self.shared.wake.notify_one();
                return Ok(());
            }
            Received::Broken => return Err(ChainBroken),
        }
        drop(book);
        let (seq, id) = (deliver.seq, deliver.envelope_id);
        self.put(Event::Envelope(Envelope {
            id,
            seq,
            sender: deliver.sender,
            at: deliver.at,
            expires_at: deliver.expires_at,
            urgency: deliver.urgency,
            payload: deliver.payload,
            ticket: Ticket { shared: self.shared.clone(), seq, id, bytes, done: false },
        }));
        Ok(())
    }

    pub(crate) fn on_truncated(&self, from: Seq, to: Seq, why: TruncatedReason) -> Result<(), ChainBroken> {
        let received = self.shared.lock().receiver.on_truncated(to, why);
        match received {
            Received::Take => self.put(Event::Truncated { from, to, why }),
            Received::AlreadyHave => {}
            Received::Broken => return Err(ChainBroken),
        }
        // The notice itself needs no ack of the application; the server gets one.
        self.shared.wake.notify_one();
        Ok(())
    }

    /// `BacklogEnd` and `Pong` tell a position too.
    pub(crate) fn on_upto(&self, upto: Seq) {
        self.shared.lock().receiver.on_upto(upto);
    }

    /// Queues an event without a ticket. `has_room` was asked before its frame was taken, and a frame makes one event at
    /// most. If the application has dropped its end, the event drops here and a ticket in it says so.
    pub(crate) fn put(&self, event: Event) {
        let _ = self.events.try_send(Queued { event, shared: self.shared.clone() });
    }

    /// What has moved, for the disk, and then for the server.
    pub(crate) fn take_progress(&self) -> Progress {
        let mut book = self.shared.lock();
        let ack = book.receiver.poll_ack();
        Progress { cursor: book.receiver.cursor(), fresh: std::mem::take(&mut book.fresh), ack }
    }

    /// For the compaction of the disk.
    pub(crate) fn seen(&self) -> Vec<EnvelopeId> {
        self.shared.lock().receiver.seen().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_protocol::envelope::Urgency;
    use chappe_protocol::id::{ConnectionId, CursorTag, Epoch};
    use chappe_protocol::time::UnixMillis;

    #[test]
    fn an_ack_covers_nothing_that_was_acked_after_the_look_for_the_disk() {
        let (inbox, mut events) = Inbox::new(&Tuning::default());
        inbox.begin(&Welcome {
            session: ConnectionId([1; 16]),
            epoch: Epoch(1),
            from: Seq(0),
            tag: CursorTag([7; 16]),
            resume_token: bytes::Bytes::new(),
            limits: chappe_protocol::frame::Limits::default(),
            resumed: false,
            server_time: UnixMillis(1),
        });
        let mut envelopes = Vec::new();
        for seq in 1..=2_u64 {
            let deliver = Deliver {
                seq: Seq(seq),
                prev: Seq(seq - 1),
                envelope_id: EnvelopeId(u128::from(seq).to_be_bytes()),
                sender: None,
                at: UnixMillis(1),
                expires_at: UnixMillis(2),
                payload: bytes::Bytes::new(),
                urgency: Urgency::Message,
            };
            inbox.on_deliver(deliver).unwrap();
            let Event::Envelope(envelope) = events.try_recv().unwrap().take() else { panic!("no envelope") };
            envelopes.push(envelope);
        }
        let second = envelopes.pop().unwrap();
        envelopes.pop().unwrap().ack();
        let progress = inbox.take_progress();
        // Another thread of the application, while the disk is busy.
        second.ack();
        assert_eq!(progress.ack, Some(Seq(1)));
        assert_eq!(progress.cursor.map(|cursor| cursor.seq), Some(Seq(1)));
        assert_eq!(progress.fresh.len(), 1);
        let progress = inbox.take_progress();
        assert_eq!((progress.ack, progress.fresh.len()), (Some(Seq(2)), 1));
    }
}
