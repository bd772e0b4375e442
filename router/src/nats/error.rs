//! Why the bus cannot be used. **Invariant:** each cause has its own code and says what the operator may do; no secret in any.

use async_nats::{ConnectError, ConnectErrorKind};
use std::error::Error;
use std::path::PathBuf;

/// Why a process did not get onto the bus. All of them come before anything is subscribed.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A setting is out of its bounds; names it.
    #[error("the setting {0} of the bus is missing or out of bounds")]
    Config(&'static str),
    /// The file with the credentials cannot be used.
    #[error("the credentials of NATS in {file}: {why}")]
    Credentials {
        /// Which file.
        file: PathBuf,
        /// What is wrong with it; never its content.
        why: String,
    },
    /// The server does not know these credentials.
    #[error("NATS refused the credentials")]
    Refused,
    /// No TLS with this server: not a word it spoke was TLS, or its certificate is not trusted.
    #[error("TLS with NATS failed: {0}")]
    Tls(String),
    /// Nobody answers there.
    #[error("NATS cannot be reached: {0}")]
    Unreachable(String),
    /// The server is older than this program can work with.
    #[error("NATS is version {0}, at least 2.12 is needed")]
    TooOld(String),
    /// The server takes smaller messages than this cluster sends.
    #[error("NATS takes messages of {server} bytes, this cluster sends up to {ours}")]
    MaxPayload {
        /// What the server takes.
        server: usize,
        /// What may be sent.
        ours: usize,
    },
    /// The connection ended while the subscriptions were made.
    #[error("NATS hung up: {0}")]
    HungUp(String),
}

impl BusError {
    /// A stable word for scripts and tests.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "nats_config",
            Self::Credentials { .. } => "nats_credentials",
            Self::Refused => "nats_refused",
            Self::Tls(_) => "nats_tls",
            Self::Unreachable(_) => "nats_unreachable",
            Self::TooOld(_) => "nats_too_old",
            Self::MaxPayload { .. } => "nats_max_payload",
            Self::HungUp(_) => "nats_hung_up",
        }
    }

    /// What the operator may do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Config(_) => "correct the setting",
            Self::Credentials { .. } => {
                "the file must hold one NKey seed, one token, or one user:password, and be readable"
            }
            Self::Refused => "compare the credentials with the users in the server's configuration",
            Self::Tls(_) => {
                "does the server speak TLS on this port, is its certificate for this name, is its CA among the trusted ones, does it want a certificate from us?"
            }
            Self::Unreachable(_) => "is the server running, is the address right, is a firewall between?",
            Self::TooOld(_) => "upgrade the server",
            Self::MaxPayload { .. } => "set `max_payload: 8MB` in the server's configuration",
            Self::HungUp(_) => "look into the server's log; try again",
        }
    }

    /// Whether trying again without a change may help.
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::HungUp(_) => true,
            Self::Config(_)
            | Self::Credentials { .. }
            | Self::Refused
            | Self::Tls(_)
            | Self::TooOld(_)
            | Self::MaxPayload { .. } => false,
        }
    }
}

impl From<ConnectError> for BusError {
    fn from(error: ConnectError) -> Self {
        if is_tls(&error) {
            return Self::Tls(why(&error));
        }
        match error.kind() {
            ConnectErrorKind::ServerParse => Self::Config("urls"),
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Self::Refused,
            ConnectErrorKind::Tls => Self::Tls(why(&error)),
            ConnectErrorKind::Dns
            | ConnectErrorKind::TimedOut
            | ConnectErrorKind::Io
            | ConnectErrorKind::MaxReconnects => Self::Unreachable(why(&error)),
        }
    }
}

/// The innermost cause tells most.
fn why(error: &ConnectError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The driver reports what rustls says as an input/output error.
fn is_tls(error: &ConnectError) -> bool {
    let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
    io.and_then(std::io::Error::get_ref).and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some()
}
