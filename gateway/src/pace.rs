//! How many attaches are with the store at once: as many as it answers in time. **Invariant:** what is let in fits what the store does,
//! so that a storm that it cannot serve at once costs waiting, and not the work that is done.
//!
//! Without a bound all attaches of a storm are with the store together, each ends unanswered after its time, and is tried again: the
//! store works, and nobody gets in. So the bound is halved when attaches fail or take too long, and grows while others wait and
//! attaches are quick (additive increase, multiplicative decrease: Chiu and Jain, 1989).

use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use chappe_storage::StoreError;
use prometheus::IntGauge;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

/// The bound at the beginning, at least and at most.
const BEGIN: usize = 128;
const LEAST: usize = 4;
const MOST: usize = 1_024;
/// Who waits longer for a turn is told to come back later.
const WAIT_MAX: Millis = Millis::from_secs(4);
/// So many wait at most, by the bound.
const WAITING_BY_BOUND: usize = 16;
/// An attach that takes so long says that the store has too much to do.
const SLOW: Millis = Millis(1_500);
/// The bound is halved at most once within so long: what was let in before comes out first.
const HALVED_ONCE: Millis = Millis::from_secs(2);

/// The bound, and who waits.
pub(crate) struct Pace {
    permits: Semaphore,
    state: Mutex<State>,
    told: IntGauge,
}

struct State {
    bound: usize,
    /// Permits to keep when they are given back.
    owed: usize,
    /// Quick ones since the bound last grew.
    quick: usize,
    halved_at: Option<Time>,
    waiting: usize,
}

/// The right to be with the store.
pub(crate) struct Turn<'a> {
    pace: &'a Pace,
    world: &'a dyn World,
    permit: Option<SemaphorePermit<'a>>,
    begun: Time,
}

impl Pace {
    /// `told` is the bound as a metric.
    pub(crate) fn new(told: IntGauge) -> Self {
        let state = State { bound: BEGIN, owed: 0, quick: 0, halved_at: None, waiting: 0 };
        tell(&told, BEGIN);
        Self { permits: Semaphore::new(BEGIN), state: Mutex::new(state), told }
    }

