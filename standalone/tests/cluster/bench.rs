//! A cluster on a bench: gateways and routers that can be killed, clients that can be moved between gateways.
//! **Invariant:** everything runs on one thread and one paused clock.

use crate::support::{App, Person, Record, SECRET, To, token, user_name};
use async_trait::async_trait;
use chappe_client::{Client, Connector, Io, Millis, UnixMillis, World};
use chappe_gateway::{GatewayConfig, Incoming, TokenKey, TokenVerifier};
use chappe_protocol::id::{BucketShape, GatewayId, MailboxId};
use chappe_protocol::internode::{Doorbell, Reply, Request};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Time;
use chappe_router::RouterConfig;
use chappe_router::links::{LinkError, Links};
use chappe_standalone::cluster::{self, Cluster};
use chappe_storage::Store;
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const SHAPE: BucketShape = BucketShape { shift: 2 };
const GATEWAYS: usize = 3;

/// The paused clock of tokio, randomness from a seed.
struct PausedWorld {
    start: tokio::time::Instant,
    random: TestWorld,
}

impl PausedWorld {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { start: tokio::time::Instant::now(), random: TestWorld::new(seed) })
    }
}

impl World for PausedWorld {
    fn now(&self) -> Time {
        Time(u64::try_from(self.start.elapsed().as_millis()).unwrap())
    }

    fn wall(&self) -> UnixMillis {
        UnixMillis(1_767_225_600_000 + self.now().0)
    }

    fn fill_random(&self, bytes: &mut [u8]) {
        self.random.fill_random(bytes);
    }
}

/// Whether doorbells ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bells {
    Ring,
    Lost,
}

struct DeafLinks(Arc<dyn Links>);

#[async_trait]
impl Links for DeafLinks {
    async fn request(
        &self,
        mailbox: MailboxId,
        request: Request,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        self.0.request(mailbox, request, budget).await
    }

    fn ring(&self, _gateway: GatewayId, _bell: Doorbell) {}
}

type Door = mpsc::Sender<io::Result<Incoming<DuplexStream>>>;
type Doors = Arc<Mutex<BTreeMap<usize, Door>>>;

/// The way of one device to the gateway where it is; to the next one that lives if that is dead.
struct Pipes {
    doors: Doors,
    at: Arc<Mutex<usize>>,
}

#[async_trait]
impl Connector for Pipes {
    async fn connect(&self, _host: &str, _port: u16) -> io::Result<Box<dyn Io>> {
        let at = *self.at.lock().unwrap();
        let door = {
            let doors = self.doors.lock().unwrap();
            (0..GATEWAYS).find_map(|step| doors.get(&((at + step) % GATEWAYS)).cloned())
        };
        let gone = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let incoming = Incoming { io: theirs, peer };
        door.ok_or_else(gone)?.send(Ok(incoming)).await.map_err(|_| gone())?;
        Ok(Box::new(ours))
    }
}

pub(crate) struct Bench {
    pub(crate) apps: Vec<App>,
    pub(crate) record: Arc<Record>,
    world: Arc<PausedWorld>,
    cluster: Cluster,
    registry: prometheus::Registry,
    rows: Arc<Faulty<MemoryRows>>,
    routers: BTreeMap<u64, chappe_router::Router>,
    gateways: BTreeMap<usize, AbortHandle>,
    started: u8,
    doors: Doors,
    places: Vec<Arc<Mutex<usize>>>,
    tasks: TaskTracker,
    submits: TaskTracker,
}

impl Bench {
    /// Three gateways, two routers, device `n` connected to gateway `n mod 3`.
    pub(crate) async fn start(
        seed: u64,
        people: &[(usize, &str)],
        bells: Bells,
        faults: Option<Faults>,
    ) -> Self {
        let world = PausedWorld::new(seed);
        let memory = Arc::new(MemoryRows::new(world.clone()));
        let none = Faults { delay_ms_max: 0, unavailable: 0, lost_reply: 0, late: 0, stale: 0 };
        let rows = Arc::new(Faulty::new(memory.clone(), seed, faults.unwrap_or(none)));
        let config = LogConfig { shape: SHAPE, ..LogConfig::default() };
        // Without faults the log stands on the plain rows.
        let store: Arc<dyn Store> = match faults {
            Some(_) => Arc::new(SlotLog::new(rows.clone(), world.clone(), config)),
            None => Arc::new(SlotLog::new(memory.clone(), world.clone(), config)),
        };
        let registry = prometheus::Registry::new();
        let cluster = Cluster::new(world.clone(), store, &registry, |local| match bells {
            Bells::Ring => local,
            Bells::Lost => Arc::new(DeafLinks(local)),
        });
        let people: Vec<Person> = people
            .iter()
            .map(|(user, device)| Person { user: *user, device: (*device).to_owned() })
            .collect();
        let mut bench = Self {
            apps: Vec::new(),
            record: Record::new(people.clone(), memory),
            world,
            cluster: cluster.unwrap(),
            registry,
            rows,
            routers: BTreeMap::new(),
            gateways: BTreeMap::new(),
            started: 0,
            doors: Doors::default(),
            places: Vec::new(),
            tasks: TaskTracker::new(),
            submits: TaskTracker::new(),
        };
        (0..2).for_each(|name| bench.add_router(name));
        (0..GATEWAYS).for_each(|gateway| bench.start_gateway(gateway));
        for (index, person) in people.iter().enumerate() {
            bench.start_app(index, person);
        }
        for app in &bench.apps {
            app.client.connected().await.unwrap();
        }
        bench
    }

