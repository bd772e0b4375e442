//! The store's clock as this process knows it. **Invariant:** it decides when to wake and nothing else.

use chappe_protocol::time::{Time, UnixMillis};
use chappe_protocol::world::World;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// This process's wall clock, corrected by what the store last told.
pub struct StoreClock {
    world: Arc<dyn World>,
    /// Milliseconds that the store's clock is ahead.
    ahead: AtomicI64,
}

impl StoreClock {
    /// Not corrected yet.
    pub fn new(world: Arc<dyn World>) -> Self {
        Self { world, ahead: AtomicI64::new(0) }
    }

    /// The store's time.
    pub fn now(&self) -> UnixMillis {
        UnixMillis(self.world.wall().0.saturating_add_signed(self.ahead.load(Ordering::Relaxed)))
    }

    /// The store said that it was `as_of` between `asked` and now, by this process's wall clock.
    pub fn observe(&self, as_of: UnixMillis, asked: UnixMillis) {
        let middle = asked.0 + (self.world.wall().0.saturating_sub(asked.0)) / 2;
        let ahead = i128::from(as_of.0) - i128::from(middle);
        self.ahead.store(i64::try_from(ahead).unwrap_or(0), Ordering::Relaxed);
    }

    /// A time of the store's as one of the monotonic clock; what is past is now.
    pub fn monotonic(&self, at: UnixMillis) -> Time {
        self.world.now() + chappe_protocol::time::Millis(at.0.saturating_sub(self.now().0))
    }
}
