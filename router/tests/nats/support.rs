//! What the tests share: a world in real time, a store that several routers work on, gateways, and routers that can be
//! paused and killed like processes: each is a thread with a runtime of its own.
#![allow(unreachable_pub, dead_code, reason = "each module uses a part of it")]

use crate::common::flaky::Flaky;
use crate::common::{SHAPE, config, device};
use chappe_protocol::id::{ClusterId, ConnectionId, Epoch, GatewayId, MailboxId, UserId};
use chappe_protocol::testing::Rng;
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_router::links::Links;
use chappe_router::nats::{
    BusMetrics, BusRole, JetStreamWakes, NatsBus, NatsConfig, WakeConfig, WakeMetrics,
};
use chappe_router::presence::{Lease, Presence};
use chappe_router::wakes::{LocalWakes, Wakes};
use chappe_router::{Directory, Router, RouterConfig, RouterMetrics};
use chappe_storage::memory::MemoryRows;
use chappe_storage::rows::Rows;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Store};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

pub const BUDGET: Millis = Millis(10_000);
/// What must happen happens within this time, or the test fails.
const DEADLINE: Duration = Duration::from_secs(20);

/// The server that `dev/deps start nats1` starts.
#[allow(clippy::disallowed_methods, reason = "tests are told where the server is")]
pub fn url() -> String {
    std::env::var("CHAPPE_TEST_NATS_URL")
        .expect("CHAPPE_TEST_NATS_URL is not set: dev/deps start nats1 && eval \"$(dev/deps env nats1)\"")
}

/// A name that no other test uses.
pub fn cluster_name() -> String {
    static LAST: AtomicU64 = AtomicU64::new(0);
    format!("t{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed))
}

pub struct RealWorld {
    start: std::time::Instant,
    rng: Mutex<Rng>,
}

impl RealWorld {
    #[allow(clippy::disallowed_methods, reason = "this is the world that is given to the others")]
    pub fn shared() -> Arc<dyn World> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let seed = (u64::from(std::process::id()) << 16) + LAST.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self { start: std::time::Instant::now(), rng: Mutex::new(Rng::new(seed)) })
    }
}

impl World for RealWorld {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap())
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_767_225_600_000) + Millis(self.now().0)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.rng.lock().unwrap().bits().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Waits until it is so.
pub async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let looking = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits for the future, or fails.
pub async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("never: {what}"))
}

pub fn bus_metrics() -> Arc<BusMetrics> {
    Arc::new(BusMetrics::new(&prometheus::Registry::new()).unwrap())
}

pub fn wake_metrics() -> Arc<WakeMetrics> {
    Arc::new(WakeMetrics::new(&prometheus::Registry::new()).unwrap())
}

/// What the routers of a cluster share beside the bus.
pub struct Cluster {
    pub world: Arc<dyn World>,
    pub rows: Arc<MemoryRows>,
    pub store: Arc<dyn Store>,
    pub directory: Arc<Directory>,
    pub gateway_config: NatsConfig,
    pub router_config: NatsConfig,
    pub pusher_config: NatsConfig,
    /// With this its routers hint to JetStream.
    pub wakes: Option<WakeConfig>,
}

impl Cluster {
    pub fn new() -> Self {
        Self::at(&url())
    }

    pub fn at(url: &str) -> Self {
        Self::named(url, &cluster_name())
    }

    /// Under a name that another cluster may have too; the store is its own.
    pub fn named(url: &str, name: &str) -> Self {
        let world = RealWorld::shared();
        let rows = Arc::new(MemoryRows::new(Arc::clone(&world)));
        let metrics = Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap());
        let directory = Arc::new(Directory::new(Arc::clone(&world), 1000, metrics));
        let store = slot_log(&rows, &world);
        let cluster = ClusterId::of_store(name, rows.incarnation());
        let config = |role| NatsConfig { cluster, ..NatsConfig::new(role, url, name) };
        Self {
            world,
            rows,
            store,
            directory,
            gateway_config: config(BusRole::Gateway),
            router_config: config(BusRole::Router),
            pusher_config: config(BusRole::Pusher),
            wakes: None,
        }
    }

    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(self.gateway_config.clone()).await
    }

    pub async fn gateway_with(&self, config: NatsConfig) -> Gateway {
        let metrics = bus_metrics();
        let bus = NatsBus::connect(config, Arc::clone(&self.world), Arc::clone(&metrics)).await.unwrap();
        Gateway { links: bus.links(), bus, metrics, id: GatewayId([7; 16]) }
    }

    /// A router in a thread of its own, which answers when this returns.
    pub async fn router(&self, name: u64) -> RouterProcess {
        self.router_with(name, self.router_config.clone()).await
    }

    pub async fn router_with(&self, name: u64, bus: NatsConfig) -> RouterProcess {
        let store = Arc::new(Flaky::new(slot_log(&self.rows, &self.world), name));
        let parts = RouterParts {
            world: Arc::clone(&self.world),
            store: Arc::clone(&store),
            directory: Arc::clone(&self.directory),
            metrics: bus_metrics(),
            bus,
            name,
            wakes: self.wakes.clone(),
            wake_metrics: wake_metrics(),
            hinting: Arc::default(),
        };
        RouterProcess::start(parts, store).await
    }

    pub async fn mailbox(&self, user: &str) -> MailboxId {
        let user = UserId::new(user).unwrap();
        let mailbox = self.store.create_user(&user).await.unwrap().mailbox;
        let attach = Attach { connection: ConnectionId([1; 16]), cursor: None };
        self.store.attach(mailbox, &device("phone"), attach).await.unwrap();
        mailbox
    }

    pub async fn lease(&self, mailbox: MailboxId, gateway: GatewayId) {
        let lease = Lease {
            mailbox,
            device: device("phone"),
            gateway,
            epoch: Epoch(1),
            resumes: 0,
            connection: ConnectionId([1; 16]),
        };
        assert_eq!(self.directory.lease(&[lease]).await, [true]);
    }

    /// The numbers that `submit_of` put into the log.
    pub async fn numbers(&self, mailbox: MailboxId) -> Vec<u64> {
        let mut numbers: Vec<u64> = Vec::new();
        loop {
            let after = chappe_protocol::id::Seq(numbers.len() as u64);
            let page = self.store.read(mailbox, after, 100, 1 << 20).await.unwrap();
            if page.slots.is_empty() {
                return numbers;
            }
            numbers.extend(page.slots.iter().map(crate::common::number));
        }
    }
}

