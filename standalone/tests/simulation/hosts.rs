//! What runs on the simulated hosts. **Invariant:** a process keeps nothing over its crash but what is in the store.

use crate::line::Line;
use crate::plan::Shape;
use crate::support::{App, Record, SECRET, To, token, user_name};
use crate::wires::{WireEnd, Wires};
use crate::world::{Latest, SimWorld};
use async_trait::async_trait;
use chappe_client::{Client, Connector, DeviceFilter, DeviceId, Event, Io, Millis, Tuning, World};
use chappe_gateway::faults::Bug;
use chappe_gateway::{GatewayConfig, GatewayMetrics, Incoming, Parts, TokenKey, TokenVerifier};
use chappe_protocol::id::{BucketShape, GatewayId};
use chappe_protocol::session::SessionConfig;
use chappe_protocol::testing::Rng;
use chappe_router::planted::PlantedBug;
use chappe_router::{Directory, Router, RouterConfig, RouterMetrics};
use chappe_storage::Store as _;
use chappe_storage::faulty::Faulty;
use chappe_storage::memory::MemoryRows;
use chappe_storage::planted::Planted;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::net::{TcpListener, TcpStream};

pub(crate) const SHAPE: BucketShape = BucketShape { shift: 2 };
pub(crate) const GATEWAYS: u64 = 3;
pub(crate) const ROUTERS: u64 = 2;
pub(crate) const SITES: u64 = 4;
const PORT: u16 = 7440;
/// A device that two sockets fight for; not part of the audit.
pub(crate) const TWIN: &str = "twin";

/// A defect, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plant {
    Nothing,
    Store(Planted),
    Router(PlantedBug),
    Gateway(Bug),
}

type Log = SlotLog<Faulty<MemoryRows>>;

/// What all hosts of a simulation are made from.
pub(crate) struct Cluster {
    pub(crate) seed: u64,
    pub(crate) plant: Plant,
    pub(crate) shape: Shape,
    pub(crate) latest: Arc<Latest>,
    pub(crate) rows: Arc<Faulty<MemoryRows>>,
    pub(crate) wires: Arc<Wires>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) record: Arc<Record>,
    pub(crate) gateway_metrics: Arc<GatewayMetrics>,
    pub(crate) logs: Mutex<Vec<Arc<Log>>>,
    pub(crate) apps: Mutex<BTreeMap<u32, App>>,
    pub(crate) twins: Mutex<Vec<Client>>,
    /// Devices without a network.
    pub(crate) away: Mutex<BTreeSet<u32>>,
    pub(crate) working: AtomicBool,
    pub(crate) processes: AtomicU64,
    /// A host is being crashed at this moment.
    pub(crate) crashing: Arc<AtomicBool>,
}

impl Cluster {
    /// A world for a new process.
    pub(crate) fn world(&self) -> Arc<SimWorld> {
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        SimWorld::new(self.latest.clone(), self.seed.wrapping_mul(1_000_003).wrapping_add(number))
    }

    fn log(&self, world: Arc<SimWorld>) -> Arc<Log> {
        let planted = match self.plant {
            Plant::Store(planted) => Some(planted),
            Plant::Nothing | Plant::Router(_) | Plant::Gateway(_) => None,
        };
        let config = LogConfig { shape: SHAPE, planted, ..LogConfig::default() };
        let log = Arc::new(SlotLog::new(self.rows.clone(), world, config));
        self.logs.lock().unwrap().push(log.clone());
        log
    }
}

/// A router; takes its jobs off the wires.
pub(crate) async fn router(cluster: Arc<Cluster>, name: u64) -> turmoil::Result {
    let world = cluster.world();
    let planted = match cluster.plant {
        Plant::Router(planted) => Some(planted),
        Plant::Nothing | Plant::Store(_) | Plant::Gateway(_) => None,
    };
    let config =
        RouterConfig { shape: SHAPE, pending_fresh: Millis(500), planted, ..RouterConfig::default() };
    let router = Router::new(
        config,
        world.clone(),
        cluster.log(world),
        WireEnd::new(cluster.wires.clone(), name),
        cluster.directory.clone(),
        Arc::new(RouterMetrics::new(&prometheus::Registry::new())?),
    );
    let mut jobs = cluster.wires.add_router(name);
    let tasks = TaskTracker::new();
    while let Some(job) = jobs.recv().await {
        let router = router.clone();
        tasks.spawn(async move {
            let reply = router.handle(job.request).await;
            // Its gateway may have given up.
            let _ = job.reply.send(reply);
        });
    }
    Ok(())
}

/// A gateway.
pub(crate) async fn gateway(cluster: Arc<Cluster>, name: u64) -> turmoil::Result {
    let world = cluster.world();
    let id = GatewayId::random(&*world);
    let mut session =
        SessionConfig { ack_timeout: Millis(5_000), advance_every: Millis(400), ..SessionConfig::default() };
    session.limits.ping_every = Millis(2_000);
    let config = GatewayConfig {
        session: Arc::new(session),
        request_budget: Millis(1_500),
        write_timeout: Millis(3_000),
        probe_every: Millis(3_000),
        bug: match cluster.plant {
            Plant::Gateway(bug) => Some(bug),
            Plant::Nothing | Plant::Store(_) | Plant::Router(_) => None,
        },
        ..GatewayConfig::new(id, [9; 32])
    };
    let parts = Parts {
        world: world.clone(),
        store: cluster.log(world),
        links: WireEnd::new(cluster.wires.clone(), name),
        presence: cluster.directory.clone(),
        bells: cluster.wires.add_gateway(name, id),
        alarms: tokio::sync::watch::channel(0).1,
        verifier: Arc::new(TokenVerifier::new(&TokenKey::Hs256 { secret: SECRET.to_vec() })?),
        tls: None,
        quic: None,
        metrics: cluster.gateway_metrics.clone(),
        traces: Arc::default(),
    };
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?;
    let crashing = cluster.crashing.clone();
    let incoming = futures_util::stream::unfold((listener, crashing), |(listener, crashing)| async move {
        let accepted = listener.accept().await;
        let accepted = accepted.map(|(io, peer)| Incoming { io: Line::new(io, crashing.clone()), peer });
        Some((accepted, (listener, crashing)))
    });
    chappe_gateway::run(config, parts, incoming, CancellationToken::new()).await;
    Ok(())
}

