//! Equal reads at once cost one statement. **Invariant:** a read is shared only with callers that came before it was sent,
//! so each of them sees whatever was written before its own call began.
//!
//! A read waits one turn of the scheduler before it is sent, and perhaps for its place among the statements under way: whoever
//! asks the same meanwhile joins it. Any of the callers drives it; when all are gone, so is it.

use crate::error::Result;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Reading<V> = Shared<BoxFuture<'static, Result<V>>>;
type Table<K, V> = Mutex<BTreeMap<K, WeakShared<BoxFuture<'static, Result<V>>>>>;

/// Reads that were not sent yet, by what they read.
pub(super) struct Coalesce<K: Ord, V> {
    unsent: Arc<Table<K, V>>,
}

/// A place in the table; given up when the read is sent, or by nobody wanting it any more.
pub(super) struct Unsent<K: Ord, V> {
    key: K,
    unsent: Arc<Table<K, V>>,
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Ord, V> Drop for Unsent<K, V> {
    fn drop(&mut self) {
        lock(&self.unsent).remove(&self.key);
    }
}

impl<K, V> Coalesce<K, V>
where
    K: Ord + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Nothing waits.
    pub(super) fn new() -> Self {
        Self { unsent: Arc::default() }
    }

    /// The read of `key`: one that waits to be sent, else the one that `start` makes, which drops its [`Unsent`] right
    /// before it sends. Also says whether it was joined.
    pub(super) fn read<F>(&self, key: &K, start: impl FnOnce(Unsent<K, V>) -> F) -> (Reading<V>, bool)
    where
        F: Future<Output = Result<V>> + Send + 'static,
    {
        let mut unsent = lock(&self.unsent);
        if let Some(reading) = unsent.get(key).and_then(WeakShared::upgrade) {
            return (reading, true);
        }
        let place = Unsent { key: key.clone(), unsent: self.unsent.clone() };
        let read = start(place);
        let reading = async move {
            tokio::task::yield_now().await;
            read.await
        };
        let reading = reading.boxed().shared();
        if let Some(weak) = reading.downgrade() {
            unsent.insert(key.clone(), weak);
        }
        (reading, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Database {
        reads: Arc<AtomicU64>,
        value: Arc<AtomicU64>,
        coalesce: Coalesce<u8, u64>,
    }

    impl Database {
        fn new() -> Self {
            Self { reads: Arc::default(), value: Arc::default(), coalesce: Coalesce::new() }
        }

        fn read(&self, key: u8) -> Reading<u64> {
            let (reads, value) = (self.reads.clone(), self.value.clone());
            let read = |place| async move {
                drop(place);
                reads.fetch_add(1, Ordering::Relaxed);
                let seen = value.load(Ordering::Relaxed);
                // The answer is on its way.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                Ok(seen)
            };
            self.coalesce.read(&key, read).0
        }

        fn left(&self) -> usize {
            lock(&self.coalesce.unsent).len()
        }
    }

    #[tokio::test]
    async fn equal_reads_at_once_are_one() {
        let database = Database::new();
        let (a, b, c) = tokio::join!(database.read(1), database.read(1), database.read(2));
        assert_eq!((a, b, c), (Ok(0), Ok(0), Ok(0)));
        assert_eq!((database.reads.load(Ordering::Relaxed), database.left()), (2, 0));
    }

    #[tokio::test]
    async fn a_read_on_its_way_is_not_joined() {
        let database = Database::new();
        let mut first = database.read(1);
        assert!(futures_util::poll!(&mut first).is_pending(), "waits its turn");
        assert!(futures_util::poll!(&mut first).is_pending(), "sent");
        database.value.store(5, Ordering::Relaxed);
        assert_eq!(database.read(1).await, Ok(5), "sees what was written before it began");
        assert_eq!(first.await, Ok(0));
        assert_eq!(database.left(), 0);
    }

    #[tokio::test]
    async fn whoever_is_left_drives_it_and_nobody_leaves_a_trace() {
        let database = Database::new();
        let mut first = database.read(1);
        assert!(futures_util::poll!(&mut first).is_pending());
        let second = database.read(1);
        drop(first);
        assert_eq!(second.await, Ok(0));
        assert_eq!(database.reads.load(Ordering::Relaxed), 1);
        drop(database.read(1));
        assert_eq!((database.reads.load(Ordering::Relaxed), database.left()), (1, 0));
    }
}
