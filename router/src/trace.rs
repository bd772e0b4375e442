//! What this process did lately with which envelope. **Invariant:** the oldest is forgotten beyond the bound; nothing here decides
//! anything, and nothing here names people.

use chappe_node::spans::{Place, Span, SpanKind, Spans, Value};
use chappe_protocol::id::{EnvelopeId, MailboxId, Seq};
use chappe_protocol::time::UnixMillis;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

const SHARDS: usize = 16;
/// Envelopes that a process remembers unless told otherwise: some 7 MB once it is full.
pub const ENVELOPES_MAX: usize = 65_536;

/// Steps of one envelope through this process. Kept small: every envelope of the last minutes has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Where it lies; never shown.
    pub mailbox: MailboxId,
    /// Its slot.
    pub seq: Seq,
    /// When a router here got the store's word for it; 0: none did.
    pub committed_at: UnixMillis,
    /// When a router here rang for it; 0: none did.
    pub rung_at: UnixMillis,
    /// When a gateway here last wrote it to a socket; 0: none did.
    pub delivered_at: UnixMillis,
    /// How many gateways were rung.
    pub gateways: u32,
    /// How often it was written to a socket here.
    pub deliveries: u32,
}

/// A step of an envelope's way that has ended, as a collector of traces is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A gateway told the sender that it was accepted; all others stand below it.
    Submit,
    /// A router has the store's word.
    Append,
    /// A router rang the gateways.
    Doorbell,
    /// A gateway wrote it to a device's socket.
    Deliver,
}

/// The envelopes that a process has seen lately.
#[derive(Debug)]
pub struct Traces {
    spans: Spans,
    shards: [Mutex<Shard>; SHARDS],
    shard_max: usize,
}

#[derive(Debug, Default)]
struct Shard {
    seen: HashMap<EnvelopeId, Seen>,
    order: VecDeque<EnvelopeId>,
}

impl Default for Traces {
    fn default() -> Self {
        Self::new(ENVELOPES_MAX)
    }
}

impl Traces {
    /// Remembers about so many envelopes.
    pub fn new(envelopes_max: usize) -> Self {
        let shard_max = envelopes_max.div_ceil(SHARDS);
        Self { spans: Spans::default(), shards: Default::default(), shard_max }
    }

    /// Remembers as many as by default, and tells a collector of some.
    pub fn telling(spans: Spans) -> Self {
        Self { spans, ..Self::default() }
    }

    /// Tells the collector of a step, if this envelope is one of those it hears of. The trace's id is the envelope's, so that
    /// gateways and routers agree on it without a word.
    pub fn step(
        &self,
        id: EnvelopeId,
        step: Step,
        (began, ended): (UnixMillis, UnixMillis),
        attributes: impl FnOnce() -> Vec<(&'static str, Value)>,
    ) {
        let trace = *id.as_bytes();
        if !self.spans.samples(trace) {
            return;
        }
        let (name, kind, place) = match step {
            Step::Submit => ("submit", SpanKind::Server, Place::Root),
            Step::Append => ("append", SpanKind::Internal, Place::Child),
            Step::Doorbell => ("doorbell", SpanKind::Internal, Place::Child),
            Step::Deliver => ("deliver", SpanKind::Consumer, Place::Child),
        };
        self.spans.tell(Span { trace, place, name, kind, began, ended, attributes: attributes() });
    }

    /// The store has it.
    pub fn committed(&self, id: EnvelopeId, mailbox: MailboxId, seq: Seq, at: UnixMillis) {
        self.note(id, mailbox, seq, |seen| {
            if seen.committed_at == UnixMillis(0) {
                seen.committed_at = at;
            }
        });
    }

    /// So many gateways were rung for it. Only for what was [`committed`](Self::committed) here.
    pub fn rung(&self, id: EnvelopeId, gateways: usize, at: UnixMillis) {
        let gateways = u32::try_from(gateways).unwrap_or(u32::MAX);
        let committed_at = {
            let mut shard = self.shard(id);
            let Some(seen) = shard.seen.get_mut(&id) else { return };
            (seen.rung_at, seen.gateways) = (at, gateways);
            seen.committed_at
        };
        self.step(id, Step::Doorbell, (committed_at, at), || vec![("chappe.gateways", gateways.into())]);
    }

    /// It was written to a device's socket.
    pub fn delivered(&self, id: EnvelopeId, mailbox: MailboxId, seq: Seq, at: UnixMillis) {
        self.note(id, mailbox, seq, |seen| {
            (seen.delivered_at, seen.deliveries) = (at, seen.deliveries.saturating_add(1));
        });
    }

    /// What is remembered of an envelope.
    pub fn seen(&self, id: EnvelopeId) -> Option<Seen> {
        self.shard(id).seen.get(&id).copied()
    }

    fn note(&self, id: EnvelopeId, mailbox: MailboxId, seq: Seq, change: impl FnOnce(&mut Seen)) {
        if self.shard_max == 0 {
            return;
        }
        let mut shard = self.shard(id);
        let shard = &mut *shard;
        if let Some(seen) = shard.seen.get_mut(&id) {
            change(seen);
            return;
        }
        if shard.order.len() >= self.shard_max
            && let Some(oldest) = shard.order.pop_front()
        {
            shard.seen.remove(&oldest);
        }
        let never = UnixMillis(0);
        let mut seen = Seen {
            mailbox,
            seq,
            committed_at: never,
            rung_at: never,
            delivered_at: never,
            gateways: 0,
            deliveries: 0,
        };
        change(&mut seen);
        shard.seen.insert(id, seen);
        shard.order.push_back(id);
    }

    fn shard(&self, id: EnvelopeId) -> MutexGuard<'_, Shard> {
        let shard = &self.shards[usize::from(id.as_bytes()[15]) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn id(n: u8) -> EnvelopeId {
        // All in one shard.
        let mut bytes = [0; 16];
        bytes[0] = n;
        EnvelopeId(bytes)
    }

    #[test]
    fn the_oldest_is_forgotten_and_a_repeat_is_not_a_new_one() {
        let (traces, mailbox) = (Traces::new(3 * SHARDS), MailboxId([1; 16]));
        for n in 1..=3 {
            traces.committed(id(n), mailbox, Seq(u64::from(n)), UnixMillis(10));
        }
        traces.delivered(id(1), mailbox, Seq(1), UnixMillis(20));
        traces.delivered(id(1), mailbox, Seq(1), UnixMillis(30));
        traces.rung(id(1), 2, UnixMillis(15));
        let seen = traces.seen(id(1)).unwrap();
        assert_eq!((seen.committed_at, seen.rung_at, seen.gateways), (UnixMillis(10), UnixMillis(15), 2));
        assert_eq!((seen.delivered_at, seen.deliveries), (UnixMillis(30), 2));
        traces.committed(id(4), mailbox, Seq(4), UnixMillis(40));
        assert_eq!(traces.seen(id(1)), None, "the bound holds");
        assert!(traces.seen(id(2)).is_some());
        traces.rung(id(9), 1, UnixMillis(50));
        assert_eq!(traces.seen(id(9)), None, "a bell alone tells of nothing");
    }
}
