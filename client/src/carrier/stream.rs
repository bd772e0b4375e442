//! Messages on the one stream of a QUIC connection or WebTransport session, ephemerals in datagrams (RFC 9221).
//! **Invariant:** a message never exceeds its bound; whoever drops the wire closes the connection.

use super::frames::{Decoder, delimited};
use super::quiet::{LOOK_MS, Quiet};
use super::{Carrier, Incoming, Meter, Outbound, QUEUE, WRITE_TIMEOUT, Wire};
use crate::reconnect::End;
use bytes::Bytes;
use chappe_protocol::close::{CloseCode, ErrorScope};
use chappe_protocol::frame::ServerFrame;
use chappe_protocol::time::Millis;
use quinn::VarInt;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, timeout};
use web_transport_quinn::{ReadError, RecvStream, SendStream, Session, SessionError, WebTransportError};

/// Bytes that are taken off the stream at once.
const READ_BYTES_MAX: usize = 64 * 1024;
/// After the end of the stream the close code is waited for, and at a goodbye the acknowledgement of the last bytes.
const LAST_WORD: Millis = Millis::from_secs(1);
/// An error frame is not larger; what is larger is not kept for a look at the end.
const ERROR_BYTES_MAX: usize = 4 * 1024;
/// Hanging up without a goodbye. With HTTP/3 this is `H3_NO_ERROR` (RFC 9114 §8.1), without it no code of ours.
const HUNG_UP: u32 = 0;
const HUNG_UP_H3: u32 = 0x100;

/// Hangs up when it is dropped, unless the connection is closed already.
pub(crate) struct Line {
    connection: quinn::Connection,
    code: u32,
}

impl Line {
    pub(crate) fn new(connection: quinn::Connection, carrier: Carrier) -> Self {
        let code = if carrier == Carrier::WebTransport { HUNG_UP_H3 } else { HUNG_UP };
        Self { connection, code }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.connection.close(VarInt::from_u32(self.code), b"");
    }
}

/// Opens the stream of a session.
pub(crate) async fn open(
    carrier: Carrier,
    session: Session,
    line: Line,
    message_bytes_max: usize,
) -> Result<Wire, End> {
    let opened = session.open_bi().await;
    let (send, recv) = opened.map_err(|error| End::Lost(format!("the stream: {error}")))?;
    let meter = Arc::new(Meter::default());
    let (incoming_in, incoming) = mpsc::channel(QUEUE);
    let (out, out_rest) = mpsc::channel(QUEUE);
    let reader = Reader {
        session: session.clone(),
        recv,
        decoder: Decoder::new(message_bytes_max),
        meter: meter.clone(),
        datagrams: true,
        last: Bytes::new(),
    };
    let mut looks = tokio::time::interval(Millis(LOOK_MS).to_std());
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch { connection: quinn::Connection::clone(&session), quiet: Quiet::default(), looks };
    let writer = Writer { session, send };
    Ok(Wire {
        carrier,
        reader: Box::pin(reader.run(incoming_in)),
        writer: Box::pin(writer.run(watch, out_rest)),
        incoming,
        out,
        meter,
        line: Some(line),
    })
}

struct Reader {
    session: Session,
    recv: RecvStream,
    decoder: Decoder,
    meter: Arc<Meter>,
    /// Datagrams may come.
    datagrams: bool,
    /// The last message, if it was small: an error frame tells why the server closes.
    last: Bytes,
}

impl Reader {
    /// Reads until a close, an error, or until nobody listens; never resolves, so that what it sent is taken first.
    async fn run(mut self, out: mpsc::Sender<Incoming>) {
        loop {
            let (incoming, last) = match self.next().await {
                Ok(message) => (Incoming::Message(message), false),
                Err(last) => (last, true),
            };
            if out.send(incoming).await.is_err() || last {
                return std::future::pending().await;
            }
        }
    }

    async fn next(&mut self) -> Result<Bytes, Incoming> {
        loop {
            match self.decoder.next() {
                Ok(Some(whole)) => {
                    self.meter.on_framed(whole.wire_bytes);
                    let small = whole.frame.len() <= ERROR_BYTES_MAX;
                    self.last = if small { whole.frame.clone() } else { Bytes::new() };
                    return Ok(whole.frame);
                }
                Ok(None) => {}
                Err(why) => return Err(Incoming::Failed(why.to_owned())),
            }
            tokio::select! {
                biased;
                read = self.recv.read_chunk(READ_BYTES_MAX, true) => match read {
                    Ok(Some(chunk)) => {
                        self.meter.on_read(chunk.bytes.len() as u64);
                        self.decoder.push(chunk.bytes);
                    }
                    Err(ReadError::Reset(_) | ReadError::InvalidReset(_)) => {
                        return Err(Incoming::Failed("the server broke the stream off".to_owned()));
                    }
                    Ok(None) | Err(_) => return Err(self.end().await),
                },
                datagram = self.session.read_datagram(), if self.datagrams => match datagram {
                    Ok(datagram) => {
                        let bytes = datagram.len() as u64;
                        self.meter.on_framed(bytes);
                        self.meter.on_read(bytes);
                        // Not a slice of the packet: it may be kept.
                        let frame = Bytes::copy_from_slice(&datagram);
                        if matches!(ServerFrame::decode(frame.clone()), Ok(ServerFrame::Ephemeral { .. })) {
                            return Ok(frame);
                        }
                    }
                    // Of another session of the connection, or the end: that is the stream's to tell.
                    Err(_) => self.datagrams = self.session.close_reason().is_none(),
                },
            }
        }
    }

