//! What was delivered, what the application still holds, and how far the cursor may move.
//! **Invariant:** the cursor never passes an envelope that the application has not acked; an envelope is in the
//! application's hands at most once.

use crate::builder::Tuning;
use crate::event::{Envelope, Event};
use chappe_protocol::frame::{Cursor, Deliver, TruncatedReason, Welcome};
use chappe_protocol::id::{CursorTag, EnvelopeId, Seq};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};

/// Ids of acked envelopes that are remembered, so that a restored or repaired log repeats nothing.
pub(crate) const SEEN_MAX: usize = 4096;

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
    /// Grows with each change of the tag: a ticket of an older log acks nothing.
    generation: u64,
    tag: Option<CursorTag>,
    /// The position last told on this connection.
    have: Seq,
    /// Everything up to here is acked by the application or not for this device.
    cursor: Seq,
    /// The last acked slot below the cursor: what the server may be told.
    acked: Seq,
    acked_count: u64,
    items: BTreeMap<Seq, Item>,
    bytes: usize,
    seen: BTreeSet<EnvelopeId>,
    seen_order: VecDeque<EnvelopeId>,
    /// Ids that were acked since the last call of `take_progress`.
    fresh: Vec<EnvelopeId>,
}

struct Item {
    /// The position told before it.
    before: Seq,
    id: Option<EnvelopeId>,
    bytes: usize,
    hold: Hold,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Hold {
    Held,
    Acked,
    Dropped,
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
    /// To be told to the server after it is persisted.
    pub(crate) ack: Seq,
    /// Ids to be remembered with it.
    pub(crate) fresh: Vec<EnvelopeId>,
}

/// An event in the queue.
pub(crate) struct Queued {
    event: Event,
    /// Truncated slots are acked when the application takes the notice.
    ticket: Option<Ticket>,
    shared: Arc<Shared>,
}

impl Queued {
    /// Hands the event out.
    pub(crate) fn take(self) -> Event {
        if let Some(ticket) = self.ticket {
            ticket.ack();
        }
        self.shared.wake.notify_one();
        self.event
    }
}

/// The right to ack one delivered thing.
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    generation: u64,
    seq: Seq,
    done: bool,
}

impl Ticket {
    pub(crate) fn ack(mut self) {
        self.settle(Hold::Acked);
    }

    fn settle(&mut self, hold: Hold) {
        self.done = true;
        let mut book = self.shared.lock();
        if book.generation == self.generation {
            book.settle(self.seq, hold);
        }
        drop(book);
        self.shared.wake.notify_one();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.done {
            self.settle(Hold::Dropped);
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
        let mut book = self.shared.lock();
        if let Some(cursor) = cursor {
            book.tag = Some(cursor.tag);
            book.cursor = cursor.seq;
            book.acked = cursor.seq;
        }
        for id in seen {
            book.remember(id);
        }
    }

    /// For Hello.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        let book = self.shared.lock();
        book.tag.map(|tag| Cursor { tag, seq: book.cursor })
    }

    /// A connection begins.
    pub(crate) fn begin(&self, welcome: &Welcome) {
        self.shared.lock().begin(welcome);
    }

    /// Whether the next frame may be taken: its envelope would find room.
    pub(crate) fn has_room(&self) -> bool {
        let book = self.shared.lock();
        book.items.len() < self.items_max && book.bytes < self.bytes_max && self.events.capacity() > 0
    }

    /// Resolves when an ack came or room was made.
    pub(crate) async fn changed(&self) {
        self.shared.wake.notified().await;
    }

    pub(crate) fn on_deliver(&self, deliver: Deliver) -> Result<(), ChainBroken> {
        let mut book = self.shared.lock();
        let fresh = book.deliver(&deliver)?;
        let generation = book.generation;
        drop(book);
        if fresh {
            let ticket = self.ticket(generation, deliver.seq);
            let envelope = Envelope {
                id: deliver.envelope_id,
                seq: deliver.seq,
                sender: deliver.sender,
                at: deliver.at,
                expires_at: deliver.expires_at,
                urgency: deliver.urgency,
                payload: deliver.payload,
                ticket,
            };
            self.put(Event::Envelope(envelope), None);
        }
        Ok(())
    }

    pub(crate) fn on_truncated(&self, from: Seq, to: Seq, why: TruncatedReason) {
        let mut book = self.shared.lock();
        let ticket = book.truncated(to).then_some((book.generation, to));
        drop(book);
        let ticket = ticket.map(|(generation, seq)| self.ticket(generation, seq));
        self.put(Event::Truncated { from, to, why }, ticket);
    }

    /// BacklogEnd and Pong tell a position too.
    pub(crate) fn on_upto(&self, upto: Seq) {
        self.shared.lock().pass(upto);
    }

    /// An event without a slot; dropped if the application does not keep up.
    pub(crate) fn put_loose(&self, event: Event) {
        self.put(event, None);
    }

