//! Seeded histories: several routers over one failing database, senders that try again, a device that reads, trims,
//! crashes; checked against what every party was told. I1 (accepted is in the log), I2 (dense), I4, I7, I14, sender order.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, PageEnd, Sender, SlotBody, Urgency};
use chappe_protocol::id::{BucketShape, ConnectionId, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::conformance::again;
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::planted::Planted;
use chappe_storage::slotlog::{LogConfig, LogStats, SlotLog};
use chappe_storage::{AppendReply, Attach, Entry, EntryPayload, Store, StoreError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

type Log = SlotLog<Faulty<MemoryRows>>;

const MAILBOX: MailboxId = MailboxId([3; 16]);
const SENDERS: u64 = 3;
const ENTRIES: u64 = 10;
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

struct Cluster {
    world: Arc<TestWorld>,
    rows: Arc<Faulty<MemoryRows>>,
    planted: Option<Planted>,
    routers: Mutex<Vec<Arc<Log>>>,
    seen: Mutex<Seen>,
}

impl Cluster {
    fn new(seed: u64, planted: Option<Planted>) -> Self {
        let world = Arc::new(TestWorld::new(seed));
        let memory = Arc::new(MemoryRows::new(world.clone()));
        memory.plant(planted);
        let rows = Arc::new(Faulty::new(memory, seed, Faults::MANY));
        let cluster = Self { world, rows, planted, routers: Mutex::default(), seen: Mutex::default() };
        let routers = (0..3).map(|_| cluster.router()).collect();
        *cluster.routers.lock().unwrap() = routers;
        cluster
    }

    fn router(&self) -> Arc<Log> {
        let config =
            LogConfig { shape: SHAPE, planted: self.planted, trim_buckets_max: 3, ..LogConfig::default() };
        Arc::new(SlotLog::new(self.rows.clone(), self.world.clone(), config))
    }

    fn any(&self) -> Arc<Log> {
        let routers = self.routers.lock().unwrap();
        routers[usize::try_from(self.world.random_below(routers.len() as u64)).unwrap()].clone()
    }

    /// A router dies and comes back knowing nothing.
    fn crash(&self) {
        let place = usize::try_from(self.world.random_below(3)).unwrap();
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

fn entry(cluster: &Cluster, sender: u64, n: u64) -> Entry {
    let at = cluster.world.wall();
    Entry {
        envelope_id: id(sender, n),
        sender: Sender { user: UserId::new("ben").unwrap(), device: DeviceId::new("phone").unwrap() },
        devices: DeviceFilter::All,
        at,
        expires_at: at + Millis::from_secs(24 * 3600),
        urgency: Urgency::Message,
        payload: EntryPayload::Inline(Bytes::from_static(b"hello")),
    }
}

/// Submits its entries in order, one list at a time; an attempt that takes long is left running and the list tried again
/// elsewhere, under its base, or without one.
async fn sender(cluster: Arc<Cluster>, number: u64) {
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

/// Reads on, persists, acks; sometimes from the start again.
async fn device(cluster: Arc<Cluster>, stop: flag::Stop) {
    let phone = DeviceId::new("phone").unwrap();
    let mut have = 0;
    let mut stored = Seq(0);
    loop {
        let stopping = stop.is_set();
        let log = cluster.any();
        let again = cluster.chance(10);
        let after = if again { 0 } else { have };
        match log.read(MAILBOX, Seq(after), 4, 1 << 20).await {
            Ok(page) => {
                for (slot, expected) in page.slots.iter().zip(after + 1..) {
                    if slot.seq.0 != expected || !matches!(slot.body, SlotBody::Present(_)) {
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
                        cluster.violation(format!("{upto} was trimmed, {have} was acked"));
                        have = upto.0;
                    }
                    PageEnd::Head(head) if stopping && !again && head.0 == have => return,
                    PageEnd::Head(_) | PageEnd::Limit | PageEnd::Truncated(_) => {}
                }
            }
            Err(StoreError::Unavailable(_) | StoreError::Unknown(_)) => {}
            Err(error) => cluster.violation(format!("a read ended with {error:?}")),
        }
        drop(log.advance(MAILBOX, &phone, Seq(have)).await);
        if let Ok(cursor) = log.cursor(MAILBOX, &phone).await {
            if cursor < stored || cursor.0 > have {
                cluster.violation(format!("the cursor went from {stored} to {cursor}, acked is {have}"));
            }
            stored = cursor;
        }
        if cluster.chance(40) {
            drop(log.trim(MAILBOX).await);
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

/// One history; what was violated, if anything.
fn history(seed: u64, planted: Option<Planted>) -> Result<LogStats, String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let cluster = Arc::new(Cluster::new(seed, planted));
        let log = cluster.any();
        let attach = Attach { connection: ConnectionId([1; 16]), cursor: None };
        let phone = DeviceId::new("phone").unwrap();
        again(|| log.attach(MAILBOX, &phone, attach.clone())).await.unwrap();
        let stop = flag::Stop::default();
        let mut tasks = JoinSet::new();
        let mut reader = JoinSet::new();
        reader.spawn(device(cluster.clone(), stop.clone()));
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
            reader.join_next().await.unwrap().unwrap();
        };
        if tokio::time::timeout(Duration::from_hours(1), everything).await.is_err() {
            return Err("it came to a standstill".into());
        }
        check(&cluster)
    })
}

fn check(cluster: &Cluster) -> Result<LogStats, String> {
    for _ in 0..8 {
        // Counts those of the living, too.
        cluster.crash();
    }
    let seen = cluster.seen.lock().unwrap();
    if let Some(first) = seen.violations.first() {
        return Err(first.clone());
    }
    let log: Vec<_> = seen.slots.values().copied().collect();
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
    Ok(seen.stats)
}

#[test]
fn every_history_keeps_its_promises() {
    let mut sum = LogStats::default();
    for seed in 0..2000 {
        match history(seed, None) {
            Ok(stats) => sum = sum.plus(stats),
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("{sum:?}");
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

#[test]
fn a_history_repeats_under_its_seed() {
    for seed in 0..20 {
        assert_eq!(history(seed, None), history(seed, None), "seed {seed}");
    }
}

#[test]
fn histories_notice_planted_defects() {
    for planted in [
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
    ] {
        let noticed = (0..1000).find_map(|seed| history(seed, Some(planted)).err().map(|what| (seed, what)));
        println!("{planted:?}: {noticed:?}");
        assert!(noticed.is_some(), "{planted:?} goes unnoticed");
    }
}
