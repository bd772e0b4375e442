//! Clock and randomness of one simulated process. **Invariant:** everything follows from the seed and simulated time.

use chappe_client::{UnixMillis, World};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Time;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The latest time that any process has seen, for whoever asks from outside of the simulation.
#[derive(Debug, Default)]
pub(crate) struct Latest(AtomicU64);

/// The world of one process.
pub(crate) struct SimWorld {
    latest: Arc<Latest>,
    random: TestWorld,
}

impl SimWorld {
    pub(crate) fn new(latest: Arc<Latest>, seed: u64) -> Arc<Self> {
        Arc::new(Self { latest, random: TestWorld::new(seed) })
    }
}

impl World for SimWorld {
    fn now(&self) -> Time {
        let inside = tokio::runtime::Handle::try_current().is_ok();
        match turmoil::sim_elapsed().filter(|_| inside) {
            Some(elapsed) => {
                let now = u64::try_from(elapsed.as_millis()).unwrap();
                self.latest.0.fetch_max(now, Ordering::Relaxed);
                Time(now)
            }
            None => Time(self.latest.0.load(Ordering::Relaxed)),
        }
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_767_225_600_000 + self.now().0)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.fill_random(bytes);
    }
}
