//! What a hostile reading of the slot log and of the embedded store found: each was once wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod support;

use bytes::Bytes;
use chappe_protocol::envelope::{PageEnd, SlotBody};
use chappe_protocol::id::{Bucket, MailboxId, PayloadId, Seq};
use chappe_protocol::time::UnixMillis;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::memory::MemoryRows;
use chappe_storage::rows::Rows;
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Appended, Entry, EntryPayload, Store, StoreError};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use redb::{ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use std::sync::Arc;
use support::disk::SimDisk;
use support::{Clock, DAY, START, entry, id, partition};

const ROWS: TableDefinition<'static, &'static [u8], &'static [u8]> = TableDefinition::new("rows");
const BEN: MailboxId = MailboxId([1; 16]);

fn open(disk: &Arc<SimDisk>, clock: &Arc<Clock>) -> EmbeddedRows {
    EmbeddedRows::open_layer(disk.layer(), clock.clone(), EmbeddedConfig::default()).unwrap()
}

/// A shared payload lives as long as its longest entry; a shorter one ends at its own time.
#[tokio::test]
async fn a_shared_payload_is_not_delivered_past_the_slots_own_time() {
    let clock = Clock::new(1);
    let log = SlotLog::new(Arc::new(MemoryRows::new(clock.clone())), clock.clone(), LogConfig::default());
    let shared = PayloadId([7; 16]);
    log.put_payload(shared, Bytes::from_static(b"for two"), UnixMillis(START + 7 * DAY)).await.unwrap();
    let payload = EntryPayload::Ref { id: shared, bytes: 7 };
    let short = Entry { expires_at: UnixMillis(START + DAY), payload: payload.clone(), ..entry(1, 1, 0) };
    let long = Entry { payload, ..entry(1, 2, 0) };
    log.append(BEN, &[short, long], None).await.unwrap();
    let bodies = async || -> Vec<SlotBody> {
        let page = log.read(BEN, Seq::ZERO, 10, 1000).await.unwrap();
        page.slots.into_iter().map(|slot| slot.body).collect()
    };
    let present = SlotBody::Present(Bytes::from_static(b"for two"));
    assert_eq!(bodies().await, [present.clone(), present.clone()]);
    clock.advance(DAY + 1);
    assert_eq!(bodies().await, [SlotBody::Expired, present]);
}

/// Flips a byte in every value that holds `needle`, behind the store's back and under intact pages.
fn damage(disk: &Arc<SimDisk>, needle: &[u8]) -> usize {
    #[derive(Debug)]
    struct Whole(Arc<dyn StorageBackend>);
    impl StorageBackend for Whole {
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
            self.0.write(offset, data)
        }
    }
    let database = redb::Builder::new().create_with_backend(Whole(disk.layer().rows)).unwrap();
    let mut hit = Vec::new();
    {
        let transaction = database.begin_read().unwrap();
        let rows = transaction.open_table(ROWS).unwrap();
        for row in rows.iter().unwrap() {
            let (key, value) = row.unwrap();
            if value.value().windows(needle.len()).any(|part| part == needle) {
                let mut value = value.value().to_vec();
                *value.last_mut().unwrap() ^= 1;
                hit.push((key.value().to_vec(), value));
            }
        }
    }
    let transaction = database.begin_write().unwrap();
    {
        let mut rows = transaction.open_table(ROWS).unwrap();
        for (key, value) in &hit {
            rows.insert(&key[..], &value[..]).unwrap();
        }
    }
    transaction.commit().unwrap();
    hit.len()
}

#[tokio::test]
async fn a_damaged_slot_is_told_as_lost_and_never_stops_a_mailbox() {
    let (disk, clock) = (SimDisk::empty(1), Clock::new(1));
    let log = |rows| SlotLog::new(Arc::new(rows), clock.clone(), LogConfig::default());
    {
        let store = log(open(&disk, &clock));
        let shared = PayloadId([9; 16]);
        let ends = UnixMillis(START + 7 * DAY);
        store.put_payload(shared, Bytes::from_static(b"shared, damaged"), ends).await.unwrap();
        let inline = |seq, payload: &'static [u8]| Entry {
            payload: EntryPayload::Inline(Bytes::from_static(payload)),
            ..entry(1, seq, 0)
        };
        let entries = [
            inline(1, b"whole"),
            inline(2, b"inline, damaged"),
            inline(3, b"whole"),
            Entry { payload: EntryPayload::Ref { id: shared, bytes: 15 }, ..entry(1, 4, 0) },
            inline(5, b"whole"),
        ];
        store.append(BEN, &entries, None).await.unwrap();
    }
    assert_eq!(damage(&disk, b"damaged"), 2);
    let store = log(open(&disk, &clock));
    for _ in 0..2 {
        let mut bodies = Vec::new();
        while bodies.len() < 5 {
            let page = store.read(BEN, Seq(bodies.len() as u64), 10, 1000).await.unwrap();
            assert!(!page.slots.is_empty(), "{:?}", page.end);
            bodies.extend(page.slots.into_iter().map(|slot| slot.body));
        }
        let whole = || SlotBody::Present(Bytes::from_static(b"whole"));
        assert_eq!(bodies, [whole(), SlotBody::Lost, whole(), SlotBody::Lost, whole()]);
    }
    assert_eq!(store.stats().lost, 2, "and the alarm is raised");
    let end = store.read(BEN, Seq(5), 10, 1000).await.unwrap().end;
    assert_eq!(end, PageEnd::Head(Seq(5)));
}

