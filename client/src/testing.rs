//! A seeded world for this crate's unit tests.

use chappe_protocol::time::{Time, UnixMillis};
use chappe_protocol::world::World;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::sync::Mutex;

/// Time stands still, randomness comes from the seed.
pub(crate) struct Seeded(Mutex<StdRng>);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl World for Seeded {
    fn now(&self) -> Time {
        Time(0)
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_700_000_000_000)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap().fill_bytes(bytes);
    }
}