    /// Why the stream has ended.
    async fn end(&self) -> Incoming {
        let closed = timeout(LAST_WORD.to_std(), self.session.closed()).await;
        if let Ok(SessionError::WebTransportError(WebTransportError::Closed(code, reason))) = &closed
            // Below lie the codes of QUIC and HTTP/3 and those of a process that ends.
            && let Some(code) = u16::try_from(*code).ok().filter(|code| *code >= 1000)
        {
            return Incoming::Close { code, reason: reason.clone() };
        }
        if let Ok(ServerFrame::Error(error)) = ServerFrame::decode(self.last.clone())
            && error.scope == ErrorScope::Connection
            && let Some(code) = CloseCode::ALL.iter().find(|code| code.reason() == error.code)
        {
            return Incoming::Close { code: code.code(), reason: error.code };
        }
        Incoming::Failed(match closed {
            Ok(error) => format!("the connection broke: {error}"),
            Err(_) => "the server ended the stream without a word".to_owned(),
        })
    }
}

struct Writer {
    session: Session,
    send: SendStream,
}

impl Writer {
    /// Writes until a close is written or something fails; says which by `Ok` and `Err`.
    async fn run(mut self, mut watch: Watch, mut messages: mpsc::Receiver<Outbound>) -> Result<(), End> {
        loop {
            let outbound = tokio::select! {
                biased;
                outbound = messages.recv() => outbound,
                () = watch.black_hole() => return Err(End::BlackHole),
            };
            let (frame, lossy) = match outbound {
                Some(Outbound::Message(frame)) => (frame, false),
                Some(Outbound::Lossy(frame)) => (frame, true),
                // WebSocket's; nothing asks for it here.
                Some(Outbound::Pong(_)) => continue,
                Some(Outbound::Close(code)) => {
                    self.goodbye(code).await;
                    return Ok(());
                }
                None => return Ok(()),
            };
            watch.on_write();
            if lossy && frame.len() <= self.session.max_datagram_size() {
                let datagram = Bytes::from(frame);
                if self.session.send_datagram(datagram.clone()).is_err() {
                    self.write(&mut watch, &datagram).await?;
                }
            } else {
                self.write(&mut watch, &frame).await?;
            }
        }
    }

    async fn write(&mut self, watch: &mut Watch, frame: &[u8]) -> Result<(), End> {
        let bytes = delimited(frame);
        let written = timeout(WRITE_TIMEOUT.to_std(), self.send.write_all(&bytes));
        tokio::select! {
            biased;
            written = written => match written {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => {
                    // The close code, if there is one, is the reader's to find.
                    tokio::time::sleep(2 * LAST_WORD.to_std()).await;
                    Err(End::Lost(format!("the connection broke: {error}")))
                }
                Err(_) => Err(End::Lost("the server takes nothing".to_owned())),
            },
            () = watch.black_hole() => Err(End::BlackHole),
        }
    }

    /// The connection's close overtakes what is not received yet, so that is waited for.
    async fn goodbye(mut self, code: u16) {
        if self.send.finish().is_ok() {
            let _ = timeout(LAST_WORD.to_std(), self.send.stopped()).await;
        }
        self.session.close(u32::from(code), b"");
        let _ = timeout(LAST_WORD.to_std(), self.session.closed()).await;
    }
}

/// Looks at the path while something may be unanswered.
struct Watch {
    connection: quinn::Connection,
    quiet: Quiet,
    looks: Interval,
}

impl Watch {
    fn on_write(&mut self) {
        if self.quiet.is_resting() {
            self.looks.reset();
        }
        self.quiet.on_write();
    }

    /// Resolves when the path is dead. Cancel-safe.
    async fn black_hole(&mut self) {
        loop {
            if self.quiet.is_resting() {
                return std::future::pending().await;
            }
            self.looks.tick().await;
            let stats = self.connection.stats();
            if self.quiet.look(stats.udp_rx.datagrams, eliciting(&stats.frame_tx)) {
                return;
            }
        }
    }
}

/// Frames that the other end must acknowledge: all but `ACK`, `PADDING` and `CONNECTION_CLOSE` (RFC 9002 §2). A packet that is
/// sent again as a probe counts, too.
fn eliciting(sent: &quinn::FrameStats) -> u64 {
    let frames = [
        sent.ack_frequency,
        sent.crypto,
        sent.data_blocked,
        sent.datagram,
        sent.immediate_ack,
        sent.max_data,
        sent.max_stream_data,
        sent.max_streams_bidi,
        sent.max_streams_uni,
        sent.new_connection_id,
        sent.path_challenge,
        sent.path_response,
        sent.ping,
        sent.reset_stream,
        sent.retire_connection_id,
        sent.stop_sending,
        sent.stream,
        sent.stream_data_blocked,
        sent.streams_blocked_bidi,
        sent.streams_blocked_uni,
    ];
    frames.iter().sum()
}
