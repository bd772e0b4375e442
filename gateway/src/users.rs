//! Which mailbox a user has. **Invariant:** bounded in entries and in age; a user who does not exist is never remembered.

use chappe_protocol::id::{MailboxId, UserId};
use chappe_protocol::time::{Millis, Time};
use chappe_storage::{Result, Store};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names kept, at most; each of at most [`UserId::BYTES_MAX`] bytes.
const ENTRIES_MAX: usize = 65_536;
/// How long an answer of the store is believed.
const FRESH: Millis = Millis::from_secs(60);

/// A cache of two generations: when the young one is half of the bound, it becomes the old one.
#[derive(Default)]
pub(crate) struct Users {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    young: BTreeMap<UserId, (MailboxId, Time)>,
    old: BTreeMap<UserId, (MailboxId, Time)>,
}

impl Users {
    /// The mailbox of a user who exists; `None` if nobody has that name.
    pub(crate) async fn find(
        &self,
        store: &dyn Store,
        now: Time,
        user: &UserId,
    ) -> Result<Option<MailboxId>> {
        if let Some(mailbox) = self.cached(now, user) {
            return Ok(Some(mailbox));
        }
        let found = store.user(user).await?.filter(|user| !user.erased).map(|user| user.mailbox);
        if let Some(mailbox) = found {
            self.put(now, user, mailbox);
        }
        Ok(found)
    }

    /// The mailbox of a user who has shown a valid token: the first one makes the user.
    pub(crate) async fn find_or_create(
        &self,
        store: &dyn Store,
        now: Time,
        user: &UserId,
    ) -> Result<MailboxId> {
        if let Some(mailbox) = self.find(store, now, user).await? {
            return Ok(mailbox);
        }
        let mailbox = store.create_user(user).await?.mailbox;
        self.put(now, user, mailbox);
        Ok(mailbox)
    }

    /// The store said otherwise.
    pub(crate) fn forget(&self, user: &UserId) {
        let mut inner = self.lock();
        inner.young.remove(user);
        inner.old.remove(user);
    }

    fn cached(&self, now: Time, user: &UserId) -> Option<MailboxId> {
        let inner = self.lock();
        let found = inner.young.get(user).or_else(|| inner.old.get(user));
        found.filter(|(_, at)| now - *at < FRESH).map(|(mailbox, _)| *mailbox)
    }

    fn put(&self, now: Time, user: &UserId, mailbox: MailboxId) {
        let mut inner = self.lock();
        if inner.young.len() >= ENTRIES_MAX / 2 {
            inner.old = std::mem::take(&mut inner.young);
        }
        inner.young.insert(user.clone(), (mailbox, now));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
