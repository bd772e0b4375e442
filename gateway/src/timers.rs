//! One timer for all connections of a gateway. **Invariant:** at most one entry per connection.

use crate::handle::Handle;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Deadlines are rounded up to this, so that many fire together.
const GRAIN_MS: u64 = 16;
/// The task looks at the clock at least so often, to notice that the process was paused.
const TICK: Millis = Millis::from_secs(5);

/// The deadlines of all connections.
#[derive(Default)]
pub(crate) struct Timers {
    inner: Mutex<Inner>,
    earlier: Notify,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<(Time, u64), Arc<Handle>>,
    next_number: u64,
}

/// A connection's entry.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Armed(Option<(Time, u64)>);

impl Armed {
    /// The timer has fired.
    pub(crate) fn fired(&mut self) {
        self.0 = None;
    }
}

impl Timers {
    /// Fires the handle at `at` or, if an earlier deadline stands, then: whoever is fired arms again.
    pub(crate) fn arm(&self, handle: &Arc<Handle>, armed: &mut Armed, at: Time) {
        let at = Time(at.0.div_ceil(GRAIN_MS).saturating_mul(GRAIN_MS));
        if armed.0.is_some_and(|(there, _)| there <= at) {
            return;
        }
        let mut inner = self.lock();
        let number = if let Some(key) = armed.0 {
            inner.entries.remove(&key);
            key.1
        } else {
            inner.next_number += 1;
            inner.next_number
        };
        let first = inner.entries.first_key_value().is_none_or(|((first, _), _)| at < *first);
        inner.entries.insert((at, number), Arc::clone(handle));
        armed.0 = Some((at, number));
        if first {
            self.earlier.notify_one();
        }
    }

    /// Takes the entry out.
    pub(crate) fn disarm(&self, armed: &mut Armed) {
        if let Some(key) = armed.0.take() {
            self.lock().entries.remove(&key);
        }
    }

    /// Deadlines that stand.
    pub(crate) fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Fires what is due, until dropped. `on_pause` hears of every gap in the clock.
    pub(crate) async fn run(&self, world: &dyn World, mut on_pause: impl FnMut(Millis)) {
        loop {
            let now = world.now();
            let next = self.fire_due(now).map_or(TICK, |at| (at - now).min(TICK)).max(Millis(1));
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = tokio::time::sleep(next.to_std()) => {}
            }
            let slept = world.now() - now;
            if slept > next {
                on_pause(Millis(slept.0 - next.0));
            }
        }
    }

    /// Fires and removes what is due; returns the next deadline.
    fn fire_due(&self, now: Time) -> Option<Time> {
        let due = {
            let mut inner = self.lock();
            let later = inner.entries.split_off(&(now + Millis(1), 0));
            std::mem::replace(&mut inner.entries, later)
        };
        for handle in due.values() {
            handle.fire();
        }
        self.lock().entries.first_key_value().map(|((at, _), _)| *at)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::Carrier;
    use chappe_protocol::frame::Role;
    use chappe_protocol::id::{ConnectionId, DeviceId, Epoch, MailboxId, Seq};
    use std::task::Waker;

    fn handle() -> Arc<Handle> {
        let device = DeviceId::new("phone").unwrap();
        let order = (Epoch(1), ConnectionId([1; 16]), 0);
        Arc::new(Handle::new(MailboxId([1; 16]), device, (Role::Main, Carrier::WebSocket), order, Seq(0)))
    }

    #[test]
    fn one_entry_per_connection_and_the_earliest_deadline_stands() {
        let timers = Timers::default();
        let handle = handle();
        let mut armed = Armed::default();
        for at in [5000, 9000, 3000, 4000] {
            timers.arm(&handle, &mut armed, Time(at));
        }
        assert_eq!(timers.len(), 1);
        assert_eq!(timers.fire_due(Time(2000)), Some(Time(3008)));
        assert!(handle.take(Waker::noop()).is_empty());
        assert_eq!(timers.fire_due(Time(3008)), None);
        assert!(handle.take(Waker::noop()).timer);
        armed.fired();
        timers.arm(&handle, &mut armed, Time(9000));
        timers.disarm(&mut armed);
        assert_eq!(timers.len(), 0);
    }
}
