//! Frames in, frames out: what a connection asks of its carrier. **Invariant:** every method may be dropped and polled
//! again at any point without losing or doubling a byte, and no buffer grows by a length that a peer only announced.

use std::io;
use std::task::{Context, Poll};

pub mod quic;
mod scratch;
mod unsent;
pub mod websocket;

/// One thing that came from the peer, borrowed for the time of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// One whole binary message: one frame of the protocol.
    Message(&'a [u8]),
    /// One frame that came beside the stream, perhaps out of order: only what may be lost is served.
    Datagram(&'a [u8]),
    /// A ping or pong of the carrier: proof of life and nothing else. A pong is already queued where one is due.
    Control,
    /// The peer says goodbye, with its code if it gave one. The answer is already queued; nothing follows.
    Close(Option<u16>),
}

/// What a session's frames travel on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// RFC 6455 over TCP.
    WebSocket,
    /// RFC 9000.
    Quic,
    /// A WebTransport session over HTTP/3, on QUIC.
    WebTransport,
}

impl Carrier {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::WebSocket, Self::Quic, Self::WebTransport];

    /// Its word in metrics and logs.
    pub fn word(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Quic => "quic",
            Self::WebTransport => "webtransport",
        }
    }

    /// Whether its packets are UDP's: a load balancer that tracks flows may send them elsewhere soon after a gateway
    /// began to drain.
    pub fn is_udp(self) -> bool {
        match self {
            Self::WebSocket => false,
            Self::Quic | Self::WebTransport => true,
        }
    }
}

/// A breach of the carrier's rules, as the close that should answer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code})")]
pub struct Violation {
    /// A close code of RFC 6455 §7.4.1, on every carrier: 1002, 1003, 1007 or 1009. 1009 means: beyond `message_bytes_max` or
    /// `fragments_max`.
    pub code: u16,
    /// For people, without anything the peer sent.
    pub reason: &'static str,
}

/// Why nothing more comes, or goes.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer closed properly: its close was handed over as [`Inbound::Close`]. Finish and drop.
    #[error("closed by the peer")]
    Closed,
    /// The stream ended without a close. Drop.
    #[error("the stream ended without a close")]
    Gone,
    /// The peer broke the rules. Nothing is queued for it: [`Transport::queue_close`] with this code or one of the
    /// protocol's own, [`Transport::poll_finish`] under a deadline, then drop.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// The stream failed. Drop.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A carrier of frames. All methods are cancel-safe: state lives in the transport, never in a future.
///
/// The caller's loop: [`poll_receive`](Self::poll_receive) always; [`poll_flush`](Self::poll_flush) whenever
/// [`queued_bytes`](Self::queued_bytes) is above 0, which a receive may cause too (pong, close, TLS key update).
pub trait Transport: Send {
    /// What it is.
    fn carrier(&self) -> Carrier;

    /// Reads once and gives what is complete to the sink, in order. `Ready(Ok)` after at least one inbound was given.
    /// One call gives no more than one read of 64 KiB holds, beside one message that it completes.
    ///
    /// An error found behind complete inbounds comes with the next call; errors repeat on every call after.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Inbound<'_>),
    ) -> Poll<Result<(), TransportError>>;

    /// Puts one binary message into the out buffer. Its bound is the caller's: look at
    /// [`queued_bytes`](Self::queued_bytes) first. Ignored once a close is queued.
    fn queue(&mut self, message: &[u8]) {
        self.queue_with(&mut |out| out.extend_from_slice(message));
    }

    /// As [`queue`](Self::queue); the message is what `encode` appends to the buffer, so that nothing is copied twice.
    fn queue_with(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>));

    /// As [`queue_with`](Self::queue_with), for a message that may be lost and may overtake others.
    fn queue_lossy_with(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>)) {
        self.queue_with(encode);
    }

    /// Bytes in the out buffer that the kernel, or the QUIC connection's send window, has not taken.
    fn queued_bytes(&self) -> usize;

    /// Writes what is queued, many messages in one write. `Ready(Ok)` when all is written; the buffer is freed then.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>>;

    /// Queues the goodbye; nothing is queued after it. The reason is cut at 123 bytes. Ignored the second time.
    fn queue_close(&mut self, code: u16, reason: &str);

    /// Writes what is queued, ends the write side (TLS `close_notify`, then FIN) and throws away what still comes until
    /// the peer ends too, so that the last bytes arrive instead of a reset. `Ready` when nothing is left to wait for.
    /// Give it a deadline: a peer need not end.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>>;
}
