//! WebSocket (RFC 6455), server side. **Invariant:** an idle connection owns no buffer: bytes are read into a buffer of
//! the thread, and only what is incomplete is kept.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use self::decoder::{Decoder, End};
use self::handshake::Refusal;
use self::outbox::Outbox;
use self::stream::Stream;
use super::{Carrier, Inbound, Transport, TransportError};

mod decoder;
mod handshake;
mod outbox;
mod stream;
mod tls;

pub use self::decoder::Event;

/// Reads of one call that may pass without a whole message, before other tasks get their turn.
const READS_MAX: usize = 16;
/// Bytes that are thrown away at the end of a connection before patience ends.
const DISCARD_BYTES_MAX: usize = 1024 * 1024;
/// How long a refused client may take to read why.
const LINGER: Duration = Duration::from_secs(1);

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
    pub fragments_max: u32,
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

/// A WebSocket connection after its handshake. Use it through [`Transport`].
pub struct WebSocket<IO> {
    stream: Stream<IO>,
    decoder: Decoder,
    outbox: Outbox,
    /// Bytes that came behind the request head.
    early: Vec<u8>,
    /// Bytes thrown away at the end; `None` until the write side is ended.
    discarded: Option<usize>,
}

/// Takes a fresh stream through TLS (when a configuration is given) and the WebSocket handshake, both together within
/// the deadline. A request that is not served gets an HTTP answer `{"code", "message"}` before this returns.
///
/// The future is small: what it works with is on the heap and gone afterwards.
pub async fn accept<IO>(
    io: IO,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: &HandshakeLimits,
) -> Result<WebSocket<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    Box::pin(async {
        match tokio::time::timeout(limits.deadline, shake_hands(io, tls, limits)).await {
            Ok(result) => result,
            Err(_) => Err(AcceptError::TooSlow),
        }
    })
    .await
}

async fn shake_hands<IO>(
    io: IO,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: &HandshakeLimits,
) -> Result<WebSocket<IO>, AcceptError>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut stream = Stream::new(io, tls)?;
    let mut head = Vec::new();
    let end = match poll_fn(|cx| poll_head(&mut stream, &mut head, limits, cx)).await {
        Ok(end) => end,
        Err(error) => {
            let error = stream.tls_error().cloned().map_or(AcceptError::Io(error), AcceptError::Tls);
            // The alert that says why; it need not arrive.
            let _ = tokio::time::timeout(LINGER, poll_fn(|cx| stream.poll_shutdown(cx))).await;
            return Err(error);
        }
    };
    match end.and_then(|end| Ok((end, handshake::answer(&head[..end], limits)?))) {
        Ok((end, answer)) => {
            write_all(&mut stream, &answer).await?;
            let early = head[end..].to_vec();
            Ok(WebSocket::new(stream, early, limits.codec))
        }
        Err(refusal) => {
            refuse(stream, &refusal, limits).await?;
            Err(AcceptError::Refused { status: refusal.status, code: refusal.code })
        }
    }
}

/// Reads until the head is whole or refused. Bytes behind it stay in `head`.
fn poll_head<IO: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<IO>,
    head: &mut Vec<u8>,
    limits: &HandshakeLimits,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Result<usize, Refusal>>> {
    loop {
        // Reading goes on while the peer does not take what TLS has to say: it may be writing itself.
        if let Poll::Ready(Err(error)) = stream.poll_flush_handshake(cx) {
            return Poll::Ready(Err(error));
        }
        let seen = head.len();
        if !ready!(stream.poll_read(cx, &mut |bytes| head.extend_from_slice(bytes)))? {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        match handshake::head_end(head, seen, limits.head_bytes_max) {
            Ok(None) => {}
            Ok(Some(end)) => return Poll::Ready(Ok(Ok(end))),
            Err(refusal) => return Poll::Ready(Ok(Err(refusal))),
        }
    }
}

async fn write_all<IO: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut Stream<IO>,
    bytes: &[u8],
) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        written += poll_fn(|cx| stream.poll_write(cx, &bytes[written..])).await?;
    }
    poll_fn(|cx| stream.poll_flush(cx)).await
}

