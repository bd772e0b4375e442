//! What tests are made of: a seeded random source, a world with a clock that is set, generators and a reference model.
//! **Invariant:** the same seed gives the same everything.

pub mod generate;
pub mod model;

use crate::time::{Millis, Time, UnixMillis};
use crate::world::World;
use core::sync::atomic::{AtomicU64, Ordering};

/// A random source from a seed: `SplitMix64` (Steele, Lea, Flood 2014). Not for secrets.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The source of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed.wrapping_add(STEP)) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(STEP);
        mix(self.state)
    }

    /// Below `bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits().checked_rem(bound).unwrap_or(0)
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low).saturating_add(1))
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// An index below `len`; `None` if `len` is 0.
    pub fn index(&mut self, len: usize) -> Option<usize> {
        let index = self.bits().checked_rem(u64::try_from(len).ok()?)?;
        usize::try_from(index).ok()
    }

    /// One of these; `None` if there is none.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        self.index(of.len()).and_then(|index| of.get(index))
    }

    /// 16 random bytes, for ids.
    pub fn bytes16(&mut self) -> [u8; 16] {
        (u128::from(self.bits()) << 64 | u128::from(self.bits())).to_be_bytes()
    }
}

/// A world whose clocks stand until they are moved and whose randomness comes from a seed. May be shared.
#[derive(Debug)]
pub struct TestWorld {
    now: AtomicU64,
    wall: AtomicU64,
    random: AtomicU64,
}

impl TestWorld {
    /// At `Time(0)`, on 2026-01-01.
    pub fn new(seed: u64) -> Self {
        Self {
            now: AtomicU64::new(0),
            wall: AtomicU64::new(1_767_225_600_000),
            random: AtomicU64::new(mix(seed.wrapping_add(STEP))),
        }
    }

    /// Moves both clocks on.
    pub fn advance(&self, by: Millis) {
        self.now.fetch_add(by.0, Ordering::Relaxed);
        self.wall.fetch_add(by.0, Ordering::Relaxed);
    }

    /// Sets the wall clock, as a jump of it would.
    pub fn set_wall(&self, wall: UnixMillis) {
        self.wall.store(wall.0, Ordering::Relaxed);
    }
}

impl World for TestWorld {
    fn now(&self) -> Time {
        Time(self.now.load(Ordering::Relaxed))
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(self.wall.load(Ordering::Relaxed))
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = mix(self.random.fetch_add(STEP, Ordering::Relaxed)).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
