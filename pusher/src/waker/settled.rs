//! Mailboxes that were looked at a moment ago and need no second look. **Invariant:** forgetting one costs reads and nothing else.

use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::time::{Millis, UnixMillis};
use std::collections::HashMap;

/// Mailboxes of one generation; each takes some 50 bytes.
const GENERATION_MAX: usize = 262_144;
/// Sweeps come by every few seconds; a mailbox is not looked at oftener than this.
const REST: Millis = Millis::from_secs(7);

#[derive(Debug, Clone, Copy)]
struct Entry {
    head: Seq,
    until: UnixMillis,
    seen: UnixMillis,
}

/// In two generations, so that the oldest go.
#[derive(Debug, Default)]
pub(super) struct Settled {
    young: HashMap<MailboxId, Entry>,
    old: HashMap<MailboxId, Entry>,
}

/// What to do about a mailbox that is noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// It was seen a moment ago.
    Rest,
    /// Only if its head is another.
    Unless(Seq),
    /// Look.
    Look,
}

impl Settled {
    /// Nothing is to be done about the mailbox until then, as long as its head is this.
    pub(super) fn settle(&mut self, mailbox: MailboxId, head: Seq, until: UnixMillis) {
        self.put(mailbox, Entry { head, until, seen: UnixMillis(0) });
    }

    /// Something is to be done about the mailbox at that time, whatever its head is.
    pub(super) fn hasten(&mut self, mailbox: MailboxId, at: UnixMillis) {
        let entry = self.young.get(&mailbox).or_else(|| self.old.get(&mailbox)).copied();
        if let Some(entry) = entry.filter(|entry| entry.until > at) {
            self.put(mailbox, Entry { until: at, ..entry });
        }
    }

    /// A sweep comes by.
    pub(super) fn visit(&mut self, mailbox: MailboxId, now: UnixMillis) -> Visit {
        let Some(entry) = self.young.get(&mailbox).or_else(|| self.old.get(&mailbox)).copied() else {
            return Visit::Look;
        };
        if now < entry.seen + REST {
            return Visit::Rest;
        }
        self.put(mailbox, Entry { seen: now, ..entry });
        if now >= entry.until { Visit::Look } else { Visit::Unless(entry.head) }
    }

    fn put(&mut self, mailbox: MailboxId, entry: Entry) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(mailbox, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_mailbox_rests_then_is_looked_at_if_it_grew_then_in_any_case() {
        let (mailbox, mut settled) = (MailboxId([7; 16]), Settled::default());
        let at = |seconds: u64| UnixMillis(1_000_000 + seconds * 1000);
        assert_eq!(settled.visit(mailbox, at(0)), Visit::Look);
        settled.settle(mailbox, Seq(5), at(60));
        assert_eq!(settled.visit(mailbox, at(0)), Visit::Unless(Seq(5)));
        assert_eq!(settled.visit(mailbox, at(5)), Visit::Rest);
        assert_eq!(settled.visit(mailbox, at(7)), Visit::Unless(Seq(5)));
        settled.hasten(mailbox, at(90));
        assert_eq!(settled.visit(mailbox, at(15)), Visit::Unless(Seq(5)));
        settled.hasten(mailbox, at(30));
        assert_eq!(settled.visit(mailbox, at(30)), Visit::Look);
        for other in 0..=2 * GENERATION_MAX as u128 {
            settled.settle(MailboxId(other.to_be_bytes()), Seq(1), at(60));
        }
        settled.hasten(mailbox, at(1));
        assert_eq!(settled.visit(mailbox, at(60)), Visit::Look, "the oldest go");
        assert!(settled.young.len() + settled.old.len() <= 2 * GENERATION_MAX);
    }
}
