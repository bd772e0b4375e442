//! One history: what the parties do, what they see, and what must be true of it. **Invariant:** it follows from its seed.

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, PageEnd, Sender, SlotBody, Urgency};
use chappe_protocol::id::{Bucket, BucketShape, ConnectionId, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::{Millis, Time};
use chappe_protocol::world::World;
use chappe_storage::conformance::again;
use chappe_storage::planted::Planted;
use chappe_storage::rows::{Partition, Rows};
use chappe_storage::slotlog::{LogConfig, LogStats, SlotLog};
use chappe_storage::{AppendReply, Attach, Entry, EntryPayload, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// A database that fails, and can be told to stop.
pub(super) trait Database: Rows + Sized {
    /// Empty, with faults switched on.
    fn open(world: Arc<TestWorld>, seed: u64, planted: Option<Planted>) -> Self;

    /// Switches faults off or on.
    fn switch(&self, on: bool);

    /// Lets everything arrive that is under way.
    fn settle(&self) -> impl Future<Output = ()> + Send;

    /// Whether no plain read shows less than one before it.
    fn monotonic(&self) -> bool {
        true
    }
}

const MAILBOX: MailboxId = MailboxId([3; 16]);
const SENDERS: u64 = 3;
const ENTRIES: u64 = 10;
/// Senders give up after 24 hours, and ids live for 48.
const TIME_MAX: Time = Time(12 * 3_600_000);
const SHAPE: BucketShape = BucketShape { shift: 1 };

/// What was seen, by everybody.
#[derive(Default)]
struct Seen {
    /// Slot by slot, as any read showed it.
    slots: BTreeMap<u64, EnvelopeId>,
    /// What senders were told.
    acked: BTreeMap<EnvelopeId, u64>,
    violations: Vec<String>,
    stats: LogStats,
}

struct Cluster<D> {
    world: Arc<TestWorld>,
    rows: Arc<D>,
    planted: Option<Planted>,
    routers: Mutex<Vec<Arc<SlotLog<D>>>>,
    seen: Mutex<Seen>,
}

impl<D: Database> Cluster<D> {
    fn new(seed: u64, planted: Option<Planted>) -> Self {
        let world = Arc::new(TestWorld::new(seed));
        let rows = Arc::new(D::open(world.clone(), seed, planted));
        let cluster = Self { world, rows, planted, routers: Mutex::default(), seen: Mutex::default() };
        let routers = (0..3).map(|_| cluster.router()).collect();
        *cluster.routers.lock().unwrap() = routers;
        cluster
    }

    fn router(&self) -> Arc<SlotLog<D>> {
        let config =
            LogConfig { shape: SHAPE, planted: self.planted, trim_buckets_max: 3, ..LogConfig::default() };
        Arc::new(SlotLog::new(self.rows.clone(), self.world.clone(), config))
    }

    fn any(&self) -> Arc<SlotLog<D>> {
        let routers = self.routers.lock().unwrap();
        routers[usize::try_from(self.world.random_below(routers.len() as u64)).unwrap()].clone()
    }

    /// A router dies and comes back knowing nothing.
    fn crash(&self) {
        self.replace(usize::try_from(self.world.random_below(3)).unwrap());
    }

    fn replace(&self, place: usize) {
        let fresh = self.router();
        let dead = std::mem::replace(&mut self.routers.lock().unwrap()[place], fresh);
        let mut seen = self.seen.lock().unwrap();
        seen.stats = seen.stats.plus(dead.stats());
    }

    fn chance(&self, percent: u64) -> bool {
        self.world.random_below(100) < percent
    }

    async fn pause(&self, ms_max: u64) {
        tokio::time::sleep(Duration::from_millis(self.world.random_below(ms_max + 1))).await;
    }

    fn violation(&self, what: String) {
        self.seen.lock().unwrap().violations.push(what);
    }

    fn saw(&self, seq: Seq, id: EnvelopeId) {
        let mut seen = self.seen.lock().unwrap();
        let first = *seen.slots.entry(seq.0).or_insert(id);
        if first != id {
            seen.violations.push(format!("slot {seq} was re-issued"));
        }
    }

    fn acked(&self, entries: &[Entry], reply: &AppendReply) {
        for (entry, answer) in entries.iter().zip(&reply.entries) {
            let mut seen = self.seen.lock().unwrap();
            let first = *seen.acked.entry(entry.envelope_id).or_insert(answer.seq().0);
            if first != answer.seq().0 {
                seen.violations.push(format!("one envelope was told {first} and {}", answer.seq()));
            }
        }
    }
}

fn id(sender: u64, n: u64) -> EnvelopeId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&sender.to_be_bytes());
    id[8..].copy_from_slice(&n.to_be_bytes());
    EnvelopeId(id)
}

