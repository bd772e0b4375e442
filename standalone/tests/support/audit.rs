//! The last word on a run. **Invariant:** only what was told as gone, and was made to go, may be missing.

use super::{Inner, Record};
use chappe_loadtest::audit::{Fate, SubmitKey};
use chappe_protocol::envelope::PageEnd;
use chappe_protocol::id::{Bucket, BucketShape, EnvelopeId, MailboxId, Seq};
use chappe_protocol::world::World;
use chappe_storage::Store as _;
use chappe_storage::rows::{Partition, Rows as _};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use std::collections::BTreeSet;
use std::sync::Arc;

/// What a run has shown.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Broken promises; must be empty.
    pub(crate) violations: Vec<String>,
    pub(crate) accepted: u64,
    pub(crate) received: u64,
    /// `Truncated` events.
    pub(crate) truncations: u64,
    /// Accepted, expired before the device came, told so.
    pub(crate) told_gone: u64,
}

impl Record {
    /// Reads the log as it stands and audits what devices saw against it. Call it when everything is quiet.
    pub(crate) async fn audit(&self, world: Arc<dyn World>, shape: BucketShape) -> Verdict {
        self.watch_cursors();
        let log = SlotLog::new(self.rows.clone(), world, LogConfig { shape, ..LogConfig::default() });
        let users: BTreeSet<usize> = self.people.iter().map(|person| person.user).collect();
        for user in users {
            match self.mailbox(user) {
                Some(mailbox) => self.check_log(&log, user, mailbox).await,
                None => self.violate(format!("user {user} has no mailbox")),
            }
        }
        let mut told_gone = 0;
        for (key, user, envelope, devices, mortal) in self.accepted() {
            let seqs = self.places(user, envelope, shape).await;
            match *seqs.as_slice() {
                [seq] if mortal => told_gone += self.lock().excuse(key, seq, &devices),
                [_] => {}
                [] => self.violate(format!("I1: {key:?} is accepted and not in the log of user {user}")),
                _ => self.violate(format!("I14: {key:?} stands at {seqs:?} of user {user}")),
            }
        }
        let inner = self.lock();
        let found = inner.history.audit();
        let mut violations = inner.violations.clone();
        for (kind, offenders) in found.kinds().into_iter().filter(|(_, offenders)| offenders.count > 0) {
            violations.push(format!("{} {kind}: {:?}", offenders.count, offenders.first));
        }
        Verdict {
            violations,
            accepted: found.accepted,
            received: found.received,
            truncations: inner.truncations,
            told_gone,
        }
    }

    fn accepted(&self) -> Vec<(SubmitKey, usize, EnvelopeId, Vec<u32>, bool)> {
        let inner = self.lock();
        let each = inner.sent.iter().flat_map(|(key, sent)| sent.iter().map(move |sent| (*key, sent)));
        each.filter_map(|(key, sent)| {
            Some((key, sent.user, sent.envelope?, sent.devices.clone(), sent.mortal))
        })
        .collect()
    }

    /// Where an envelope stands in a mailbox, by its id rows, which outlive slots.
    async fn places(&self, user: usize, id: EnvelopeId, shape: BucketShape) -> Vec<Seq> {
        let Some(mailbox) = self.mailbox(user) else { return Vec::new() };
        let mut seqs = Vec::new();
        for bucket in 0.. {
            let partition = Partition { mailbox, bucket: Bucket(bucket) };
            seqs.extend(self.rows.find_ids(partition, &[id]).await.unwrap().into_iter().flatten());
            match self.rows.head(partition).await.unwrap() {
                Some(head) if head.seq == shape.last(Bucket(bucket)) => {}
                Some(_) | None => break,
            }
        }
        seqs
    }

    /// I2, I14, and cursors at the head.
    async fn check_log(
        &self,
        log: &SlotLog<chappe_storage::memory::MemoryRows>,
        user: usize,
        mailbox: MailboxId,
    ) {
        let head = log.head(mailbox, true).await.unwrap();
        let mut ids = BTreeSet::new();
        let mut after = Seq(0);
        while after < head {
            let page = match log.read(mailbox, after, 64, 1 << 20).await {
                Ok(page) => page,
                Err(error) => return self.violate(format!("user {user} cannot be read: {error}")),
            };
            for slot in &page.slots {
                after = after.next();
                if slot.seq != after {
                    return self
                        .violate(format!("I2: slot {} of user {user} where {after} is due", slot.seq));
                }
                if !ids.insert(slot.envelope_id) {
                    self.violate(format!("I14: the envelope of slot {after} of user {user} is there twice"));
                }
            }
            match page.end {
                PageEnd::Truncated(to) => after = to,
                PageEnd::Limit if !page.slots.is_empty() => {}
                PageEnd::Limit | PageEnd::Head(_) if after >= head => {}
                PageEnd::Limit | PageEnd::Head(_) => {
                    return self.violate(format!("I2: the log of user {user} ends at {after}, not {head}"));
                }
            }
        }
        if log.stats().lost > 0 {
            self.violate(format!("I2: slots of user {user} are missing below the head"));
        }
        for (index, _) in (0u32..).zip(&self.people).filter(|(_, person)| person.user == user) {
            let cursor = self.cursor(index);
            if cursor != head {
                self.violate(format!("device {index} rests at {cursor}, the head is {head}"));
            }
        }
    }

    /// Whether every device's stored cursor is at the head of its mailbox and nothing is undecided.
    pub(crate) async fn is_quiet(&self, world: Arc<dyn World>, shape: BucketShape) -> bool {
        if self.in_flight() > 0 {
            return false;
        }
        let log = SlotLog::new(self.rows.clone(), world, LogConfig { shape, ..LogConfig::default() });
        for (index, person) in (0u32..).zip(&self.people) {
            let Some(mailbox) = self.mailbox(person.user) else { return false };
            if log.head(mailbox, true).await.ok() != Some(self.cursor(index)) {
                return false;
            }
        }
        true
    }
}

impl Inner {
    /// Devices that were told that a mortal envelope is gone need not have got it; how many.
    fn excuse(&mut self, key: SubmitKey, seq: Seq, devices: &[u32]) -> u64 {
        let mut excused = 0;
        let Some(invoked) = self.history.submits.get_mut(&key) else { return 0 };
        for device in devices {
            let told = self.told_gone.get(device).into_iter().flatten();
            if told.into_iter().any(|(from, to, _)| (*from..=*to).contains(&seq)) {
                for (_, fate) in invoked.targets.iter_mut().filter(|(target, _)| target == device) {
                    *fate = Fate::Unknown;
                    excused += 1;
                }
            }
        }
        excused
    }
}
