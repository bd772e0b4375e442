//! A world whose wall clock is wrong.

use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::{Time, UnixMillis};
use chappe_protocol::world::World;
use std::time::Instant;

/// A world with the machine's monotonic clock, and a wall clock that is wrong by as much as one wants.
pub(crate) struct SkewedWorld {
    begin: Instant,
    wall_at_begin: u64,
    random: TestWorld,
}

impl SkewedWorld {
    /// Its wall clock stands at this time now.
    #[allow(clippy::disallowed_methods, reason = "a real database cannot be driven by a clock that stands")]
    pub(crate) fn at(wall: UnixMillis, seed: u64) -> Self {
        Self { begin: Instant::now(), wall_at_begin: wall.0, random: TestWorld::new(seed) }
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap()
    }
}

impl World for SkewedWorld {
    fn now(&self) -> Time {
        Time(1_000_000 + self.elapsed())
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(self.wall_at_begin + self.elapsed())
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.fill_random(bytes);
    }
}