/// Every other entry of one sender has a payload that ends soon; so no bucket holds nothing but these.
fn entry<D: Database>(cluster: &Cluster<D>, sender: u64, n: u64) -> Entry {
    let at = cluster.world.wall();
    let minutes = if sender == 0 && n % 2 == 1 { 30 } else { 24 * 60 };
    Entry {
        envelope_id: id(sender, n),
        sender: Sender { user: UserId::new("ben").unwrap(), device: DeviceId::new("phone").unwrap() },
        devices: DeviceFilter::All,
        at,
        expires_at: at + Millis::from_secs(minutes * 60),
        urgency: Urgency::Message,
        payload: EntryPayload::Inline(Bytes::from_static(b"hello")),
    }
}

/// Submits its entries in order, one list at a time; an attempt that takes long is left running and the list tried again
/// elsewhere, under its base, or without one.
async fn sender<D: Database>(cluster: Arc<Cluster<D>>, number: u64) {
    let mut zombies = JoinSet::new();
    let mut next = 0;
    while next < ENTRIES {
        let count = 1 + cluster.world.random_below(3).min(ENTRIES - next - 1);
        let list: Vec<_> = (next..next + count).map(|n| entry(&cluster, number, n)).collect();
        let base = match cluster.any().head(MAILBOX, false).await {
            Ok(head) if cluster.chance(80) => Some(SHAPE.bucket_of(head)),
            Ok(_) | Err(_) => None,
        };
        // Between learning the base and the first transmission anything may happen.
        cluster.pause(60).await;
        let mut first = true;
        loop {
            let log = cluster.any();
            let base = base.filter(|_| first || cluster.chance(70));
            first = false;
            let (attempt, patience) = (list.clone(), cluster.world.random_below(400));
            let (done, answer) = tokio::sync::oneshot::channel();
            if zombies.len() < 6 {
                let world = cluster.clone();
                zombies.spawn(async move {
                    world.pause(if world.chance(10) { 2000 } else { 10 }).await;
                    let answer = log.append(MAILBOX, &attempt, base).await;
                    if let Ok(reply) = &answer {
                        world.acked(&attempt, reply);
                    }
                    drop(done.send(answer));
                });
            } else {
                zombies.join_next().await;
                continue;
            }
            match tokio::time::timeout(Duration::from_millis(patience), answer).await {
                Ok(Ok(Ok(_))) => break,
                Ok(Ok(Err(StoreError::Unavailable(_) | StoreError::Unknown(_)))) | Err(_) => {}
                Ok(other) => cluster.violation(format!("an append ended with {other:?}")),
            }
            if cluster.chance(30) {
                cluster.crash();
            }
        }
        next += count;
    }
    while zombies.join_next().await.is_some() {}
}

/// A device that comes later: what was trimmed before it was there is none of its business.
async fn late_device<D: Database>(cluster: Arc<Cluster<D>>, stop: flag::Stop) {
    cluster.pause(400).await;
    let web = DeviceId::new("web").unwrap();
    let attach = Attach { connection: ConnectionId([2; 16]), cursor: None };
    let log = cluster.any();
    let attached = again(|| log.attach(MAILBOX, &web, attach.clone())).await.unwrap();
    let head = again(|| log.head(MAILBOX, true)).await.unwrap();
    device(cluster, web, attached.from, head, stop).await;
}