    fn start_app(&mut self, index: usize, person: &Person) {
        let at = Arc::new(Mutex::new(index % GATEWAYS));
        let connector = Pipes { doors: self.doors.clone(), at: at.clone() };
        let client = Client::builder("ws://127.0.0.1:7440")
            .device(&person.device)
            .token(token(&user_name(person.user), &person.device))
            .connector(Arc::new(connector))
            .world(self.world.clone())
            .start();
        let app = App {
            index: u32::try_from(index).unwrap(),
            client,
            record: self.record.clone(),
            world: self.world.clone(),
        };
        self.tasks.spawn(app.clone().receive(|| Millis(0)));
        self.apps.push(app);
        self.places.push(at);
    }

    pub(crate) fn add_router(&mut self, name: u64) {
        let config = RouterConfig { shape: SHAPE, ..RouterConfig::default() };
        self.routers.insert(name, self.cluster.add_router(name, config));
    }

    pub(crate) fn kill_router(&mut self, name: u64) {
        self.routers.remove(&name).unwrap().kill();
        self.cluster.local().remove_router(name);
    }

    pub(crate) fn start_gateway(&mut self, gateway: usize) {
        self.started += 1;
        let config = GatewayConfig::new(GatewayId([self.started; 16]), [9; 32]);
        let verifier = TokenVerifier::new(&TokenKey::Hs256 { secret: SECRET.to_vec() }).unwrap();
        let (door, incoming) = mpsc::channel(64);
        self.doors.lock().unwrap().insert(gateway, door);
        let cluster = self.cluster.clone();
        let run = async move {
            let drain = CancellationToken::new();
            let incoming = ReceiverStream::new(incoming);
            cluster.run_gateway(config, Arc::new(verifier), cluster::Doors::default(), incoming, drain).await;
        };
        self.gateways.insert(gateway, self.tasks.spawn(run).abort_handle());
    }

    pub(crate) fn kill_gateway(&mut self, gateway: usize) {
        self.doors.lock().unwrap().remove(&gateway);
        self.gateways.remove(&gateway).unwrap().abort();
    }

    /// Loses the network of a device, which comes back at another gateway.
    pub(crate) fn roam(&self, device: usize, gateway: usize) {
        *self.places[device].lock().unwrap() = gateway;
        self.apps[device].client.disconnect_now();
    }

    pub(crate) async fn send(&self, from: usize, to: Vec<To>) {
        let fate = self.apps[from].send(to, None).await;
        self.submits.spawn(fate);
    }

    /// Ends all faults of the store.
    pub(crate) async fn heal(&self) {
        self.rows.switch(false);
        self.rows.settle().await;
    }

    /// Waits until all is decided and delivered, but not longer than this.
    pub(crate) async fn settle(&self, bound: Duration) {
        let quiet = async {
            while !self.record.is_quiet(self.world.clone(), SHAPE).await {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        };
        let in_time = tokio::time::timeout(bound, quiet).await;
        let states: Vec<_> = self.apps.iter().map(|app| app.client.state()).collect();
        assert!(in_time.is_ok(), "not quiet within {bound:?}: {:?}, {states:?}", self.record.undecided());
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
    pub(crate) fn resumed(&self) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == "chappe_gateway_resumed_total");
        family.map_or(0, |family| family.get_metric()[0].get_counter().get_value().round() as u64)
    }

    /// Settles, audits, and wants so many deliveries to have been owed.
    pub(crate) async fn finish(self, accepted: u64) {
        self.settle(Duration::from_secs(30)).await;
        let verdict = self.record.audit(self.world.clone(), SHAPE).await;
        assert_eq!(verdict.violations, Vec::<String>::new());
        assert_eq!((verdict.accepted, verdict.received), (accepted, accepted));
        for app in &self.apps {
            app.client.close().await;
        }
    }
}
