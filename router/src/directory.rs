//! Presence in the memory of one process.
//! **Invariant:** a lease changes only where the new one is not older, compared and set inside one lock; the number of leases is bounded.

use crate::metrics::RouterMetrics;
use crate::presence::{DeviceLease, LEASE_MS, Lease, Presence};
use async_trait::async_trait;
use chappe_protocol::id::MailboxId;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Expired leases that each renewal looks for, beside twice the number of leases it brings.
const SWEEP_MIN: usize = 8;

/// All leases of a process; at most as many as it was made for.
pub struct Directory {
    world: Arc<dyn World>,
    metrics: Arc<RouterMetrics>,
    leases_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Never an empty list.
    mailboxes: BTreeMap<MailboxId, Vec<Held>>,
    /// Leases in all lists.
    count: usize,
    /// Where the search for expired leases goes on.
    swept: Option<MailboxId>,
}

struct Held {
    lease: Lease,
    until: Time,
}

impl Directory {
    /// An empty directory for at most `leases_max` leases. Beyond that, new leases are not kept (and counted): their
    /// sessions get no doorbells and live on probes.
    pub fn new(world: Arc<dyn World>, leases_max: usize, metrics: Arc<RouterMetrics>) -> Self {
        Self { world, metrics, leases_max, inner: Mutex::default() }
    }

    /// Leases that are there, expired ones included.
    pub fn len(&self) -> usize {
        self.lock().count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Presence for Directory {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        let now = self.world.now();
        let mut inner = self.lock();
        inner.sweep(now, leases.len().saturating_mul(2).saturating_add(SWEEP_MIN));
        let mut taken = Vec::with_capacity(leases.len());
        for lease in leases {
            let outcome = inner.take(lease, now, self.leases_max);
            if outcome == Taken::Full {
                self.metrics.leases_dropped.inc();
            }
            taken.push(outcome != Taken::NewerIsThere);
        }
        self.metrics.leases.set(inner.count.try_into().unwrap_or(i64::MAX));
        taken
    }

    async fn release(&self, lease: &Lease) {
        let mut inner = self.lock();
        inner.retain(lease.mailbox, |held| held.lease != *lease);
        self.metrics.leases.set(inner.count.try_into().unwrap_or(i64::MAX));
    }

    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        self.devices_at_hand(mailbox)
    }

    fn devices_at_hand(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        let now = self.world.now();
        let inner = self.lock();
        let held = inner.mailboxes.get(&mailbox).into_iter().flatten();
        let mut leases: Vec<DeviceLease> =
            held.filter(|held| held.until > now).map(|held| held.seen(now)).collect();
        leases.sort_unstable_by(|a, b| a.device.cmp(&b.device));
        Some(leases)
    }
}

impl Held {
    fn seen(&self, now: Time) -> DeviceLease {
        let age = Millis(LEASE_MS.saturating_sub((self.until - now).0));
        DeviceLease { device: self.lease.device.clone(), gateway: self.lease.gateway, age }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taken {
    Yes,
    NewerIsThere,
    Full,
}

impl Inner {
    fn take(&mut self, lease: &Lease, now: Time, leases_max: usize) -> Taken {
        let until = now + Millis(LEASE_MS);
        let list = self.mailboxes.get_mut(&lease.mailbox);
        let there = list.and_then(|list| list.iter_mut().find(|held| held.lease.device == lease.device));
        match there {
            Some(held) if held.until > now && held.lease.order() > lease.order() => Taken::NewerIsThere,
            Some(held) => {
                *held = Held { lease: lease.clone(), until };
                Taken::Yes
            }
            None if self.count >= leases_max => Taken::Full,
            None => {
                self.count += 1;
                // Most mailboxes have one lease: a list that grows by itself begins with room for four.
                let list = self.mailboxes.entry(lease.mailbox).or_insert_with(|| Vec::with_capacity(1));
                list.push(Held { lease: lease.clone(), until });
                Taken::Yes
            }
        }
    }

    fn retain(&mut self, mailbox: MailboxId, keep: impl Fn(&Held) -> bool) {
        let Some(list) = self.mailboxes.get_mut(&mailbox) else { return };
        let before = list.len();
        list.retain(keep);
        self.count -= before - list.len();
        if list.is_empty() {
            self.mailboxes.remove(&mailbox);
        }
    }

    /// Looks at the next `mailboxes_max` mailboxes and removes the leases that have expired.
    fn sweep(&mut self, now: Time, mailboxes_max: usize) {
        let from = self.swept.take().map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<MailboxId> = self
            .mailboxes
            .range((from, Bound::Unbounded))
            .take(mailboxes_max)
            .map(|(mailbox, _)| *mailbox)
            .collect();
        for mailbox in &next {
            self.retain(*mailbox, |held| held.until > now);
        }
        self.swept = if next.len() < mailboxes_max { None } else { next.last().copied() };
    }
}
