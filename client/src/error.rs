//! What can go wrong, told by what the application may do about it. **Invariant:** no user, device or secret in a message.

use crate::token::TokenError;
use chappe_protocol::frame::Limits;

/// An error of the SDK. Clones, because one terminal error answers every submit that waits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The outbox is at its bound in items or bytes: wait for a receipt, or use `submit`, which waits.
    #[error("the outbox is full")]
    Full,
    /// There is no connection now; only ephemeral submits fail so, everything else waits.
    #[error("not connected")]
    NotConnected,
    /// The client was closed or dropped. With a state directory the submit is sent by the next client.
    #[error("the client is closed")]
    Closed,
    /// A newer call of `set_push` has taken the place of this one before the server had answered it.
    #[error("a newer call has taken its place")]
    Replaced,
    /// Not decided on every target within 24 hours; it may have reached some of them.
    #[error("not decided within 24 hours, given up")]
    GaveUp,
    /// The submit or a setting is not valid; says what.
    #[error("{0}")]
    Invalid(&'static str),
    /// Something is larger than the server allows.
    #[error("larger than the limit {limit_name} = {max}")]
    TooLarge {
        /// A field of `Limits`.
        limit_name: &'static str,
        /// Its value.
        max: u64,
    },
    /// The server refused the submit or the push settings.
    #[error("refused: {message} ({code})")]
    Refused {
        /// A stable word, listed in PROTOCOL.md.
        code: String,
        /// For people.
        message: String,
        /// Whether the same may succeed later.
        retryable: bool,
    },
    /// The server closed the connection with a terminal code.
    #[error("the server ended the session: {reason} ({code})")]
    Ended {
        /// The close code, see [`chappe_protocol::close::CloseCode`].
        code: u16,
        /// Its short text.
        reason: String,
    },
    /// The token source refused for good.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The address cannot be used; says why.
    #[error("bad address: {0}")]
    Address(&'static str),
    /// The TLS settings cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// The state directory cannot be read or written. Nothing was sent that was not first on disk.
    #[error("state directory: {0}")]
    StateDir(String),
}

impl ClientError {
    /// Whether the same call may succeed later without a change by the application.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Full | Self::NotConnected => true,
            Self::Refused { retryable, .. } => *retryable,
            Self::Token(error) => error.is_retryable(),
            Self::Closed
            | Self::Replaced
            | Self::GaveUp
            | Self::Invalid(_)
            | Self::TooLarge { .. }
            | Self::Ended { .. }
            | Self::Address(_)
            | Self::Tls(_)
            | Self::StateDir(_) => false,
        }
    }

    /// A stable word for logs and metrics.
    pub fn code(&self) -> &str {
        match self {
            Self::Full => "full",
            Self::NotConnected => "not_connected",
            Self::Closed => "closed",
            Self::Replaced => "replaced",
            Self::GaveUp => "gave_up",
            Self::Invalid(_) => "invalid",
            Self::TooLarge { .. } => "too_large",
            Self::Refused { code, .. } => code,
            Self::Ended { reason, .. } => reason,
            Self::Token(_) => "token",
            Self::Address(_) => "address",
            Self::Tls(_) => "tls",
            Self::StateDir(_) => "state_dir",
        }
    }

    pub(crate) fn state_dir(error: &std::io::Error) -> Self {
        Self::StateDir(error.to_string())
    }
}

/// Checks an envelope's size against a limit.
pub(crate) fn check_payload(bytes: usize, limits: &Limits) -> Result<(), ClientError> {
    if bytes > limits.envelope_bytes_max as usize {
        let max = u64::from(limits.envelope_bytes_max);
        return Err(ClientError::TooLarge { limit_name: "envelope_bytes_max", max });
    }
    Ok(())
}
