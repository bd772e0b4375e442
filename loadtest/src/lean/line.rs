//! The socket of a session: messages in, bytes out. **Invariant:** of what was read only a frame that is not whole is kept, and of
//! what is written only what the socket did not take; a message never exceeds its bound, whole or in fragments.

use super::codec::{self, BINARY, CLOSE, CONTINUATION, PING, PONG};
use bytes::Bytes;
use chappe_client::Io;
use chappe_client::parts::{End, Upgraded};
use chappe_protocol::frame::ClientFrame;
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One read takes at most so much.
const READ_BYTES: usize = 64 * 1024;
/// A buffer for writing that grew beyond this is not kept.
const KEPT_BYTES: usize = 256 * 1024;

thread_local! {
    /// What sessions of this thread read into.
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// What they write from.
    static WRITE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Message(Bytes),
    /// To be answered with the same bytes.
    Ping(Vec<u8>),
    /// The last one.
    Close {
        code: u16,
        reason: String,
    },
}

/// See the module.
pub(super) struct Line {
    io: Box<dyn Io>,
    /// Of a frame that is not whole.
    input: Vec<u8>,
    /// Of a message that is not whole.
    message: Option<Vec<u8>>,
    /// What the socket did not take.
    output: Vec<u8>,
    /// The carrier below may hold something back.
    unflushed: bool,
    mask: [u8; 4],
    /// Bytes of a message.
    max: usize,
    /// Bytes that were read.
    heard: u64,
}

impl Line {
    /// Over a stream behind its handshake; what came with it is read first.
    pub(super) fn new(upgraded: Upgraded, max: usize, mask: [u8; 4]) -> Self {
        Self {
            io: upgraded.io,
            input: upgraded.rest.to_vec(),
            message: None,
            output: Vec::new(),
            unflushed: false,
            mask,
            max,
            heard: 0,
        }
    }

    /// Bytes that were read.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Whether a message has begun and has not ended.
    pub(super) fn is_arriving(&self) -> bool {
        !self.input.is_empty() || self.message.is_some()
    }

    /// Whether something waits for the socket.
    pub(super) fn is_stuck(&self) -> bool {
        !self.output.is_empty() || self.unflushed
    }

    /// What came with the handshake.
    pub(super) fn take_rest(&mut self, into: &mut Vec<Incoming>) -> Result<(), End> {
        let rest = std::mem::take(&mut self.input);
        self.split(rest.into(), into)
    }

    /// Reads once, and takes all frames out of it.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut Vec<Incoming>,
    ) -> Poll<Result<(), End>> {
        let mut buffer = READ.take();
        buffer.resize(READ_BYTES, 0);
        let mut read = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut self.io).poll_read(cx, &mut read);
        let data = self.keep(read.filled());
        READ.set(buffer);
        let broke = |error: io::Error| End::Lost(format!("the connection broke: {error}"));
        Poll::Ready(match ready!(polled).map_err(broke) {
            Ok(()) if data.is_empty() => Err(End::Lost("the connection broke".to_owned())),
            Ok(()) => self.split(data, into),
            Err(end) => Err(end),
        })
    }

    /// What was read, with what was kept before it.
    fn keep(&mut self, read: &[u8]) -> Bytes {
        self.heard += read.len() as u64;
        if self.input.is_empty() || read.is_empty() {
            return Bytes::copy_from_slice(read);
        }
        self.input.extend_from_slice(read);
        std::mem::take(&mut self.input).into()
    }

    fn split(&mut self, mut data: Bytes, into: &mut Vec<Incoming>) -> Result<(), End> {
        let wrong = |why: &str| End::Lost(why.to_owned());
        while let Some(head) = codec::head(&data, self.max).map_err(wrong)? {
            if data.len() < head.own + head.length {
                break;
            }
            let mut body = data.split_to(head.own + head.length);
            let body = body.split_off(head.own);
            match (head.opcode, &mut self.message) {
                (PING, _) => into.push(Incoming::Ping(body.to_vec())),
                (PONG, _) => {}
                (CLOSE, _) => {
                    into.push(close_of(&body));
                    return Ok(());
                }
                (BINARY, Some(_)) => return Err(wrong("the server mixed two messages")),
                (BINARY, None) if head.fin => into.push(Incoming::Message(body)),
                (BINARY, begun @ None) => *begun = Some(body.to_vec()),
                (CONTINUATION, Some(begun)) => {
                    if begun.len() + body.len() > self.max {
                        return Err(wrong("the server sent a message larger than the limit"));
                    }
                    begun.extend_from_slice(&body);
                    if head.fin {
                        into.extend(self.message.take().map(|whole| Incoming::Message(whole.into())));
                    }
                }
                // The codec lets no others through.
                _ => return Err(wrong("the server continued no message")),
            }
        }
        self.input = data.to_vec();
        Ok(())
    }

    /// Writes what waits and what `fill` adds, all of it at once if the socket takes it. `fill` is not asked while something
    /// waits, so no more is kept than it adds at a time.
    pub(super) fn flush(
        &mut self,
        cx: &mut Context<'_>,
        fill: impl FnOnce(&mut Frames<'_>),
    ) -> Result<(), End> {
        let lost = |error: io::Error| End::Lost(format!("the connection broke: {error}"));
        let mut output = std::mem::take(&mut self.output);
        let lent = output.is_empty();
        if lent {
            output = WRITE.take();
            output.clear();
            fill(&mut Frames { out: &mut output, mask: self.mask });
        }
        let mut written = 0;
        while written < output.len() {
            match Pin::new(&mut self.io).poll_write(cx, &output[written..]) {
                Poll::Ready(Ok(0)) => return Err(lost(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    written += count;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(lost(error)),
                Poll::Pending => break,
            }
        }
        self.output = output[written..].to_vec();
        if lent && output.capacity() <= KEPT_BYTES {
            WRITE.set(output);
        }
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx)
        {
            flushed.map_err(lost)?;
            self.unflushed = false;
        }
        Ok(())
    }
}

/// Frames that leave together.
pub(super) struct Frames<'a> {
    out: &'a mut Vec<u8>,
    mask: [u8; 4],
}

impl Frames<'_> {
    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    pub(super) fn message(&mut self, frame: &ClientFrame) {
        codec::frame(self.out, BINARY, self.mask, |out| frame.encode_into(out));
    }

    pub(super) fn pong(&mut self, bytes: &[u8]) {
        codec::frame(self.out, PONG, self.mask, |out| out.extend_from_slice(bytes));
    }

    pub(super) fn close(&mut self, code: u16) {
        codec::frame(self.out, CLOSE, self.mask, |out| out.extend_from_slice(&code.to_be_bytes()));
    }
}

fn close_of(bytes: &[u8]) -> Incoming {
    match bytes.split_at_checked(2) {
        // RFC 6455, section 7.1.5: no code is 1005.
        None => Incoming::Close { code: 1005, reason: "no reason given".to_owned() },
        Some((code, reason)) => Incoming::Close {
            code: u16::from_be_bytes([code[0], code[1]]),
            reason: String::from_utf8_lossy(reason).into_owned(),
        },
    }
}
