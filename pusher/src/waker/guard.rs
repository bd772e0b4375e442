//! What holds a hint until its wakes have had an answer. **Invariant:** the last of its clones to go finishes the hint, once.

use chappe_protocol::internode::WakeHint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Called once: `true`: the hint was dealt with; `false`: somebody else should, now.
pub type Finish = Box<dyn FnOnce(bool) + Send>;

/// A hint, and whom to tell when it has been dealt with.
pub struct Hinted {
    /// The hint.
    pub hint: WakeHint,
    /// `None`: nobody waits.
    pub finish: Option<Finish>,
}

impl From<WakeHint> for Hinted {
    fn from(hint: WakeHint) -> Self {
        Self { hint, finish: None }
    }
}

/// Holds a hint.
#[derive(Clone)]
pub(crate) struct Guard {
    _held: Arc<Held>,
}

struct Held {
    finish: Mutex<Option<Finish>>,
    leaving: Arc<AtomicBool>,
}

impl Guard {
    pub(super) fn new(finish: Finish, leaving: &Arc<AtomicBool>) -> Self {
        Self { _held: Arc::new(Held { finish: Mutex::new(Some(finish)), leaving: Arc::clone(leaving) }) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let finish = self.finish.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(finish) = finish {
            finish(!self.leaving.load(Ordering::Relaxed));
        }
    }
}
