//! QUIC (RFC 9000) and WebTransport: frames on the first bidirectional stream, ephemerals in datagrams (RFC 9221).
//! **Invariant:** an idle connection owns no buffer of ours; what quinn holds for it is bounded by its windows.

use super::scratch;
use super::unsent::Unsent;
use super::{Carrier, Inbound, Transport, TransportError};
use bytes::Bytes;
use frames::{Decoder, put_frame};
use std::task::{Context, Poll, ready};
use web_transport_quinn::generic::poll::{
    RecvStream as PollRecv, SendStream as PollSend, Session as PollSession,
};
use web_transport_quinn::{
    ReadError, RecvStream, SendStream, Session, SessionError, WebTransportError, WriteError,
};

mod frames;

/// Reads of one call that may pass without a whole frame, before other tasks get their turn.
const READS_MAX: usize = 16;
/// Datagrams of one call.
const DATAGRAMS_MAX: usize = 32;
/// The code that answers a peer which parts, as RFC 6455 has it.
const GOODBYE: u16 = 1000;
/// Bytes of the reason that goes out with a close.
const REASON_BYTES_MAX: usize = 123;

/// A QUIC connection or a WebTransport session with its one stream. Use it through [`Transport`].
pub struct Quic {
    carrier: Carrier,
    session: Session,
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
    unsent: Unsent,
    /// Nothing is queued any more.
    parting: bool,
    /// What goes out at the very end, at the latest when this is dropped.
    goodbye: Option<(u16, String)>,
    /// The stream was ended by us.
    finished: bool,
    /// The peer's close was handed over.
    closed: bool,
}

impl Quic {
    /// A session over the stream that its peer has opened; a frame has at most `frame_bytes_max` bytes.
    pub fn new(
        carrier: Carrier,
        session: Session,
        (send, recv): (SendStream, RecvStream),
        frame_bytes_max: u32,
    ) -> Self {
        Self {
            carrier,
            session,
            send,
            recv,
            decoder: Decoder::new(frame_bytes_max),
            unsent: Unsent::default(),
            parting: false,
            goodbye: None,
            finished: false,
            closed: false,
        }
    }

    /// Bytes of heap held for what is incomplete or unwritten, quinn's own left out.
    pub fn held_bytes(&self) -> usize {
        self.decoder.held_bytes() + self.unsent.held_bytes()
    }

    /// Datagrams that are here. Errors are the stream's to tell: it ends with the connection.
    fn take_datagrams(&mut self, cx: &mut Context<'_>, sink: &mut dyn FnMut(Inbound<'_>)) -> bool {
        let mut given = false;
        for _ in 0..DATAGRAMS_MAX {
            match self.session.poll_recv_datagram(cx) {
                Poll::Ready(Ok(datagram)) => {
                    given = true;
                    sink(Inbound::Datagram(&datagram));
                }
                // Of another session of the connection: there is none.
                Poll::Ready(Err(SessionError::WebTransportError(_)))
                    if self.session.close_reason().is_none() => {}
                Poll::Ready(Err(_)) | Poll::Pending => return given,
            }
        }
        cx.waker().wake_by_ref();
        given
    }

    /// Reads once and gives whole frames to the sink; `false`: the peer has ended the stream.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Inbound<'_>),
    ) -> Poll<Result<bool, ReadError>> {
        let Self { recv, decoder, .. } = self;
        scratch::with(|scratch| {
            let count = ready!(PollRecv::poll_read(recv, cx, &mut scratch.wire))?;
            let bytes = count.map(|count| &scratch.wire[..count]);
            decoder.feed(bytes.unwrap_or_default(), &mut |frame| sink(Inbound::Message(frame)));
            Poll::Ready(Ok(bytes.is_some()))
        })
    }

    /// The stream is done for: with the peer's close, if it said goodbye.
    fn ended(&mut self, sink: &mut dyn FnMut(Inbound<'_>)) -> Poll<Result<(), TransportError>> {
        if std::mem::replace(&mut self.closed, true) {
            return Poll::Ready(Err(TransportError::Closed));
        }
        match self.session.close_reason() {
            Some(SessionError::WebTransportError(WebTransportError::Closed(code, _))) => {
                sink(Inbound::Close(u16::try_from(code).ok()));
                Poll::Ready(Ok(()))
            }
            // The peer ended its half of the stream: it has nothing more to say, and is answered in kind.
            None => {
                self.queue_close(GOODBYE, "");
                sink(Inbound::Close(None));
                Poll::Ready(Ok(()))
            }
            Some(_) => Poll::Ready(Err(TransportError::Gone)),
        }
    }
}

