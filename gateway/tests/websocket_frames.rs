//! Frames over a stream: what hostile bytes are answered with, and that no poll loses, doubles or hoards anything.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use chappe_gateway::transport::websocket::{CodecLimits, Event, HandshakeLimits, accept};
use chappe_gateway::transport::{Transport, TransportError};
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, duplex};
use tokio::net::{TcpListener, TcpStream};

mod websocket_support;
use websocket_support::{Got, close_frame, connected, echo, finish, flush, frame, receive, request};

/// Sends bytes to an echoing server over a real socket; what it answers after the handshake, and why it ended.
async fn answered(bytes: &[u8]) -> (Vec<u8>, TransportError) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (server, _) = listener.accept().await.unwrap();
    client.write_all(request().as_bytes()).await.unwrap();
    let mut socket = accept(server, None, &HandshakeLimits::default()).await.unwrap();
    websocket_support::read_head(&mut client).await;
    client.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let (error, read) = tokio::join!(echo(&mut socket), async {
        let read = client.read_to_end(&mut answer).await;
        drop(client);
        read
    });
    read.expect("an orderly end, no reset");
    (answer, error)
}

#[tokio::test]
async fn each_hostile_input_is_answered_with_its_close_code() {
    let oversize = {
        let mut header = vec![0x82, 0xff];
        header.extend((1024 * 1024_u64 + 1).to_be_bytes());
        [header, vec![0; 70_000]].concat()
    };
    let fragments = [frame(0x02, b"x"), frame(0x00, b"x").repeat(9_999)].concat();
    for (name, bytes, code) in [
        ("no mask", vec![0x82, 1, 7], 1002),
        ("reserved bit, as compression would set it", frame(0xc2, b"x"), 1002),
        ("undefined opcode", frame(0x83, b""), 1002),
        ("fragmented ping", frame(0x09, b""), 1002),
        ("ping of 126 bytes", frame(0x89, &[0; 126]), 1002),
        ("interleaved message", [frame(0x02, b"a"), frame(0x82, b"b")].concat(), 1002),
        ("length 2^63", vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 1002),
        ("text", frame(0x81, b"hello"), 1003),
        ("oversize", oversize, 1009),
        ("10,000 fragments of one byte", fragments, 1009),
        ("close code 1005", frame(0x88, &1005_u16.to_be_bytes()), 1002),
        ("close reason that is not UTF-8", frame(0x88, b"\x03\xe8\xff"), 1007),
    ] {
        let (answer, error) = answered(&bytes).await;
        let TransportError::Violation(violation) = error else { panic!("{name}: {error}") };
        assert_eq!(violation.code, code, "{name}");
        assert_eq!(answer, close_frame(code, violation.reason), "{name}");
    }
}

#[tokio::test]
async fn messages_before_a_violation_are_still_handed_over() {
    let bytes = [frame(0x82, b"fine"), frame(0x83, b"bad"), frame(0x82, b"late")].concat();
    let (answer, _) = answered(&bytes).await;
    assert_eq!(answer[..6], *b"\x82\x04fine");
    assert_eq!(answer[6], 0x88);
}

#[tokio::test]
async fn a_close_is_answered_with_its_code_and_ends_the_stream() {
    let late = [frame(0x88, b"\x0f\xa1bye"), frame(0x82, b"late")].concat();
    let (answer, error) = answered(&late).await;
    assert_eq!(answer, close_frame(4001, ""));
    assert!(matches!(error, TransportError::Closed));
    let (answer, _) = answered(&frame(0x88, b"")).await;
    assert_eq!(answer, [0x88, 0]);
}

#[tokio::test]
async fn a_stream_that_just_ends_is_told_apart_from_a_close() {
    let (mut socket, client) = connected(&HandshakeLimits::default()).await;
    drop(client);
    assert!(matches!(receive(&mut socket).await, Err(TransportError::Gone)));
}

