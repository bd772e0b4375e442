//! Frames that the HTTP/2 library does not send by itself: GOAWAY with any last stream, SETTINGS in mid-connection.
//! **Invariant:** frames are put in between whole frames only; the library never sees an acknowledgement of SETTINGS
//! that it did not send.

use crate::record::Record;
use bytes::{Buf, BufMut, BytesMut};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// Longest frame that is looked at: what a server that says nothing else takes (RFC 9113 §6.5.2).
const FRAME_BYTES_MAX: usize = 16_384;
/// Bytes waiting to go out before the library has to wait.
const OUT_BYTES_MAX: usize = 64 * 1024;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// Whose SETTINGS an acknowledgement will answer, and the stream limit that holds from then on.
#[derive(Debug, Clone, Copy)]
struct Awaited {
    ours: bool,
    streams: u32,
}

#[derive(Debug, Default)]
struct State {
    /// Frames of ours that wait for the next gap.
    wanted: BytesMut,
    awaited: VecDeque<Awaited>,
    /// The limit of the last SETTINGS that the client acknowledged; none: it may not know any yet.
    streams_known: Option<u32>,
    /// The limit that was sent last.
    streams_sent: u32,
    /// Streams that count towards the limit (RFC 9113 §5.1.2).
    open: BTreeMap<u32, Ends>,
    /// Streams that were opened over the limit.
    over: BTreeSet<u32>,
    highest: u32,
}

/// Who has said all on a stream.
#[derive(Debug, Default)]
struct Ends {
    client: bool,
    server: bool,
}

impl State {
    /// The limit, as far as the client can know it: the largest of what it acknowledged and what is on its way. `None`:
    /// it cannot know of any yet.
    fn streams_allowed(&self) -> Option<usize> {
        let on_the_way = self.awaited.iter().map(|awaited| awaited.streams);
        let allowed = self.streams_known.map(|known| on_the_way.fold(known, u32::max));
        allowed.map(|allowed| usize::try_from(allowed).unwrap_or(usize::MAX))
    }

    /// Notes what a frame does to its stream.
    fn follow(&mut self, frame: &[u8], from_client: bool) {
        let (kind, flags) = (frame[3], frame[4]);
        let stream = u32::from_be_bytes([frame[5] & 0x7f, frame[6], frame[7], frame[8]]);
        if stream == 0 {
            return;
        }
        if kind == RST_STREAM {
            self.open.remove(&stream);
            return;
        }
        if kind != HEADERS && kind != DATA {
            return;
        }
        if from_client && kind == HEADERS && stream > self.highest {
            self.highest = stream;
            if self.streams_allowed().is_some_and(|allowed| self.open.len() >= allowed) {
                self.over.insert(stream);
            }
            self.open.insert(stream, Ends::default());
        }
        let Some(ends) = self.open.get_mut(&stream) else { return };
        if flags & END_STREAM != 0 {
            if from_client {
                ends.client = true;
            } else {
                ends.server = true;
            }
        }
        if ends.client && ends.server {
            self.open.remove(&stream);
        }
    }
}

/// The handle of a [`Wire`], for whoever serves the connection.
#[derive(Debug, Clone)]
pub(crate) struct Lever {
    state: Arc<Mutex<State>>,
    /// Rung when there is something to send: the connection has to be polled.
    pub(crate) bell: Arc<Notify>,
}

impl Lever {
    /// SETTINGS with this stream limit, if it is another than the last.
    pub(crate) fn limit_streams(&self, streams: u32) {
        let mut state = self.lock();
        if state.streams_sent == streams {
            return;
        }
        state.streams_sent = streams;
        state.awaited.push_back(Awaited { ours: true, streams });
        put_head(&mut state.wanted, 6, SETTINGS);
        state.wanted.put_u16(MAX_CONCURRENT_STREAMS);
        state.wanted.put_u32(streams);
        self.bell.notify_one();
    }

    /// GOAWAY with this last stream and no error (RFC 9113 §6.8).
    pub(crate) fn go_away(&self, last_stream: u32) {
        let mut state = self.lock();
        put_head(&mut state.wanted, 8, GOAWAY);
        state.wanted.put_u32(last_stream);
        state.wanted.put_u32(0);
        self.bell.notify_one();
    }