    /// Waits for a turn. `None`: too many wait, or it took too long.
    pub(crate) async fn turn<'a>(&'a self, world: &'a dyn World) -> Option<Turn<'a>> {
        let permit = if let Ok(permit) = self.permits.try_acquire() {
            permit
        } else {
            let _waiter = Waiter::new(self)?;
            timeout(WAIT_MAX.to_std(), self.permits.acquire()).await.ok()?.ok()?
        };
        Some(Turn { pace: self, world, permit: Some(permit), begun: world.now() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(told: &IntGauge, bound: usize) {
    told.set(i64::try_from(bound).unwrap_or(i64::MAX));
}

/// Counted while it waits.
struct Waiter<'a>(&'a Pace);

impl<'a> Waiter<'a> {
    fn new(pace: &'a Pace) -> Option<Self> {
        let mut state = pace.lock();
        if state.waiting >= state.bound * WAITING_BY_BOUND {
            return None;
        }
        state.waiting += 1;
        Some(Self(pace))
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.lock().waiting -= 1;
    }
}

impl Turn<'_> {
    /// The store is done with it: with this error, or without any. Only the first word counts.
    pub(crate) fn over(&mut self, error: Option<&StoreError>) {
        let answered = !matches!(error, Some(StoreError::Unavailable(_) | StoreError::Unknown(_)));
        self.settle(answered);
    }

    fn settle(&mut self, answered: bool) {
        let Some(permit) = self.permit.take() else { return };
        let now = self.world.now();
        let slow = now - self.begun >= SLOW;
        let mut state = self.pace.lock();
        if state.owed > 0 {
            state.owed -= 1;
            permit.forget();
        } else {
            drop(permit);
        }
        if answered && !slow {
            state.quick += 1;
            if state.waiting > 0 && state.quick * 4 >= state.bound && state.bound < MOST {
                (state.bound, state.quick) = (state.bound + 1, 0);
                if state.owed > 0 {
                    state.owed -= 1;
                } else {
                    self.pace.permits.add_permits(1);
                }
            }
        } else if state.halved_at.is_none_or(|at| now - at >= HALVED_ONCE) {
            let bound = (state.bound / 2).max(LEAST);
            let fewer = state.bound - bound;
            state.owed += fewer - self.pace.permits.forget_permits(fewer);
            (state.bound, state.quick, state.halved_at) = (bound, 0, Some(now));
        }
        tell(&self.pace.told, state.bound);
    }
}

impl Drop for Turn<'_> {
    /// Whoever went before the store said anything says nothing for the store, unless it took long.
    fn drop(&mut self) {
        let quick = self.world.now() - self.begun < SLOW;
        self.settle(quick);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_node::clock::SystemWorld;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    fn pace() -> Pace {
        Pace::new(IntGauge::new("bound", "of a test").unwrap())
    }

    /// A store that does one attach after the other, and works on those whose caller has gone, too.
    struct Slow {
        world: SystemWorld,
        free_at: Mutex<Time>,
        each: Millis,
    }

    impl Slow {
        async fn attach(&self) -> bool {
            let now = self.world.now();
            let ends = {
                let mut free_at = self.free_at.lock().unwrap();
                *free_at = (*free_at).max(now) + self.each;
                *free_at
            };
            timeout(Duration::from_secs(3), tokio::time::sleep((ends - now).to_std())).await.is_ok()
        }
    }

    /// Devices that come within a second, and again after one to sixteen seconds until they are in or a time is over: how many are in,
    /// after how long, and how often the store was asked.
    async fn storm(paced: bool, devices: u64) -> (usize, Millis, usize) {
        let world = SystemWorld::new();
        let begun = world.now();
        let store = Arc::new(Slow { world: world.clone(), free_at: Mutex::new(begun), each: Millis(5) });
        let (pace, asked, entered) =
            (Arc::new(pace()), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut all = tokio::task::JoinSet::new();
        for device in 0..devices {
            let (store, pace, world) = (Arc::clone(&store), Arc::clone(&pace), world.clone());
            let (asked, entered) = (Arc::clone(&asked), Arc::clone(&entered));
            all.spawn(async move {
                tokio::time::sleep(Duration::from_millis(device * 1000 / devices)).await;
                for attempt in 0..8_u32 {
                    let mut turn = if paced { pace.turn(&world).await } else { None };
                    if !paced || turn.is_some() {
                        asked.fetch_add(1, Ordering::Relaxed);
                        let answered = store.attach().await;
                        if let Some(turn) = &mut turn {
                            turn.settle(answered);
                        }
                        if answered {
                            entered.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    }
                    drop(turn);
                    let pause = 1000_u64 << attempt.min(3);
                    tokio::time::sleep(Duration::from_millis(pause / 2 + device * 7919 % pause)).await;
                }
            });
        }
        all.join_all().await;
        (entered.load(Ordering::Relaxed), world.now() - begun, asked.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_beyond_the_store_is_served_at_the_stores_pace() {
        // 200 a second: 5,000 devices take 25 s at best.
        let (entered, took, asked) = storm(true, 5_000).await;
        assert!(entered == 5_000 && took < Millis::from_secs(40), "{entered} within {took:?}");
        assert!(asked < 5_500, "the store was asked {asked} times");
        // What it would be like: the store works on what nobody waits for any more.
        let (entered, _, asked) = storm(false, 5_000).await;
        assert!(entered < 2_500 && asked > 20_000, "{entered} of 5,000 after {asked} attempts");
    }

    #[tokio::test(start_paused = true)]
    async fn the_bound_falls_while_the_store_fails_and_comes_back() {
        let (pace, world) = (pace(), SystemWorld::new());
        for _ in 0..10 {
            pace.turn(&world).await.unwrap().over(Some(&StoreError::Unavailable("a test".into())));
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert_eq!(pace.lock().bound, LEAST, "never less: somebody has to try");
        // Four are in: a fifth waits, and is told to come back.
        let turns = [(); LEAST].map(|()| pace.permits.try_acquire().unwrap());
        let before = world.now();
        assert!(pace.turn(&world).await.is_none());
        assert_eq!(world.now() - before, WAIT_MAX);
        drop(turns);
        // With many waiting and a quick store it grows again.
        let pace = Arc::new(pace);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let (pace, world) = (Arc::clone(&pace), world.clone());
            all.spawn(async move {
                for _ in 0..40 {
                    let Some(mut turn) = pace.turn(&world).await else { continue };
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    turn.over(None);
                }
            });
        }
        all.join_all().await;
        let bound = pace.lock().bound;
        assert!(bound >= 48 && pace.told.get() == i64::try_from(bound).unwrap(), "{bound}");
        assert_eq!(pace.permits.available_permits(), bound, "all are back");
    }
}
