//! One byte stream, plain or under TLS. **Invariant:** reading lends bytes out of the thread's buffer; a stream keeps
//! only what is incomplete or unwritten.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::tls::TlsStream;
use crate::transport::scratch;

pub(super) enum Stream<IO> {
    Plain(IO),
    /// Boxed, so that a plain session does not pay for it.
    Tls(Box<TlsStream<IO>>),
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Stream<IO> {
    pub(super) fn new(io: IO, tls: Option<Arc<rustls::ServerConfig>>) -> Result<Self, rustls::Error> {
        Ok(match tls {
            None => Self::Plain(io),
            Some(config) => Self::Tls(Box::new(TlsStream::new(io, config)?)),
        })
    }

    /// Reads once and lends what came. `Ready(Ok(false))`: the stream has ended. `Ready(Ok(true))` need not mean that
    /// bytes were lent: part of a TLS record may have come.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        lend: &mut dyn FnMut(&mut [u8]),
    ) -> Poll<io::Result<bool>> {
        match self {
            Self::Plain(io) => scratch::with(|scratch| {
                let mut buffer = ReadBuf::new(&mut scratch.wire);
                ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
                let came = buffer.filled_mut();
                if came.is_empty() {
                    return Poll::Ready(Ok(false));
                }
                lend(came);
                Poll::Ready(Ok(true))
            }),
            Self::Tls(tls) => tls.poll_read(cx, lend),
        }
    }

    /// Takes some of `bytes`, which is not empty; returns how many.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(io) => poll_write_some(io, cx, bytes),
            Self::Tls(tls) => tls.poll_write(cx, bytes),
        }
    }

    /// Writes what the stream itself holds back.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(tls) => tls.poll_flush(cx),
        }
    }

    /// Writes what the peer waits for in TLS' handshake. Its ticket is not: that leaves with the next write.
    pub(super) fn poll_flush_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(tls) if tls.is_handshaking() => tls.poll_flush(cx),
            Self::Plain(_) | Self::Tls(_) => Poll::Ready(Ok(())),
        }
    }

    /// Flushes and ends the write side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(tls) => tls.poll_shutdown(cx),
        }
    }

    /// Reads and throws away, as it comes from the wire; the number of bytes, 0 at the end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let io = match self {
            Self::Plain(io) => io,
            Self::Tls(tls) => tls.io_mut(),
        };
        scratch::with(|scratch| {
            let mut buffer = ReadBuf::new(&mut scratch.wire);
            ready!(Pin::new(io).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// Bytes taken but not written.
    pub(super) fn unwritten_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.unwritten_bytes(),
        }
    }

    /// Bytes of heap held for what is incomplete or unwritten.
    pub(super) fn held_bytes(&self) -> usize {
        match self {
            Self::Plain(_) => 0,
            Self::Tls(tls) => tls.held_bytes(),
        }
    }

    /// Why TLS failed, if it did.
    pub(super) fn tls_error(&self) -> Option<&rustls::Error> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => tls.error(),
        }
    }
}

/// One write; a stream that takes nothing has failed.
pub(super) fn poll_write_some<IO: AsyncWrite + Unpin>(
    io: &mut IO,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(io).poll_write(cx, bytes))? {
        0 if !bytes.is_empty() => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}