    /// Whether this stream was opened over the limit; asked once per stream.
    pub(crate) fn take_over_limit(&self, stream: u32) -> bool {
        self.lock().over.remove(&stream)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn put_head(out: &mut BytesMut, length: u8, kind: u8) {
    out.put_slice(&[0, 0, length, kind, 0]);
    out.put_u32(0);
}

/// The transport under the HTTP/2 library.
#[derive(Debug)]
pub(crate) struct Wire<IO> {
    io: IO,
    lever: Lever,
    record: Arc<Record>,
    /// What the library wrote, not a whole frame yet.
    partial: BytesMut,
    out: BytesMut,
    /// What came in, not a whole frame yet.
    raw: BytesMut,
    /// Whole frames for the library.
    ready: BytesMut,
    preface_seen: bool,
    /// A frame came that is too long to look at: the library shall see and refuse it.
    blind: bool,
    first_streams: u32,
}

impl<IO> Wire<IO> {
    /// `first_streams` takes the place of the stream limit in the library's first SETTINGS.
    pub(crate) fn new(io: IO, first_streams: u32, record: Arc<Record>) -> (Self, Lever) {
        let state = State { streams_sent: first_streams, ..State::default() };
        let lever = Lever { state: Arc::new(Mutex::new(state)), bell: Arc::default() };
        let wire = Self {
            io,
            lever: lever.clone(),
            record,
            partial: BytesMut::new(),
            out: BytesMut::new(),
            raw: BytesMut::new(),
            ready: BytesMut::new(),
            preface_seen: false,
            blind: false,
            first_streams,
        };
        (wire, lever)
    }

    /// Moves whole frames of the library to `out`, then ours.
    fn sort_out(&mut self) {
        while let Some(length) = frame_bytes(&self.partial).filter(|&length| self.partial.len() >= length) {
            let mut frame = self.partial.split_to(length);
            if frame[3] == SETTINGS && frame[4] & ACK == 0 {
                self.own_settings(&mut frame);
            }
            self.lever.lock().follow(&frame, false);
            self.out.extend_from_slice(&frame);
        }
        if self.partial.is_empty() {
            let mut state = self.lever.lock();
            // Nothing may go before the library's first SETTINGS (RFC 9113 §3.4).
            if !state.awaited.is_empty() || state.streams_known.is_some() {
                self.out.unsplit(state.wanted.split());
            }
        }
    }

    /// Puts our limit into the library's SETTINGS and remembers that they will be acknowledged.
    fn own_settings(&mut self, frame: &mut BytesMut) {
        for setting in frame[HEAD_BYTES..].chunks_exact_mut(6) {
            if setting[..2] == MAX_CONCURRENT_STREAMS.to_be_bytes() {
                setting[2..].copy_from_slice(&self.first_streams.to_be_bytes());
            }
        }
        let mut state = self.lever.lock();
        state.awaited.push_back(Awaited { ours: false, streams: self.first_streams });
    }

    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        IO: AsyncWrite + Unpin,
    {
        self.sort_out();
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Moves whole frames that came in to `ready`, without the acknowledgements of our SETTINGS.
    fn sort_in(&mut self) {
        if !self.preface_seen {
            if self.raw.len() < PREFACE_BYTES {
                return;
            }
            self.preface_seen = true;
            self.ready.unsplit(self.raw.split_to(PREFACE_BYTES));
        }
        while !self.blind
            && let Some(length) = frame_bytes(&self.raw)
        {
            if length > HEAD_BYTES + FRAME_BYTES_MAX {
                self.blind = true;
                break;
            }
            if self.raw.len() < length {
                break;
            }
            let frame = self.raw.split_to(length);
            if !self.swallow(&frame) {
                self.ready.unsplit(frame);
            }
        }
        if self.blind {
            self.ready.unsplit(self.raw.split());
        }
    }

    fn swallow(&self, frame: &[u8]) -> bool {
        if frame[3] == PING && frame[4] & ACK == 0 {
            self.record.count(|counts| counts.pings += 1);
        }
        let mut state = self.lever.lock();
        state.follow(frame, true);
        if frame[3] != SETTINGS || frame[4] & ACK == 0 {
            return false;
        }
        let Some(awaited) = state.awaited.pop_front() else { return false };
        state.streams_known = Some(awaited.streams);
        awaited.ours
    }
}

/// Length of the first frame, with its head.
fn frame_bytes(bytes: &[u8]) -> Option<usize> {
    let head = bytes.get(..HEAD_BYTES)?;
    Some(HEAD_BYTES + (usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])))
}

impl<IO: AsyncRead + Unpin> AsyncRead for Wire<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.ready.is_empty() {
            let mut scratch = [0_u8; 8192];
            let mut read = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                // The end. What is left of a frame is for the library to complain about.
                this.ready.unsplit(this.raw.split());
                break;
            }
            this.raw.extend_from_slice(read.filled());
            this.sort_in();
        }
        let count = this.ready.len().min(into.remaining());
        into.put_slice(&this.ready[..count]);
        this.ready.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Wire<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.out.len() + this.partial.len() >= OUT_BYTES_MAX {
            ready!(this.poll_out(cx))?;
        }
        this.partial.extend_from_slice(bytes);
        this.sort_out();
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_out(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
