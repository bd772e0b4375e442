//! A cluster in one process and a raw client, for the tests of the gateway. Time is tokio's, paused.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    clippy::duration_suboptimal_units
)] // each test file uses its part; a failed step is a failed test

pub(crate) mod carrier;
pub(crate) mod client;
pub(crate) mod io;
pub(crate) mod issuer;
pub(crate) mod net;

use async_trait::async_trait;
use bytes::Bytes;
use carrier::carrier;
use chappe_gateway::quic::QuicDoor;
use chappe_gateway::transport::Carrier;
use chappe_gateway::{GatewayConfig, GatewayMetrics, Incoming, Parts, TokenKey, TokenVerifier};
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{DeviceId, EnvelopeId, GatewayId, MailboxId, UserId};
use chappe_protocol::internode::{Doorbell, Reply, Request};
use chappe_protocol::session::SessionConfig;
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_router::links::{LinkError, Links};
use chappe_router::presence::{DeviceLease, Lease, Presence};
use chappe_router::{Directory, LocalLinks, Router, RouterConfig, RouterMetrics};
use chappe_storage::memory::MemoryRows;
use chappe_storage::rows::Rows;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Entry, EntryPayload, Store};
use futures_util::stream;
use io::{IoCounts, Watched};
use net::Net;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const SECRET: &[u8] = b"a secret of the tests, 32 bytes or more";
pub(crate) const PIPE_BYTES: usize = 32 * 1024;

/// tokio's clock, seeded randomness.
pub(crate) struct TokioWorld {
    start: tokio::time::Instant,
    random: TestWorld,
}

