//! A map that forgets the oldest. **Invariant:** never more than twice its bound; what was used within the last `bound`
//! insertions is there.

use std::collections::HashMap;
use std::hash::Hash;

/// The young and the old; when the young are `bound`, the old are forgotten.
#[derive(Debug)]
pub(super) struct Generations<K, V> {
    bound: usize,
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq, V> Generations<K, V> {
    pub(super) fn new(bound: usize) -> Self {
        Self { bound, young: HashMap::new(), old: HashMap::new() }
    }

    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key).or_else(|| self.old.get(key))
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.bound && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    /// Forgets it; whether it was there.
    pub(super) fn take(&mut self, key: &K) -> bool {
        let young = self.young.remove(key).is_some();
        self.old.remove(key).is_some() || young
    }

    /// What it is now, or `fresh`; from now on among the young.
    pub(super) fn entry(&mut self, key: K, fresh: V) -> &mut V {
        if self.young.len() >= self.bound && !self.young.contains_key(&key) {
            let aging = std::mem::take(&mut self.young);
            // It may be among those that are forgotten now.
            let kept = self.old.remove(&key);
            self.old = aging;
            return self.young.entry(key).or_insert(kept.unwrap_or(fresh));
        }
        let old = &mut self.old;
        self.young.entry(key).or_insert_with_key(|key| old.remove(key).unwrap_or(fresh))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_the_oldest_and_keeps_what_is_used() {
        let mut map = Generations::new(10);
        map.insert(0, "kept");
        for key in 1..100 {
            assert_eq!(*map.entry(0, "forgotten"), "kept", "{key}");
            map.insert(key, "x");
        }
        assert!(map.get(&1).is_none() && map.get(&99).is_some());
        assert!(map.young.len() + map.old.len() <= 20);
    }

    #[test]
    fn what_is_asked_for_in_the_last_moment_is_kept() {
        let mut map = Generations::new(2);
        (0..4).for_each(|key| map.insert(key, "kept"));
        assert_eq!(*map.entry(0, "forgotten"), "kept");
        assert_eq!(*map.entry(1, "forgotten"), "forgotten", "the old ones went with that");
    }
}
