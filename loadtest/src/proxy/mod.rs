//! A proxy for TCP and UDP that makes the path bad: late, lossy, narrow, out of order, dead, or with a new address.
//! **Invariant:** bytes are never changed; what each packet suffers follows from the seed; everything it holds is bounded.
//!
//! `docs/proxy.md` tells how each fault acts on each carrier.

pub mod faults;
mod lane;
mod stats;
mod table;
mod tcp;
mod udp;

pub use faults::{Direction, Faults};
pub use lane::Bound;
pub use stats::{Counters, Stats, Ways};

use faults::Dice;
use lane::{Budget, Lane};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// With a listening port of 0: how often another port is tried, since the one that TCP got may be taken on UDP.
const PORT_TRIES: usize = 16;

/// Which carriers something is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carriers {
    /// Both, on the same port number.
    Both,
    /// TCP alone.
    Tcp,
    /// UDP alone.
    Udp,
}

impl Carriers {
    /// Whether TCP is among them.
    pub fn tcp(self) -> bool {
        matches!(self, Self::Both | Self::Tcp)
    }

    /// Whether UDP is among them.
    pub fn udp(self) -> bool {
        matches!(self, Self::Both | Self::Udp)
    }
}

/// What the proxy may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// UDP flows, and as many TCP connections. Each costs two sockets.
    pub flows_max: usize,
    /// A UDP flow without a packet for so long is forgotten.
    pub idle: Duration,
    /// Of each flow or connection and direction. Beyond it UDP packets are dropped, and TCP is not read on.
    pub queue: Bound,
    /// Bytes of all queues together.
    pub queues_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows_max: 4_096,
            idle: Duration::from_mins(5),
            queue: Bound { packets_max: 1_024, bytes_max: 1 << 20 },
            queues_bytes_max: 256 << 20,
        }
    }
}

/// Between whom, and what happens there.
#[derive(Debug, Clone)]
pub struct ProxyConfig {
    /// Where clients come to; port 0: any.
    pub listen: SocketAddr,
    /// Where everything goes.
    pub target: SocketAddr,
    /// What is passed on.
    pub carriers: Carriers,
    /// At first, in both directions.
    pub faults: Faults,
    /// Decides everything that is random.
    pub seed: u64,
    /// What may be held.
    pub limits: Limits,
}

impl ProxyConfig {
    /// Both carriers, a perfect path, seed 1.
    pub fn new(listen: SocketAddr, target: SocketAddr) -> Self {
        Self {
            listen,
            target,
            carriers: Carriers::Both,
            faults: Faults::default(),
            seed: 1,
            limits: Limits::default(),
        }
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<(), ProxyError> {
        self.faults.check().map_err(ProxyError::Faults)?;
        if self.target.port() == 0 || self.target.ip().is_unspecified() {
            return Err(ProxyError::Target(format!("{} is nowhere", self.target)));
        }
        if self.target == self.listen {
            return Err(ProxyError::Target(format!("{} is the proxy itself", self.target)));
        }
        Ok(())
    }
}

/// Why the proxy did not start, or faults were not taken.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Change the faults; the message begins with the field's name.
    #[error("{0}")]
    Faults(String),
    /// Name another target.
    #[error("target: {0}")]
    Target(String),
    /// Listen elsewhere.
    #[error("port_unusable: cannot listen on {0}; end the other process or choose another address")]
    Listen(SocketAddr, #[source] io::Error),
}

/// What holds now.
#[derive(Debug, Clone, Copy)]
struct Rules {
    to_target: Faults,
    to_client: Faults,
    hole_tcp: bool,
    hole_udp: bool,
    /// How often rebinding was asked for.
    rebinds: u64,
    /// How often connections were reset.
    resets: u64,
}

impl Rules {
    fn way(&self, direction: Direction, hole: bool) -> Faults {
        let faults = match direction {
            Direction::ToTarget => self.to_target,
            Direction::ToClient => self.to_client,
        };
        Faults { black_hole: faults.black_hole || hole, ..faults }
    }

    fn tcp(&self, direction: Direction) -> Faults {
        self.way(direction, self.hole_tcp)
    }

