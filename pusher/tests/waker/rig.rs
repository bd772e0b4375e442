//! A pusher's core on the reference store, with a provider that does what a test says, under paused time.

use crate::support::TestWorld;
use async_trait::async_trait;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{ConnectionId, DeviceId, EnvelopeId, Epoch, GatewayId, MailboxId, Seq, UserId};
use chappe_protocol::internode::WakeHint;
use chappe_protocol::push::{AppName, PushAddress, PushSettings, PushTarget, Quiet};
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World as _;
use chappe_pusher::metrics::PusherMetrics;
use chappe_pusher::provider::{Answer, AppKey, ProviderKind, Verdict, Wake, Waking};
use chappe_pusher::shards::{Alone, Members};
use chappe_pusher::waker::{Hinted, Waker, WakerConfig, WakerParts};
use chappe_router::presence::{Lease, Presence as _};
use chappe_router::{Directory, RouterMetrics};
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::sealed::PushKeys;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Entry, EntryPayload, Store};
use prometheus::Registry;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const KEY: [u8; 32] = [7; 32];

pub(crate) fn done() -> Answer {
    Answer { verdict: Verdict::Done, reason: "done" }
}

/// A wake that the provider was handed.
#[derive(Debug, Clone)]
pub(crate) struct Woke {
    pub(crate) at: Time,
    pub(crate) app: String,
    pub(crate) token: String,
    pub(crate) wake: Wake,
}

type Script = Box<dyn FnMut(&Woke) -> (Millis, Answer) + Send>;

/// Takes wakes, and answers by a script per app.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) woke: Mutex<Vec<Woke>>,
    scripts: Mutex<BTreeMap<String, Script>>,
    world: Option<Arc<TestWorld>>,
}

impl Scripted {
    pub(crate) fn on(&self, app: &str, script: impl FnMut(&Woke) -> (Millis, Answer) + Send + 'static) {
        self.scripts.lock().unwrap().insert(app.into(), Box::new(script));
    }
}

#[async_trait]
impl Waking for Scripted {
    fn app_of(&self, target: &PushTarget) -> Option<AppKey> {
        let known = target.app.as_str() != "nobody";
        known.then(|| AppKey { provider: ProviderKind::of(&target.address), app: target.app.clone() })
    }

    async fn wake(&self, target: &PushTarget, wake: &Wake) -> Answer {
        let token = match &target.address {
            PushAddress::Fcm { token } => token.clone(),
            PushAddress::Apns { token, .. } => String::from_utf8_lossy(token).into_owned(),
            PushAddress::WebPush { endpoint, .. } => endpoint.clone(),
        };
        let now = self.world.as_ref().unwrap().now();
        let woke = Woke { at: now, app: target.app.as_str().into(), token, wake: wake.clone() };
        let (delay, answer) = match self.scripts.lock().unwrap().get_mut(&woke.app) {
            Some(script) => script(&woke),
            None => (Millis(50), done()),
        };
        self.woke.lock().unwrap().push(woke);
        tokio::time::sleep(delay.to_std()).await;
        answer
    }
}

pub(crate) struct Rig {
    pub(crate) world: Arc<TestWorld>,
    /// Counts the calls of the store.
    pub(crate) rows: Arc<Faulty<MemoryRows>>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) provider: Arc<Scripted>,
    pub(crate) config: WakerConfig,
    count: Mutex<u64>,
}

/// A pusher that runs.
pub(crate) struct Running {
    pub(crate) waker: Waker,
    pub(crate) hints: mpsc::Sender<Hinted>,
    pub(crate) registry: Registry,
    drain: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// As a killed process ends: at once, with nothing told to anybody.
    pub(crate) fn kill(self) {
        self.task.abort();
        self.waker.kill();
    }

    pub(crate) async fn drain(self) {
        self.drain.cancel();
        self.task.await.unwrap();
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters are small and whole"
    )]
    pub(crate) fn figure(&self, name: &str, label: &str) -> u64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name);
        let metrics = family.map(|family| family.get_metric().to_vec()).unwrap_or_default();
        let of = metrics
            .iter()
            .filter(|metric| label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label));
        of.map(|metric| (metric.get_counter().get_value() + metric.get_gauge().get_value()) as u64).sum()
    }
}

impl Rig {
    pub(crate) fn new() -> Self {
        let world = TestWorld::new();
        let rows = Arc::new(Faulty::new(Arc::new(MemoryRows::new(world.clone())), 1, Faults::NONE));
        let store: Arc<dyn Store> = Arc::new(SlotLog::new(rows.clone(), world.clone(), LogConfig::default()));
        let metrics = Arc::new(RouterMetrics::new(&Registry::new()).unwrap());
        let directory = Arc::new(Directory::new(world.clone(), 1000, metrics));
        let provider = Arc::new(Scripted { world: Some(world.clone()), ..Scripted::default() });
        Self { world, rows, store, directory, provider, config: WakerConfig::default(), count: Mutex::new(0) }
    }

    pub(crate) fn keys() -> PushKeys {
        PushKeys::new(&KEY, []).unwrap()
    }

    pub(crate) fn start(&self) -> Running {
        self.start_among(Arc::new(Alone), self.store.clone())
    }

