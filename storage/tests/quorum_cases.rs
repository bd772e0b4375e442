//! Single situations that only replicas bring about, each tried under many seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, PageEnd, Sender, SlotBody, Urgency};
use chappe_protocol::id::{Bucket, BucketShape, ConnectionId, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::conformance::again;
use chappe_storage::planted::Planted;
use chappe_storage::quorum::{CommitLog, QuorumFaults, QuorumRows};
use chappe_storage::rows::{Floor, Partition, Rows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Attached, Entry, EntryPayload, Store, StoreError};
use std::sync::Arc;

const MAILBOX: MailboxId = MailboxId([3; 16]);
/// Many messages are lost, and no read brings replicas level.
const LOSSY: QuorumFaults = QuorumFaults { lost: 350, read_repair: false, ..QuorumFaults::NONE };

struct Case {
    world: Arc<TestWorld>,
    rows: Arc<QuorumRows>,
    planted: Option<Planted>,
    shape: BucketShape,
}

impl Case {
    fn new(seed: u64, faults: QuorumFaults) -> Self {
        Self::planted(seed, faults, None)
    }

    fn planted(seed: u64, faults: QuorumFaults, planted: Option<Planted>) -> Self {
        let world = Arc::new(TestWorld::new(seed));
        let rows = Arc::new(QuorumRows::new(world.clone(), seed, faults, planted));
        rows.switch(false);
        Self { world, rows, planted, shape: BucketShape { shift: 1 } }
    }

    fn log(&self) -> SlotLog<QuorumRows> {
        let config = LogConfig { shape: self.shape, planted: self.planted, ..LogConfig::default() };
        SlotLog::new(self.rows.clone(), self.world.clone(), config)
    }

    fn entry(&self, n: u8) -> Entry {
        let at = self.world.wall();
        Entry {
            envelope_id: EnvelopeId([n; 16]),
            sender: Sender { user: UserId::new("ben").unwrap(), device: device("phone") },
            devices: DeviceFilter::All,
            at,
            expires_at: at + Millis::from_secs(24 * 3600),
            urgency: Urgency::Message,
            payload: EntryPayload::Inline(Bytes::from_static(b"hello")),
        }
    }

    async fn fill(&self, log: &SlotLog<QuorumRows>, numbers: std::ops::RangeInclusive<u8>) {
        for n in numbers {
            log.append(MAILBOX, &[self.entry(n)], None).await.unwrap();
        }
    }
}

fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

async fn attach(log: &SlotLog<QuorumRows>, name: &str) -> Attached {
    let attach = Attach { connection: ConnectionId([1; 16]), cursor: None };
    let name = device(name);
    again(|| log.attach(MAILBOX, &name, attach.clone())).await.unwrap()
}

/// A floor whose raising was interrupted may be seen by one reader and not by the next.
#[tokio::test(start_paused = true)]
async fn a_floor_that_is_half_written_makes_no_slot_lost() {
    for seed in 0..600 {
        let case = Case::new(seed, LOSSY);
        let (log, reader) = (case.log(), case.log());
        attach(&log, "phone").await;
        case.fill(&log, 1..=8).await;
        log.advance(MAILBOX, &device("phone"), Seq(3)).await.unwrap();
        case.rows.switch(true);
        drop(case.rows.raise_floor(MAILBOX, Floor { bucket: Bucket(2), bytes_total: 15 }).await);
        case.rows.switch(false);
        log.trim(MAILBOX).await.unwrap();
        for _ in 0..4 {
            let page = reader.read(MAILBOX, Seq(0), 10, 1 << 20).await.unwrap();
            let lost = page.slots.iter().any(|slot| slot.body == SlotBody::Lost);
            assert!(!lost, "seed {seed}: what was trimmed is told as lost");
        }
    }
}

/// A device whose creation was interrupted, and that attaches all the same, holds every trim.
#[tokio::test(start_paused = true)]
async fn a_device_that_is_half_written_and_attached_holds_trims() {
    for seed in 0..600 {
        let case = Case::new(seed, LOSSY);
        let log = case.log();
        attach(&log, "phone").await;
        case.rows.switch(true);
        let web = attach(&log, "web").await;
        case.rows.switch(false);
        case.fill(&log, 1..=8).await;
        log.advance(MAILBOX, &device("phone"), Seq(8)).await.unwrap();
        for _ in 0..4 {
            case.log().trim(MAILBOX).await.unwrap();
        }
        let page = log.read(MAILBOX, web.from, 10, 1 << 20).await.unwrap();
        assert!(!matches!(page.end, PageEnd::Truncated(_)), "seed {seed}: trimmed before it was read");
        assert_eq!(page.slots.len(), 8, "seed {seed}");
    }
}

/// A user whose creation was interrupted, and who was seen once, is erased and stays so; no erase says so of somebody who is there.
#[tokio::test(start_paused = true)]
async fn a_user_that_is_half_written_is_erased() {
    let ben = UserId::new("ben").unwrap();
    for seed in 0..600 {
        let case = Case::new(seed, LOSSY);
        let log = case.log();
        case.rows.switch(true);
        let created = log.create_user(&ben).await;
        case.rows.switch(false);
        let seen = log.user(&ben).await.unwrap();
        if created.is_err() && seen.is_none() {
            continue;
        }
        log.erase(&ben).await.unwrap();
        for _ in 0..4 {
            let left = case.log().user(&ben).await.unwrap();
            assert!(left.is_none_or(|user| user.erased), "seed {seed}: erased and still there");
        }
    }
}

/// With two of three replicas away nothing is accepted and nothing is shown, whether the coordinators know or not; when they
/// are back everything goes on by itself, and what was left open stands once or not at all.
#[tokio::test(start_paused = true)]
async fn without_a_majority_nothing_is_accepted() {
    for seed in 0..60 {
        for known in [true, false] {
            let case = Case::new(seed, QuorumFaults { read_repair: seed % 2 == 0, ..QuorumFaults::NONE });
            let log = case.log();
            attach(&log, "phone").await;
            case.fill(&log, 1..=4).await;
            let away = [seed % 3, (seed + 1) % 3].map(|replica| usize::try_from(replica).unwrap());
            for replica in away {
                case.rows.put_down(replica, known);
            }
            for log in [&log, &case.log()] {
                let answer = log.append(MAILBOX, &[case.entry(5)], None).await;
                match answer {
                    Err(StoreError::Unavailable(_)) => {}
                    Err(StoreError::Unknown(_)) if !known => {}
                    other => panic!("seed {seed}: {other:?} by one replica of three"),
                }
                assert!(log.read(MAILBOX, Seq(0), 10, 1 << 20).await.is_err(), "seed {seed}");
                assert!(log.head(MAILBOX, true).await.is_err(), "seed {seed}");
                assert!(log.devices(MAILBOX).await.is_err(), "seed {seed}");
                assert!(log.advance(MAILBOX, &device("phone"), Seq(2)).await.is_err(), "seed {seed}");
                assert!(log.add_pending(MailboxId([9; 16])).await.is_err(), "seed {seed}");
                assert!(log.create_user(&UserId::new("anna").unwrap()).await.is_err(), "seed {seed}");
            }
            case.rows.put_up(away[0]);
            // The very same logs; one replica is still away.
            let reply = log.append(MAILBOX, &[case.entry(5), case.entry(6)], None).await.unwrap();
            assert_eq!(reply.head, Seq(6), "seed {seed}");
            case.rows.put_up(away[1]);
            let page = case.log().read(MAILBOX, Seq(0), 10, 1 << 20).await.unwrap();
            let ids: Vec<_> = page.slots.iter().map(|slot| slot.envelope_id.0[0]).collect();
            assert_eq!(ids, [1, 2, 3, 4, 5, 6], "seed {seed}");
            log.advance(MAILBOX, &device("phone"), Seq(6)).await.unwrap();
            assert_eq!(log.trim(MAILBOX).await.unwrap().floor, Bucket(3), "seed {seed}");
        }
    }
}

/// One replica is away, then another: each time the two that are there answer for everything.
#[tokio::test(start_paused = true)]
async fn with_one_away_everything_works() {
    for seed in 0..40 {
        let case = Case::new(seed, QuorumFaults { read_repair: false, ..QuorumFaults::NONE });
        let log = case.log();
        attach(&log, "phone").await;
        for n in 1..=24_u8 {
            case.rows.put_down(usize::from(n) % 3, n % 2 == 0);
            let entry = [case.entry(n)];
            again(|| log.append(MAILBOX, &entry, None)).await.unwrap();
            let page = again(|| log.read(MAILBOX, Seq(0), 100, 1 << 20)).await.unwrap();
            let ids: Vec<_> = page.slots.iter().map(|slot| slot.envelope_id.0[0]).collect();
            assert_eq!(ids, (1..=n).collect::<Vec<_>>(), "seed {seed}");
            case.rows.put_up(usize::from(n) % 3);
        }
    }
}

/// "Unavailable" is a promise here, too: nothing of it is in the log, now or later.
#[tokio::test(start_paused = true)]
async fn unavailable_has_written_nothing() {
    let mut refusals = 0;
    for seed in 0..300 {
        let case = Case::new(seed, QuorumFaults { majority_down: 20, ..QuorumFaults::MANY });
        case.rows.switch(true);
        let log = case.log();
        let mut refused = Vec::new();
        for first in (0..40).step_by(4) {
            let list: Vec<_> = (first..first + 4).map(|n| case.entry(n)).collect();
            if let Err(StoreError::Unavailable(_)) = log.append(MAILBOX, &list, None).await {
                refused.extend(first..first + 4);
            }
        }
        case.rows.switch(false);
        case.rows.settle().await;
        refusals += refused.len();
        let ids: Vec<_> = refused.iter().map(|n| EnvelopeId([*n; 16])).collect();
        let found = log.find(MAILBOX, &ids, None).await.unwrap();
        assert!(found.iter().all(Option::is_none), "seed {seed}: it was written after all");
    }
    assert!(refusals > 100, "hardly anything was refused: {refusals}");
}

/// The power of one replica goes while it alone and another have what was accepted: a synced log keeps it; a periodic one
/// does not, unless it syncs transactions (ScyllaDB): then only a cursor may go back.
#[tokio::test(start_paused = true)]
async fn what_a_power_loss_takes_depends_on_the_log() {
    let faults = QuorumFaults { read_repair: false, ..QuorumFaults::NONE };
    let mut lost = Vec::new();
    for log_kind in [CommitLog::Batch, CommitLog::PeriodicPlain, CommitLog::Periodic] {
        let (mut slots_lost, mut cursors_back) = (0, 0);
        for seed in 0..60 {
            let world = Arc::new(TestWorld::new(seed));
            let rows = Arc::new(QuorumRows::with_log(world.clone(), seed, faults, None, log_kind));
            let case = Case { world, rows, planted: None, shape: BucketShape { shift: 1 } };
            let log = case.log();
            attach(&log, "phone").await;
            case.rows.put_down(2, true);
            case.fill(&log, 1..=5).await;
            log.advance(MAILBOX, &device("phone"), Seq(5)).await.unwrap();
            case.rows.power_loss(1);
            case.rows.put_down(0, true);
            case.rows.put_up(2);
            slots_lost += u32::from(case.log().head(MAILBOX, true).await.unwrap() < Seq(5));
            cursors_back += u32::from(log.cursor(MAILBOX, &device("phone")).await.unwrap() < Seq(5));
        }
        println!("{log_kind:?}: heads back {slots_lost}, cursors back {cursors_back} of 60");
        lost.push((slots_lost > 0, cursors_back > 0));
    }
    assert_eq!(lost, [(false, false), (false, true), (true, true)]);
}

/// Slices that lack what one replica has missed: whether a reader is ever told of a loss.
async fn told_of_a_loss(seed: u64, planted: Option<Planted>) -> bool {
    let faults = QuorumFaults { lost: 150, short_slice: 1000, read_repair: false, ..QuorumFaults::NONE };
    // Of a long bucket a transaction makes good the last commit only.
    let case = Case { shape: BucketShape { shift: 4 }, ..Case::planted(seed, faults, planted) };
    let log = case.log();
    case.rows.switch(true);
    for n in 1..=14 {
        let entry = [case.entry(n)];
        again(|| log.append(MAILBOX, &entry, None)).await.unwrap();
    }
    let (mut lost, mut after) = (false, Seq(0));
    while after < Seq(14) {
        let page = again(|| log.read(MAILBOX, after, 3, 1 << 20)).await.unwrap();
        lost |= page.slots.iter().any(|slot| slot.body == SlotBody::Lost);
        after = page.slots.last().map_or(after, |slot| slot.seq);
    }
    lost
}

/// A hole is read again at SERIAL; a second plain read may well lack the same rows.
#[tokio::test(start_paused = true)]
async fn a_hole_is_believed_only_at_serial() {
    let mut noticed = [0; 2];
    for seed in 0..100 {
        assert!(!told_of_a_loss(seed, None).await, "seed {seed}: nothing was lost");
        for (noticed, planted) in noticed.iter_mut().zip([Planted::HolesReadPlain, Planted::HolesBelieved]) {
            *noticed += u32::from(told_of_a_loss(seed, Some(planted)).await);
        }
    }
    println!("read plainly, believed at once: {noticed:?} of 100");
    assert!(noticed.iter().all(|noticed| *noticed > 4), "the defects go unnoticed: {noticed:?}");
}

/// Trims a bucket by a delete that fails at first, with clocks that differ; whether anything of it is left.
async fn left_by_a_delete(seed: u64, planted: Option<Planted>) -> bool {
    let faults = QuorumFaults { lost: 350, skew_ms_max: 3_600_000, read_repair: false, ..QuorumFaults::NONE };
    let case = Case::planted(seed, faults, planted);
    case.fill(&case.log(), 1..=5).await;
    let partition = Partition { mailbox: MAILBOX, bucket: Bucket(1) };
    case.rows.switch(true);
    drop(case.rows.delete_slots(partition).await);
    case.rows.switch(false);
    case.rows.delete_slots(partition).await.unwrap();
    let mut left = false;
    for _ in 0..4 {
        left |= !case.rows.slots(partition, Seq(0), 9, 1 << 20, false).await.unwrap().is_empty();
    }
    left
}

/// The rows that a delete has hidden at one replica still have their timestamps at the others.
#[tokio::test(start_paused = true)]
async fn a_delete_that_is_repeated_leaves_nothing() {
    let mut noticed = [0; 2];
    for seed in 0..200 {
        assert!(!left_by_a_delete(seed, None).await, "seed {seed}: rows are left");
        for (noticed, planted) in noticed.iter_mut().zip([Planted::DeleteBySlots, Planted::NaiveDelete]) {
            *noticed += u32::from(left_by_a_delete(seed, Some(planted)).await);
        }
    }
    println!("by the slots' timestamps, by the time: {noticed:?} of 200");
    assert!(noticed.iter().all(|noticed| *noticed > 0), "the defects go unnoticed: {noticed:?}");
}
