//! Which mailbox a user has. **Invariant:** bounded in entries and in age; a user who does not exist is never remembered.

use crate::recent::Recent;
use chappe_protocol::id::{MailboxId, UserId};
use chappe_protocol::time::{Millis, Time};
use chappe_storage::{Result, Store};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Names kept, at most; each of at most [`UserId::BYTES_MAX`] bytes.
const ENTRIES_MAX: usize = 65_536;
/// How long an answer of the store is believed.
const FRESH: Millis = Millis::from_secs(60);

/// A cache of the store's answers.
pub(crate) struct Users {
    mailboxes: Mutex<Recent<UserId, MailboxId>>,
}

impl Default for Users {
    fn default() -> Self {
        Self { mailboxes: Mutex::new(Recent::new(ENTRIES_MAX, FRESH)) }
    }
}

impl Users {
    /// The mailbox of a user who exists; `None` if nobody has that name.
    pub(crate) async fn find(
        &self,
        store: &dyn Store,
        now: Time,
        user: &UserId,
    ) -> Result<Option<MailboxId>> {
        let cached = self.lock().get(now, user);
        if let Some(mailbox) = cached {
            return Ok(Some(mailbox));
        }
        let found = store.user(user).await?.filter(|user| !user.erased).map(|user| user.mailbox);
        if let Some(mailbox) = found {
            self.lock().put(now, user.clone(), mailbox);
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
        self.lock().put(now, user.clone(), mailbox);
        Ok(mailbox)
    }

    /// The store said otherwise.
    pub(crate) fn forget(&self, user: &UserId) {
        self.lock().remove(user);
    }

    /// Forgets what is too old to be believed.
    pub(crate) fn expire(&self, now: Time) {
        self.lock().expire(now);
    }

    fn lock(&self) -> MutexGuard<'_, Recent<UserId, MailboxId>> {
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