impl World for TokioWorld {
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

/// Links that can lose every doorbell or hang on every submit.
pub(crate) struct TestLinks {
    pub(crate) inner: LocalLinks,
    pub(crate) deaf: AtomicBool,
    /// No bus: no request arrives, no doorbell rings.
    pub(crate) cut: AtomicBool,
    pub(crate) hang: AtomicBool,
    pub(crate) probes: AtomicU64,
    pub(crate) submits: AtomicU64,
}

#[async_trait]
impl Links for TestLinks {
    async fn request(
        &self,
        mailbox: MailboxId,
        request: Request,
        budget: Millis,
    ) -> Result<Reply, LinkError> {
        if self.cut.load(Ordering::Relaxed) {
            return Err(LinkError::NoRouter);
        }
        if matches!(request, Request::Submit(_)) {
            self.submits.fetch_add(1, Ordering::Relaxed);
        }
        let hangs = matches!(request, Request::Submit(_) | Request::Ephemeral(_));
        if hangs && self.hang.load(Ordering::Relaxed) {
            tokio::time::sleep(budget.to_std()).await;
            return Err(LinkError::Timeout);
        }
        if matches!(request, Request::Probe(_)) {
            self.probes.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.request(mailbox, request, budget).await
    }
    fn ring(&self, gateway: GatewayId, bell: Doorbell) {
        if !self.deaf.load(Ordering::Relaxed) && !self.cut.load(Ordering::Relaxed) {
            self.inner.ring(gateway, bell);
        }
    }
}

/// Presence that is far away: taking leases takes time.
pub(crate) struct FarPresence {
    pub(crate) inner: Arc<Directory>,
    pub(crate) lease_ms: AtomicU64,
}

#[async_trait]
impl Presence for FarPresence {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        tokio::time::sleep(Millis(self.lease_ms.load(Ordering::Relaxed)).to_std()).await;
        self.inner.lease(leases).await
    }
    async fn release(&self, lease: &Lease) {
        self.inner.release(lease).await;
    }
    async fn devices(&self, mailbox: MailboxId) -> Option<Vec<DeviceLease>> {
        self.inner.devices(mailbox).await
    }
}

/// Store, router, presence; gateways are added.
pub(crate) struct Cluster {
    pub(crate) world: Arc<TokioWorld>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) links: Arc<TestLinks>,
    pub(crate) presence: Arc<Directory>,
    /// What gateways take their leases from: `presence`, or something around it.
    pub(crate) leases: Arc<dyn Presence>,
    pub(crate) router: Router,
    /// Doorbells may have been lost.
    pub(crate) alarms: watch::Sender<u64>,
    pub(crate) verifier: Arc<TokenVerifier>,
    pub(crate) net: Net,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        Self::with(LogConfig::default())
    }

    pub(crate) fn with(log: LogConfig) -> Self {
        Self::over(log, |world| Arc::new(MemoryRows::new(world)))
    }

    /// On the rows that `rows` makes.
    pub(crate) fn over<R: Rows>(log: LogConfig, rows: impl FnOnce(Arc<dyn World>) -> Arc<R>) -> Self {
        #[allow(clippy::disallowed_methods)] // the one clock of these tests
        let start = tokio::time::Instant::now();
        let world = Arc::new(TokioWorld { start, random: TestWorld::new(7) });
        let rows = rows(world.clone());
        let shape = log.shape;
        let store: Arc<dyn Store> = Arc::new(SlotLog::new(rows, world.clone(), log));
        let metrics = Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap());
        let links = Arc::new(TestLinks {
            inner: LocalLinks::new(metrics.clone()),
            deaf: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            hang: AtomicBool::new(false),
            probes: AtomicU64::new(0),
            submits: AtomicU64::new(0),
        });
        let presence = Arc::new(Directory::new(world.clone(), 10_000, metrics.clone()));
        let config = RouterConfig { shape, ..RouterConfig::default() };
        let router =
            Router::new(config, world.clone(), store.clone(), links.clone(), presence.clone(), metrics);
        links.inner.add_router(1, router.clone());
        let alarms = watch::Sender::new(0);
        let verifier = TokenVerifier::new(&TokenKey::Hs256 { secret: SECRET.to_vec() }).unwrap();
        let (leases, verifier) = (presence.clone(), Arc::new(verifier));
        Self { world, store, links, presence, leases, router, alarms, verifier, net: Net::default() }
    }

    pub(crate) fn gateway(&self, number: u8) -> Gateway {
        self.gateway_with(number, |_| {})
    }

    pub(crate) fn gateway_with(&self, number: u8, tune: impl FnOnce(&mut GatewayConfig)) -> Gateway {
        self.start(self.unstarted(number, tune))
    }

    /// A gateway behind this UDP port.
    pub(crate) fn gateway_over(&self, number: u8, door: (QuicDoor, SocketAddr)) -> Gateway {
        self.start(self.unstarted_over(number, Some(door), |_| {}))
    }

    fn start(&self, unstarted: Unstarted<impl Future<Output = ()> + Send + 'static>) -> Gateway {
        let (door, udp, drain, metrics, running) = unstarted;
        #[allow(clippy::disallowed_methods)] // the test waits for it itself
        let task = tokio::spawn(running);
        Gateway { door, net: self.net.clone(), udp, drain, task, metrics, io: Arc::default() }
    }

    /// A gateway that runs when its future is polled.
    pub(crate) fn unstarted<F: FnOnce(&mut GatewayConfig)>(
        &self,
        number: u8,
        tune: F,
    ) -> Unstarted<impl Future<Output = ()> + Send + 'static + use<F>> {
        let quic = (carrier() != Carrier::WebSocket).then(|| carrier::door(&self.net));
        self.unstarted_over(number, quic, tune)
    }

    fn unstarted_over<F: FnOnce(&mut GatewayConfig)>(
        &self,
        number: u8,
        quic: Option<(QuicDoor, SocketAddr)>,
        tune: F,
    ) -> Unstarted<impl Future<Output = ()> + Send + 'static + use<F>> {
        let id = GatewayId([number; 16]);
        let mut config = GatewayConfig::new(id, [5; 32]);
        tune(&mut config);
        let metrics = Arc::new(GatewayMetrics::new(&prometheus::Registry::new()).unwrap());
        let (quic, udp) = quic.unzip();
        let parts = Parts {
            world: self.world.clone(),
            store: self.store.clone(),
            links: self.links.clone(),
            presence: self.leases.clone(),
            bells: self.links.inner.add_gateway(id, 1024),
            alarms: self.alarms.subscribe(),
            verifier: self.verifier.clone(),
            tls: None,
            quic,
            metrics: metrics.clone(),
            traces: Arc::default(),
        };
        let (door, incoming) = mpsc::channel::<Incoming<Watched>>(64);
        let incoming = stream::unfold(incoming, |mut incoming| async move {
            incoming.recv().await.map(|io| (std::io::Result::Ok(io), incoming))
        });
        let drain = CancellationToken::new();
        let running = chappe_gateway::run(config, parts, incoming, drain.clone());
        (door, udp, drain, metrics, running)
    }

    /// A token of this user and device, good for an hour.
    pub(crate) fn token(&self, user: &str, device: &str) -> String {
        let exp = self.world.wall().0 / 1000 + 3600;
        sign(&serde_json::json!({ "sub": user, "device": device, "exp": exp }))
    }

    pub(crate) async fn mailbox(&self, user: &str) -> MailboxId {
        self.store.user(&UserId::new(user).unwrap()).await.unwrap().expect("the user exists").mailbox
    }
}

