//! The loads. **Invariant:** a load that loses messages says so, and none goes on without an end.

pub mod fanout;
pub mod idle;
pub mod pairs;
pub mod setups;

use crate::count::{Moment, Pace};
use crate::link::{Dial, Link};
use crate::speak::{Hears, Nats, Server, Who};
use bytes::Bytes;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;

/// Sessions that are opened at once.
const OPENING: usize = 32;
/// Before a measurement: buffers grow, caches fill.
const WARM_UP: Duration = Duration::from_secs(1);
/// For what is on its way when a measurement ends: beyond it is late.
const LAST_ONES: Duration = Duration::from_secs(10);
/// Beyond it is lost. Chappe finds what no doorbell told of by a probe, within 53 s.
const LATE_ONES: Duration = Duration::from_mins(1);

/// What is to be done.
pub struct Plan {
    pub dial: Arc<Dial>,
    pub server: Server,
    pub tokens: Vec<Arc<str>>,
    pub pid: u32,
    pub count: usize,
    pub seconds: u64,
    pub in_flight: u64,
    pub payload: Bytes,
    pub users: usize,
    pub subscribe: bool,
    pub pace: Arc<Pace>,
}

/// What the sessions of a load count together.
#[derive(Debug, Default)]
pub struct Tally {
    sent: AtomicU64,
    done: AtomicU64,
    stop: AtomicBool,
}

impl Plan {
    async fn open(&self, number: usize, hears: Hears, sends_to: Range<usize>) -> Link {
        self.pace.turn().await;
        let speaker = self.server.speaker(Who { number, hears, sends_to }, &self.tokens);
        Link::open(&self.dial, number, speaker).await
    }

    /// Sessions that listen, in the order of their numbers.
    async fn listeners(self: &Arc<Self>, numbers: Range<usize>, hears: Hears) -> Vec<Link> {
        let mut opening = JoinSet::new();
        for part in 0..OPENING {
            let (plan, numbers) = (Arc::clone(self), numbers.clone());
            opening.spawn(async move {
                let mut opened = Vec::new();
                for number in numbers.skip(part).step_by(OPENING) {
                    opened.push((number, plan.open(number, hears, 0..0).await));
                }
                opened
            });
        }
        let mut opened: Vec<(usize, Link)> = opening.join_all().await.into_iter().flatten().collect();
        opened.sort_unstable_by_key(|(number, _)| *number);
        opened.into_iter().map(|(_, link)| link).collect()
    }

    /// JetStream keeps nothing until there is a stream.
    async fn prepare(&self) {
        if self.server == Server::Jetstream {
            Link::open(&self.dial, 0, Box::new(Nats::stream_maker())).await.close().await;
        }
    }

    /// Measures what `tasks` do, then lets them end.
    async fn measure(&self, tally: &Tally, mut tasks: JoinSet<()>) -> String {
        tokio::time::sleep(WARM_UP).await;
        let begin = Moment::of(self.pid, tally.done.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_secs(self.seconds)).await;
        let end = Moment::of(self.pid, tally.done.load(Ordering::Relaxed));
        tally.stop.store(true, Ordering::Relaxed);
        let missing = || tally.sent.load(Ordering::Relaxed) - tally.done.load(Ordering::Relaxed);
        let mut all = pin!(async {
            while let Some(ended) = tasks.join_next().await {
                ended.expect("a session failed");
            }
        });
        let mut late = 0;
        if tokio::time::timeout(LAST_ONES, &mut all).await.is_err() {
            late = missing();
            let _ = tokio::time::timeout(LATE_ONES, all).await;
        }
        let (found, lost) = (begin.until(end), missing());
        format!("{{{found},\"late\":{late},\"lost\":{lost},\"over\":\"{}\"}}", self.dial.agreed())
    }
}
