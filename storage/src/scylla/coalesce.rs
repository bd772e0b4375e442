//! Equal reads at once cost one statement. **Invariant:** a read is shared only with callers that came before it was sent,
//! so each of them sees whatever was written before its own call began.
//!
//! The first caller waits one turn of the scheduler, and perhaps for its place among the statements under way; whoever asks the
//! same meanwhile waits for its answer. If the first one goes away, the next takes its part.

use crate::error::Result;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

type Waiting<V> = Vec<oneshot::Sender<Result<V>>>;

/// Reads that were not sent yet, by what they read, with those who wait for them.
pub(super) struct Coalesce<K: Ord, V> {
    unsent: Mutex<BTreeMap<K, Waiting<V>>>,
}

/// A read that was not sent yet; when it goes, those who wait start over.
struct Unsent<'a, K: Ord, V> {
    key: &'a K,
    table: &'a Coalesce<K, V>,
}

enum Part<'a, K: Ord, V> {
    First(Unsent<'a, K, V>),
    Joined(oneshot::Receiver<Result<V>>),
}

impl<K: Ord, V> Drop for Unsent<'_, K, V> {
    fn drop(&mut self) {
        drop(self.table.lock().remove(self.key));
    }
}

impl<K: Ord, V> Unsent<'_, K, V> {
    /// Nobody may join any more.
    fn send(self) -> Waiting<V> {
        self.table.lock().remove(self.key).unwrap_or_default()
    }
}

impl<K: Ord, V> Coalesce<K, V> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, Waiting<V>>> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Ord + Clone, V: Clone> Coalesce<K, V> {
    /// Nothing waits.
    pub(super) fn new() -> Self {
        Self { unsent: Mutex::default() }
    }

    fn part<'a>(&'a self, key: &'a K) -> Part<'a, K, V> {
        let mut unsent = self.lock();
        if let Some(waiting) = unsent.get_mut(key) {
            let (answer, joined) = oneshot::channel();
            waiting.push(answer);
            return Part::Joined(joined);
        }
        unsent.insert(key.clone(), Vec::new());
        Part::First(Unsent { key, table: self })
    }

    /// The read of `key`: it waits for its `place`, then it is sent by `read`. Also says whether another one's was joined.
    pub(super) async fn read<P, F>(
        &self,
        key: &K,
        place: impl Future<Output = Result<P>>,
        read: impl FnOnce(P) -> F,
    ) -> (Result<V>, bool)
    where
        F: Future<Output = Result<V>>,
    {
        loop {
            match self.part(key) {
                Part::Joined(answer) => {
                    if let Ok(answer) = answer.await {
                        return (answer, true);
                    }
                }
                Part::First(unsent) => {
                    tokio::task::yield_now().await;
                    let place = place.await;
                    let waiting = unsent.send();
                    let answer = match place {
                        Ok(place) => read(place).await,
                        Err(error) => Err(error),
                    };
                    for joined in waiting {
                        // It may have gone away.
                        drop(joined.send(answer.clone()));
                    }
                    return (answer, false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreError;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Database {
        reads: AtomicU64,
        value: AtomicU64,
        coalesce: Coalesce<u8, u64>,
    }

    impl Database {
        fn new() -> Self {
            Self { reads: AtomicU64::new(0), value: AtomicU64::new(0), coalesce: Coalesce::new() }
        }

        async fn read_at(&self, key: u8, place: Result<()>) -> Result<u64> {
            let read = |()| async {
                self.reads.fetch_add(1, Ordering::Relaxed);
                let seen = self.value.load(Ordering::Relaxed);
                // The answer is on its way.
                tokio::task::yield_now().await;
                tokio::task::yield_now().await;
                Ok(seen)
            };
            self.coalesce.read(&key, async { place }, read).await.0
        }

        async fn read(&self, key: u8) -> Result<u64> {
            self.read_at(key, Ok(())).await
        }

        fn reads(&self) -> u64 {
            assert!(self.coalesce.lock().is_empty(), "something is left");
            self.reads.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn equal_reads_at_once_are_one() {
        let database = Database::new();
        let many = futures_util::future::join_all((0..20).map(|n| database.read(n % 2))).await;
        assert!(many.iter().all(|read| *read == Ok(0)));
        assert_eq!(database.reads(), 2);
    }

    #[tokio::test]
    async fn a_read_on_its_way_is_not_joined() {
        let database = Database::new();
        let mut first = Box::pin(database.read(1));
        assert!(futures_util::poll!(&mut first).is_pending(), "waits its turn");
        assert!(futures_util::poll!(&mut first).is_pending(), "sent");
        database.value.store(5, Ordering::Relaxed);
        assert_eq!(database.read(1).await, Ok(5), "sees what was written before it began");
        assert_eq!(first.await, Ok(0));
        assert_eq!(database.reads(), 2);
    }

    #[tokio::test]
    async fn whoever_is_left_does_it() {
        let database = Database::new();
        for polls in [1, 2] {
            let mut first = Box::pin(database.read(1));
            assert!(futures_util::poll!(&mut first).is_pending());
            let (mut second, mut third) = (Box::pin(database.read(1)), Box::pin(database.read(1)));
            assert!(
                futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending()
            );
            for _ in 1..polls {
                assert!(futures_util::poll!(&mut first).is_pending());
            }
            drop(first);
            assert_eq!(tokio::join!(second, third), (Ok(0), Ok(0)));
            let mut nobody = Box::pin(database.read(1));
            assert!(futures_util::poll!(&mut nobody).is_pending());
            drop(nobody);
        }
        assert_eq!(database.reads(), 3, "once unsent, once half done, and each time once whole");
    }

    #[tokio::test]
    async fn all_hear_that_there_was_no_place() {
        let database = Database::new();
        let full = Err(StoreError::Unavailable("full".into()));
        let (a, b) = tokio::join!(database.read_at(1, full.clone().map(drop::<u64>)), database.read(1));
        assert_eq!((&a, &b), (&full, &full));
        assert_eq!(database.reads(), 0);
    }
}
