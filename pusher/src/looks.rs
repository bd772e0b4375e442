//! Mailboxes that wait to be looked at, one entry each. **Invariant:** at most so many wait; what comes for one that waits never
//! makes it wait longer.

use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::time::Time;
use std::collections::{BTreeMap, BTreeSet};

/// A mailbox that waits.
#[derive(Debug)]
pub(crate) struct Waiting<G> {
    /// Which.
    pub(crate) mailbox: MailboxId,
    /// See [`crate::look::Ask::hinted`].
    pub(crate) hinted: Seq,
    /// Let go when its wakes have had their first answer.
    pub(crate) guards: Vec<G>,
}

/// The mailboxes, in the order of their times.
pub(crate) struct Looks<G> {
    max: usize,
    order: BTreeSet<(Time, MailboxId)>,
    waiting: BTreeMap<MailboxId, (Time, Waiting<G>)>,
}

impl<G> Looks<G> {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, order: BTreeSet::new(), waiting: BTreeMap::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// `false`: too many wait; whoever sweeps comes by.
    pub(crate) fn push(&mut self, ask: Waiting<G>, at: Time) -> bool {
        let mailbox = ask.mailbox;
        if let Some((old, waiting)) = self.waiting.get_mut(&mailbox) {
            waiting.hinted = waiting.hinted.max(ask.hinted);
            waiting.guards.extend(ask.guards);
            if at < *old {
                self.order.remove(&(*old, mailbox));
                self.order.insert((at, mailbox));
                *old = at;
            }
            return true;
        }
        if self.waiting.len() >= self.max {
            return false;
        }
        self.order.insert((at, mailbox));
        self.waiting.insert(mailbox, (at, ask));
        true
    }

    /// The first whose time has come, or when that will be.
    pub(crate) fn pop(&mut self, now: Time) -> Result<Waiting<G>, Option<Time>> {
        let Some((at, mailbox)) = self.order.first().copied() else { return Err(None) };
        if at > now {
            return Err(Some(at));
        }
        self.order.pop_first();
        self.waiting.remove(&mailbox).map(|(_, waiting)| waiting).ok_or(Some(now))
    }

    pub(crate) fn clear(&mut self) {
        self.order.clear();
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(mailbox: u8, hinted: u64) -> Waiting<u8> {
        Waiting { mailbox: MailboxId([mailbox; 16]), hinted: Seq(hinted), guards: vec![mailbox] }
    }

    #[test]
    fn what_comes_for_one_that_waits_hastens_it_and_delays_it_never() {
        let mut looks = Looks::new(2);
        assert!(looks.push(ask(1, 5), Time(100)) && looks.push(ask(2, 1), Time(50)));
        assert!(looks.push(ask(1, 3), Time(10)) && looks.push(ask(1, 7), Time(900)));
        assert!(!looks.push(ask(3, 1), Time(1)), "full");
        assert_eq!(looks.pop(Time(9)).unwrap_err(), Some(Time(10)));
        let first = looks.pop(Time(10)).unwrap();
        assert_eq!((first.mailbox.0[0], first.hinted, first.guards.len()), (1, Seq(7), 3));
        assert_eq!(looks.pop(Time(50)).unwrap().mailbox.0[0], 2);
        assert_eq!((looks.pop(Time(50)).unwrap_err(), looks.len()), (None, 0));
    }
}
