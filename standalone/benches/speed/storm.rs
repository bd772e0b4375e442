//! Sessions that begin: of known devices, one after the other, and all of those that were cut at once. **Invariant:** a session counts
//! when it has heard Welcome and BacklogEnd.

use std::time::Duration;

use chappe_protocol::world::World;
use futures_util::{StreamExt, stream};
use tokio::runtime::Runtime;

use crate::sessions::{Attached, Known, Server};
use crate::support::runtime;

/// Sessions that are under way together when they begin.
const AT_ONCE: usize = 128;
/// The server notices that sessions are gone.
const SETTLE: Duration = Duration::from_millis(500);

/// A server with sessions that come and go.
pub(crate) struct Site {
    runtime: Runtime,
    server: Server,
    sessions: usize,
    known: Vec<Attached>,
}

/// What a storm took.
pub(crate) struct Storm {
    /// Microseconds of the server's CPU for each session that is back.
    pub(crate) cpu_us: f64,
    /// From the cut to Welcome and BacklogEnd, milliseconds: the 99th percentile.
    pub(crate) p99_ms: f64,
    /// Reads and writes of the store for each session.
    pub(crate) reads: f64,
    pub(crate) writes: f64,
}

impl Site {
    /// All users have been there before.
    pub(crate) fn open(sessions: usize, is_tls: bool) -> Self {
        let (runtime, server) = (runtime(), Server::start(is_tls));
        let mut site = Self { runtime, server, sessions, known: Vec::new() };
        site.known = site.attach(AT_ONCE, &[]).0;
        site
    }

    /// With these resume tokens, if there are any; with the milliseconds each took from the beginning.
    fn attach(&self, at_once: usize, known: &[Known]) -> (Vec<Attached>, Vec<u64>) {
        let begun = self.server.world.now();
        let attach = async |number| {
            let attached = self.server.attach(number, "phone", known.get(number)).await;
            (number, attached, (self.server.world.now() - begun).0)
        };
        let all = stream::iter(0..self.sessions).map(attach).buffer_unordered(at_once);
        let mut all: Vec<_> = self.runtime.block_on(all.collect());
        all.sort_unstable_by_key(|(number, ..)| *number);
        all.into_iter().map(|(_, attached, after)| (attached, after)).unzip()
    }

    fn cut(&mut self) -> Vec<Known> {
        let known = self.known.drain(..).map(|session| session.known).collect();
        self.runtime.block_on(async { tokio::time::sleep(SETTLE).await });
        known
    }

    /// Microseconds of CPU for a session of a known device, by its resume token or without one.
    pub(crate) fn set_up(&mut self, resumed: bool) -> f64 {
        let known = self.cut();
        let before = self.server.cpu_seconds();
        self.known = self.attach(AT_ONCE, if resumed { &known } else { &[] }).0;
        assert!(self.known.iter().all(|session| session.resumed == resumed), "not as it was asked for");
        (self.server.cpu_seconds() - before) * 1e6 / crate::as_f64(self.sessions)
    }

    /// Everybody is cut and comes back at once.
    pub(crate) fn storm(&mut self) -> Storm {
        let known = self.cut();
        let counts = |site: &Self| {
            let names = [
                "chappe_embedded_reads_total",
                "chappe_embedded_range_reads_total",
                "chappe_embedded_writes_total",
            ];
            // The counts are taken over once a second.
            site.runtime.block_on(async {
                tokio::time::sleep(SETTLE * 4).await;
                let mut found = Vec::new();
                for name in names {
                    found.push(site.server.counted(name).await);
                }
                found
            })
        };
        let counted = counts(self);
        let before = self.server.cpu_seconds();
        let (back, mut took) = self.attach(self.sessions, &known);
        let cpu = self.server.cpu_seconds() - before;
        assert!(back.iter().all(|session| session.resumed), "a session was attached anew");
        self.known = back;
        let each: Vec<f64> = counts(self)
            .iter()
            .zip(counted)
            .map(|(now, then)| (now - then) / crate::as_f64(self.sessions))
            .collect();
        took.sort_unstable();
        Storm {
            cpu_us: cpu * 1e6 / crate::as_f64(self.sessions),
            p99_ms: crate::as_f64(usize::try_from(took[took.len() * 99 / 100]).unwrap()),
            reads: each[0] + each[1],
            writes: each[2],
        }
    }
}
