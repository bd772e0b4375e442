//! Which routers there are, as a gateway hears them. **Invariant:** affinity is a preference: a router that is silent, late or
//! ending is asked only when no better one is left, and no promise rests on the choice.

use super::metrics::BusMetrics;
use crate::local::weight;
use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::{Announcement, RouterState};
use chappe_protocol::time::{Millis, Time};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// When a router is avoided, and when it is forgotten.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) silent_after: Millis,
    pub(crate) forgotten_after: Millis,
    pub(crate) suspected_for: Millis,
    pub(crate) routers_max: usize,
}

/// The routers of the cluster that this process has heard of.
pub(crate) struct Routers {
    patience: Patience,
    metrics: Arc<BusMetrics>,
    known: Mutex<BTreeMap<u64, Known>>,
    /// Grows with whatever may change a choice.
    changes: watch::Sender<u64>,
}

struct Known {
    heard: Time,
    silent: bool,
    draining: bool,
    suspected_until: Time,
}

/// The better one wins, before affinity does.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Draining,
    Doubtful,
    Good,
}

impl Routers {
    pub(crate) fn new(patience: Patience, metrics: Arc<BusMetrics>) -> Self {
        Self { patience, metrics, known: Mutex::default(), changes: watch::channel(0).0 }
    }

    /// Changes when another choice may be better than it was.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// A router says what it does.
    pub(crate) fn announced(&self, announcement: Announcement, now: Time) {
        self.metrics.announcements.inc();
        let Announcement { router, state } = announcement;
        let mut known = self.lock();
        let changed = match state {
            RouterState::Gone => known.remove(&router).is_some(),
            RouterState::Live | RouterState::Draining => {
                let draining = state == RouterState::Draining;
                let full = known.len() >= self.patience.routers_max;
                match known.get_mut(&router) {
                    Some(old) => {
                        let changed = old.silent || old.draining != draining;
                        (old.heard, old.silent, old.draining) = (now, false, draining);
                        changed
                    }
                    None if full => false,
                    None => {
                        let suspected_until = Time(0);
                        known.insert(router, Known { heard: now, silent: false, draining, suspected_until });
                        true
                    }
                }
            }
        };
        self.finish(known, changed);
    }

    /// A router has answered something: it is alive.
    pub(crate) fn heard(&self, router: u64, now: Time) {
        let mut known = self.lock();
        if let Some(one) = known.get_mut(&router) {
            (one.heard, one.silent) = (now, false);
        }
    }

    /// Avoids a router for a while: it let a request run into its deadline, or refused what another may take.
    pub(crate) fn suspect(&self, router: u64, now: Time) {
        let mut known = self.lock();
        if let Some(one) = known.get_mut(&router) {
            one.suspected_until = now + self.patience.suspected_for;
            self.metrics.suspected.inc();
        }
    }

    /// A router that said so itself, or whose subject nobody listens to.
    pub(crate) fn gone(&self, router: u64) {
        let mut known = self.lock();
        let changed = known.remove(&router).is_some();
        self.finish(known, changed);
    }

    pub(crate) fn draining(&self, router: u64) {
        let mut known = self.lock();
        if let Some(one) = known.get_mut(&router) {
            one.draining = true;
        }
    }

    /// Notices silence; call it a few times a second.
    pub(crate) fn tick(&self, now: Time) {
        let mut known = self.lock();
        let before = known.len();
        known.retain(|_, one| now - one.heard < self.patience.forgotten_after);
        let mut changed = known.len() != before;
        for one in known.values_mut() {
            if !one.silent && now - one.heard >= self.patience.silent_after {
                one.silent = true;
                changed = true;
                self.metrics.suspected.inc();
            }
        }
        self.finish(known, changed);
    }

    /// This process could not hear anybody for a while: silence meant nothing.
    pub(crate) fn forgive(&self, now: Time) {
        for one in self.lock().values_mut() {
            (one.heard, one.silent) = (now, false);
        }
    }

    /// The best router that was not tried yet (rendezvous hashing among the best ones: Thaler and Ravishankar, 1998).
    pub(crate) fn pick(&self, mailbox: MailboxId, now: Time, tried: &[u64]) -> Option<u64> {
        let known = self.lock();
        let untried = known.iter().filter(|(name, _)| !tried.contains(name));
        let ranked = untried.max_by_key(|(name, one)| {
            let standing = match one {
                Known { draining: true, .. } => Standing::Draining,
                Known { silent: true, .. } => Standing::Doubtful,
                Known { suspected_until, .. } if *suspected_until > now => Standing::Doubtful,
                Known { .. } => Standing::Good,
            };
            (standing, weight(**name, mailbox))
        });
        ranked.map(|(name, _)| *name)
    }

    /// Whether an answer of this router is not to be expected any more.
    pub(crate) fn is_lost(&self, router: u64) -> bool {
        self.lock().get(&router).is_none_or(|one| one.silent)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn finish(&self, known: MutexGuard<'_, BTreeMap<u64, Known>>, changed: bool) {
        self.metrics.routers.set(i64::try_from(known.len()).unwrap_or(i64::MAX));
        drop(known);
        if changed {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "routers_tests.rs"]
mod tests;
