//! Which sessions are here. **Invariant:** one main session per (mailbox, device), the newest; entries are compared and
//! changed inside one lock, and only the connection that stands there can remove itself.

use crate::handle::Handle;
use chappe_protocol::frame::Role;
use chappe_protocol::id::{ConnectionId, MailboxId, Seq};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All sessions of a gateway; as many as it admits.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Main sessions; never an empty list.
    mailboxes: BTreeMap<MailboxId, Vec<Arc<Handle>>>,
    /// Sessions that stand beside a main one.
    peeks: BTreeMap<ConnectionId, Arc<Handle>>,
    mains: usize,
}

/// What came of an insertion.
pub(crate) enum Inserted {
    /// It stands; an older session of the device was here.
    Over(Arc<Handle>),
    /// It stands.
    Fresh,
    /// A newer session of the device is here already.
    Superseded,
}

impl Registry {
    /// Puts a session in, in the place of an older one of its device.
    pub(crate) fn insert(&self, handle: &Arc<Handle>) -> Inserted {
        let mut inner = self.lock();
        if handle.role == Role::Peek {
            inner.peeks.insert(handle.connection, Arc::clone(handle));
            return Inserted::Fresh;
        }
        let list = inner.mailboxes.entry(handle.mailbox).or_insert_with(|| Vec::with_capacity(1));
        if let Some(there) = list.iter_mut().find(|there| there.device == handle.device) {
            if there.order() > handle.order() {
                return Inserted::Superseded;
            }
            return Inserted::Over(std::mem::replace(there, Arc::clone(handle)));
        }
        list.push(Arc::clone(handle));
        inner.mains += 1;
        Inserted::Fresh
    }

    /// Takes a session out, if it is still the one that stands there.
    pub(crate) fn remove(&self, handle: &Arc<Handle>) {
        let mut inner = self.lock();
        if handle.role == Role::Peek {
            inner.peeks.remove(&handle.connection);
            return;
        }
        let Some(list) = inner.mailboxes.get_mut(&handle.mailbox) else { return };
        let before = list.len();
        list.retain(|there| !Arc::ptr_eq(there, handle));
        let removed = before - list.len();
        if list.is_empty() {
            inner.mailboxes.remove(&handle.mailbox);
        }
        inner.mains -= removed;
    }

    /// Whether this main session still stands here.
    pub(crate) fn holds(&self, handle: &Arc<Handle>) -> bool {
        let inner = self.lock();
        inner.mailboxes.get(&handle.mailbox).is_some_and(|list| list.iter().any(|h| Arc::ptr_eq(h, handle)))
    }

    /// The main sessions of a mailbox.
    pub(crate) fn of(&self, mailbox: MailboxId) -> Vec<Arc<Handle>> {
        self.lock().mailboxes.get(&mailbox).cloned().unwrap_or_default()
    }

    /// Whether reads of this mailbox may be shared.
    pub(crate) fn is_shared(&self, mailbox: MailboxId) -> bool {
        self.lock().mailboxes.get(&mailbox).is_some_and(|list| list.len() > 1)
    }

    /// Sessions, peeks included.
    pub(crate) fn len(&self) -> usize {
        let inner = self.lock();
        inner.mains + inner.peeks.len()
    }

    /// The next mailboxes behind `after` and the lowest head that a session of each knows.
    pub(crate) fn heads_after(&self, after: Option<MailboxId>, max: usize) -> Vec<(MailboxId, Seq)> {
        let inner = self.lock();
        let known = |list: &Vec<Arc<Handle>>| list.iter().map(|h| h.known_head()).min().unwrap_or_default();
        inner.mailboxes.range(behind(after)).take(max).map(|(id, list)| (*id, known(list))).collect()
    }

