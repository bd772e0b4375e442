//! One connection: the only place where a socket meets a session. One task, one loop over a closed set of events.
//! **Invariant:** frames are taken from the session only while the out buffer has room, so a slow reader costs nobody else
//! anything; an idle connection holds no buffer, no timer and no queue of its own.

use crate::core::Core;
use crate::handle::Inbox;
use crate::requests::Done;
use crate::shared::Gateway;
use crate::transport::{Transport, TransportError};
use chappe_protocol::close::{CloseCode, ErrorFrame};
use chappe_protocol::envelope::Page;
use chappe_protocol::frame::ServerFrame;
use chappe_protocol::id::Seq;
use chappe_protocol::time::Millis;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes that may wait for the socket before the session is asked for no more.
pub(crate) const OUT_BYTES_MAX: usize = 64 * 1024;
/// For the last bytes of a connection, and for its last cursor write.
const FINISH_MAX: Millis = Millis::from_secs(5);

/// What can happen to a connection.
pub(crate) enum Event {
    /// Other tasks had something to say.
    Told(Inbox),
    /// A read of the log ended.
    Page(chappe_storage::Result<Page>),
    /// A write of the cursor ended.
    Advanced(chappe_storage::Result<()>),
    /// The head, read once after the lease was taken.
    Head(chappe_storage::Result<Seq>),
    /// A request with submits ended.
    Submitted,
    /// A request of the device was done.
    Asked(u64, Done),
    /// The socket took bytes.
    Flushed,
    /// Frames were taken from the socket and handled.
    Received,
    /// The socket is done for.
    Failed(TransportError),
}

/// Why a connection ends.
#[derive(Debug)]
pub(crate) enum End {
    /// By us: the code goes out.
    Close(CloseCode),
    /// By the peer, which said goodbye: the answer is queued.
    Parted,
    /// The peer or the process is gone: nothing more can be said.
    Gone,
}

/// A welcomed connection.
pub(crate) struct Connection<T> {
    pub(crate) transport: T,
    pub(crate) core: Core,
}

impl<T: Transport> Connection<T> {
    /// Serves until one side ends it.
    pub(crate) async fn live(mut self: Box<Self>) -> (Box<Self>, End) {
        let end = poll_fn(|cx| self.poll_live(cx)).await;
        (self, end)
    }

    fn poll_live(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            self.core.pump(&mut self.transport);
            if let Some(end) = self.core.ending() {
                return Poll::Ready(end);
            }
            match self.poll_event(cx) {
                Poll::Ready(event) => self.core.on_event(event),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// The next event; the order is a priority.
    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let Self { transport, core } = self;
        core.look_at_clock();
        let inbox = core.handle().take(cx.waker());
        if !inbox.is_empty() {
            return Poll::Ready(Event::Told(inbox));
        }
        if let Poll::Ready(event) = core.poll_work(cx) {
            return Poll::Ready(event);
        }
        let before = transport.queued_bytes();
        if before > 0 {
            let flushed = transport.poll_flush(cx);
            let after = transport.queued_bytes();
            core.on_flush(before, after);
            match flushed {
                Poll::Ready(Err(error)) => return Poll::Ready(Event::Failed(error)),
                Poll::Ready(Ok(())) => return Poll::Ready(Event::Flushed),
                Poll::Pending if before >= OUT_BYTES_MAX && after < OUT_BYTES_MAX => {
                    return Poll::Ready(Event::Flushed);
                }
                Poll::Pending => {}
            }
        }
        if core.may_receive(transport.queued_bytes()) {
            return match transport.poll_receive(cx, &mut |inbound| core.on_inbound(inbound)) {
                Poll::Ready(Ok(())) => Poll::Ready(Event::Received),
                Poll::Ready(Err(error)) => Poll::Ready(Event::Failed(error)),
                Poll::Pending => Poll::Pending,
            };
        }
        Poll::Pending
    }

    /// Says goodbye, writes the last cursor, gives the lease up.
    pub(crate) async fn finish(mut self: Box<Self>, end: End) {
        let gateway = Arc::clone(self.core.gateway());
        self.core.leave();
        let release = self.core.release();
        let note = self.core.note(&end);
        let Self { mut transport, core } = *self;
        let goodbye = async {
            match end {
                End::Close(code) => say_goodbye(&gateway, &mut transport, code, code.reason()).await,
                End::Parted => part(&mut transport).await,
                End::Gone => {}
            }
            drop(transport);
        };
        // Whoever sweeps is told after the lease is gone, so that it is not taken for a sign of life.
        let release = async {
            let half = FINISH_MAX.to_std() / 2;
            let released = tokio::time::timeout(half, release).await;
            let noted = tokio::time::timeout(half, note).await;
            (released, noted)
        };
        let last_words = tokio::time::timeout(FINISH_MAX.to_std(), core.write_cursor());
        let ((released, noted), last_words, ()) = futures_util::join!(release, last_words, goodbye);
        if released.is_err() {
            tracing::debug!("a lease could not be given up: it ends by itself");
        }
        if noted.is_err() {
            tracing::debug!("a mailbox could not be noted in time: its next envelope will");
        }
        if last_words.is_err() {
            tracing::debug!("a cursor could not be written before its connection ended");
        }
    }
}

/// Sends the error and the close, and waits a while for the peer to take them.
pub(crate) async fn say_goodbye<T: Transport>(
    gateway: &Gateway,
    transport: &mut T,
    code: CloseCode,
    message: &str,
) {
    gateway.metrics.closed_total.with_label_values(&[code.reason()]).inc();
    queue_frame(transport, &ServerFrame::Error(ErrorFrame::closing(code, message)));
    transport.queue_close(code.code(), code.reason());
    part(transport).await;
}

/// Sends what is queued, and waits a while for the peer to take it.
pub(crate) async fn part<T: Transport>(transport: &mut T) {
    let finished = tokio::time::timeout(FINISH_MAX.to_std(), poll_fn(|cx| transport.poll_finish(cx))).await;
    if finished.is_err() {
        tracing::debug!("a peer did not take its close");
    }
}

/// Encodes a frame into the out buffer.
pub(crate) fn queue_frame<T: Transport>(transport: &mut T, frame: &ServerFrame) {
    transport.queue_with(&mut |out| frame.encode_into(out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::websocket::WebSocket;
    use tokio::net::TcpStream;

    #[test]
    fn an_idle_connection_is_small() {
        let bytes = size_of::<Connection<WebSocket<TcpStream>>>();
        println!("a connection is {bytes} bytes, {} of them without its socket", size_of::<Core>());
        assert!(bytes <= 1536, "{bytes} bytes: what is rarely needed belongs into a box");
    }
}
