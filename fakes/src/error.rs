//! What can go wrong in a fake itself. **Invariant:** what a client did wrong is a verdict in the record, never one of these.

use std::time::Duration;

/// A fake could not do what its user asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FakeError {
    /// Keys or certificates could not be made.
    #[error("could not make keys: {0}")]
    Keys(String),
    /// The port could not be opened.
    #[error("could not listen: {0}")]
    Listen(#[from] std::io::Error),
    /// What was waited for did not come in time.
    #[error("waited {waited:?} for {wanted} requests, saw {seen}")]
    Late {
        /// Requests wanted.
        wanted: u64,
        /// Requests seen until then.
        seen: u64,
        /// How long.
        waited: Duration,
    },
    /// No subscription or token of this name was ever handed out.
    #[error("this fake never handed that out")]
    NotMine,
}
