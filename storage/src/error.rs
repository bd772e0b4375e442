//! What a failure of the store means to the caller. **Invariant:** anything not certainly unwritten is `Unknown`.

use chappe_protocol::id::Seq;

/// An error that says what the caller may do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Certainly nothing was written: try again.
    #[error("the store is unavailable, nothing was written: {0}")]
    Unavailable(String),
    /// Perhaps written: try again under the same ids.
    #[error("the store did not answer, perhaps it has written: {0}")]
    Unknown(String),
    /// The mailbox is full: 100,000 slots or 1 GiB above the floor.
    #[error("the mailbox is full")]
    Quota,
    /// The mailbox was erased; nothing can be appended any more.
    #[error("the mailbox was erased")]
    Erased,
    /// The device was revoked.
    #[error("the device was revoked")]
    Revoked,
    /// The client's cursor lies beyond the head: alarm, refuse, never reset.
    #[error("the cursor {cursor} lies beyond the head {head}")]
    CursorAhead {
        /// What the client said.
        cursor: Seq,
        /// What is, at SERIAL.
        head: Seq,
    },
    /// The call itself is wrong; repeating it is useless.
    #[error("invalid call of the store: {0}")]
    Invalid(&'static str),
}

/// The store's result.
pub type Result<T, E = StoreError> = core::result::Result<T, E>;
