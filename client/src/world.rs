//! The real clock and real randomness. **Invariant:** the only place of the SDK that reads a clock or makes randomness.

use chappe_protocol::time::{Time, UnixMillis};
use chappe_protocol::world::World;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The system's clocks and the operating system's randomness.
#[derive(Debug)]
pub struct SystemWorld {
    start: Instant,
}

impl Default for SystemWorld {
    #[allow(clippy::disallowed_methods, reason = "this is the world that everybody else is given")]
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl World for SystemWorld {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    #[allow(clippy::disallowed_methods, reason = "this is the world that everybody else is given")]
    fn wall(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        rand::fill(bytes);
    }
}
