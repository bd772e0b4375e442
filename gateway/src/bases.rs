//! What a gateway knew of a mailbox's head before it first transmitted an entry. **Invariant:** a base that is given for
//! an entry was learned before the first transmission of that entry; when in doubt there is none.

use crate::recent::Recent;
use chappe_protocol::id::{Bucket, MailboxId, SubmitId};
use chappe_protocol::time::{Millis, Time};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A head bucket learned from a reply is a base for so long.
const FRESH: Millis = Millis::from_secs(60);
/// Mailboxes whose head bucket is kept.
const HEADS_MAX: usize = 65_536;
/// Entries whose first base is kept.
const FIRSTS_MAX: usize = 65_536;

/// Head buckets, and the bases of entries that were transmitted and not decided.
#[derive(Default)]
pub(crate) struct Bases {
    inner: Mutex<Inner>,
}

struct Inner {
    heads: Recent<MailboxId, Bucket>,
    firsts: BTreeMap<(SubmitId, MailboxId), Bucket>,
    /// The keys of `firsts` in the order of their coming; may name some that are gone.
    order: VecDeque<(SubmitId, MailboxId)>,
}

impl Default for Inner {
    fn default() -> Self {
        let heads = Recent::new(HEADS_MAX, FRESH);
        Self { heads, firsts: BTreeMap::new(), order: VecDeque::new() }
    }
}

/// Where the base of a list comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// From what is known; `None`: the router looks back.
    Known(Option<Bucket>),
    /// All would be well with a head bucket learned now.
    Ask,
}

impl Bases {
    /// The base of a list of entries, each a submit and its attempt.
    pub(crate) fn of(
        &self,
        now: Time,
        mailbox: MailboxId,
        entries: impl Iterator<Item = (SubmitId, u32)>,
    ) -> Base {
        let inner = self.lock();
        let head = inner.heads.get(now, &mailbox);
        let mut lowest: Option<Bucket> = None;
        let mut ask = false;
        for (submit, attempt) in entries {
            let first = inner.firsts.get(&(submit, mailbox)).copied();
            if first.is_none() && attempt > 1 {
                return Base::Known(None);
            }
            let Some(base) = first.or(head) else {
                ask = true;
                continue;
            };
            lowest = Some(lowest.map_or(base, |low| low.min(base)));
        }
        if ask { Base::Ask } else { Base::Known(lowest) }
    }

    /// A reply named the head bucket at `now` or later.
    pub(crate) fn learn(&self, now: Time, mailbox: MailboxId, bucket: Bucket) {
        self.lock().heads.put(now, mailbox, bucket);
    }

    /// Forgets head buckets that are too old to be bases.
    pub(crate) fn expire(&self, now: Time) {
        self.lock().heads.expire(now);
    }

    /// These entries are about to be transmitted for the first time, with this base.
    pub(crate) fn transmitted(
        &self,
        mailbox: MailboxId,
        base: Bucket,
        submits: impl Iterator<Item = SubmitId>,
    ) {
        let mut inner = self.lock();
        for submit in submits {
            if inner.firsts.contains_key(&(submit, mailbox)) {
                continue;
            }
            while inner.order.len() >= FIRSTS_MAX {
                if let Some(key) = inner.order.pop_front() {
                    inner.firsts.remove(&key);
                }
            }
            inner.firsts.insert((submit, mailbox), base);
            inner.order.push_back((submit, mailbox));
        }
    }

    /// The entry is decided: it is not sent again.
    pub(crate) fn decided(&self, mailbox: MailboxId, submit: SubmitId) {
        let mut inner = self.lock();
        inner.firsts.remove(&(submit, mailbox));
        // Mostly the newest; the others go when the queue is full.
        while let Some(last) = inner.order.back().copied()
            && !inner.firsts.contains_key(&last)
        {
            inner.order.pop_back();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: MailboxId = MailboxId([1; 16]);
    const A: SubmitId = SubmitId([1; 16]);
    const B: SubmitId = SubmitId([2; 16]);

    #[test]
    fn a_first_attempt_needs_a_fresh_head_and_a_retry_needs_its_first_base() {
        let bases = Bases::default();
        let of = |now, entries: &[(SubmitId, u32)]| bases.of(Time(now), M, entries.iter().copied());
        assert_eq!(of(0, &[(A, 1)]), Base::Ask);
        bases.learn(Time(0), M, Bucket(3));
        assert_eq!(of(60_000, &[(A, 1)]), Base::Known(Some(Bucket(3))));
        assert_eq!(of(60_001, &[(A, 1)]), Base::Ask, "too old");
        assert_eq!(of(0, &[(A, 2)]), Base::Known(None), "transmitted by somebody else");
        bases.transmitted(M, Bucket(3), [A].into_iter());
        bases.learn(Time(1), M, Bucket(9));
        assert_eq!(of(1, &[(A, 2)]), Base::Known(Some(Bucket(3))), "never a later one");
        assert_eq!(of(1, &[(A, 1)]), Base::Known(Some(Bucket(3))), "even if the client miscounts");
        assert_eq!(of(1, &[(B, 1), (A, 2)]), Base::Known(Some(Bucket(3))), "the lowest of the list");
        assert_eq!(of(1, &[(A, 2), (B, 2)]), Base::Known(None), "one without is enough");
        bases.decided(M, A);
        assert_eq!(of(1, &[(A, 2)]), Base::Known(None));
        assert!(bases.lock().order.is_empty());
    }

    #[test]
    fn the_first_base_stays_whatever_is_transmitted_later() {
        let bases = Bases::default();
        bases.transmitted(M, Bucket(3), [A].into_iter());
        bases.transmitted(M, Bucket(9), [A].into_iter());
        assert_eq!(bases.of(Time(0), M, [(A, 2)].into_iter()), Base::Known(Some(Bucket(3))));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let bases = Bases::default();
        for n in 0..2 * HEADS_MAX as u64 {
            bases.learn(Time(0), MailboxId(u128::from(n).to_be_bytes()), Bucket(1));
        }
        let heads = bases.lock().heads.len();
        assert!(heads <= HEADS_MAX, "{heads} heads");
        let id = |n: u64| SubmitId(u128::from(n).to_be_bytes());
        bases.transmitted(M, Bucket(1), (0..FIRSTS_MAX as u64 + 10).map(id));
        let inner = bases.lock();
        assert_eq!((inner.firsts.len(), inner.order.len()), (FIRSTS_MAX, FIRSTS_MAX));
    }
}
