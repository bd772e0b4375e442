//! Messages over an upgraded stream: one reader and one writer, which fastwebsockets does not allow to cancel between two
//! awaits. **Invariant:** a message never exceeds its bound, whole or in fragments.

use super::{Carrier, Incoming, Meter, Outbound, QUEUE, WRITE_TIMEOUT, Wire};
use crate::reconnect::End;
use crate::socket::Upgraded;
use bytes::{Buf as _, Bytes, BytesMut};
use chappe_protocol::world::World;
use fastwebsockets::{Frame, OpCode, Payload, Role, WebSocketError, WebSocketRead, WebSocketWrite};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, BufWriter, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

/// RFC 6455 §5.5.
const CONTROL_BYTES_MAX: usize = 125;
/// What waits to be written leaves together, at most so much at once: fewer packets, TLS records and system calls.
const WRITE_BYTES: usize = 4 * 1024;
/// Smaller messages are copied out of the read buffer, so that a payload that is kept does not keep a large buffer.
const COPY_BELOW_BYTES: usize = 32 * 1024;

/// The read half with what was read before it.
struct Metered<R> {
    inner: R,
    rest: BytesMut,
    meter: Arc<Meter>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Metered<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if self.rest.is_empty() {
            std::task::ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        } else {
            let count = self.rest.len().min(buf.remaining());
            buf.put_slice(&self.rest[..count]);
            self.rest.advance(count);
        }
        self.meter.on_read((buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

/// The read half, until [`Reader::run`].
struct Reader {
    socket: WebSocketRead<Metered<ReadHalf<Box<dyn crate::connector::Io>>>>,
    meter: Arc<Meter>,
    message_bytes_max: usize,
}

/// The write half, until [`Writer::run`].
struct Writer {
    socket: WebSocketWrite<BufWriter<WriteHalf<Box<dyn crate::connector::Io>>>>,
    world: Arc<dyn World>,
}

/// Takes an upgraded stream.
pub(crate) fn over(upgraded: Upgraded, message_bytes_max: usize, world: Arc<dyn World>) -> Wire {
    let meter = Arc::new(Meter::default());
    let (read, write) = tokio::io::split(upgraded.io);
    let read = Metered { inner: read, rest: upgraded.rest, meter: meter.clone() };
    let write = BufWriter::with_capacity(WRITE_BYTES, write);
    let (mut read, write) = fastwebsockets::after_handshake_split(read, write, Role::Client);
    read.set_auto_close(false);
    read.set_auto_pong(false);
    // The library refuses `>=`, before it takes memory for the frame.
    read.set_max_message_size(message_bytes_max + 1);
    let reader = Reader { socket: read, meter: meter.clone(), message_bytes_max };
    let writer = Writer { socket: write, world };
    let (incoming_in, incoming) = mpsc::channel(QUEUE);
    let (out, out_rest) = mpsc::channel(QUEUE);
    let writer = async move { writer.run(out_rest).await.map_err(End::Lost) };
    Wire {
        carrier: Carrier::WebSocket,
        reader: Box::pin(reader.run(incoming_in)),
        writer: Box::pin(writer),
        incoming,
        out,
        meter,
        line: None,
    }
}

impl Reader {
    /// Reads until the end, which is the last thing sent to `out`; then rests for ever.
    async fn run(mut self, out: mpsc::Sender<Incoming>) {
        let mut fragments: Option<BytesMut> = None;
        loop {
            let incoming = match self.next(&mut fragments).await {
                Ok(Some(incoming)) => incoming,
                Ok(None) => continue,
                Err(why) => Incoming::Failed(why),
            };
            let last = matches!(incoming, Incoming::Close { .. } | Incoming::Failed(_));
            if out.send(incoming).await.is_err() || last {
                return std::future::pending().await;
            }
        }
    }

    async fn next(&mut self, fragments: &mut Option<BytesMut>) -> Result<Option<Incoming>, String> {
        let frame = self
            .socket
            .read_frame(&mut |_| async { Ok::<(), io::Error>(()) })
            .await
            .map_err(|error: WebSocketError| format!("the connection broke: {error}"))?;
        let length = frame.payload.len();
        self.meter.on_framed(frame_bytes(length));
        let bytes = match frame.payload {
            Payload::Bytes(bytes) => bytes,
            Payload::Owned(bytes) => BytesMut::from(&bytes[..]),
            Payload::Borrowed(bytes) => BytesMut::from(bytes),
            Payload::BorrowedMut(bytes) => BytesMut::from(&bytes[..]),
        };
        match frame.opcode {
            OpCode::Ping | OpCode::Pong | OpCode::Close if length > CONTROL_BYTES_MAX => {
                Err("the server sent a control frame larger than 125 bytes".to_owned())
            }
            OpCode::Ping => Ok(Some(Incoming::Ping(bytes.to_vec()))),
            OpCode::Pong => Ok(Some(Incoming::Pong)),
            OpCode::Close => Ok(Some(close_of(&bytes))),
            OpCode::Text => Err("the server sent text, chappe.v1 is binary".to_owned()),
            OpCode::Binary if fragments.is_some() => Err("the server mixed two messages".to_owned()),
            OpCode::Binary if frame.fin => Ok(Some(Incoming::Message(keep(bytes)))),
            OpCode::Binary => {
                *fragments = Some(BytesMut::from(&bytes[..]));
                Ok(None)
            }
            OpCode::Continuation => {
                let Some(mut whole) = fragments.take() else {
                    return Err("the server continued no message".to_owned());
                };
                if whole.len() + length > self.message_bytes_max {
                    return Err("the server sent a message larger than the limit".to_owned());
                }
                whole.extend_from_slice(&bytes);
                if frame.fin {
                    return Ok(Some(Incoming::Message(whole.freeze())));
                }
                *fragments = Some(whole);
                Ok(None)
            }
        }
    }
}

impl Writer {
    /// Writes until a close is written or something fails; says which by `Ok` and `Err`.
    async fn run(mut self, mut messages: mpsc::Receiver<Outbound>) -> Result<(), String> {
        while let Some(outbound) = messages.recv().await {
            match tokio::time::timeout(WRITE_TIMEOUT.to_std(), self.write_all(outbound, &mut messages)).await
            {
                Ok(Ok(true)) => return Ok(()),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => return Err(format!("the connection broke: {error}")),
                Err(_) => return Err("the server takes nothing".to_owned()),
            }
        }
        Ok(())
    }

    /// Writes this message and those that wait behind it; whether the last of them was a close.
    async fn write_all(
        &mut self,
        first: Outbound,
        behind: &mut mpsc::Receiver<Outbound>,
    ) -> Result<bool, WebSocketError> {
        let mut next = Some(first);
        let mut closed = false;
        while let Some(outbound) = next.take() {
            closed = matches!(outbound, Outbound::Close(_));
            self.write(outbound).await?;
            if !closed {
                next = behind.try_recv().ok();
            }
        }
        self.socket.flush().await?;
        Ok(closed)
    }

    async fn write(&mut self, outbound: Outbound) -> Result<(), WebSocketError> {
        let (opcode, bytes) = match outbound {
            Outbound::Message(bytes) | Outbound::Lossy(bytes) => (OpCode::Binary, bytes),
            Outbound::Pong(bytes) => (OpCode::Pong, bytes),
            Outbound::Close(code) => (OpCode::Close, code.to_be_bytes().to_vec()),
        };
        let mut mask = [0; 4];
        self.world.fill_random(&mut mask);
        self.socket.write_frame(Frame::new(true, opcode, Some(mask), Payload::Owned(bytes))).await
    }
}

/// Bytes of an unmasked frame on the wire.
fn frame_bytes(payload: usize) -> u64 {
    let head = match payload {
        0..=125 => 2,
        126..=65_535 => 4,
        _ => 10,
    };
    head + payload as u64
}

fn keep(bytes: BytesMut) -> Bytes {
    if bytes.len() < COPY_BELOW_BYTES { Bytes::copy_from_slice(&bytes) } else { bytes.freeze() }
}

fn close_of(bytes: &[u8]) -> Incoming {
    match bytes.split_at_checked(2) {
        // RFC 6455 §7.1.5: no code is 1005.
        None => Incoming::Close { code: 1005, reason: "no reason given".to_owned() },
        Some((code, reason)) => Incoming::Close {
            code: u16::from_be_bytes([code[0], code[1]]),
            reason: String::from_utf8_lossy(reason).into_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chappe_protocol::testing::TestWorld;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::{AsyncReadExt as _, AsyncWrite, DuplexStream};

    /// Counts writes.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn what_waits_leaves_together_and_a_single_message_at_once() {
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let writes = Arc::new(AtomicUsize::new(0));
        let io = Box::new(Counted(near, Arc::clone(&writes)));
        let wire = over(Upgraded { io, rest: BytesMut::new() }, 1 << 20, Arc::new(TestWorld::new(1)));
        let mut writer = wire.writer;
        let frame = 6 + 100;
        for burst in [1, 2, 1] {
            let before = writes.load(Ordering::Relaxed);
            for _ in 0..burst {
                wire.out.try_send(Outbound::Message(vec![7; 100])).unwrap();
            }
            let mut got = vec![0; burst * frame];
            tokio::select! {
                biased;
                _ = &mut writer => unreachable!("nobody closed"),
                read = far.read_exact(&mut got) => drop(read.unwrap()),
            }
            assert_eq!(writes.load(Ordering::Relaxed) - before, 1, "a burst of {burst}");
        }
        wire.out.try_send(Outbound::Close(1000)).unwrap();
        assert!(writer.await.is_ok(), "the close is written, then it ends");
    }
}
