//! TLS over rustls' unbuffered API. **Invariant:** ciphertext passes through the thread's buffer; a session keeps only
//! an incomplete record and what the peer has not taken, and every byte it promised to send leaves in order.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::stream::poll_write_some;
use crate::transport::scratch::{self, Scratch, WIRE_BYTES};

/// What may stay incomplete between two reads: a record (RFC 8446 §5.2: 16 KiB and 256 bytes) or a handshake message in
/// several records. It leaves half of the thread's buffer to read into.
const PARTIAL_BYTES_MAX: usize = WIRE_BYTES / 2;
/// Plaintext that is encrypted in one go: its records fit the thread's buffer.
const PLAIN_BYTES_MAX: usize = 3 * 16 * 1024;
/// What TLS itself has to say, if it is no more than this, leaves in one write with what comes next.
const JOINED_BYTES_MAX: usize = 1024;
/// Room for a `close_notify` record.
const GOODBYE_BYTES_MAX: usize = 64;

pub(super) struct TlsStream<IO> {
    io: IO,
    session: UnbufferedServerConnection,
    /// Ciphertext that is no whole record yet. rustls may point into it: it is always handed in from its start.
    partial: Vec<u8>,
    /// Ciphertext that the peer has not taken.
    outgoing: Vec<u8>,
    sent: usize,
    peer_ended: bool,
    goodbye_said: bool,
    failed: Option<rustls::Error>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> TlsStream<IO> {
    pub(super) fn new(io: IO, config: Arc<rustls::ServerConfig>) -> Result<Self, rustls::Error> {
        Ok(Self {
            io,
            session: UnbufferedServerConnection::new(config)?,
            partial: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
            peer_ended: false,
            goodbye_said: false,
            failed: None,
        })
    }

    pub(super) const fn error(&self) -> Option<&rustls::Error> {
        self.failed.as_ref()
    }

    pub(super) const fn io_mut(&mut self) -> &mut IO {
        &mut self.io
    }

    pub(super) const fn unwritten_bytes(&self) -> usize {
        self.outgoing.len() - self.sent
    }

    pub(super) const fn held_bytes(&self) -> usize {
        self.partial.capacity() + self.outgoing.capacity()
    }

    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        lend: &mut dyn FnMut(&mut [u8]),
    ) -> Poll<io::Result<bool>> {
        if let Some(error) = &self.failed {
            return Poll::Ready(Err(invalid(error.clone())));
        }
        if self.peer_ended {
            return Poll::Ready(Ok(false));
        }
        scratch::with(|Scratch { wire, plain }| {
            let kept = self.partial.len();
            let mut buffer = ReadBuf::new(&mut wire[kept..]);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            let came = buffer.filled().len();
            if came == 0 {
                return Poll::Ready(Ok(false));
            }
            wire[..kept].copy_from_slice(&self.partial);
            let whole = &mut wire[..kept + came];
            let used = self.process(whole, plain, lend);
            let ended = self.peer_ended || self.failed.is_some();
            self.partial = if ended { Vec::new() } else { whole[used..].to_vec() };
            if self.partial.len() > PARTIAL_BYTES_MAX {
                self.failed = Some(rustls::Error::General("a handshake message beyond the limit".to_owned()));
            }
            Poll::Ready(Ok(true))
        })
    }