/// Reads on behind `start`, persists, acks; sometimes from the beginning again. Nothing above `excused` may be trimmed before
/// it was acked here.
async fn device<D: Database>(
    cluster: Arc<Cluster<D>>,
    device: DeviceId,
    start: Seq,
    excused: Seq,
    stop: flag::Stop,
) {
    let mut have = start.0;
    // What a cursor may not fall below.
    let mut stored = Seq(0);
    loop {
        let stopping = stop.is_set();
        let log = cluster.any();
        let again = cluster.chance(10);
        let after = if again { 0 } else { have };
        match log.read(MAILBOX, Seq(after), 4, 1 << 20).await {
            Ok(page) => {
                for (slot, expected) in page.slots.iter().zip(after + 1..) {
                    let there = match slot.body {
                        SlotBody::Present(_) => true,
                        SlotBody::Expired => slot.expires_at <= cluster.world.wall(),
                        SlotBody::Lost => false,
                    };
                    if slot.seq.0 != expected || !there {
                        cluster.violation(format!(
                            "slot {} where {expected} was due: {:?}",
                            slot.seq, slot.body
                        ));
                    }
                    cluster.saw(slot.seq, slot.envelope_id);
                    have = have.max(slot.seq.0);
                }
                match page.end {
                    PageEnd::Truncated(upto) if upto.0 > have => {
                        if upto > excused {
                            cluster.violation(format!("{upto} was trimmed, {have} was acked"));
                        }
                        have = upto.0;
                    }
                    PageEnd::Head(head) if stopping && !again && head.0 == have => return,
                    PageEnd::Head(_) | PageEnd::Limit | PageEnd::Truncated(_) => {}
                }
            }
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => {}
            Err(error) => cluster.violation(format!("a read ended with {error:?}")),
        }
        if log.advance(MAILBOX, &device, Seq(have)).await.is_ok() {
            stored = stored.max(Seq(have));
        }
        if let Ok(cursor) = log.cursor(MAILBOX, &device).await {
            if cursor < stored || cursor.0 > have {
                cluster.violation(format!("the cursor went from {stored} to {cursor}, acked is {have}"));
            }
            if cluster.rows.monotonic() {
                stored = cursor;
            }
        }
        if cluster.chance(40) {
            drop(log.trim(MAILBOX).await);
        }
        if cluster.chance(20) && cluster.world.now() < TIME_MAX {
            cluster.world.advance(Millis(cluster.world.random_below(240_000)));
        }
        cluster.pause(50).await;
    }
}

/// A flag, set once.
mod flag {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Clone, Default)]
    pub(super) struct Stop(Arc<AtomicBool>);

    impl Stop {
        pub(super) fn set(&self) {
            self.0.store(true, Ordering::SeqCst);
        }

        pub(super) fn is_set(&self) -> bool {
            self.0.load(Ordering::SeqCst)
        }
    }
}

/// What a history has met.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Met<D> {
    pub(super) stats: LogStats,
    pub(super) rows: Option<Arc<D>>,
    /// Every slot with what stands in it: the outcome.
    pub(super) log: Vec<EnvelopeId>,
}

/// One history; what was violated, if anything.
pub(super) fn history<D: Database>(seed: u64, planted: Option<Planted>) -> Result<Met<D>, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let cluster = Arc::new(Cluster::<D>::new(seed, planted));
        let log = cluster.any();
        let attach = Attach { connection: ConnectionId([1; 16]), cursor: None };
        let phone = DeviceId::new("phone").unwrap();
        again(|| log.attach(MAILBOX, &phone, attach.clone())).await.unwrap();
        drop(log);
        let stop = flag::Stop::default();
        let mut tasks = JoinSet::new();
        let mut readers = JoinSet::new();
        readers.spawn(device(cluster.clone(), phone, Seq(0), Seq(0), stop.clone()));
        readers.spawn(late_device(cluster.clone(), stop.clone()));
        for number in 0..SENDERS {
            tasks.spawn(sender(cluster.clone(), number));
        }
        // A defect may also end in a standstill.
        let everything = async {
            while let Some(ended) = tasks.join_next().await {
                ended.unwrap();
            }
            cluster.rows.switch(false);
            cluster.rows.settle().await;
            stop.set();
            while let Some(ended) = readers.join_next().await {
                ended.unwrap();
            }
            leftovers(&cluster).await;
        };
        if tokio::time::timeout(Duration::from_mins(10), everything).await.is_err() {
            return Err("it came to a standstill".into());
        }
        check(&cluster)
    })
}