async fn refuse<IO>(mut stream: Stream<IO>, refusal: &Refusal, limits: &HandshakeLimits) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send,
{
    write_all(&mut stream, &refusal.answer()).await?;
    let mut ended = WebSocket::new(stream, Vec::new(), limits.codec);
    let _ = tokio::time::timeout(LINGER, poll_fn(|cx| ended.poll_finish(cx))).await;
    Ok(())
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> WebSocket<IO> {
    fn new(stream: Stream<IO>, early: Vec<u8>, limits: CodecLimits) -> Self {
        Self {
            stream,
            decoder: Decoder::new(limits),
            outbox: Outbox::new(limits.pongs_max),
            early,
            discarded: None,
        }
    }

    /// Bytes of heap held for what is incomplete or unwritten, the TLS session's own state left out.
    pub fn held_bytes(&self) -> usize {
        self.stream.held_bytes()
            + self.decoder.held_bytes()
            + self.outbox.held_bytes()
            + self.early.capacity()
    }

    /// [`Transport::poll_receive`] with all that WebSocket knows, text and the payload of pings included.
    pub fn poll_events(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Event<'_>),
    ) -> Poll<Result<(), TransportError>> {
        let Self { stream, decoder, outbox, early, .. } = self;
        for _ in 0..READS_MAX {
            match decoder.end() {
                None => {}
                Some(End::Closed) => return Poll::Ready(Err(TransportError::Closed)),
                Some(End::Violation(violation)) => return Poll::Ready(Err(violation.into())),
            }
            let mut given = false;
            let mut digest = |bytes: &mut [u8]| {
                decoder.feed(bytes, &mut |event| {
                    given = true;
                    match event {
                        Event::Ping(payload) => outbox.pong(payload),
                        Event::Close(code) => outbox.close(code, ""),
                        Event::Binary(_) | Event::Text(_) | Event::Pong(_) => {}
                    }
                    sink(event);
                });
            };
            if early.is_empty() {
                if !ready!(stream.poll_read(cx, &mut digest))? {
                    return Poll::Ready(Err(TransportError::Gone));
                }
            } else {
                digest(&mut std::mem::take(early));
            }
            if given {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Queues a text message, as [`Transport::queue`] does a binary one.
    pub fn queue_text(&mut self, message: &str) {
        self.outbox.message(1, &mut |out| out.extend_from_slice(message.as_bytes()));
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin + Send> Transport for WebSocket<IO> {
    fn carrier(&self) -> Carrier {
        Carrier::WebSocket
    }

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Inbound<'_>),
    ) -> Poll<Result<(), TransportError>> {
        self.poll_events(cx, &mut |event| {
            sink(match event {
                Event::Binary(message) => Inbound::Message(message),
                // Only with `CodecLimits::text`, which a user of this trait leaves off.
                Event::Text(message) => Inbound::Message(message.as_bytes()),
                Event::Ping(_) | Event::Pong(_) => Inbound::Control,
                Event::Close(code) => Inbound::Close(code),
            });
        })
    }

    fn queue_with(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>)) {
        self.outbox.message(2, encode);
    }

    fn queued_bytes(&self) -> usize {
        self.outbox.len() + self.stream.unwritten_bytes()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        while !self.outbox.unsent().is_empty() {
            let written = ready!(self.stream.poll_write(cx, self.outbox.unsent()))?;
            self.outbox.advance(written);
        }
        ready!(self.stream.poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }

    fn queue_close(&mut self, code: u16, reason: &str) {
        self.outbox.close(Some(code), reason);
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if self.discarded.is_none() {
            ready!(self.poll_flush(cx))?;
            ready!(self.stream.poll_shutdown(cx))?;
            self.discarded = Some(0);
        }
        for _ in 0..READS_MAX {
            let discarded = self.discarded.get_or_insert(0);
            match ready!(self.stream.poll_discard(cx)) {
                Ok(1..) if *discarded > DISCARD_BYTES_MAX => return Poll::Ready(Ok(())),
                Ok(count @ 1..) => *discarded += count,
                Ok(0) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<IO> std::fmt::Debug for WebSocket<IO> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocket").field("decoder_end", &self.decoder.end()).finish_non_exhaustive()
    }
}