    /// The main sessions of the next mailboxes behind `after`, and the last of those mailboxes.
    pub(crate) fn mains_after(
        &self,
        after: Option<MailboxId>,
        mailboxes_max: usize,
    ) -> (Vec<Arc<Handle>>, Option<MailboxId>) {
        let inner = self.lock();
        let mut last = None;
        let mut handles = Vec::new();
        for (mailbox, list) in inner.mailboxes.range(behind(after)).take(mailboxes_max) {
            last = Some(*mailbox);
            handles.extend(list.iter().cloned());
        }
        (handles, last)
    }

    /// Every session.
    pub(crate) fn all(&self) -> Vec<Arc<Handle>> {
        let inner = self.lock();
        inner.mailboxes.values().flatten().chain(inner.peeks.values()).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn behind(after: Option<MailboxId>) -> (Bound<MailboxId>, Bound<MailboxId>) {
    (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Carrier;
    use chappe_protocol::id::{DeviceId, Epoch};

    fn handle(device: &str, epoch: u64, connection: u8, role: Role) -> Arc<Handle> {
        let device = DeviceId::new(device).unwrap();
        let order = (Epoch(epoch), ConnectionId([connection; 16]), 0);
        Arc::new(Handle::new(
            MailboxId([7; 16]),
            device,
            (role, Carrier::WebSocket),
            order,
            Seq(u64::from(connection)),
        ))
    }

    #[test]
    fn pages_of_mailboxes_miss_none() {
        let registry = Registry::default();
        let mailboxes: Vec<MailboxId> = (0..5).map(|n| MailboxId([n; 16])).collect();
        for mailbox in &mailboxes {
            let order = (Epoch(1), ConnectionId([1; 16]), 0);
            let device = DeviceId::new("phone").unwrap();
            registry.insert(&Arc::new(Handle::new(
                *mailbox,
                device,
                (Role::Main, Carrier::WebSocket),
                order,
                Seq(1),
            )));
        }
        let (mut probed, mut renewed) = (Vec::new(), Vec::new());
        let mut after = None;
        while let Some((last, _)) = registry.heads_after(after, 2).last().copied() {
            probed.extend(registry.heads_after(after, 2).into_iter().map(|(mailbox, _)| mailbox));
            after = Some(last);
        }
        let mut after = None;
        while let (handles, Some(last)) = registry.mains_after(after, 2) {
            renewed.extend(handles.iter().map(|handle| handle.mailbox));
            after = Some(last);
        }
        assert_eq!((&probed, &renewed), (&mailboxes, &mailboxes));
    }

    #[test]
    fn the_newer_session_takes_over_and_the_older_cannot_come_back_or_remove_it() {
        let registry = Registry::default();
        let old = handle("phone", 1, 1, Role::Main);
        let new = handle("phone", 2, 1, Role::Main);
        assert!(matches!(registry.insert(&old), Inserted::Fresh));
        assert!(matches!(registry.insert(&new), Inserted::Over(h) if Arc::ptr_eq(&h, &old)));
        assert!(matches!(registry.insert(&old), Inserted::Superseded));
        registry.remove(&old);
        assert!(Arc::ptr_eq(&registry.of(new.mailbox)[0], &new));
        registry.remove(&new);
        assert_eq!((registry.len(), registry.of(new.mailbox).len()), (0, 0));
    }

    #[test]
    fn a_peek_displaces_nobody_and_hears_no_bells() {
        let registry = Registry::default();
        let main = handle("phone", 1, 1, Role::Main);
        let peek = handle("phone", 1, 2, Role::Peek);
        registry.insert(&main);
        assert!(matches!(registry.insert(&peek), Inserted::Fresh));
        assert_eq!(registry.len(), 2);
        assert_eq!(registry.of(main.mailbox).len(), 1);
        registry.remove(&peek);
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn the_lowest_known_head_of_a_mailbox_is_probed() {
        let registry = Registry::default();
        registry.insert(&handle("phone", 1, 5, Role::Main));
        registry.insert(&handle("laptop", 1, 3, Role::Main));
        assert_eq!(registry.heads_after(None, 10), vec![(MailboxId([7; 16]), Seq(3))]);
        assert!(registry.heads_after(Some(MailboxId([7; 16])), 10).is_empty());
    }
}
