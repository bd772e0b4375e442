//! What the router's tests share: a world on the runtime's paused clock, a store with faults, a small cluster.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

pub mod flaky;
pub mod gate;
pub mod part;

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Page, Sender, Slot, SlotBody, Urgency};
use chappe_protocol::id::{
    Bucket, BucketShape, ConnectionId, DeviceId, Epoch, GatewayId, MailboxId, Seq, SubmitId, UserId,
};
use chappe_protocol::internode::{
    Doorbell, ListReply, Outcome, Reply, Request, Submit, SubmitEntry, SubmitList,
};
use chappe_protocol::testing::Rng;
use chappe_protocol::time::{Millis, Time, UnixMillis};
use chappe_protocol::world::World;
use chappe_router::links::Links;
use chappe_router::presence::{Lease, Presence};
use chappe_router::wakes::LocalWakes;
use chappe_router::{Directory, LocalLinks, Router, RouterConfig, RouterMetrics};
use chappe_storage::memory::MemoryRows;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Store};
use flaky::Flaky;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Small buckets, so that appends cross their edges often.
pub const SHAPE: BucketShape = BucketShape { shift: 2 };
pub const BUDGET: Millis = Millis(5000);

/// The clocks follow the runtime's (paused) time; randomness comes from a seed.
pub struct PausedWorld {
    start: tokio::time::Instant,
    rng: Mutex<Rng>,
}

impl PausedWorld {
    #[allow(clippy::disallowed_methods, reason = "this is the world that is given to the others")]
    pub fn new(seed: u64) -> Self {
        Self { start: tokio::time::Instant::now(), rng: Mutex::new(Rng::new(seed)) }
    }
}

impl World for PausedWorld {
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

/// One store, one router, one gateway (and more of them on demand).
pub struct Cluster {
    pub world: Arc<dyn World>,
    pub rows: Arc<MemoryRows>,
    pub store: Arc<Flaky>,
    pub links: Arc<LocalLinks>,
    pub directory: Arc<Directory>,
    pub metrics: Arc<RouterMetrics>,
    pub router: Router,
    /// The hints of that router.
    pub wakes: Arc<LocalWakes>,
    pub gateway: GatewayId,
    pub bells: mpsc::Receiver<Doorbell>,
}

pub fn config() -> RouterConfig {
    RouterConfig { shape: SHAPE, ..RouterConfig::default() }
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, config(), LogConfig { shape: SHAPE, ..LogConfig::default() })
    }

    pub fn with(seed: u64, config: RouterConfig, log: LogConfig) -> Self {
        let world: Arc<dyn World> = Arc::new(PausedWorld::new(seed));
        let rows = Arc::new(MemoryRows::new(Arc::clone(&world)));
        let log = SlotLog::new(Arc::clone(&rows), Arc::clone(&world), log);
        let store = Arc::new(Flaky::new(Arc::new(log), seed));
        let metrics = Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap());
        let links = Arc::new(LocalLinks::new(Arc::clone(&metrics)));
        let directory = Arc::new(Directory::new(Arc::clone(&world), 1000, Arc::clone(&metrics)));
        let gateway = GatewayId([7; 16]);
        let bells = links.add_gateway(gateway, 256);
        let wakes = Arc::new(LocalWakes::new(64));
        let router = Router::with_wakes(
            config,
            Arc::clone(&world),
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&links) as Arc<dyn Links>,
            Arc::clone(&directory) as Arc<dyn Presence>,
            Arc::clone(&metrics),
            Arc::clone(&wakes) as _,
        );
        links.add_router(1, router.clone());
        Self { world, rows, store, links, directory, metrics, router, wakes, gateway, bells }
    }

    /// A second router with a slot log of its own over the same rows.
    pub fn another_router(&self, seed: u64, config: RouterConfig) -> (Router, Arc<Flaky>) {
        let log = LogConfig { shape: SHAPE, ..LogConfig::default() };
        let log = SlotLog::new(Arc::clone(&self.rows), Arc::clone(&self.world), log);
        let store = Arc::new(Flaky::new(Arc::new(log), seed));
        let router = Router::new(
            config,
            Arc::clone(&self.world),
            Arc::clone(&store) as Arc<dyn Store>,
            Arc::clone(&self.links) as Arc<dyn Links>,
            Arc::clone(&self.directory) as Arc<dyn Presence>,
            Arc::clone(&self.metrics),
        );
        (router, store)
    }

    /// A mailbox whose user has these devices.
    pub async fn mailbox(&self, user: &str, devices: &[&str]) -> MailboxId {
        let user = UserId::new(user).unwrap();
        let mailbox = self.store.inner.create_user(&user).await.unwrap().mailbox;
        for name in devices {
            let attach = Attach { connection: ConnectionId([1; 16]), cursor: None };
            self.store.inner.attach(mailbox, &device(name), attach).await.unwrap();
        }
        mailbox
    }

    /// The gateway leases a device of the mailbox.
    pub async fn lease(&self, mailbox: MailboxId, name: &str) -> Lease {
        let lease = Lease {
            mailbox,
            device: device(name),
            gateway: self.gateway,
            epoch: Epoch(1),
            resumes: 0,
            connection: ConnectionId([1; 16]),
        };
        assert_eq!(self.directory.lease(std::slice::from_ref(&lease)).await, [true]);
        lease
    }

    pub async fn submit(&self, submit: Submit) -> Vec<ListReply> {
        lists(self.router.handle(Request::Submit(submit)).await)
    }

    /// Submits so many milliseconds later.
    pub async fn submit_after(&self, ms: u64, submit: Submit) -> Vec<ListReply> {
        if ms > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
        }
        self.submit(submit).await
    }

    /// The whole log of a mailbox.
    pub async fn log(&self, mailbox: MailboxId) -> Vec<Slot> {
        let mut slots: Vec<Slot> = Vec::new();
        loop {
            let after = slots.last().map_or(Seq::ZERO, |slot| slot.seq);
            let Page { slots: more, end: _ } =
                self.store.inner.read(mailbox, after, 100, 1 << 20).await.unwrap();
            if more.is_empty() {
                return slots;
            }
            slots.extend(more);
        }
    }

    /// Lets every task run that can.
    pub async fn settle(&self) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }

    pub async fn bells(&mut self) -> Vec<Doorbell> {
        self.settle().await;
        let mut bells = Vec::new();
        while let Ok(bell) = self.bells.try_recv() {
            bells.push(bell);
        }
        bells
    }
}