/// What a trim has deleted is gone at every replica's latest, however it was interrupted, once another trim was through.
async fn leftovers<D: Database>(cluster: &Cluster<D>) {
    let log = cluster.any();
    if let Err(error) = again(|| log.trim(MAILBOX)).await {
        return cluster.violation(format!("a trim ended with {error:?}"));
    }
    let floor = again(|| cluster.rows.floor(MAILBOX)).await.unwrap();
    for bucket in 0..floor.bucket.0 {
        let partition = Partition { mailbox: MAILBOX, bucket: Bucket(bucket) };
        let left = again(|| cluster.rows.slots(partition, Seq(0), 9, 1 << 20, true)).await.unwrap();
        if !left.is_empty() {
            cluster.violation(format!("{} rows of bucket {bucket} are left below the floor", left.len()));
        }
    }
}

fn check<D: Database>(cluster: &Cluster<D>) -> Result<Met<D>, String> {
    for place in 0..3 {
        // Counts those of the living, too.
        cluster.replace(place);
    }
    let seen = cluster.seen.lock().unwrap();
    if let Some(first) = seen.violations.first() {
        return Err(first.clone());
    }
    let log: Vec<EnvelopeId> = seen.slots.values().copied().collect();
    if !seen.slots.keys().copied().eq(1..=log.len() as u64) {
        return Err("the log is not dense".into());
    }
    if log.iter().collect::<BTreeSet<_>>().len() != log.len() {
        return Err("an envelope stands twice in the log".into());
    }
    for (envelope, seq) in &seen.acked {
        if seen.slots.get(seq) != Some(envelope) {
            return Err(format!("accepted as {seq}, but not there"));
        }
    }
    for number in 0..SENDERS {
        let own: Vec<_> = log.iter().filter(|id| id.0[..8] == number.to_be_bytes()).copied().collect();
        let sent: Vec<_> = (0..ENTRIES).map(|n| self::id(number, n)).collect();
        if own != sent {
            return Err(format!("sender {number} finds its entries in another order, or not all"));
        }
    }
    Ok(Met { stats: seen.stats, rows: Some(cluster.rows.clone()), log })
}

/// Defects that every kind of database must show.
pub(super) const PLANTED: [Planted; 11] = [
    Planted::SkipLookBack,
    Planted::LookBackOnlyOnRetry,
    Planted::LookBackStopsAtFloor,
    Planted::OpensUnsealed,
    Planted::HolesSkipped,
    Planted::HolesBelieved,
    Planted::TrimIgnoresCursors,
    Planted::ExpectIgnored,
    Planted::IdsIgnored,
    Planted::TrimDropsHead,
    Planted::TrimDropsIds,
];

/// Each of these is noticed by one of so many seeds.
pub(super) fn each_is_noticed<D: Database>(planted: &[Planted], seeds: u64) {
    for planted in planted {
        let red = |seed| history::<D>(seed, Some(*planted)).err().map(|what| (seed, what));
        let noticed = (0..seeds).find_map(red);
        println!("{planted:?}: {noticed:?}");
        assert!(noticed.is_some(), "{planted:?} goes unnoticed");
    }
}

/// Everything that a log can meet was met, and nothing that it must not.
pub(super) fn was_all_met(sum: &LogStats) {
    let met = [
        sum.committed,
        sum.duplicates,
        sum.refused,
        sum.undecided,
        sum.crossings,
        sum.look_back_reads,
        sum.look_back_hits,
        sum.galloped,
        sum.holes_healed,
        sum.trimmed,
        sum.truncated,
    ];
    assert!(met.iter().all(|count| *count > 0), "not everything was met: {sum:?}");
    assert_eq!((sum.lost, sum.cursors_ahead, sum.heads_back, sum.quota_refused), (0, 0, 0, 0), "{sum:?}");
}