impl Transport for Quic {
    fn carrier(&self) -> Carrier {
        self.carrier
    }

    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut dyn FnMut(Inbound<'_>),
    ) -> Poll<Result<(), TransportError>> {
        if let Some(violation) = self.decoder.violation() {
            return Poll::Ready(Err(violation.into()));
        }
        if self.closed {
            return Poll::Ready(Err(TransportError::Closed));
        }
        let mut given = self.take_datagrams(cx, sink);
        for _ in 0..READS_MAX {
            let read = match self.read(cx, &mut |inbound| {
                given = true;
                sink(inbound);
            }) {
                Poll::Ready(read) => read,
                Poll::Pending if given => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            };
            match read {
                Ok(true) if given => return Poll::Ready(Ok(())),
                Ok(true) => {
                    if let Some(violation) = self.decoder.violation() {
                        return Poll::Ready(Err(violation.into()));
                    }
                }
                Err(ReadError::Reset(_) | ReadError::InvalidReset(_)) => {
                    return Poll::Ready(Err(TransportError::Gone));
                }
                Ok(false) | Err(_) => return self.ended(sink),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn queue_with(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>)) {
        if !self.parting {
            put_frame(self.unsent.buffer(), encode);
        }
    }

    fn queue_lossy_with(&mut self, encode: &mut dyn FnMut(&mut Vec<u8>)) {
        if self.parting {
            return;
        }
        let mut frame = Vec::new();
        encode(&mut frame);
        let frame = Bytes::from(frame);
        // Too large for a packet, or the peer takes none.
        if self.session.send_datagram(frame.clone()).is_err() {
            put_frame(self.unsent.buffer(), &mut |out| out.extend_from_slice(&frame));
        }
    }

    fn queued_bytes(&self) -> usize {
        self.unsent.len()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        while self.unsent.len() > 0 {
            let written = ready!(PollSend::poll_write(&mut self.send, cx, self.unsent.front()));
            self.unsent.advance(written.map_err(gone)?);
        }
        Poll::Ready(Ok(()))
    }

    fn queue_close(&mut self, code: u16, reason: &str) {
        if !std::mem::replace(&mut self.parting, true) {
            let reason = &reason[..reason.floor_char_boundary(REASON_BYTES_MAX)];
            self.goodbye = Some((code, reason.to_owned()));
        }
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if !self.finished {
            ready!(self.poll_flush(cx))?;
            PollSend::finish(&mut self.send).map_err(gone)?;
            self.finished = true;
        }
        // A close of the connection overtakes what the peer has not received yet: it waits for that.
        ready!(PollSend::poll_closed(&mut self.send, cx)).map_err(gone)?;
        self.say_goodbye();
        // WebTransport's goodbye is a capsule that is still on its way. Dropped before, the session would stop HTTP/3's control
        // stream, and a browser takes that for an error of the connection and never sees the code.
        let _ended = ready!(self.session.poll_closed(cx));
        Poll::Ready(Ok(()))
    }
}

impl Quic {
    fn say_goodbye(&mut self) {
        if let Some((code, reason)) = self.goodbye.take() {
            self.session.close(u32::from(code), reason.as_bytes());
        }
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.say_goodbye();
    }
}

fn gone(_: WriteError) -> TransportError {
    TransportError::Gone
}

impl std::fmt::Debug for Quic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quic").field("decoder", &self.decoder).finish_non_exhaustive()
    }
}
