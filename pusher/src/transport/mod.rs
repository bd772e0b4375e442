//! HTTP/2 to one origin over a few connections. **Invariant:** a request that the peer may have processed is never sent
//! again by this module, and every exchange ends by its deadline.

mod connection;
mod dial;
mod origin;
mod pool;
mod retry_after;
mod slots;
mod tls;

pub use dial::{Dialer, Io, PublicDialer, Resolver, SystemDialer, SystemResolver, is_public};
pub use origin::{BadUrl, Origin};
pub use pool::{Pool, Wires};
pub use retry_after::{RETRY_AFTER_MS_MAX, retry_after};
pub use tls::{RootsError, client_config, public_roots, roots_from_pem};

use bytes::Bytes;
use chappe_protocol::time::Millis;
use http::HeaderMap;
use std::fmt;

/// What bounds a [`Pool`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections that take new streams; those on their way out (at most one exchange long) come on top.
    pub connections_max: usize,
    /// Requests that wait for a stream; more are answered [`SendError::Busy`] at once.
    pub waiting_max: usize,
    /// From the call to the last byte of the answer, waiting and dialling included.
    pub exchange: Millis,
    /// TCP, TLS and HTTP/2 together.
    pub dial: Millis,
    /// From one PING to the next while a connection is open, less up to a tenth (jitter).
    pub ping_every: Millis,
    /// A connection whose PING is not answered by then is given up.
    pub ping_deadline: Millis,
    /// Bytes of an answer's body that are read; the rest is refused, and the answer told to be incomplete.
    pub body_bytes_max: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self {
            connections_max: 2,
            waiting_max: 1024,
            exchange: Millis::from_secs(20),
            dial: Millis::from_secs(5),
            ping_every: Millis::from_secs(60),
            ping_deadline: Millis::from_secs(10),
            body_bytes_max: 64 * 1024,
        }
    }
}

/// A POST. Its `Debug` tells nothing of it: path and headers hold tokens.
#[derive(Clone)]
pub struct Post {
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Without pseudo headers; `content-length` is added.
    pub headers: HeaderMap,
    /// At most a few kilobytes; it is copied by reference for a second attempt.
    pub body: Bytes,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Post(…)")
    }
}

/// What came back.
#[derive(Clone)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// `Retry-After`, bounded.
    pub retry_after: Option<Millis>,
    /// As much as was allowed and came.
    pub body: Bytes,
    /// Whether `body` is all of it. The status stands either way.
    pub complete: bool,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("status", &self.status)
            .field("complete", &self.complete)
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Too many wait already. Nothing was sent; try later.
    #[error("too many requests wait for a stream")]
    Busy,
    /// No connection came about. Nothing was sent; try later.
    #[error("the provider is not reached")]
    Unreachable,
    /// The name resolves to no address that may be dialled. Nothing was sent; trying again is of no use.
    #[error("the address is not a public one")]
    NotPublic,
    /// The peer's certificate does not verify, or TLS failed otherwise. Nothing was sent.
    #[error("TLS failed")]
    Tls,
    /// The peer does not offer HTTP/2 by ALPN. Nothing was sent.
    #[error("the peer speaks no HTTP/2")]
    NoHttp2,
    /// The peer refused it without looking at it, twice. Nothing was processed; try later.
    #[error("refused unprocessed, twice")]
    Refused,
    /// The deadline passed before the peer's status came. Perhaps processed.
    #[error("no answer within the deadline")]
    Timeout,
    /// The stream or its connection ended before the peer's status came. Perhaps processed.
    #[error("lost on the way")]
    Lost,
}
