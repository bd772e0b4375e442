//! What became of the device tokens that a provider knows. **Invariant:** a token whose state was never set is alive.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Tokens whose state is held at most; the smallest goes first beyond that.
const TOKENS_MAX: usize = 1_000_000;

/// The state of one device token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenState {
    /// Wakes pass.
    Live,
    /// The app was removed at this time (milliseconds since 1970).
    DeadSince(u64),
    /// The provider never gave it out, or gave it to another app.
    NeverValid,
}

/// All states that are not [`TokenState::Live`].
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<BTreeMap<String, TokenState>>);

impl Tokens {
    pub(crate) fn set(&self, token: &str, state: TokenState) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state == TokenState::Live {
            states.remove(token);
            return;
        }
        states.insert(token.to_owned(), state);
        if states.len() > TOKENS_MAX {
            states.pop_first();
        }
    }

    pub(crate) fn get(&self, token: &str) -> TokenState {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        states.get(token).copied().unwrap_or(TokenState::Live)
    }
}
