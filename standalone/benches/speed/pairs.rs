//! Durable envelopes, one sender and one receiver each, as many in flight as a window allows. **Invariant:** an envelope counts when its
//! sender was told *accepted*; its receiver acks all that came in 20 ms together, as the SDK does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use chappe_protocol::frame::{ClientFrame, ServerFrame};
use chappe_protocol::internode::Outcome;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use crate::PAYLOAD_BYTES;
use crate::sessions::{Counter, Server, framed, submit, take};
use crate::support::{Io, runtime};

const PAIRS: usize = 64;
const IN_FLIGHT: usize = 16;
/// One mailbox: so many write to it.
const WRITERS: usize = 16;
/// Submits on their way of each of those: together fewer than the window of the one who reads, so that he keeps up.
const WRITER_IN_FLIGHT: usize = 2;
const ACK_DELAY: Millis = Millis(20);
/// With a mailbox that grows.
const PATIENCE: Millis = Millis::from_secs(120);
const WARM_UP: Duration = Duration::from_secs(1);
const MEASURED: Duration = Duration::from_secs(4);
/// Envelopes over which the price is taken, in a mailbox that holds few and in one that holds many.
const STRETCH: usize = 20_000;

/// A server whose sessions are made anew for each measurement.
pub(crate) struct Site {
    runtime: Runtime,
    server: Arc<Server>,
    next_user: usize,
}

/// What a saturated server does.
pub(crate) struct Saturated {
    /// Microseconds of its CPU for each envelope.
    pub(crate) cpu_us: f64,
    /// Envelopes a second.
    pub(crate) rate: f64,
    /// Envelopes that shared a sync.
    pub(crate) group: f64,
}

impl Site {
    pub(crate) fn open() -> Self {
        Self { runtime: runtime(), server: Arc::new(Server::start(false)), next_user: 0 }
    }

    fn users(&mut self, count: usize) -> usize {
        let first = self.next_user;
        self.next_user += count;
        first
    }

    /// Pairs that write as much as their windows allow.
    pub(crate) fn saturate(&mut self) -> Saturated {
        let (server, first) = (Arc::clone(&self.server), self.users(PAIRS * 2));
        self.runtime.block_on(async {
            let (done, stop) = (Counter::default(), Arc::new(AtomicBool::new(false)));
            let mut tasks = JoinSet::new();
            for number in 0..PAIRS {
                let to = first + PAIRS + number;
                let receiver = server.attach(to, "phone", None).await.socket;
                let sender = server.attach(first + number, "phone", None).await.socket;
                tasks.spawn(receive(receiver, Arc::clone(&server), Counter::default()));
                let (server, done, stop) = (Arc::clone(&server), Arc::clone(&done), Arc::clone(&stop));
                tasks.spawn(send(sender, server, to, IN_FLIGHT, done, stop));
            }
            let look = async || {
                let counts = ["chappe_embedded_writes_total", "chappe_embedded_batches_total"];
                let [writes, batches] = counts.map(|name| server.counted(name));
                (server.cpu_seconds(), done.load(Ordering::Relaxed), writes.await, batches.await)
            };
            tokio::time::sleep(WARM_UP).await;
            let before = look().await;
            tokio::time::sleep(MEASURED).await;
            let after = look().await;
            stop.store(true, Ordering::Relaxed);
            tasks.shutdown().await;
            let envelopes = crate::as_f64(after.1 - before.1);
            Saturated {
                cpu_us: (after.0 - before.0) * 1e6 / envelopes,
                rate: envelopes / MEASURED.as_secs_f64(),
                group: (after.2 - before.2) / (after.3 - before.3),
            }
        })
    }

    /// Microseconds of CPU for an envelope into a mailbox that holds few, and into the same with so many for a device that is away.
    pub(crate) fn grow(&mut self, envelopes: usize) -> (f64, f64) {
        let (server, first) = (Arc::clone(&self.server), self.users(WRITERS + 1));
        self.runtime.block_on(async {
            let (arrived, stop) = (Counter::default(), Arc::new(AtomicBool::new(false)));
            drop(server.attach(first, "tablet", None).await);
            let receiver = server.attach(first, "phone", None).await.socket;
            let writers: Vec<_> = (1..=WRITERS).map(|number| first + number).collect();
            let writers = writers.iter().map(|number| server.attach(*number, "phone", None));
            let mut tasks = JoinSet::new();
            for writer in join_all(writers).await {
                let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
                tasks.spawn(send(writer.socket, server, first, WRITER_IN_FLIGHT, Counter::default(), stop));
            }
            tasks.spawn(receive(receiver, Arc::clone(&server), Arc::clone(&arrived)));
            let begun = server.world.now();
            let until = async |count| {
                while arrived.load(Ordering::Relaxed) < count {
                    assert!(
                        server.world.now() - begun < PATIENCE,
                        "{} arrived",
                        arrived.load(Ordering::Relaxed)
                    );
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                (server.cpu_seconds(), arrived.load(Ordering::Relaxed))
            };
            let each =
                |from: (f64, usize), to: (f64, usize)| (to.0 - from.0) * 1e6 / crate::as_f64(to.1 - from.1);
            let (few, then) = (until(100).await, until(STRETCH).await);
            let (many, end) = (until(envelopes).await, until(envelopes + STRETCH).await);
            stop.store(true, Ordering::Relaxed);
            tasks.shutdown().await;
            (each(few, then), each(many, end))
        })
    }
}

/// Keeps so many submits to one user in flight.
async fn send(
    mut socket: Box<dyn Io>,
    server: Arc<Server>,
    to: usize,
    in_flight: usize,
    done: Counter,
    stop: Arc<AtomicBool>,
) {
    let (mut input, mut room) = (BytesMut::new(), in_flight);
    while !stop.load(Ordering::Relaxed) {
        let mut output = Vec::new();
        for _ in 0..std::mem::take(&mut room) {
            output.extend(submit(&server.world, PAYLOAD_BYTES, to..to + 1, false));
        }
        socket.write_all(&output).await.unwrap();
        while room == 0 {
            input.reserve(4096);
            assert_ne!(socket.read_buf(&mut input).await.unwrap(), 0, "the server closed");
            while let Some(message) = take(&mut input) {
                let ServerFrame::SubmitResult(result) = ServerFrame::decode(message).unwrap() else {
                    panic!("a sender is told of its submits only")
                };
                let accepted = result.results.iter().all(|result| result.outcome == Outcome::Accepted);
                assert!(accepted, "{:?}", result.results);
                room += 1;
            }
        }
        done.fetch_add(room, Ordering::Relaxed);
    }
}

/// Takes whatever comes, and acks it.
async fn receive(mut socket: Box<dyn Io>, server: Arc<Server>, arrived: Counter) {
    let (mut input, mut acked_at, mut upto) = (BytesMut::new(), Time::default(), None);
    loop {
        input.reserve(16 * 1024);
        let read = tokio::time::timeout(ACK_DELAY.to_std(), socket.read_buf(&mut input)).await;
        if read.is_ok_and(|read| read.unwrap() == 0) {
            return;
        }
        while let Some(message) = take(&mut input) {
            if let ServerFrame::Deliver(deliver) = ServerFrame::decode(message).unwrap() {
                arrived.fetch_add(1, Ordering::Relaxed);
                upto = Some(deliver.seq);
            }
        }
        let now = server.world.now();
        if acked_at + ACK_DELAY <= now
            && let Some(upto) = upto.take()
        {
            acked_at = now;
            socket.write_all(&framed(&ClientFrame::Ack { upto })).await.unwrap();
        }
    }
}
