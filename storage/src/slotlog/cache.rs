//! What a slot log remembers of mailboxes. **Invariant:** bounded; heads, floors and look-back bounds only rise; forgetting
//! any of it costs reads, never an answer.

use crate::rows::{Floor, Head};
use chappe_protocol::id::{Bucket, BucketShape, MailboxId, Seq};
use chappe_protocol::time::{Time, UnixMillis};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The newest register of a mailbox, as it once was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// The newest bucket that has a register; 0 if none has.
    pub(super) bucket: Bucket,
    /// Its register; `None`: nothing was appended yet.
    pub(super) head: Option<Head>,
    /// When it was read or written.
    pub(super) at: Time,
}

impl Known {
    pub(super) fn seq(&self) -> Seq {
        self.head.map(|head| head.seq).unwrap_or_default()
    }

    pub(super) fn erased(&self) -> bool {
        self.seq() == Seq::MAX
    }

    /// The bucket of the next append and what its register must be.
    pub(super) fn next(&self, shape: BucketShape) -> (Bucket, Option<Seq>) {
        match self.head {
            Some(head) if head.seq == shape.last(self.bucket) => (Bucket(self.bucket.0 + 1), None),
            Some(head) => (self.bucket, Some(head.seq)),
            None => (self.bucket, None),
        }
    }
}

#[cfg(feature = "testing")]
impl Known {
    /// The planted defect of opening a bucket early: one free slot is taken for none.
    pub(super) fn taken_for_full(mut self, shape: BucketShape) -> Self {
        if let Some(head) = self.head.as_mut().filter(|head| head.seq.next() == shape.last(self.bucket)) {
            head.seq = shape.last(self.bucket);
        }
        self
    }
}

/// From where ids may be younger than 2 days, and until when that stays so.
#[derive(Debug, Clone, Copy)]
pub(super) struct LookBack {
    pub(super) from: Bucket,
    pub(super) until: UnixMillis,
}

#[derive(Debug, Default)]
struct Memory {
    known: Option<Known>,
    noted: Option<Time>,
    rare: Option<Box<Rare>>,
}

/// What only trims, quotas and appends without a base learn of a mailbox.
#[derive(Debug, Default)]
struct Rare {
    floor: Option<Floor>,
    clean: Option<Bucket>,
    look_back: Option<LookBack>,
}

impl Memory {
    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }
}

/// Two generations: when the young one is full it becomes the old one, and what nobody touched since goes.
pub(super) struct Cache {
    half: usize,
    generations: Mutex<Generations>,
}

#[derive(Default)]
struct Generations {
    young: BTreeMap<MailboxId, Memory>,
    old: BTreeMap<MailboxId, Memory>,
}

impl Cache {
    pub(super) fn new(mailboxes_max: usize) -> Self {
        Self { half: (mailboxes_max / 2).max(1), generations: Mutex::default() }
    }

    fn with<T>(&self, mailbox: MailboxId, act: impl FnOnce(&mut Memory) -> T) -> T {
        let mut guard = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let Generations { young, old } = &mut *guard;
        if !young.contains_key(&mailbox) {
            let memory = old.remove(&mailbox).unwrap_or_default();
            if young.len() >= self.half {
                *old = std::mem::take(young);
            }
            young.insert(mailbox, memory);
        }
        act(young.entry(mailbox).or_default())
    }

    pub(super) fn known(&self, mailbox: MailboxId) -> Option<Known> {
        self.with(mailbox, |memory| memory.known)
    }

    /// Takes a register that was just seen; an older one than the known changes nothing.
    pub(super) fn learn(&self, mailbox: MailboxId, seen: Known) {
        self.with(mailbox, |memory| match &mut memory.known {
            Some(known) if (known.bucket, known.seq()) > (seen.bucket, seen.seq()) => {}
            known => *known = Some(seen),
        });
    }

    pub(super) fn forget_head(&self, mailbox: MailboxId) {
        self.with(mailbox, |memory| memory.known = None);
    }

    pub(super) fn floor(&self, mailbox: MailboxId) -> Option<Floor> {
        self.with(mailbox, |memory| memory.rare.as_ref()?.floor)
    }

    pub(super) fn learn_floor(&self, mailbox: MailboxId, floor: Floor) {
        self.with(mailbox, |memory| match &mut memory.rare().floor {
            Some(known) if known.bucket > floor.bucket => {}
            known => *known = Some(floor),
        });
    }

    /// Below this bucket this log itself has deleted every row.
    pub(super) fn clean(&self, mailbox: MailboxId) -> Option<Bucket> {
        self.with(mailbox, |memory| memory.rare.as_ref()?.clean)
    }

    pub(super) fn learn_clean(&self, mailbox: MailboxId, bucket: Bucket) {
        self.with(mailbox, |memory| {
            let clean = &mut memory.rare().clean;
            *clean = (*clean).max(Some(bucket));
        });
    }

    pub(super) fn look_back(&self, mailbox: MailboxId) -> Option<LookBack> {
        self.with(mailbox, |memory| memory.rare.as_ref()?.look_back)
    }

    pub(super) fn learn_look_back(&self, mailbox: MailboxId, bound: LookBack) {
        self.with(mailbox, |memory| memory.rare().look_back = Some(bound));
    }

    pub(super) fn noted(&self, mailbox: MailboxId) -> Option<Time> {
        self.with(mailbox, |memory| memory.noted)
    }

    pub(super) fn note(&self, mailbox: MailboxId, at: Time) {
        self.with(mailbox, |memory| memory.noted = memory.noted.max(Some(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bound_and_keeps_what_is_used() {
        let cache = Cache::new(8);
        for n in 0..100_u8 {
            cache.note(MailboxId([n; 16]), Time(u64::from(n) + 1));
            assert_eq!(cache.noted(MailboxId([0; 16])), Some(Time(1)), "used all the time, never forgotten");
        }
        let generations = cache.generations.lock().unwrap();
        assert!(generations.young.len() + generations.old.len() <= 8);
    }

    #[test]
    fn a_mailbox_takes_little_memory() {
        assert!(size_of::<(MailboxId, Memory)>() <= 88, "what is rarely known belongs into the box");
    }

    #[test]
    fn a_late_learner_does_not_lower_the_head() {
        let cache = Cache::new(8);
        let mailbox = MailboxId([1; 16]);
        let head = |seq| Some(Head { seq: Seq(seq), opened_at: UnixMillis(0), bytes_total: 0 });
        cache.learn(mailbox, Known { bucket: Bucket(1), head: head(5), at: Time(2) });
        cache.learn(mailbox, Known { bucket: Bucket(0), head: head(3), at: Time(1) });
        assert_eq!(cache.known(mailbox).map(|known| known.seq()), Some(Seq(5)));
    }
}