    /// Runs the session over all whole records in `wire` and lends the plaintext; the number of bytes used up. A
    /// failure is kept for the next call, behind the bytes that came before it.
    fn process(&mut self, wire: &mut [u8], plain: &mut Vec<u8>, lend: &mut dyn FnMut(&mut [u8])) -> usize {
        let mut used = 0;
        loop {
            let UnbufferedStatus { mut discard, state } = self.session.process_tls_records(&mut wire[used..]);
            let mut more = true;
            match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                discard += record.discard;
                                plain.clear();
                                plain.extend_from_slice(record.payload);
                                lend(plain);
                            }
                            Err(error) => {
                                self.failed.get_or_insert(error);
                                break;
                            }
                        }
                    }
                }
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |room| data.encode(room));
                }
                // It stays in `outgoing`, which leaves before anything newer.
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                Ok(ConnectionState::PeerClosed) => self.peer_ended = true,
                Ok(
                    ConnectionState::BlockedHandshake
                    | ConnectionState::WriteTraffic(_)
                    | ConnectionState::Closed,
                ) => more = false,
                // Early data is never offered; other states are not known to this version.
                Ok(_) => {
                    self.failed.get_or_insert(rustls::Error::General("an unexpected state".to_owned()));
                    more = false;
                }
                Err(error) => {
                    self.failed.get_or_insert(error);
                    used += discard;
                    self.take_alert(&mut wire[used..]);
                    return used;
                }
            }
            used += discard;
            if !more {
                return used;
            }
        }
    }

    /// Queues what the session wants to tell the peer about its failure.
    fn take_alert(&mut self, wire: &mut [u8]) {
        if let Ok(ConnectionState::EncodeTlsData(mut data)) = self.session.process_tls_records(wire).state {
            encode(&mut self.outgoing, |room| data.encode(room));
        }
    }

    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(PLAIN_BYTES_MAX)];
        scratch::with(|Scratch { wire, .. }| {
            let sealed =
                ready!(self.poll_seal(cx, JOINED_BYTES_MAX, &mut |traffic| traffic.encrypt(bytes, wire)))?;
            if self.unwritten_bytes() > 0 {
                self.outgoing.extend_from_slice(&wire[..sealed]);
                return match self.poll_drain(cx) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    // What the socket did not take is kept.
                    Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(bytes.len())),
                };
            }
            let mut written = 0;
            while written < sealed {
                match poll_write_some(&mut self.io, cx, &wire[written..sealed]) {
                    Poll::Ready(count) => written += count?,
                    Poll::Pending => break,
                }
            }
            self.outgoing.extend_from_slice(&wire[written..sealed]);
            Poll::Ready(Ok(bytes.len()))
        })
    }

    /// Writes everything that must leave first but for at most so many bytes, then lets `seal` make its records; their length.
    fn poll_seal(
        &mut self,
        cx: &mut Context<'_>,
        kept_bytes_max: usize,
        seal: &mut dyn FnMut(&mut Traffic<'_>) -> Result<usize, EncryptError>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if self.unwritten_bytes() > kept_bytes_max {
                ready!(self.poll_drain(cx))?;
            }
            if let Some(error) = &self.failed {
                return Poll::Ready(Err(invalid(error.clone())));
            }
            let UnbufferedStatus { discard, state } = self.session.process_tls_records(&mut self.partial);
            let sealed = match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    encode(&mut self.outgoing, |room| data.encode(room));
                    None
                }
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    data.done();
                    None
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_ended = true;
                    None
                }
                Ok(ConnectionState::WriteTraffic(mut traffic)) => Some(seal(&mut traffic).map_err(invalid)),
                Ok(_) => Some(Err(io::ErrorKind::NotConnected.into())),
                Err(error) => {
                    self.failed = Some(error);
                    None
                }
            };
            self.partial.drain(..discard);
            if let Some(sealed) = sealed {
                return Poll::Ready(sealed);
            }
        }
    }

    /// Writes the ciphertext that waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.outgoing.len() {
            self.sent += ready!(poll_write_some(&mut self.io, cx, &self.outgoing[self.sent..]))?;
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }

    /// Whether the peer waits for what is to be written.
    pub(super) fn is_handshaking(&self) -> bool {
        self.session.is_handshaking()
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says `close_notify` once, where the session got far enough for it, and ends the write side.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if !self.goodbye_said && self.failed.is_none() && !self.session.is_handshaking() {
            let mut goodbye = [0; GOODBYE_BYTES_MAX];
            let sealed =
                ready!(self.poll_seal(cx, 0, &mut |traffic| traffic.queue_close_notify(&mut goodbye)))?;
            self.goodbye_said = true;
            self.outgoing.extend_from_slice(&goodbye[..sealed]);
            ready!(self.poll_drain(cx))?;
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

type Traffic<'c> = rustls::unbuffered::WriteTraffic<'c, ServerConnectionData>;

/// Appends what rustls encodes, with exactly the room it asks for.
fn encode(outgoing: &mut Vec<u8>, mut step: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    if let Err(EncodeError::InsufficientSize(need)) = step(&mut []) {
        let start = outgoing.len();
        outgoing.resize(start + need.required_size, 0);
        let encoded = step(&mut outgoing[start..]).unwrap_or(0);
        outgoing.truncate(start + encoded);
    }
}

fn invalid<E: std::error::Error + Send + Sync + 'static>(error: E) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
