//! Hints that wait to be published, one per mailbox. **Invariant:** at most so many mailboxes wait; what comes for a mailbox that
//! waits already takes no place of its own, and never makes it wait longer.

use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::WakeHint;
use chappe_protocol::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// What became of a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    /// It waits.
    Waits,
    /// It is one with another of its mailbox.
    Merged,
    /// Too many mailboxes wait.
    Full,
}

/// The queue, in the order in which hints are due to be published.
#[derive(Debug)]
pub(super) struct Queue {
    mailboxes_max: usize,
    order: BTreeSet<(Time, MailboxId)>,
    hints: BTreeMap<MailboxId, (Time, WakeHint)>,
}

impl Queue {
    pub(super) fn new(mailboxes_max: usize) -> Self {
        Self { mailboxes_max, order: BTreeSet::new(), hints: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.hints.len()
    }

    /// To be published at this time, or with what its mailbox has waiting if that goes earlier.
    pub(super) fn push(&mut self, hint: WakeHint, at: Time) -> Pushed {
        let mailbox = hint.mailbox;
        if let Some((old, waiting)) = self.hints.get_mut(&mailbox) {
            waiting.merge(&hint);
            if at < *old {
                self.order.remove(&(*old, mailbox));
                self.order.insert((at, mailbox));
                *old = at;
            }
            return Pushed::Merged;
        }
        if self.hints.len() >= self.mailboxes_max {
            return Pushed::Full;
        }
        self.order.insert((at, mailbox));
        self.hints.insert(mailbox, (at, hint));
        Pushed::Waits
    }

    /// When the next one goes.
    pub(super) fn next_at(&self) -> Option<Time> {
        self.order.first().map(|(at, _)| *at)
    }

    /// The next one whose time has come.
    pub(super) fn pop(&mut self, now: Time) -> Option<WakeHint> {
        let first = self.order.first().copied().filter(|(at, _)| *at <= now)?;
        self.order.remove(&first);
        self.hints.remove(&first.1).map(|(_, hint)| hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_protocol::envelope::Urgency;
    use chappe_protocol::id::Seq;
    use chappe_protocol::time::UnixMillis;

    fn hint(mailbox: u8, seq: u64) -> WakeHint {
        let (from, upto) = (Seq(seq), Seq(seq));
        let (at, due) = (UnixMillis(seq), UnixMillis(seq));
        WakeHint { mailbox: MailboxId([mailbox; 16]), from, upto, urgency: Urgency::Message, at, due }
    }

    #[test]
    fn a_mailbox_waits_once_and_goes_at_its_earliest_time() {
        let mut queue = Queue::new(8);
        assert_eq!(queue.push(hint(1, 5), Time(30)), Pushed::Waits);
        assert_eq!(queue.push(hint(2, 1), Time(20)), Pushed::Waits);
        assert_eq!(queue.push(hint(1, 6), Time(90)), Pushed::Merged, "a later one does not hold it up");
        assert_eq!(queue.next_at(), Some(Time(20)));
        assert_eq!(queue.push(hint(1, 7), Time(10)), Pushed::Merged);
        assert_eq!((queue.len(), queue.next_at()), (2, Some(Time(10))));
        assert_eq!(queue.pop(Time(9)), None, "not yet");
        let first = queue.pop(Time(20)).map(|hint| (hint.mailbox, hint.from, hint.upto));
        assert_eq!(first, Some((MailboxId([1; 16]), Seq(5), Seq(7))));
        assert_eq!(queue.pop(Time(20)).map(|hint| hint.mailbox), Some(MailboxId([2; 16])));
        assert_eq!((queue.pop(Time(99)), queue.next_at(), queue.len()), (None, None, 0));
    }

    #[test]
    fn a_full_queue_takes_no_other_mailbox() {
        let mut queue = Queue::new(2);
        queue.push(hint(1, 1), Time(1));
        queue.push(hint(2, 1), Time(1));
        assert_eq!(queue.push(hint(3, 1), Time(0)), Pushed::Full);
        assert_eq!(queue.push(hint(2, 2), Time(1)), Pushed::Merged, "but more of those that wait");
        assert_eq!(queue.len(), 2);
        queue.pop(Time(1));
        assert_eq!(queue.push(hint(3, 1), Time(1)), Pushed::Waits);
    }
}