pub(crate) fn sign(claims: &serde_json::Value) -> String {
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), claims, &key).unwrap()
}

/// A gateway before its first poll: its doors, its drain, its metrics, and the gateway.
pub(crate) type Unstarted<F> = (Door, Option<SocketAddr>, CancellationToken, Arc<GatewayMetrics>, F);

/// Where sockets come in; dropped, no more will.
pub(crate) type Door = mpsc::Sender<Incoming<Watched>>;

/// A gateway that runs.
pub(crate) struct Gateway {
    pub(crate) door: Door,
    pub(crate) net: Net,
    /// Its UDP port, where the law runs on one.
    pub(crate) udp: Option<SocketAddr>,
    pub(crate) drain: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    pub(crate) metrics: Arc<GatewayMetrics>,
    /// Of its pipes.
    pub(crate) io: Arc<IoCounts>,
}

impl Gateway {
    /// A fresh pipe into it.
    pub(crate) async fn knock(&self) -> DuplexStream {
        self.knock_from("127.0.0.1").await
    }

    /// The same, of a peer with this address.
    pub(crate) async fn knock_from(&self, address: &str) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let peer = SocketAddr::new(address.parse().unwrap(), 1);
        self.door
            .send(Incoming { io: Watched { io: theirs, counts: Arc::clone(&self.io) }, peer })
            .await
            .map_err(|_| "the gateway is gone")
            .unwrap();
        ours
    }
}

pub(crate) fn session(tune: impl FnOnce(&mut SessionConfig)) -> Arc<SessionConfig> {
    let mut config = SessionConfig::default();
    tune(&mut config);
    Arc::new(config)
}

impl Cluster {
    pub(crate) fn world_now(&self) -> u64 {
        self.world.now().0
    }

    /// An envelope of ada's, for all devices.
    pub(crate) fn entry(&self) -> Entry {
        let at = UnixMillis(self.world_wall());
        Entry {
            envelope_id: EnvelopeId([9; 16]),
            sender: Sender { user: UserId::new("ada").unwrap(), device: DeviceId::new("laptop").unwrap() },
            devices: DeviceFilter::All,
            at,
            expires_at: at + Millis::from_secs(3600),
            urgency: Urgency::Message,
            payload: EntryPayload::Inline(Bytes::from_static(b"x")),
        }
    }

    pub(crate) fn world_wall(&self) -> u64 {
        self.world.wall().0
    }
}
