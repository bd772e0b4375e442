//! From a doorbell to the sockets: envelopes that are not stored go to all sessions of one server. **Invariant:** no append and no ack
//! is in the figure; what is: a submit of 1,000 targets decoded, 1,000 mailboxes and leases looked up, 1,000 doorbells, 1,000 writes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chappe_loadtest::watch::Watch;
use chappe_node::clock::SystemWorld;
use chappe_standalone::development::DataDir;
use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use crate::server::{data, start_chappe};
use crate::sessions::{Counter, attach, count, ephemeral};
use crate::support::{Io, Running, runtime};

/// Targets of one submit.
const TARGETS: usize = 1_000;
const PAYLOAD_BYTES: usize = 256;
/// Deliveries of one measurement; the kernel counts CPU time in 10 ms.
const DELIVERIES: usize = 160_000;
/// Sessions that only write: each has a limit of its own for what is not stored.
const SENDERS: usize = 64;
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with sessions.
pub(crate) struct Site {
    runtime: Runtime,
    server: Running,
    _folder: TempDir,
    world: SystemWorld,
    sessions: usize,
    senders: Vec<WriteHalf<Box<dyn Io>>>,
    next_sender: usize,
    arrived: Counter,
    tasks: TaskTracker,
}

impl Site {
    pub(crate) fn open(sessions: usize) -> Self {
        let (runtime, folder, world) = (runtime(), tempfile::tempdir().unwrap(), SystemWorld::new());
        let (server, address) = start_chappe(folder.path(), false);
        let of = DataDir::new(&data(folder.path()));
        let (tasks, arrived) = (TaskTracker::new(), Counter::default());
        let senders = runtime.block_on(async {
            let attached = |numbers: Range<usize>| {
                let all = numbers.map(|number| attach(address.port(), &of, &world, number));
                stream::iter(all).buffer_unordered(AT_ONCE).collect::<Vec<_>>()
            };
            for socket in attached(0..sessions).await {
                let (read, write) = tokio::io::split(socket);
                let counter = Arc::clone(&arrived);
                tasks.spawn(async move {
                    count(read, counter).await;
                    drop(write);
                });
            }
            let mut senders = Vec::new();
            for socket in attached(sessions..sessions + SENDERS).await {
                let (read, write) = tokio::io::split(socket);
                // What it is told is none of our business.
                tasks.spawn(count(read, Counter::default()));
                senders.push(write);
            }
            senders
        });
        Self { runtime, server, _folder: folder, world, sessions, senders, next_sender: 0, arrived, tasks }
    }

    /// Microseconds of the server's CPU for each delivery, with so many envelopes to everybody at once.
    pub(crate) fn deliver(&mut self, at_once: usize) -> f64 {
        let times = DELIVERIES / (self.sessions * at_once);
        self.deliver_times(1, at_once);
        let before = self.cpu_seconds();
        self.deliver_times(times, at_once);
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        let deliveries = (times * at_once * self.sessions) as f64;
        (self.cpu_seconds() - before) * 1e6 / deliveries
    }

    fn cpu_seconds(&self) -> f64 {
        Watch::new(vec![self.server.0.id()], None).look().unwrap().cpu_seconds
    }

    fn deliver_times(&mut self, times: usize, at_once: usize) {
        for _ in 0..times {
            let before = self.arrived.load(Ordering::Relaxed);
            for _ in 0..at_once {
                for first in (0..self.sessions).step_by(TARGETS) {
                    let to = first..(first + TARGETS).min(self.sessions);
                    let submit = ephemeral(&self.world, PAYLOAD_BYTES, to);
                    let sender = &mut self.senders[self.next_sender % SENDERS];
                    self.next_sender += 1;
                    self.runtime.block_on(sender.write_all(&submit)).unwrap();
                }
            }
            let all = before + at_once * self.sessions;
            let arrival = async {
                while self.arrived.load(Ordering::Relaxed) < all {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let arrived = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, arrival).await });
            let missing = all - self.arrived.load(Ordering::Relaxed).min(all);
            assert!(arrived.is_ok(), "{missing} of {} did not arrive", at_once * self.sessions);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.server.0.kill();
        self.tasks.close();
    }
}
