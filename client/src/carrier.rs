//! What carries a session: messages in, messages out, whatever lies below. **Invariant:** at most [`QUEUE`] messages wait in
//! each direction; reader and writer are polled until the connection ends, never cancelled between two awaits.

pub(crate) mod frames;
pub(crate) mod quiet;
pub(crate) mod stream;
pub(crate) mod websocket;

use crate::reconnect::End;
use bytes::Bytes;
use chappe_protocol::time::Millis;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, mpsc};

/// Messages that wait between the socket and the driver.
pub(crate) const QUEUE: usize = 2;
/// The server must take a message within this.
const WRITE_TIMEOUT: Millis = Millis::from_secs(20);

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// RFC 6455, over TLS and TCP.
    WebSocket,
    /// RFC 9000: one stream, and datagrams for what is ephemeral.
    Quic,
    /// The same over HTTP/3, as browsers do it.
    WebTransport,
}

impl Carrier {
    /// A stable word for people and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
        }
    }
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    Message(Bytes),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    Pong,
    /// The last one.
    Close {
        code: u16,
        reason: String,
    },
    /// The last one; for people.
    Failed(String),
}

/// What goes out.
#[derive(Debug)]
pub(crate) enum Outbound {
    Message(Vec<u8>),
    /// May be lost on the way, where the carrier has a way for that.
    Lossy(Vec<u8>),
    Pong(Vec<u8>),
    /// The last one.
    Close(u16),
}

/// Counts what was read, so that the driver knows whether a frame is arriving.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: AtomicU64,
    framed: AtomicU64,
    wake: Notify,
}

impl Meter {
    /// Bytes read so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Resolves when bytes came.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Whether part of a frame is here.
    pub(crate) fn is_arriving(&self) -> bool {
        self.bytes() > self.framed.load(Ordering::Relaxed)
    }

    fn on_read(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.wake.notify_one();
    }

    /// So many of the bytes that were read are a whole frame.
    fn on_framed(&self, bytes: u64) {
        self.framed.fetch_add(bytes, Ordering::Relaxed);
    }
}

pub(crate) type ReaderRun = Pin<Box<dyn Future<Output = ()> + Send>>;
/// Ends well after a close was written.
pub(crate) type WriterRun = Pin<Box<dyn Future<Output = Result<(), End>> + Send>>;

/// A carrier whose own handshake is over; nothing was said on it yet. Dropped, it hangs up.
pub(crate) struct Wire {
    pub(crate) carrier: Carrier,
    pub(crate) reader: ReaderRun,
    pub(crate) writer: WriterRun,
    pub(crate) incoming: mpsc::Receiver<Incoming>,
    pub(crate) out: mpsc::Sender<Outbound>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) line: Option<stream::Line>,
}