    /// What has moved, for the disk and the server.
    pub(crate) fn take_progress(&self) -> Progress {
        let mut book = self.shared.lock();
        let cursor = book.tag.map(|tag| Cursor { tag, seq: book.cursor });
        Progress { cursor, ack: book.acked, fresh: std::mem::take(&mut book.fresh) }
    }

    /// The last slot that may be acked to the server, and how many acks there were in all.
    pub(crate) fn acked(&self) -> (Seq, u64) {
        let book = self.shared.lock();
        (book.acked, book.acked_count)
    }

    /// For the compaction of the disk.
    pub(crate) fn seen(&self) -> Vec<EnvelopeId> {
        self.shared.lock().seen_order.iter().copied().collect()
    }

    fn ticket(&self, generation: u64, seq: Seq) -> Ticket {
        Ticket { shared: self.shared.clone(), generation, seq, done: false }
    }

    fn put(&self, event: Event, ticket: Option<Ticket>) {
        // `has_room` was asked before the frame was taken, and a frame makes one event at most. If the application has
        // dropped the receiver, the event drops here and its ticket says so.
        let _ = self.events.try_send(Queued { event, ticket, shared: self.shared.clone() });
    }
}

impl Book {
    fn begin(&mut self, welcome: &Welcome) {
        if self.tag == Some(welcome.tag) {
            self.have = self.cursor.max(welcome.from);
        } else {
            if self.tag.is_some() {
                self.generation += 1;
                self.items.clear();
                self.bytes = 0;
            }
            self.tag = Some(welcome.tag);
            self.have = welcome.from;
            self.cursor = welcome.from;
            self.acked = welcome.from;
        }
        self.advance();
    }

    /// True: hand it out.
    fn deliver(&mut self, deliver: &Deliver) -> Result<bool, ChainBroken> {
        if deliver.seq <= self.have {
            return Ok(false);
        }
        if deliver.prev > self.have {
            return Err(ChainBroken);
        }
        let before = std::mem::replace(&mut self.have, deliver.seq);
        self.forget_dropped(before, deliver.seq);
        if let Some(item) = self.items.get_mut(&deliver.seq) {
            // Delivered on an earlier connection: the application has it, has acked it, or has dropped it.
            item.before = before;
            let again = item.hold == Hold::Dropped;
            if again {
                item.hold = Hold::Held;
            }
            self.advance();
            return Ok(again);
        }
        let known = self.seen.contains(&deliver.envelope_id);
        let bytes = if known { 0 } else { deliver.payload.len() + FLAT_BYTES };
        let hold = if known { Hold::Acked } else { Hold::Held };
        self.bytes += bytes;
        self.items.insert(deliver.seq, Item { before, id: Some(deliver.envelope_id), bytes, hold });
        self.advance();
        Ok(!known)
    }

    /// True: there is something to ack.
    fn truncated(&mut self, to: Seq) -> bool {
        if to <= self.have {
            return false;
        }
        let before = std::mem::replace(&mut self.have, to);
        self.forget_dropped(before, to);
        self.items.entry(to).or_insert(Item { before, id: None, bytes: 0, hold: Hold::Held });
        true
    }

    fn pass(&mut self, upto: Seq) {
        if upto > self.have {
            let before = std::mem::replace(&mut self.have, upto);
            self.forget_dropped(before, Seq(upto.0.saturating_add(1)));
            self.advance();
        }
    }

    /// Dropped envelopes between two told positions cannot be delivered again: they are not in the log any more.
    fn forget_dropped(&mut self, after: Seq, before: Seq) {
        let gone: Vec<Seq> = self
            .items
            .range(after.next()..before.max(after.next()))
            .filter(|(_, item)| item.hold == Hold::Dropped)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in gone {
            if let Some(item) = self.items.remove(&seq) {
                self.bytes -= item.bytes;
            }
        }
    }

    fn settle(&mut self, seq: Seq, hold: Hold) {
        if let Some(item) = self.items.get_mut(&seq) {
            item.hold = hold;
            self.acked_count += u64::from(hold == Hold::Acked);
            self.advance();
        }
    }

    /// Takes acked items off the front and moves the cursor.
    fn advance(&mut self) {
        while let Some(entry) = self.items.first_entry() {
            if entry.get().hold != Hold::Acked {
                break;
            }
            let (seq, item) = entry.remove_entry();
            self.bytes -= item.bytes;
            self.acked = self.acked.max(seq);
            if let Some(id) = item.id
                && self.remember(id)
            {
                self.fresh.push(id);
            }
        }
        let reach = self.items.first_key_value().map_or(self.have, |(_, item)| item.before);
        self.cursor = self.cursor.max(reach).max(self.acked);
    }

    fn remember(&mut self, id: EnvelopeId) -> bool {
        let fresh = self.seen.insert(id);
        if fresh {
            self.seen_order.push_back(id);
            if self.seen_order.len() > SEEN_MAX
                && let Some(old) = self.seen_order.pop_front()
            {
                self.seen.remove(&old);
            }
        }
        fresh
    }
}
