//! A gateway's end of a connection. **Invariant:** a crash sends nothing, and so it does not matter in which order the
//! runtime drops the tasks of a crashed host (it goes by task numbers, which other tests of the process count up).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::TcpStream;

/// A stream that falls silent when its host crashes.
pub(crate) struct Line {
    stream: Option<TcpStream>,
    crashing: Arc<AtomicBool>,
}

impl Line {
    pub(crate) fn new(stream: TcpStream, crashing: Arc<AtomicBool>) -> Self {
        Self { stream: Some(stream), crashing }
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(self.stream.as_mut().expect("there until it is dropped"))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.crashing.load(Ordering::Relaxed) {
            // Its own drop would say goodbye to the peer.
            std::mem::forget(self.stream.take());
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }
}
