//! Who waits for which answer. **Invariant:** an answer reaches at most one waiter, once; who gave up holds no place.

use async_nats::Message;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// The waiters of one process, by the last token of the subject that their answer comes on. Bounded by the requests in
/// flight. (The driver's own table keeps the places of those who gave up.)
#[derive(Default)]
pub(crate) struct Pending {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    last: u64,
    waiters: BTreeMap<u64, mpsc::Sender<(u64, Message)>>,
}

impl Pending {
    /// A new token, whose answer goes to this waiter.
    pub(crate) fn wait(&self, waiter: mpsc::Sender<(u64, Message)>) -> u64 {
        let mut table = self.lock();
        table.last += 1;
        let token = table.last;
        table.waiters.insert(token, waiter);
        token
    }

    /// Nobody waits for this token any more.
    pub(crate) fn forget(&self, token: u64) {
        self.lock().waiters.remove(&token);
    }

    /// Hands an answer to its waiter, if there still is one.
    pub(crate) fn answered(&self, message: Message) {
        let token = message.subject.as_str().rsplit('.').next().and_then(|token| token.parse().ok());
        let Some(token) = token else { return };
        let waiter = self.lock().waiters.remove(&token);
        if let Some(waiter) = waiter {
            // A waiter has room for each of its tokens; one that is gone wants nothing.
            let _ = waiter.try_send((token, message));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