    pub(crate) fn start_among(&self, members: Arc<dyn Members>, store: Arc<dyn Store>) -> Running {
        let registry = Registry::new();
        let waker = Waker::new(
            self.config,
            WakerParts {
                world: self.world.clone(),
                store,
                presence: self.directory.clone(),
                keys: Arc::new(Self::keys()),
                waking: self.provider.clone(),
                members,
                metrics: Arc::new(PusherMetrics::new(&registry).unwrap()),
            },
        );
        let (hints, mut receiver) = mpsc::channel(64);
        let drain = CancellationToken::new();
        let (running, stop) = (waker.clone(), drain.clone());
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        #[allow(clippy::disallowed_methods, reason = "a test waits for it, or ends it")]
        let task = tokio::spawn(async move { running.run(stream, stop).await });
        Running { waker, hints, registry, drain, task }
    }

    /// A user with a device that was attached once and sleeps now.
    pub(crate) async fn device(&self, user: &str, device: &str) -> (MailboxId, DeviceId) {
        let mailbox = self.store.create_user(&UserId::new(user).unwrap()).await.unwrap().mailbox;
        let device = DeviceId::new(device).unwrap();
        let attach = Attach { connection: ConnectionId::mint(self.world.as_ref()), cursor: None };
        self.store.attach(mailbox, &device, attach).await.unwrap();
        (mailbox, device)
    }

    /// Registers one target, whose token is the device's name.
    pub(crate) async fn register(&self, of: &(MailboxId, DeviceId), app: &str, quiet: Quiet) {
        let address = PushAddress::Fcm { token: of.1.as_str().into() };
        let target =
            PushTarget { app: AppName::new(app).unwrap(), address, registered_at: self.world.wall() };
        self.register_all(of, PushSettings { targets: vec![target], quiet }).await;
    }

    pub(crate) async fn register_all(
        &self,
        (mailbox, device): &(MailboxId, DeviceId),
        settings: PushSettings,
    ) {
        let sealed = Self::keys().seal(&settings, *mailbox, device, self.world.as_ref()).unwrap();
        assert!(self.store.set_push_targets(*mailbox, device, sealed).await.unwrap());
    }

    /// One who sleeps, registered for `app`.
    pub(crate) async fn sleeper(&self, name: &str, app: &str) -> (MailboxId, DeviceId) {
        let of = self.device(name, name).await;
        self.register(&of, app, Quiet::default()).await;
        of
    }

    /// Puts an envelope into the log as a router does; the hint is the caller's to give.
    pub(crate) async fn submit(&self, mailbox: MailboxId, urgency: Urgency) -> WakeHint {
        self.submit_to(mailbox, DeviceFilter::All, urgency).await
    }

    pub(crate) async fn submit_to(
        &self,
        mailbox: MailboxId,
        devices: DeviceFilter,
        urgency: Urgency,
    ) -> WakeHint {
        let count = {
            let mut count = self.count.lock().unwrap();
            *count += 1;
            *count
        };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&count.to_be_bytes());
        let at = self.world.wall();
        let entry = Entry {
            envelope_id: EnvelopeId(id),
            sender: Sender { user: UserId::new("anna").unwrap(), device: DeviceId::new("desk").unwrap() },
            devices,
            at,
            expires_at: at + Millis::from_secs(30 * 24 * 3600),
            urgency,
            payload: EntryPayload::Inline(bytes::Bytes::from_static(b"secret")),
        };
        self.store.add_pending(mailbox).await.unwrap();
        let reply = self.store.append(mailbox, &[entry], None).await.unwrap();
        let seq = reply.entries[0].seq();
        WakeHint { mailbox, from: seq, upto: seq, urgency, at, due: at }
    }

    pub(crate) async fn ack(&self, (mailbox, device): &(MailboxId, DeviceId)) {
        let head = self.store.head(*mailbox, true).await.unwrap();
        self.store.advance(*mailbox, device, head).await.unwrap();
    }

    /// A gateway that lives renews this every 20 s.
    pub(crate) async fn lease(&self, (mailbox, device): &(MailboxId, DeviceId)) -> Lease {
        let lease = Lease {
            mailbox: *mailbox,
            device: device.clone(),
            gateway: GatewayId([9; 16]),
            epoch: Epoch(1),
            resumes: 0,
            connection: ConnectionId([1; 16]),
        };
        self.directory.lease(std::slice::from_ref(&lease)).await;
        lease
    }

    pub(crate) async fn lease_again(&self, lease: &Lease) {
        self.directory.lease(std::slice::from_ref(lease)).await;
    }

    pub(crate) async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    pub(crate) fn woke(&self) -> Vec<Woke> {
        self.provider.woke.lock().unwrap().clone()
    }

    /// Seconds between a moment and the wakes since.
    pub(crate) fn seconds_since(&self, start: Time) -> Vec<u64> {
        self.woke().iter().map(|woke| (woke.at - start).0.div_ceil(1000)).collect()
    }

    pub(crate) fn now(&self) -> Time {
        self.world.now()
    }

    pub(crate) fn wall(&self) -> UnixMillis {
        self.world.wall()
    }

    pub(crate) async fn head(&self, mailbox: MailboxId) -> Seq {
        self.store.head(mailbox, true).await.unwrap()
    }
}