fn slot_log(rows: &Arc<MemoryRows>, world: &Arc<dyn World>) -> Arc<dyn Store> {
    let log = LogConfig { shape: SHAPE, ..LogConfig::default() };
    Arc::new(SlotLog::new(Arc::clone(rows), Arc::clone(world), log))
}

pub struct Gateway {
    pub bus: Arc<NatsBus>,
    pub links: Arc<dyn Links>,
    pub metrics: Arc<BusMetrics>,
    pub id: GatewayId,
}

impl Gateway {
    pub async fn hears(&self, routers: i64) {
        until("the gateway hears the routers", || self.metrics.routers.get() == routers).await;
    }
}

struct RouterParts {
    world: Arc<dyn World>,
    store: Arc<Flaky>,
    directory: Arc<Directory>,
    metrics: Arc<BusMetrics>,
    bus: NatsConfig,
    name: u64,
    wakes: Option<WakeConfig>,
    wake_metrics: Arc<WakeMetrics>,
    hinting: Arc<OnceLock<Arc<JetStreamWakes>>>,
}

enum Command {
    /// Stands still until the other end is dropped.
    Pause(std::sync::mpsc::Receiver<()>, oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
    Kill,
}

/// A router with its bus, in a thread that can be stopped in its tracks or ended at any moment.
pub struct RouterProcess {
    pub store: Arc<Flaky>,
    pub metrics: Arc<BusMetrics>,
    pub wakes: Arc<WakeMetrics>,
    hinting: Arc<OnceLock<Arc<JetStreamWakes>>>,
    commands: mpsc::Sender<Command>,
    thread: Option<JoinHandle<()>>,
}

/// The process goes on when this is dropped.
pub struct Paused(SyncSender<()>);

impl RouterProcess {
    async fn start(parts: RouterParts, store: Arc<Flaky>) -> Self {
        let (commands, received) = mpsc::channel(4);
        let (ready, is_ready) = oneshot::channel();
        let metrics = Arc::clone(&parts.metrics);
        let (wakes, hinting) = (Arc::clone(&parts.wake_metrics), Arc::clone(&parts.hinting));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(live(parts, ready, received));
            // Whatever still runs ends here, and its sockets with it.
            runtime.shutdown_background();
        });
        soon("the router serves", is_ready).await.expect("the router did not start");
        Self { store, metrics, wakes, hinting, commands, thread: Some(thread) }
    }

    pub fn asked(&self) -> usize {
        self.store.asked.lock().unwrap().len()
    }

    /// What keeps its hints from JetStream.
    pub fn trouble(&self) -> Option<&'static str> {
        self.hinting.get().and_then(|wakes| wakes.trouble())
    }

    /// As SIGSTOP: nothing of it runs any more, its socket stays open.
    pub async fn pause(&self) -> Paused {
        let (go_on, wait) = sync_channel(0);
        let (stands, stopped) = oneshot::channel();
        self.commands.send(Command::Pause(wait, stands)).await.ok().unwrap();
        soon("the router pauses", stopped).await.unwrap();
        Paused(go_on)
    }

    /// As SIGKILL.
    pub async fn kill(&mut self) {
        let _ = self.commands.send(Command::Kill).await;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// As SIGTERM.
    pub async fn close(&self) {
        let (done, is_done) = oneshot::channel();
        self.commands.send(Command::Close(done)).await.ok().unwrap();
        soon("the router ends", is_done).await.unwrap();
    }
}

impl Drop for RouterProcess {
    fn drop(&mut self) {
        let _ = self.commands.try_send(Command::Kill);
    }
}

async fn live(parts: RouterParts, ready: oneshot::Sender<()>, mut commands: mpsc::Receiver<Command>) {
    let bus = NatsBus::connect(parts.bus, Arc::clone(&parts.world), parts.metrics).await.unwrap();
    let wakes: Arc<dyn Wakes> = match parts.wakes {
        None => Arc::new(LocalWakes::default()),
        Some(wakes) => {
            let wakes = bus.wakes(wakes, parts.wake_metrics).await.unwrap();
            let _ = parts.hinting.set(Arc::clone(&wakes));
            wakes
        }
    };
    let router = Router::with_wakes(
        RouterConfig { ..config() },
        Arc::clone(&parts.world),
        parts.store as Arc<dyn Store>,
        bus.links(),
        parts.directory as Arc<dyn Presence>,
        Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap()),
        wakes,
    );
    let server = bus.serve(router, parts.name).await.unwrap();
    let _ = ready.send(());
    loop {
        match commands.recv().await {
            Some(Command::Pause(wait, stands)) => {
                let _ = stands.send(());
                // Blocks the only thread of the runtime.
                let _ = wait.recv();
            }
            Some(Command::Close(done)) => {
                server.close().await;
                bus.close().await;
                let _ = done.send(());
                return;
            }
            Some(Command::Kill) | None => return,
        }
    }
}
