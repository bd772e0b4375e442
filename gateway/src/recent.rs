//! Answers that are believed for a while. **Invariant:** bounded in entries, and in age: of what was put in, nothing is left
//! once an [`Recent::expire`] comes more than twice the time of belief later.

use chappe_protocol::time::{Millis, Time};
use std::borrow::Borrow;
use std::collections::BTreeMap;

/// A map of two generations: when the young one is half of the bound or old enough, it becomes the old one.
pub(crate) struct Recent<K, V> {
    young: BTreeMap<K, (V, Time)>,
    old: BTreeMap<K, (V, Time)>,
    /// Since when the young one is filled.
    begun: Time,
    entries_max: usize,
    fresh: Millis,
}

impl<K: Ord, V: Copy> Recent<K, V> {
    /// An empty one of at most so many entries, each believed for so long.
    pub(crate) fn new(entries_max: usize, fresh: Millis) -> Self {
        Self { young: BTreeMap::new(), old: BTreeMap::new(), begun: Time(0), entries_max, fresh }
    }

    /// What was put in not too long ago.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, now: Time, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let found = self.young.get(key).or_else(|| self.old.get(key));
        found.filter(|(_, at)| now - *at <= self.fresh).map(|(value, _)| *value)
    }

    pub(crate) fn put(&mut self, now: Time, key: K, value: V) {
        // What the old one holds by then is believed no more.
        if self.young.len() >= self.entries_max / 2 || now - self.begun > self.fresh {
            self.old = std::mem::take(&mut self.young);
            self.begun = now;
        }
        self.young.insert(key, (value, now));
    }

    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    /// Gives all memory back if nothing of it is believed any more: nobody may put anything in for a long time.
    pub(crate) fn expire(&mut self, now: Time) {
        if now - self.begun > Millis(2 * self.fresh.0) {
            self.young = BTreeMap::new();
            self.old = BTreeMap::new();
        }
    }

    /// Entries that are there, whatever their age.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_of_traffic_that_stopped() {
        let mut recent = Recent::new(1000, Millis(100));
        for n in 0..300_u64 {
            recent.put(Time(n), n, ());
            assert!(recent.get(Time(n), &n.saturating_sub(100)).is_some(), "believed for 100 ms");
            recent.expire(Time(n));
        }
        assert!(recent.len() <= 202, "two times' worth at most");
        recent.expire(Time(350));
        assert!(recent.get(Time(350), &299).is_some(), "still believed");
        recent.expire(Time(600));
        assert_eq!(recent.len(), 0);
    }

    #[test]
    fn it_stays_within_its_bound_whatever_comes_at_once() {
        let mut recent = Recent::new(100, Millis(1000));
        for n in 0..10_000 {
            recent.put(Time(5), n, ());
        }
        assert!(recent.len() <= 100);
        assert!(recent.get(Time(5), &9_999).is_some());
        assert!(recent.get(Time(1006), &9_999).is_none(), "too old");
        recent.remove(&9_999);
        assert!(recent.get(Time(5), &9_999).is_none());
    }
}