/// Pages that a failing disk changes under an open store: an error or an answer, never the end of whoever reads.
#[tokio::test]
async fn pages_that_rot_under_an_open_store_end_no_reader() {
    let mut errors = 0;
    for seed in 0..24 {
        let (disk, clock) = (SimDisk::empty(seed), Clock::new(seed));
        let mut config = EmbeddedConfig::default();
        (config.cache_bytes, config.journal_bytes_max) = (0, 1);
        let rows = EmbeddedRows::open_layer(disk.layer(), clock.clone(), config).unwrap();
        for seq in 1..=60 {
            support::append(&rows, partition(1, 0), seq - 1, &[entry(1, seq, 300)]).await.unwrap();
        }
        let pages = disk.contents().rows.len();
        let mut rng = SmallRng::seed_from_u64(seed);
        disk.damage_pages((0..pages / 16).map(|_| rng.random_range(4096..pages)));
        errors += usize::from(rows.head(partition(1, 0)).await.is_err());
        errors += usize::from(rows.slots(partition(1, 0), Seq::ZERO, 99, 1 << 20, true).await.is_err());
        errors += usize::from(rows.find_ids(partition(1, 0), &[id(1, 7)]).await.is_err());
        // Not closed: a writer that meets such pages ends the process, and the next start tells of the damage.
        std::mem::forget(rows);
    }
    assert!(errors > 10, "the damage was hardly ever read: {errors}");
}

/// While the disk refuses writes, notes wait in memory: a bounded number of them.
#[tokio::test]
async fn pending_notes_are_bounded_while_the_disk_refuses_writes() {
    const NOTES: u32 = 65_536;
    let (disk, clock) = (SimDisk::empty(2), Clock::new(2));
    let rows = open(&disk, &clock);
    let mailbox = |n: u32| MailboxId(std::array::from_fn(|at| n.to_be_bytes()[at % 4]));
    disk.full_after(0);
    let refused = support::append(&rows, partition(1, 0), 0, &[entry(1, 1, 20_000)]).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_) | StoreError::Unknown(_))), "{refused:?}");
    let mut noted = 0;
    for n in 0..NOTES + 50 {
        noted += usize::from(rows.add_pending(mailbox(n)).await.is_ok());
    }
    assert!(noted <= NOTES as usize, "{noted} notes in memory");
    disk.space_returns();
    clock.advance(60_000);
    support::append(&rows, partition(2, 0), 0, &[entry(2, 1, 10)]).await.unwrap();
    let (pending, _) = rows.pending_since(UnixMillis(START)).await.unwrap();
    assert_eq!(pending.len(), noted, "what was refused waits nowhere, what was noted is there");
    // Beyond the bound a note is a write of its own.
    rows.add_pending(mailbox(NOTES + 60)).await.unwrap();
}

/// The find that precedes a refusal sees what an append would call a duplicate, in every bucket it may stand in.
#[tokio::test]
async fn a_find_looks_where_an_append_would() {
    let clock = Clock::new(3);
    let rows = Arc::new(MemoryRows::new(clock.clone()));
    let shape = chappe_protocol::id::BucketShape { shift: 2 };
    let config = LogConfig { shape, ..LogConfig::default() };
    let log = SlotLog::new(rows.clone(), clock.clone(), config.clone());
    let other = SlotLog::new(rows, clock.clone(), config);
    let ids: Vec<_> = (1..=11).map(|seq| id(1, seq)).collect();
    assert_eq!(log.find(BEN, &ids, None).await.unwrap(), [None; 11], "an empty mailbox");
    for seq in 1..=10 {
        log.append(BEN, &[entry(1, seq, 1)], Some(Bucket(0))).await.unwrap();
    }
    let all: Vec<_> = (1..=11).map(|seq| (seq <= 10).then_some(Seq(seq))).collect();
    for log in [&log, &other] {
        assert_eq!(log.find(BEN, &ids, None).await.unwrap(), all);
        assert_eq!(log.find(BEN, &ids, Some(Bucket(0))).await.unwrap(), all);
        assert_eq!(log.find(BEN, &ids[7..], Some(Bucket(2))).await.unwrap(), all[7..]);
    }
    clock.advance(2 * DAY + 1);
    assert_eq!(log.find(BEN, &ids, None).await.unwrap(), [None; 11], "ids are remembered for 2 days");
    let again = log.append(BEN, &[entry(1, 11, 1)], None).await.unwrap();
    assert_eq!(again.entries, [Appended::Committed(Seq(11))]);
}
