//! The thread that takes frozen memtables into the pages and syncs them. **Invariant:** one at a time, in the order in which they
//! were frozen; the committer is told how each ended before the next begins.

use super::database::Shared;
use super::leisure::Leisure;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// What the thread is at.
#[derive(Debug)]
enum State {
    /// Nothing to do.
    Idle,
    /// The frozen memtable, up to this batch, is to be written.
    Wanted(u64),
    /// It was not.
    Failed(String),
    Ended,
}

struct Inner {
    shared: Arc<Shared>,
    leisure: Arc<Leisure>,
    state: Mutex<State>,
    changed: Condvar,
}

/// The committer's end of it. Dropped, it waits for what is being written.
pub(super) struct Pages {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

impl Pages {
    /// Starts the thread.
    pub(super) fn start(shared: Arc<Shared>, leisure: Arc<Leisure>) -> std::io::Result<Self> {
        let state = Mutex::new(State::Idle);
        let inner = Arc::new(Inner { shared, leisure, state, changed: Condvar::new() });
        let of_thread = Arc::clone(&inner);
        // A thread of its own: while it writes and syncs pages, the committer goes on.
        let thread =
            std::thread::Builder::new().name("chappe-pages".into()).spawn(move || of_thread.run())?;
        Ok(Self { inner, thread: Some(thread) })
    }

    /// Whether one is being written.
    pub(super) fn is_busy(&self) -> bool {
        matches!(*self.inner.lock(), State::Wanted(_))
    }

    /// The next one is due: the present one takes no more rests.
    pub(super) fn hurry(&self) {
        self.inner.leisure.hurry();
    }

    /// Whether the last one could not be written: the database is of no more use until it is opened again.
    pub(super) fn has_failed(&self) -> bool {
        matches!(*self.inner.lock(), State::Failed(_))
    }

    /// Waits until none is being written. `Err`: the last one was not; what it held is still above the pages.
    pub(super) fn settle(&self) -> Result<(), String> {
        self.hurry();
        let mut state = self.inner.lock();
        while matches!(*state, State::Wanted(_)) {
            state = self.inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match std::mem::replace(&mut *state, State::Idle) {
            State::Failed(error) => Err(error),
            State::Idle | State::Wanted(_) | State::Ended => Ok(()),
        }
    }

    /// Has the frozen memtable written; with it the pages hold all batches up to this one. Only when settled.
    pub(super) fn write(&self, batch: u64) {
        self.inner.leisure.begin();
        *self.inner.lock() = State::Wanted(batch);
        self.inner.changed.notify_all();
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = self.settle();
        *self.inner.lock() = State::Ended;
        self.inner.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn run(&self) {
        loop {
            let mut state = self.lock();
            let batch = loop {
                match *state {
                    State::Wanted(batch) => break batch,
                    State::Ended => return,
                    State::Idle | State::Failed(_) => {}
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            let written = catch_unwind(AssertUnwindSafe(|| self.shared.write_pages(batch, &self.leisure)));
            *self.lock() = match written {
                Ok(Ok(())) => State::Idle,
                Ok(Err(error)) => State::Failed(error.to_string()),
                Err(_) => State::Failed("the database panicked".to_owned()),
            };
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
