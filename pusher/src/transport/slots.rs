//! Which connections are open and how many streams each has room for. **Invariant:** a request holds a place on exactly one
//! connection from before its headers until after its body, and never more of them than the peer's SETTINGS allow.

use bytes::Bytes;
use h2::client::SendRequest;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Streams in a row that the peer may reset before its connection is given up.
const RESETS_MAX: u32 = 3;

/// Names a connection within its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneId(u64);

struct Lane {
    id: LaneId,
    sender: SendRequest<Bytes>,
    /// By the peer's SETTINGS; 1 until they came.
    limit: usize,
    active: usize,
    /// Streams that the peer reset since one was answered.
    resets: u32,
}

enum Slot {
    Empty,
    Opening,
    Open(Lane),
}

impl Slot {
    fn with_room(&mut self) -> Option<&mut Lane> {
        match self {
            Self::Open(lane) if lane.active < lane.limit => Some(lane),
            Self::Open(_) | Self::Empty | Self::Opening => None,
        }
    }
}

struct State {
    slots: Vec<Slot>,
    waiting: usize,
    next: u64,
}

/// The table, and where to wait for a change of it.
pub(super) struct Slots {
    state: Mutex<State>,
    /// One permit per place that came free.
    pub(super) room: Notify,
}

/// What [`Slots::take`] found.
pub(super) enum Taken {
    /// A place: send.
    Place(Place),
    /// An empty slot, to be filled by the caller.
    Open(Opening),
    /// Neither.
    Full,
}

impl Slots {
    pub(super) fn new(count: usize) -> Arc<Self> {
        let slots = (0..count.max(1)).map(|_| Slot::Empty).collect();
        Arc::new(Self { state: Mutex::new(State { slots, waiting: 0, next: 0 }), room: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place on the least busy connection with room, else a slot to open a connection in. `avoid` is taken only where
    /// there is neither; were it never taken, whoever avoids it could swallow the news of a place that another waits for.
    pub(super) fn take(self: &Arc<Self>, avoid: Option<LaneId>) -> Taken {
        let mut state = self.lock();
        let place = |lane: &mut Lane| {
            lane.active += 1;
            Taken::Place(Place { slots: self.clone(), lane: lane.id, sender: lane.sender.clone() })
        };
        let free = state.slots.iter_mut().filter_map(Slot::with_room).filter(|lane| Some(lane.id) != avoid);
        if let Some(lane) = free.min_by_key(|lane| lane.active) {
            return place(lane);
        }
        if let Some(index) = state.slots.iter().position(|slot| matches!(slot, Slot::Empty)) {
            state.slots[index] = Slot::Opening;
            return Taken::Open(Opening { slots: self.clone(), index: Some(index) });
        }
        state.slots.iter_mut().find_map(Slot::with_room).map_or(Taken::Full, place)
    }

    /// Stands in line, if the line is not too long.
    pub(super) fn wait(self: &Arc<Self>, waiting_max: usize) -> Option<Waiting> {
        let mut state = self.lock();
        if state.waiting >= waiting_max {
            return None;
        }
        state.waiting += 1;
        Some(Waiting { slots: self.clone() })
    }

    /// The peer allows so many streams now.
    pub(super) fn allow(&self, id: LaneId, limit: usize) {
        let mut state = self.lock();
        let waiting = state.waiting;
        let Some(lane) = lane(&mut state, id) else { return };
        let more = limit.saturating_sub(lane.limit).min(waiting);
        lane.limit = limit;
        drop(state);
        for _ in 0..more {
            self.room.notify_one();
        }
    }

    /// No new streams on this connection. Those that it has run on; it ends with the last of them.
    pub(super) fn retire(&self, id: LaneId) {
        let mut state = self.lock();
        for slot in &mut state.slots {
            if matches!(slot, Slot::Open(lane) if lane.id == id) {
                *slot = Slot::Empty;
                self.room.notify_one();
            }
        }
    }

    /// A stream was answered, or reset by the peer: too many of the latter in a row, and the connection is given up.
    pub(super) fn note(&self, id: LaneId, answered: bool) {
        let mut state = self.lock();
        let Some(lane) = lane(&mut state, id) else { return };
        lane.resets = if answered { 0 } else { lane.resets + 1 };
        let worn = lane.resets >= RESETS_MAX;
        drop(state);
        if worn {
            self.retire(id);
        }
    }

    fn leave(&self, id: LaneId) {
        if let Some(lane) = lane(&mut self.lock(), id) {
            lane.active -= 1;
        }
        self.room.notify_one();
    }
}

fn lane(state: &mut State, id: LaneId) -> Option<&mut Lane> {
    state.slots.iter_mut().find_map(|slot| match slot {
        Slot::Open(lane) if lane.id == id => Some(lane),
        Slot::Open(_) | Slot::Empty | Slot::Opening => None,
    })
}

/// The right to one stream on one connection; dropping it gives the place to the next.
pub(super) struct Place {
    slots: Arc<Slots>,
    pub(super) lane: LaneId,
    pub(super) sender: SendRequest<Bytes>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.slots.leave(self.lane);
    }
}

/// A slot in which a connection is being opened; dropping it gives the slot up.
pub(super) struct Opening {
    slots: Arc<Slots>,
    index: Option<usize>,
}

impl Opening {
    /// The connection stands; the peer's SETTINGS are not known yet, so it takes one stream (RFC 9113 lets us send more,
    /// Apple wants no more than that before the first request was accepted).
    pub(super) fn opened(mut self, sender: SendRequest<Bytes>) -> LaneId {
        let mut state = self.slots.lock();
        let id = LaneId(state.next);
        state.next += 1;
        if let Some(index) = self.index.take() {
            state.slots[index] = Slot::Open(Lane { id, sender, limit: 1, active: 0, resets: 0 });
        }
        drop(state);
        self.slots.room.notify_one();
        id
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(index) = self.index.take() {
            self.slots.lock().slots[index] = Slot::Empty;
            self.slots.room.notify_one();
        }
    }
}

/// A request that stands in line.
pub(super) struct Waiting {
    slots: Arc<Slots>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.slots.lock().waiting -= 1;
    }
}