/// Roams: each connection goes to another gateway, by chance.
struct Roaming {
    cluster: Arc<Cluster>,
    device: u32,
    world: Arc<SimWorld>,
}

#[async_trait]
impl Connector for Roaming {
    async fn connect(&self, _host: &str, _port: u16) -> io::Result<Box<dyn Io>> {
        if self.cluster.away.lock().unwrap().contains(&self.device) {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let gateway = self.world.random_below(GATEWAYS);
        Ok(Box::new(TcpStream::connect((format!("gw{gateway}"), PORT)).await?))
    }
}

fn start(cluster: &Arc<Cluster>, index: u32, user: &str, device: &str) -> (Client, Arc<SimWorld>) {
    let world = cluster.world();
    let connector = Roaming { cluster: cluster.clone(), device: index, world: world.clone() };
    let tuning = Tuning {
        connect_timeout: Millis(2_000),
        backoff_min: Millis(100),
        backoff_max: Millis(1_000),
        ..Tuning::default()
    };
    let client = Client::builder(format!("ws://gateways:{PORT}"))
        .allow_plaintext(true)
        .device(device)
        .token(token(user, device))
        .connector(Arc::new(connector))
        .world(world.clone())
        .tuning(tuning)
        .start();
    (client, world)
}

/// The devices of one place, which share a network; the first place also trims.
pub(crate) async fn site(cluster: Arc<Cluster>, site: u64) -> turmoil::Result {
    let tasks = TaskTracker::new();
    for (index, person) in (0u32..).zip(&cluster.record.people) {
        if u64::from(index) % SITES == site {
            let (client, world) = start(&cluster, index, &user_name(person.user), &person.device);
            let app = App { index, client, record: cluster.record.clone(), world: world.clone() };
            cluster.apps.lock().unwrap().insert(index, app.clone());
            let slow = move || Millis(if world.random_below(10) == 0 { world.random_below(150) } else { 0 });
            tasks.spawn(app.clone().receive(slow));
            tasks.spawn(work(cluster.clone(), app));
        }
    }
    if site < 2 {
        tasks.spawn(twin(cluster.clone(), site));
    }
    if site == 0 {
        tasks.spawn(trim(cluster.clone()));
    }
    std::future::pending().await
}

/// Sends at random while the cluster is at work.
async fn work(cluster: Arc<Cluster>, app: App) {
    let mut random = Rng::new(cluster.seed ^ (u64::from(app.index) << 32));
    let fates = TaskTracker::new();
    let users: BTreeSet<usize> = cluster.record.people.iter().map(|person| person.user).collect();
    loop {
        let pause = random.between(20, cluster.shape.pause_ms_max);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if !cluster.working.load(Ordering::Relaxed) {
            continue;
        }
        let burst = 1 + random.below(4) * u64::from(random.percent(20));
        for _ in 0..burst {
            let mut to = Vec::new();
            for user in &users {
                if random.percent(100 * 3 / (2 * users.len() as u64)) {
                    to.push(To { user: *user, filter: filter(&mut random) });
                }
            }
            if to.is_empty() {
                continue;
            }
            let mortal = cluster.shape.is_mortal(app.world.now().0) || random.percent(10);
            let fate = app.send(to, mortal.then_some(Millis(1_200))).await;
            fates.spawn(fate);
        }
    }
}

fn filter(random: &mut Rng) -> DeviceFilter {
    let device = DeviceId::new(["phone", "laptop"][usize::from(random.percent(50))]).unwrap();
    match random.below(10) {
        0..2 => DeviceFilter::Only(vec![device]),
        2..4 => DeviceFilter::AllBut(vec![device]),
        _ => DeviceFilter::All,
    }
}

/// Two clients of one device; the second comes later. What they get is not audited.
async fn twin(cluster: Arc<Cluster>, site: u64) {
    tokio::time::sleep(Duration::from_millis(1 + site * 4_000)).await;
    let (client, _) = start(&cluster, u32::MAX, TWIN, "phone");
    cluster.twins.lock().unwrap().push(client.clone());
    while let Some(event) = client.next_event().await {
        if let Event::Envelope(envelope) = event {
            envelope.ack();
        }
    }
}

/// Trims every mailbox again and again.
async fn trim(cluster: Arc<Cluster>) {
    let log = cluster.log(cluster.world());
    let users: BTreeSet<usize> = cluster.record.people.iter().map(|person| person.user).collect();
    loop {
        tokio::time::sleep(Duration::from_millis(700)).await;
        for user in &users {
            if let Some(mailbox) = cluster.record.mailbox(*user) {
                // A trim that failed is tried again.
                let _ = log.trim(mailbox).await;
            }
        }
    }
}
