//! The real world: the process's clocks and the operating system's randomness.
//! **Invariant:** this is the only place of the project that reads a clock.

use chappe_protocol::time::{Time, UnixMillis};
use chappe_protocol::world::World;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::Instant;

/// [`World`] by tokio's clock (so that a paused runtime pauses it), the system's wall clock and aws-lc's randomness.
#[derive(Debug, Clone)]
pub struct SystemWorld {
    start: Instant,
}

impl SystemWorld {
    /// A world whose monotonic clock starts now.
    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemWorld {
    fn default() -> Self {
        Self::new()
    }
}

impl World for SystemWorld {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(clippy::disallowed_methods, reason = "this is where the clock is read")]
    fn wall(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    #[expect(
        clippy::expect_used,
        reason = "without randomness nothing here is safe: ending the process is right"
    )]
    fn fill_random(&self, bytes: &mut [u8]) {
        aws_lc_rs::rand::fill(bytes).expect("the operating system gives randomness");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_monotonic_clock_follows_the_paused_runtime() {
        let world = SystemWorld::new();
        let before = world.now();
        tokio::time::advance(std::time::Duration::from_millis(1500)).await;
        assert_eq!((world.now() - before).0, 1500);
    }

    #[tokio::test]
    async fn randomness_differs_from_call_to_call() {
        let world = SystemWorld::new();
        let (mut a, mut b) = ([0; 16], [0; 16]);
        world.fill_random(&mut a);
        world.fill_random(&mut b);
        assert_ne!(a, b);
        assert!(world.random_below(7) < 7);
    }
}
