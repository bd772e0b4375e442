//! TCP through the proxy: each connection is one to the target. **Invariant:** what comes out is what went in, in order, up
//! to the moment of a reset; an end is passed on as an end, a reset as a reset.

use super::faults::Direction;
use super::lane::{Lane, SEGMENT_BYTES_MAX};
use super::stats::Counters;
use super::{Rules, Shared};
use bytes::{Buf, Bytes};
use futures_util::future::try_join;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes taken from a socket at once: some segments, so that fast streams cost few system calls.
const READ_BYTES_MAX: usize = 11 * SEGMENT_BYTES_MAX;
/// The target has so long to accept.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// After an error of the listener (no more file descriptors) it rests.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Accepts connections until the proxy stops.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut rules = shared.rules.clone();
    loop {
        let current = *rules.borrow_and_update();
        let hole = [Direction::ToTarget, Direction::ToClient].map(|way| current.tcp(way).black_hole);
        let open = !hole.contains(&true);
        let accepted = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            changed = rules.changed() => {
                if changed.is_err() { return }
                continue;
            }
            accepted = listener.accept(), if open => accepted,
        };
        let Ok((client, _)) = accepted else {
            tokio::time::sleep(ACCEPT_REST).await;
            continue;
        };
        if shared.stats().tcp.open >= shared.limits.flows_max as u64 {
            shared.stats().tcp.refused += 1;
            reset(&client);
            continue;
        }
        shared.stats().tcp.open += 1;
        let connection = Arc::clone(&shared).connection(client, current.resets);
        shared.tasks.spawn(connection);
    }
}

/// The stream ends with a reset when it is dropped.
fn reset(stream: &TcpStream) {
    // Fails for a stream that has no connection any more.
    let _ = stream.set_zero_linger();
}

/// A stream of which anything went wrong.
fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl Shared {
    async fn connection(self: Arc<Self>, mut client: TcpStream, resets: u64) {
        let passed = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(broken()),
            passed = self.pass(&mut client, resets) => passed,
        };
        if passed.is_err() {
            reset(&client);
            self.stats().reset += 1;
        }
        drop(client);
        self.stats().tcp.open -= 1;
    }

    /// Until both sides have ended (Ok) or one broke.
    async fn pass(&self, client: &mut TcpStream, resets: u64) -> io::Result<()> {
        let number = self.next_number();
        let target = match tokio::time::timeout(CONNECT_MAX, TcpStream::connect(self.target)).await {
            // A connection to a port of this machine that nobody listens on may meet itself.
            Ok(Ok(target)) if target.local_addr()? != self.target => target,
            Ok(_) | Err(_) => {
                self.stats().tcp.refused += 1;
                return Err(broken());
            }
        };
        // However this future ends, dropped too: until both sides have ended well, the target's side is a reset.
        let mut target = Fragile { stream: target, whole: false };
        client.set_nodelay(true)?;
        target.stream.set_nodelay(true)?;
        let (client_read, client_write) = client.split();
        let (target_read, target_write) = target.stream.split();
        let pump = |direction, from, to| Pump {
            shared: self,
            direction,
            from,
            to,
            lane: self.lane(number, direction),
            resets,
            front: Bytes::new(),
            ended: false,
        };
        try_join(
            pump(Direction::ToTarget, client_read, target_write).run(),
            pump(Direction::ToClient, target_read, client_write).run(),
        )
        .await?;
        target.whole = true;
        Ok(())
    }
}

/// Resets its stream unless it is whole.
struct Fragile {
    stream: TcpStream,
    whole: bool,
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if !self.whole {
            reset(&self.stream);
        }
    }
}

/// One direction of one connection.
struct Pump<'a> {
    shared: &'a Shared,
    direction: Direction,
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    lane: Lane,
    /// Resets that had been asked for when the connection came.
    resets: u64,
    /// What is due and not written yet.
    front: Bytes,
    /// `from` has ended.
    ended: bool,
}

impl Pump<'_> {
    /// Until the end has been passed on.
    async fn run(mut self) -> io::Result<()> {
        let mut rules: watch::Receiver<Rules> = self.shared.rules.clone();
        loop {
            let current = *rules.borrow_and_update();
            if current.resets != self.resets {
                return Err(broken());
            }
            let hole = current.tcp(self.direction).black_hole;
            if !hole && self.front.is_empty() {
                // A stream is never reordered, which is all that is counted when something comes out.
                match self.lane.pop(self.shared.now(), &mut Counters::default()) {
                    Some(end) if end.is_empty() => return self.to.shutdown().await,
                    Some(segment) => self.front = segment,
                    None => {}
                }
            }
            let write = !hole && !self.front.is_empty();
            let read = !hole && !self.ended && self.lane.has_room();
            let due = self.lane.next_due().filter(|_| !hole && !write);
            tokio::select! {
                biased;
                changed = rules.changed() => changed.map_err(|_| broken())?,
                ready = self.to.writable(), if write => {
                    ready?;
                    self.write()?;
                }
                ready = self.from.readable(), if read => {
                    ready?;
                    self.read(&current)?;
                }
                () = tokio::time::sleep_until(self.shared.at(due.unwrap_or_default())), if due.is_some() => {}
            }
        }
    }

    fn write(&mut self) -> io::Result<()> {
        match self.to.try_write(&self.front) {
            Ok(written) => {
                self.front.advance(written);
                let mut stats = self.shared.stats();
                let counters = stats.tcp.way(self.direction);
                counters.packets += 1;
                counters.bytes += written as u64;
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read(&mut self, rules: &Rules) -> io::Result<()> {
        let mut buffer = Vec::with_capacity(READ_BYTES_MAX);
        match self.from.try_read_buf(&mut buffer) {
            Ok(read) => self.ended = read == 0,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        let (now, faults) = (self.shared.now(), rules.tcp(self.direction));
        let mut stats = self.shared.stats();
        let counters = stats.tcp.way(self.direction);
        if self.ended {
            self.lane.segment(now, Bytes::new(), &faults, counters);
        }
        for segment in buffer.chunks(SEGMENT_BYTES_MAX) {
            self.lane.segment(now, Bytes::copy_from_slice(segment), &faults, counters);
        }
        Ok(())
    }
}