    fn udp(&self, direction: Direction) -> Faults {
        self.way(direction, self.hole_udp)
    }
}

/// What all tasks of a proxy share.
#[derive(Debug)]
struct Shared {
    target: SocketAddr,
    seed: u64,
    limits: Limits,
    start: Instant,
    rules: watch::Receiver<Rules>,
    stats: Mutex<Stats>,
    budget: Arc<Budget>,
    /// Counts flows and connections as they come.
    numbers: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Shared {
    fn now(&self) -> Duration {
        now().duration_since(self.start)
    }

    fn at(&self, time: Duration) -> Instant {
        self.start + time
    }

    fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    fn lane(&self, number: u64, direction: Direction) -> Lane {
        Lane::new(Dice::new(self.seed, number, direction), self.limits.queue, Arc::clone(&self.budget))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "real sockets wait in the runtime's time, which tests may pause"
)]
fn now() -> Instant {
    Instant::now()
}

/// A running proxy. Dropped, it ends: flows are forgotten, connections are reset.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rules: watch::Sender<Rules>,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens, and passes on from now on.
    pub async fn start(config: ProxyConfig) -> Result<Self, ProxyError> {
        config.check()?;
        let (tcp, udp) = bind(config.listen, config.carriers)
            .await
            .map_err(|error| ProxyError::Listen(config.listen, error))?;
        let address = match (&tcp, &udp) {
            (Some(listener), _) => listener.local_addr(),
            (None, Some(socket)) => socket.local_addr(),
            (None, None) => Ok(config.listen),
        }
        .map_err(|error| ProxyError::Listen(config.listen, error))?;
        let (rules, heard) = watch::channel(Rules {
            to_target: config.faults,
            to_client: config.faults,
            hole_tcp: false,
            hole_udp: false,
            rebinds: 0,
            resets: 0,
        });
        let shared = Arc::new(Shared {
            target: config.target,
            seed: config.seed,
            limits: config.limits,
            start: now(),
            rules: heard,
            stats: Mutex::default(),
            budget: Budget::new(config.limits.queues_bytes_max),
            numbers: AtomicU64::new(0),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        if let Some(listener) = tcp {
            let (shared, tasks) = (Arc::clone(&shared), &shared.tasks);
            tasks.spawn(tcp::accept(shared, listener));
        }
        if let Some(socket) = udp {
            let (shared, tasks) = (Arc::clone(&shared), &shared.tasks);
            tasks.spawn(udp::serve(shared, socket));
        }
        Ok(Self { address, rules, shared })
    }

    /// Where clients come to.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// From now on these faults, in both directions. What waits already comes when it was due; what TCP or a narrow link
    /// takes later stands behind it.
    pub fn set(&self, faults: Faults) -> Result<(), ProxyError> {
        self.set_way(Direction::ToTarget, faults)?;
        self.set_way(Direction::ToClient, faults)
    }

    /// From now on these faults, in one direction.
    pub fn set_way(&self, direction: Direction, faults: Faults) -> Result<(), ProxyError> {
        faults.check().map_err(ProxyError::Faults)?;
        self.rules.send_modify(|rules| match direction {
            Direction::ToTarget => rules.to_target = faults,
            Direction::ToClient => rules.to_client = faults,
        });
        Ok(())
    }

    /// A black hole over the faults that are set, or its end. UDP packets vanish, those that waited too. TCP connections
    /// stand still; new ones are taken by the kernel alone.
    pub fn black_hole(&self, carriers: Carriers, on: bool) {
        self.rules.send_modify(|rules| {
            if carriers.tcp() {
                rules.hole_tcp = on;
            }
            if carriers.udp() {
                rules.hole_udp = on;
            }
        });
    }

    /// Each UDP flow goes on from another port, as after a NAT forgot it: what is on its way to the old one is lost.
    pub fn rebind(&self) {
        self.rules.send_modify(|rules| rules.rebinds += 1);
    }

    /// Resets every TCP connection that the proxy has accepted, on both sides.
    pub fn reset_tcp(&self) {
        self.rules.send_modify(|rules| rules.resets += 1);
    }

    /// What happened up to now.
    pub fn stats(&self) -> Stats {
        *self.shared.stats()
    }

    /// Ends, waits until everything is closed, and tells all that happened: nothing passes uncounted.
    pub async fn stop(self) -> Stats {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.stats()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
    }
}

async fn bind(
    listen: SocketAddr,
    carriers: Carriers,
) -> io::Result<(Option<TcpListener>, Option<UdpSocket>)> {
    let mut tries = if listen.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let tcp = if carriers.tcp() { Some(TcpListener::bind(listen).await?) } else { None };
        if !carriers.udp() {
            return Ok((tcp, None));
        }
        let address = tcp.as_ref().map_or(Ok(listen), TcpListener::local_addr)?;
        tries -= 1;
        match UdpSocket::bind(address).await {
            Ok(udp) => return Ok((tcp, Some(udp))),
            Err(error) if tries == 0 => return Err(error),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn targets_that_cannot_work_are_refused() {
        let check = |listen, target| ProxyConfig::new(address(listen), address(target)).check();
        check("127.0.0.1:7450", "127.0.0.1:7440").unwrap();
        for (listen, target) in [
            ("127.0.0.1:7450", "127.0.0.1:7450"),
            ("127.0.0.1:7450", "127.0.0.1:0"),
            ("127.0.0.1:7450", "0.0.0.0:7440"),
        ] {
            assert!(matches!(check(listen, target), Err(ProxyError::Target(_))), "{target}");
        }
        let mut config = ProxyConfig::new(address("127.0.0.1:7450"), address("127.0.0.1:7440"));
        config.faults.loss = 2.0;
        assert!(matches!(config.check(), Err(ProxyError::Faults(_))));
    }

    #[test]
    fn a_hole_of_one_carrier_is_none_of_the_other() {
        let rules = Rules {
            to_target: Faults { black_hole: true, ..Faults::default() },
            to_client: Faults::default(),
            hole_tcp: false,
            hole_udp: true,
            rebinds: 0,
            resets: 0,
        };
        let holes = |of: &dyn Fn(Direction) -> Faults| {
            [Direction::ToTarget, Direction::ToClient].map(|direction| of(direction).black_hole)
        };
        assert_eq!(holes(&|direction| rules.tcp(direction)), [true, false]);
        assert_eq!(holes(&|direction| rules.udp(direction)), [true, true]);
    }
}
