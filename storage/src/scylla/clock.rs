//! The store's clock: the database's, carried on by this process's monotonic clock. **Invariant:** this process's wall clock
//! changes nothing, however wrong it is or however it jumps; one node whose clock is wrong changes nothing either.
//!
//! A sample is a coordinator's clock less the middle of the round trip that asked for it; the median of the last few counts.
//! Statements take a new sample now and then on their way, so no task runs for it.

use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Samples that count.
pub(super) const SAMPLES: usize = 5;
/// A new one is taken after this time.
const REFRESH: Millis = Millis::from_secs(30);

pub(super) struct Clock {
    world: Arc<dyn World>,
    /// The world's wall clock is the store's.
    pinned: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The database's clock when this process's monotonic clock was zero; the oldest first.
    samples: VecDeque<u64>,
    asked_at: Option<Time>,
}

impl Clock {
    pub(super) fn new(world: Arc<dyn World>, pinned: bool) -> Self {
        Self { world, pinned, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monotonic clock.
    pub(super) fn mono(&self) -> Time {
        self.world.now()
    }

    /// The store's clock; before the first sample, this process's.
    pub(super) fn now(&self) -> UnixMillis {
        if self.pinned {
            return self.world.wall();
        }
        let mut samples: Vec<_> = self.state().samples.iter().copied().collect();
        samples.sort_unstable();
        match samples.get(samples.len() / 2) {
            Some(zero) => UnixMillis(zero.saturating_add(self.world.now().0)),
            None => self.world.wall(),
        }
    }

    /// Whether the caller shall take a sample now; says so to one caller in [`REFRESH`].
    pub(super) fn due(&self) -> bool {
        if self.pinned {
            return false;
        }
        let now = self.world.now();
        let mut state = self.state();
        let due = state.asked_at.is_none_or(|at| now - at >= REFRESH);
        if due {
            state.asked_at = Some(now);
        }
        due
    }

    /// Takes a sample: asked at `sent`, answered now with `told`.
    pub(super) fn learn(&self, sent: Time, told: UnixMillis) {
        let now = self.world.now();
        let middle = sent.0 + (now - sent).0 / 2;
        let mut state = self.state();
        if state.samples.len() == SAMPLES {
            state.samples.pop_front();
        }
        state.samples.push_back(told.0.saturating_sub(middle));
        state.asked_at = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_protocol::testing::TestWorld;

    const DATABASE: u64 = 1_800_000_000_000;

    #[test]
    fn the_databases_clock_counts_and_not_ours() {
        let world = Arc::new(TestWorld::new(1));
        let clock = Clock::new(world.clone(), false);
        assert_eq!(clock.now(), world.wall(), "nothing better is known yet");
        world.advance(Millis(500));
        let sent = world.now();
        world.advance(Millis(40));
        clock.learn(sent, UnixMillis(DATABASE));
        assert_eq!(clock.now(), UnixMillis(DATABASE + 20), "half of the round trip ago");
        world.set_wall(UnixMillis(world.wall().0 + 3_600_000));
        assert_eq!(clock.now(), UnixMillis(DATABASE + 20), "an hour of skew");
        world.advance(Millis(1000));
        assert_eq!(clock.now(), UnixMillis(DATABASE + 1020));
    }

    #[test]
    fn one_wrong_clock_of_three_changes_nothing() {
        let world = Arc::new(TestWorld::new(1));
        let clock = Clock::new(world.clone(), false);
        for wrong in [0, 86_400_000, 0, 86_400_000, 0, 0, 86_400_000, 0] {
            clock.learn(world.now(), UnixMillis(DATABASE + wrong));
        }
        assert_eq!(clock.now(), UnixMillis(DATABASE));
        // The database was set: in time all samples are new.
        (0..SAMPLES).for_each(|_| clock.learn(world.now(), UnixMillis(DATABASE + 7)));
        assert_eq!(clock.now(), UnixMillis(DATABASE + 7));
    }

    #[test]
    fn one_caller_in_half_a_minute_asks_again() {
        let world = Arc::new(TestWorld::new(1));
        let clock = Clock::new(world.clone(), false);
        assert!(clock.due());
        assert!(!clock.due(), "somebody is at it");
        world.advance(Millis(REFRESH.0 - 1));
        assert!(!clock.due());
        world.advance(Millis(1));
        assert!(clock.due() && !clock.due());
        assert!(!Clock::new(world, true).due(), "a pinned one needs none");
    }
}