#[tokio::test]
async fn a_flood_of_pings_leaves_one_pong_waiting() {
    let (mut socket, mut client) = connected(&HandshakeLimits::default()).await;
    for n in 0..1_000_u16 {
        client.write_all(&frame(0x89, &n.to_be_bytes())).await.unwrap();
    }
    let mut controls = 0;
    while controls < 1_000 {
        controls += receive(&mut socket).await.unwrap().len();
    }
    assert_eq!(socket.queued_bytes(), 8, "the first pong and the one that is held back");
    flush(&mut socket).await.unwrap();
    let mut pongs = [0; 8];
    client.read_exact(&mut pongs).await.unwrap();
    assert_eq!(pongs, [0x8a, 2, 0, 0, 0x8a, 2, 3, 231]);
    assert_eq!((socket.queued_bytes(), socket.held_bytes()), (0, 0));
}

#[tokio::test]
async fn an_announced_length_reserves_no_memory() {
    let codec = CodecLimits { message_bytes_max: 64 * 1024 * 1024, ..CodecLimits::default() };
    let (mut socket, mut client) = connected(&HandshakeLimits { codec, ..HandshakeLimits::default() }).await;
    let mut header = vec![0x82, 0xff];
    header.extend(60_000_000_u64.to_be_bytes());
    header.extend([0; 4]);
    client.write_all(&header).await.unwrap();
    client.write_all(&[0; 100]).await.unwrap();
    assert!(receive(&mut socket).now_or_never().is_none());
    assert!(socket.held_bytes() <= 200, "{}", socket.held_bytes());
}

#[tokio::test]
async fn nothing_is_held_once_messages_are_whole() {
    let (mut socket, mut client) = connected(&HandshakeLimits::default()).await;
    let payload = vec![5; 200_000];
    let bytes = frame(0x82, &payload);
    client.write_all(&bytes[..150_000]).await.unwrap();
    assert!(receive(&mut socket).now_or_never().is_none());
    assert!((149_000..=400_000).contains(&socket.held_bytes()), "{}", socket.held_bytes());
    client.write_all(&bytes[150_000..]).await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap(), [Got::Message(payload.clone())]);
    assert_eq!(socket.held_bytes(), 0);
    socket.queue(&payload);
    assert_eq!(socket.queued_bytes(), 200_010);
    flush(&mut socket).await.unwrap();
    assert_eq!((socket.queued_bytes(), socket.held_bytes()), (0, 0));
}

