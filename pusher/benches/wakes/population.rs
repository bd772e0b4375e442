//! Many mailboxes with a device each, and a pusher that works on them.

use super::peer::target;
use chappe_node::clock::SystemWorld;
use chappe_protocol::envelope::{DeviceFilter, Sender, Urgency};
use chappe_protocol::id::{ConnectionId, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::internode::WakeHint;
use chappe_protocol::push::{PushSettings, Quiet};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World as _;
use chappe_pusher::metrics::PusherMetrics;
use chappe_pusher::provider::Waking;
use chappe_pusher::shards::Alone;
use chappe_pusher::waker::{Hinted, Waker, WakerConfig, WakerParts};
use chappe_router::{Directory, RouterMetrics};
use chappe_storage::memory::MemoryRows;
use chappe_storage::sealed::PushKeys;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Entry, EntryPayload, Store};
use futures_util::StreamExt as _;
use prometheus::Registry;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Mailboxes that are filled at once.
const AT_ONCE: usize = 64;

fn keys() -> PushKeys {
    PushKeys::new(&[7; 32], []).unwrap()
}

pub(super) fn in_memory() -> Arc<dyn Store> {
    let world = Arc::new(SystemWorld::new());
    Arc::new(SlotLog::new(Arc::new(MemoryRows::new(world.clone())), world, LogConfig::default()))
}

/// Everybody is noted and has one envelope.
pub(super) struct Population {
    store: Arc<dyn Store>,
    sleepers: Vec<MailboxId>,
}

pub(super) struct Running {
    waker: JoinHandle<()>,
    pub(super) hints: mpsc::Sender<Hinted>,
    registry: Registry,
    drain: CancellationToken,
}

impl Population {
    /// So many mailboxes; the devices of the first `sleepers` have not acked, the others have.
    pub(super) async fn fill(store: Arc<dyn Store>, mailboxes: usize, sleepers: usize) -> Self {
        let filled = futures_util::stream::iter(0..mailboxes).map(|number| {
            let store = store.clone();
            async move { one(store.as_ref(), number, number >= sleepers).await }
        });
        let all: Vec<MailboxId> = filled.buffered(AT_ONCE).collect().await;
        Self { store, sleepers: all.into_iter().take(sleepers).collect() }
    }

    pub(super) fn start(&self, waking: Arc<dyn Waking>) -> Running {
        let (world, registry) = (Arc::new(SystemWorld::new()), Registry::new());
        let router = Arc::new(RouterMetrics::new(&Registry::new()).unwrap());
        let config = WakerConfig::default();
        let waker = Waker::new(
            config,
            WakerParts {
                world: world.clone(),
                store: self.store.clone(),
                presence: Arc::new(Directory::new(world, 1000, router)),
                keys: Arc::new(keys()),
                waking,
                members: Arc::new(Alone),
                metrics: Arc::new(PusherMetrics::new(&registry).unwrap()),
            },
        );
        let (hints, mut receiver) = mpsc::channel(1024);
        let drain = CancellationToken::new();
        let stop = drain.clone();
        let stream = futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx));
        let waker = tokio::spawn(async move { waker.run(stream, stop).await });
        Running { waker, hints, registry, drain }
    }

    /// As routers do, for everybody who sleeps.
    pub(super) async fn hint(&self, running: &Running) {
        let now = SystemWorld::new().wall();
        for mailbox in &self.sleepers {
            let hint = WakeHint {
                mailbox: *mailbox,
                from: Seq(1),
                upto: Seq(1),
                urgency: Urgency::Message,
                at: now,
                due: now,
            };
            running.hints.send(hint.into()).await.unwrap();
        }
    }
}

async fn one(store: &dyn Store, number: usize, acked: bool) -> MailboxId {
    let world = SystemWorld::new();
    let user = UserId::new(&format!("user-{number}")).unwrap();
    let mailbox = store.create_user(&user).await.unwrap().mailbox;
    let device = DeviceId::new("phone").unwrap();
    let attach = Attach { connection: ConnectionId::mint(&world), cursor: None };
    store.attach(mailbox, &device, attach).await.unwrap();
    let settings = PushSettings { targets: vec![target(number)], quiet: Quiet::default() };
    let sealed = keys().seal(&settings, mailbox, &device, &world).unwrap();
    assert!(store.set_push_targets(mailbox, &device, sealed).await.unwrap());
    let at = world.wall();
    let mut id = [0; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    let entry = Entry {
        envelope_id: EnvelopeId(id),
        sender: Sender { user: UserId::new("anna").unwrap(), device },
        devices: DeviceFilter::All,
        at,
        expires_at: at + Millis::from_secs(24 * 3600),
        urgency: Urgency::Message,
        payload: EntryPayload::Inline(bytes::Bytes::from_static(b"ciphertext")),
    };
    store.add_pending(mailbox).await.unwrap();
    store.append(mailbox, &[entry], None).await.unwrap();
    if acked {
        store.advance(mailbox, &DeviceId::new("phone").unwrap(), Seq(1)).await.unwrap();
    }
    mailbox
}

impl Running {
    /// The sum of a counter, or the count of a histogram.
    pub(super) fn figure(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        let of = |metric: &prometheus::proto::Metric| {
            let histogram = metric.get_histogram().get_sample_count() as f64;
            metric.get_counter().get_value() + metric.get_gauge().get_value() + histogram
        };
        family.get_metric().iter().map(of).sum()
    }

    /// Waits for a figure, an hour at most.
    pub(super) async fn until(&self, name: &str, least: usize) {
        let reached = async {
            while self.figure(name) < least as f64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_hours(1), reached).await.unwrap();
    }

    pub(super) async fn stop(self) {
        self.drain.cancel();
        self.waker.await.unwrap();
    }
}