pub fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub fn sender(name: &str) -> Sender {
    Sender { user: UserId::new(name).unwrap(), device: device("phone") }
}

pub fn lists(reply: Reply) -> Vec<ListReply> {
    match reply {
        Reply::Submit(lists) => lists,
        other => panic!("expected a submit's reply, not {other:?}"),
    }
}

/// An entry of submit `id`, number 0, with the payload at `payload`.
pub fn entry(id: u64, payload: usize) -> SubmitEntry {
    let mut submit_id = SubmitId::default();
    submit_id.0[8..].copy_from_slice(&id.to_be_bytes());
    SubmitEntry {
        submit_id,
        number: 0,
        devices: DeviceFilter::All,
        device_set_version: None,
        payload,
        ttl: Millis(0),
        urgency: Urgency::Message,
    }
}

/// One list of entries `ids` for one mailbox; each payload is the id's bytes.
pub fn submit_of(from: &str, mailbox: MailboxId, base: Option<Bucket>, ids: &[u64]) -> Submit {
    let payloads = ids.iter().map(|id| Bytes::copy_from_slice(&id.to_be_bytes())).collect();
    let entries = ids.iter().enumerate().map(|(at, id)| entry(*id, at)).collect();
    Submit {
        sender: sender(from),
        budget: BUDGET,
        payloads,
        lists: vec![SubmitList { mailbox, base, entries }],
    }
}

pub fn outcomes(lists: &[ListReply]) -> Vec<Outcome> {
    lists.iter().flat_map(|list| list.results.iter().map(|result| result.outcome.clone())).collect()
}

/// The number that [`submit_of`] put into the slot.
pub fn number(slot: &Slot) -> u64 {
    match &slot.body {
        SlotBody::Present(payload) => u64::from_be_bytes(payload[..].try_into().unwrap()),
        other => panic!("slot {} holds {other:?}", slot.seq),
    }
}

pub fn numbers(slots: &[Slot]) -> Vec<u64> {
    slots.iter().map(number).collect()
}