/// A stream that stalls at every other poll, takes and gives few bytes at a time, and counts its writes.
struct Reluctant<IO> {
    io: IO,
    stall: bool,
    step: usize,
    writes: usize,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Reluctant<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stall = !self.stall;
        if self.stall {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut few = vec![0; self.step.min(to.remaining())];
        let mut buffer = ReadBuf::new(&mut few);
        std::task::ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        to.put_slice(buffer.filled());
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Reluctant<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.stall = !self.stall;
        if self.stall {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.writes += 1;
        let step = self.step.min(bytes.len());
        Pin::new(&mut self.io).poll_write(cx, &bytes[..step])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn dropped_and_polled_again_nothing_is_lost_or_doubled() {
    let (mut client, server) = duplex(64 * 1024);
    client.write_all(request().as_bytes()).await.unwrap();
    let reluctant = Reluctant { io: server, stall: false, step: 7, writes: 0 };
    let mut socket = accept(reluctant, None, &HandshakeLimits::default()).await.unwrap();
    websocket_support::read_head(&mut client).await;
    let sent: Vec<Vec<u8>> = (0..40_usize).map(|n| vec![u8::try_from(n).unwrap(); n * 11]).collect();
    for message in &sent {
        client.write_all(&frame(0x82, message)).await.unwrap();
    }
    // Each future is dropped after one poll, wherever it stood; flush and receive take turns.
    let mut echoed = Vec::new();
    while echoed.len() < sent.len() {
        if let Some(Ok(got)) = receive(&mut socket).now_or_never() {
            for inbound in got {
                let Got::Message(message) = inbound else { panic!("{inbound:?}") };
                socket.queue(&message);
                echoed.push(message);
            }
        }
        let _ = flush(&mut socket).now_or_never();
        tokio::task::yield_now().await;
    }
    assert_eq!(echoed, sent);
    while socket.queued_bytes() > 0 {
        let _ = flush(&mut socket).now_or_never();
        tokio::task::yield_now().await;
    }
    drop(socket);
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).await.unwrap();
    let mut expected = Vec::new();
    for message in &sent {
        let length = message.len();
        if let Ok(short @ 0..=125) = u8::try_from(length) {
            expected.extend([0x82, short]);
        } else {
            expected.extend([0x82, 126]);
            expected.extend(u16::try_from(length).unwrap().to_be_bytes());
        }
        expected.extend(message);
    }
    assert!(bytes == expected, "the echo is byte for byte what was queued");
}

/// Counts writes and takes everything.
struct Counting<IO> {
    io: IO,
    writes: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl<IO: AsyncRead + Unpin> AsyncRead for Counting<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, to)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Counting<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn many_queued_messages_leave_in_one_write() {
    let (mut client, server) = duplex(64 * 1024);
    client.write_all(request().as_bytes()).await.unwrap();
    let writes = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counting = Counting { io: server, writes: writes.clone() };
    let mut socket = accept(counting, None, &HandshakeLimits::default()).await.unwrap();
    let before = writes.load(std::sync::atomic::Ordering::Relaxed);
    for n in 0..50_u8 {
        socket.queue_with(&mut |out| out.extend_from_slice(&[n; 100]));
    }
    flush(&mut socket).await.unwrap();
    assert_eq!(writes.load(std::sync::atomic::Ordering::Relaxed) - before, 1);
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_the_flush_wait_and_the_queue_is_counted() {
    let (mut client, server) = duplex(1_000);
    client.write_all(request().as_bytes()).await.unwrap();
    let mut socket = accept(server, None, &HandshakeLimits::default()).await.unwrap();
    websocket_support::read_head(&mut client).await;
    socket.queue(&[1; 10_000]);
    assert!(flush(&mut socket).now_or_never().is_none());
    assert_eq!(socket.queued_bytes(), 9_004);
    // Reading goes on meanwhile.
    client.write_all(&frame(0x82, b"still here")).await.unwrap();
    assert_eq!(receive(&mut socket).await.unwrap(), [Got::Message(b"still here".to_vec())]);
    let mut bytes = vec![0; 10_004];
    let (flushed, read) = tokio::join!(flush(&mut socket), client.read_exact(&mut bytes));
    flushed.unwrap();
    read.unwrap();
    assert_eq!(bytes[..4], [0x82, 126, 0x27, 0x10]);
}

#[tokio::test]
async fn our_goodbye_is_the_last_thing_said() {
    let (mut socket, mut client) = connected(&HandshakeLimits::default()).await;
    socket.queue(b"last words");
    socket.queue_close(3000, "drained");
    socket.queue(b"too late");
    socket.queue_close(1000, "");
    client.write_all(&frame(0x88, &3000_u16.to_be_bytes())).await.unwrap();
    let mut answer = Vec::new();
    let ((), read) = tokio::join!(finish(&mut socket), async {
        let read = client.read_to_end(&mut answer).await;
        drop(client);
        read
    });
    read.unwrap();
    assert_eq!(answer, [b"\x82\x0alast words".as_slice(), &close_frame(3000, "drained")].concat());
}

#[tokio::test]
async fn a_peer_that_talks_for_ever_does_not_hold_up_the_end() {
    let (mut socket, mut client) = connected(&HandshakeLimits::default()).await;
    socket.queue_close(3000, "drained");
    let talking = async { while client.write_all(&[0; 10_000]).await.is_ok() {} };
    tokio::select! {
        biased;
        () = finish(&mut socket) => {}
        () = talking => panic!("the server went first"),
    }
}

#[tokio::test]
async fn a_sink_may_use_another_connection_of_its_thread() {
    let (mut one, mut client) = connected(&HandshakeLimits::default()).await;
    let (mut two, mut other) = connected(&HandshakeLimits::default()).await;
    client.write_all(&frame(0x82, b"outer")).await.unwrap();
    other.write_all(&frame(0x82, b"inner")).await.unwrap();
    let mut got = Vec::new();
    poll_fn(|cx| {
        one.poll_events(cx, &mut |event| {
            if let Event::Binary(message) = event {
                let inner = receive(&mut two).now_or_never().expect("ready").unwrap();
                got.push((message.to_vec(), inner));
            }
        })
    })
    .await
    .unwrap();
    assert_eq!(got, [(b"outer".to_vec(), vec![Got::Message(b"inner".to_vec())])]);
}
