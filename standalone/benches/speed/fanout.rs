//! From a doorbell to the sockets: envelopes that are not stored go to all sessions of one server. **Invariant:** no append and no ack
//! is in the figure; what is: a submit of 1,000 targets decoded, 1,000 mailboxes and leases looked up, 1,000 doorbells, 1,000 writes.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::runtime::Runtime;
use tokio_util::task::TaskTracker;

use crate::PAYLOAD_BYTES;
use crate::sessions::{Counter, Server, count, submit};
use crate::support::{Io, runtime};

/// Targets of one submit.
const TARGETS: usize = 1_000;
/// Deliveries of one measurement; the kernel counts CPU time in 10 ms.
const DELIVERIES: usize = 160_000;
/// Sessions that only write: each has a limit of its own for what is not stored.
const SENDERS: usize = 64;
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with sessions.
pub(crate) struct Site {
    runtime: Runtime,
    server: Server,
    sessions: usize,
    senders: Vec<WriteHalf<Box<dyn Io>>>,
    next_sender: usize,
    arrived: Counter,
    _tasks: TaskTracker,
}

impl Site {
    pub(crate) fn open(sessions: usize) -> Self {
        let (runtime, server) = (runtime(), Server::start(false));
        let (tasks, arrived) = (TaskTracker::new(), Counter::default());
        let senders = runtime.block_on(async {
            let attached = |numbers: Range<usize>| {
                let all = numbers.map(|number| server.attach(number, "phone", None));
                stream::iter(all).buffer_unordered(AT_ONCE).collect::<Vec<_>>()
            };
            for session in attached(0..sessions).await {
                let (read, write) = tokio::io::split(session.socket);
                let counter = Arc::clone(&arrived);
                tasks.spawn(async move {
                    count(read, counter).await;
                    drop(write);
                });
            }
            let mut senders = Vec::new();
            for session in attached(sessions..sessions + SENDERS).await {
                let (read, write) = tokio::io::split(session.socket);
                // What it is told is none of our business.
                tasks.spawn(count(read, Counter::default()));
                senders.push(write);
            }
            senders
        });
        Self { runtime, server, sessions, senders, next_sender: 0, arrived, _tasks: tasks }
    }

    /// Microseconds of the server's CPU for each delivery, with so many envelopes to everybody at once.
    pub(crate) fn deliver(&mut self, at_once: usize) -> f64 {
        let times = DELIVERIES / (self.sessions * at_once);
        self.deliver_times(1, at_once);
        let before = self.server.cpu_seconds();
        self.deliver_times(times, at_once);
        (self.server.cpu_seconds() - before) * 1e6 / crate::as_f64(times * at_once * self.sessions)
    }

    /// A thousand sessions after the other: more doorbells than wait for a gateway would be dropped, as nothing is stored.
    fn deliver_times(&mut self, times: usize, at_once: usize) {
        let firsts = (0..times).flat_map(|_| (0..self.sessions).step_by(TARGETS)).collect::<Vec<_>>();
        for first in firsts {
            let to = first..(first + TARGETS).min(self.sessions);
            let all = self.arrived.load(Ordering::Relaxed) + at_once * to.len();
            for _ in 0..at_once {
                let submit = submit(&self.server.world, PAYLOAD_BYTES, to.clone(), true);
                let sender = &mut self.senders[self.next_sender % SENDERS];
                self.next_sender += 1;
                self.runtime.block_on(sender.write_all(&submit)).unwrap();
            }
            let arrival = async {
                while self.arrived.load(Ordering::Relaxed) < all {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            let arrived = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, arrival).await });
            let missing = all.saturating_sub(self.arrived.load(Ordering::Relaxed));
            assert!(arrived.is_ok(), "{missing} of {} did not arrive", at_once * to.len());
        }
    }
}
