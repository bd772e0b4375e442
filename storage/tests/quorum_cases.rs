//! Single situations that only replicas bring about, each tried under many seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, PageEnd, Sender, SlotBody, Urgency};
use chappe_protocol::id::Bucket;
use chappe_protocol::id::{BucketShape, ConnectionId, DeviceId, EnvelopeId, MailboxId, Seq, UserId};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::conformance::again;
use chappe_storage::quorum::{QuorumFaults, QuorumRows};
use chappe_storage::rows::{Floor, Rows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Attach, Attached, Entry, EntryPayload, Store};
use std::sync::Arc;

const MAILBOX: MailboxId = MailboxId([3; 16]);
/// Many messages are lost, and no read brings replicas level.
const LOSSY: QuorumFaults = QuorumFaults { lost: 350, read_repair: false, ..QuorumFaults::NONE };

struct Case {
    world: Arc<TestWorld>,
    rows: Arc<QuorumRows>,
}

impl Case {
    fn new(seed: u64, faults: QuorumFaults) -> Self {
        let world = Arc::new(TestWorld::new(seed));
        let rows = Arc::new(QuorumRows::new(world.clone(), seed, faults, None));
        rows.switch(false);
        Self { world, rows }
    }

    fn log(&self) -> SlotLog<QuorumRows> {
        let config = LogConfig { shape: BucketShape { shift: 1 }, ..LogConfig::default() };
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
