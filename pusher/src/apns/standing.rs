//! Which device tokens Apple took last time. **Invariant:** bounded, and no token can be read out of it.

use aws_lc_rs::hmac;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_protocol::world::World;
use std::collections::HashMap;

/// A token that was registered less long ago, and was never taken, is on probation.
const FRESH: Millis = Millis::from_secs(24 * 3600);
/// Tokens remembered in each of two generations; 16 bytes each.
const GENERATION_MAX: usize = 65_536;

/// Two generations: when the young one is full, the old one is forgotten. What is used stays.
pub(super) struct Standing {
    key: hmac::Key,
    young: HashMap<u64, bool>,
    old: HashMap<u64, bool>,
    generation_max: usize,
}

impl Standing {
    pub(super) fn new(world: &dyn World) -> Self {
        let mut secret = [0; 32];
        world.fill_random(&mut secret);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        Self { key, young: HashMap::new(), old: HashMap::new(), generation_max: GENERATION_MAX }
    }

    fn name(&self, token: &[u8]) -> u64 {
        let tag = hmac::sign(&self.key, token);
        tag.as_ref().iter().take(8).fold(0, |name, byte| name << 8 | u64::from(*byte))
    }

    /// Whether a token belongs on the connection that others do not suffer from.
    pub(super) fn on_probation(&self, token: &[u8], registered_at: UnixMillis, wall: UnixMillis) -> bool {
        let name = self.name(token);
        match self.young.get(&name).or_else(|| self.old.get(&name)) {
            Some(good) => !good,
            None => wall.0.saturating_sub(registered_at.0) < FRESH.0,
        }
    }

    pub(super) fn note(&mut self, token: &[u8], good: bool) {
        let name = self.name(token);
        if self.young.len() >= self.generation_max {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, good);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_protocol::time::Time;

    struct Still;
    impl World for Still {
        fn now(&self) -> Time {
            Time(0)
        }
        fn wall(&self) -> UnixMillis {
            UnixMillis(0)
        }
        fn fill_random(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    #[test]
    fn the_new_and_the_refused_are_on_probation_and_the_proven_are_not() {
        let mut standing = Standing::new(&Still);
        let (day, now) = (24 * 3_600_000, UnixMillis(1_800_000_000_000));
        let probation =
            |standing: &Standing, ago| standing.on_probation(b"token", UnixMillis(now.0 - ago), now);
        assert!(probation(&standing, 0) && probation(&standing, day - 1), "new");
        assert!(
            !probation(&standing, day),
            "old, and forgotten: a pusher that starts anew trusts what it finds"
        );
        standing.note(b"token", true);
        assert!(!probation(&standing, 0), "proven");
        standing.note(b"token", false);
        assert!(probation(&standing, day), "refused last time");
    }

    #[test]
    fn it_forgets_the_longest_unused_and_never_grows_beyond_its_bound() {
        let mut standing = Standing::new(&Still);
        standing.generation_max = 10;
        for round in 0..100_u32 {
            standing.note(&round.to_le_bytes(), false);
            standing.note(b"often", false);
            assert!(standing.young.len() <= 10 && standing.old.len() <= 10);
        }
        assert!(standing.on_probation(b"often", UnixMillis(0), UnixMillis(u64::MAX)));
        assert!(!standing.on_probation(&0_u32.to_le_bytes(), UnixMillis(0), UnixMillis(u64::MAX)));
    }
}
