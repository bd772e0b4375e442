//! What a role may ask of the world: the time and randomness. Given to it, so that a simulation can give another.

use crate::time::{Time, UnixMillis};

/// Clock and randomness of a process; `node` has the real one, tests and the simulation have seeded ones.
pub trait World: Send + Sync + 'static {
    /// The monotonic clock.
    fn now(&self) -> Time;

    /// The wall clock; may jump.
    fn wall(&self) -> UnixMillis;

    /// Fills the buffer with random bytes; cryptographically strong outside of tests.
    fn fill_random(&self, bytes: &mut [u8]);

    /// A uniformly random number below `bound` (0 if `bound` is 0); for jitter, not for secrets.
    fn random_below(&self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_le_bytes(bytes).checked_rem(bound).unwrap_or(0)
    }
}
