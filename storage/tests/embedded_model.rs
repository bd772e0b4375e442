//! The embedded store beside the reference in memory: the same writes, the same answers, wherever a row is by then: in memory, on its
//! way into the pages, in the pages, or read back from the journal.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed step is a failed test")]

mod support;

use bytes::Bytes;
use chappe_protocol::id::{Bucket, ConnectionId, DeviceId, Epoch, MailboxId, PayloadId, Seq, UserId};
use chappe_protocol::time::UnixMillis;
use chappe_storage::embedded::{EmbeddedConfig, EmbeddedRows};
use chappe_storage::memory::MemoryRows;
use chappe_storage::rows::{Partition, Rows};
use chappe_storage::{PendingFrom, Woken};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use std::fmt::Write as _;
use support::disk::SimDisk;
use support::{Clock, DAY, START, append, entry, id, partition};

const SEEDS: u64 = 150;
const STEPS: u64 = 80;

/// One write; what it answered.
async fn write(rows: &impl Rows, rng: &mut SmallRng) -> String {
    let mailbox = rng.random_range(0..3_u8);
    let (of, bucket) = (MailboxId([mailbox; 16]), rng.random_range(0..2));
    let part = partition(mailbox, bucket);
    let device = DeviceId::new(["phone", "laptop"][rng.random_range(0..2)]).unwrap();
    let user = UserId::new(["anna", "ben"][rng.random_range(0..2)]).unwrap();
    let payload = PayloadId([rng.random_range(0..3); 16]);
    let number = rng.random_range(1..20_u64);
    let size = if rng.random_bool(0.1) { 6000 } else { 50 };
    let what = rng.random_range(0..20);
    let there = match what {
        0..8 => rows.head(part).await.unwrap().map_or(0, |head| head.seq.0),
        _ => 0,
    };
    let count = rng.random_range(1..=3);
    match what {
        0..8 if there < 1000 => {
            let entries: Vec<_> = (there + 1..=there + count).map(|seq| entry(mailbox, seq, size)).collect();
            format!("{:?}", append(rows, part, there, &entries).await)
        }
        8 => format!("{:?}", rows.delete_slots(part).await),
        9 => format!("{:?}", rows.raise_hint(of, Bucket(number)).await),
        10 => format!("{:?}", rows.raise_cursor(of, &device, Seq(number)).await),
        11 => format!("{:?}", rows.create_device(of, &device, Seq(number)).await),
        12 => format!("{:?}", rows.raise_session(of, &device, Epoch(number), ConnectionId([1; 16])).await),
        13 => format!("{:?}", rows.set_push(of, &device, Bytes::from(vec![mailbox; 40])).await),
        14 => {
            let woken = Woken { seq: Seq(number), attempt: 1, at: UnixMillis(START) };
            format!("{:?}", rows.raise_woken(of, &device, woken).await)
        }
        15 => format!("{:?}", rows.delete_devices(of).await),
        16 => format!("{:?}", rows.create_user(&user, of).await),
        17 => {
            let bytes = Bytes::from(vec![7; size]);
            format!("{:?}", rows.put_payload(payload, bytes, UnixMillis(START + DAY)).await)
        }
        18 => format!("{:?}", rows.delete_payload(payload).await),
        _ => format!("{:?}", rows.add_pending_at(of, UnixMillis(START + number * 60_000)).await),
    }
}

/// Everything there is.
async fn all(rows: &impl Rows) -> String {
    let mut all = String::new();
    for mailbox in 0..3_u8 {
        let of = MailboxId([mailbox; 16]);
        for bucket in 0..2 {
            let part: Partition = partition(mailbox, bucket);
            let head = rows.head(part).await;
            let after = Seq(u64::from(mailbox));
            let (few, many) = (
                rows.slots(part, after, 2, usize::MAX, true).await,
                rows.slots(part, Seq::ZERO, usize::MAX, usize::MAX, false).await,
            );
            let ids = rows.find_ids(part, &[id(mailbox, 1), id(mailbox, 3), id(mailbox, 999)]).await;
            writeln!(all, "{mailbox} {bucket}: {head:?} {few:?} {many:?} {ids:?}").unwrap();
        }
        writeln!(all, "{:?} {:?} {:?}", rows.hint(of).await, rows.floor(of).await, rows.devices(of).await)
            .unwrap();
        for device in ["phone", "laptop"] {
            let device = DeviceId::new(device).unwrap();
            let (cursor, woken) = (rows.cursor(of, &device).await, rows.woken(of, &device).await);
            writeln!(all, "{cursor:?} {woken:?} {:?}", rows.push(of, &device).await).unwrap();
        }
        writeln!(all, "{:?}", rows.payload(PayloadId([mailbox; 16])).await).unwrap();
    }
    for user in ["anna", "ben"] {
        writeln!(all, "{:?}", rows.user(&UserId::new(user).unwrap(), true).await).unwrap();
    }
    for shard in [0, 1, 2] {
        let from = PendingFrom::since(UnixMillis(START));
        writeln!(all, "{:?}", rows.pending_page(shard, from, 10).await.map(|page| page.mailboxes)).unwrap();
    }
    all
}

#[tokio::test]
async fn wherever_a_row_is_it_is_read_alike() {
    for seed in 0..SEEDS {
        let mut rng = SmallRng::seed_from_u64(seed);
        let (clock, disk) = (Clock::new(seed), SimDisk::empty(seed));
        let mut config = EmbeddedConfig::default();
        config.journal_bytes_max = [1, 20_000, 200_000, 32 << 20][usize::try_from(seed % 4).unwrap()];
        let open = || EmbeddedRows::open_layer(disk.layer(), clock.clone(), config).unwrap();
        let (mut ours, reference) = (open(), MemoryRows::new(clock.clone()));
        for step in 0..STEPS {
            let mut same = rng.clone();
            let answered = write(&ours, &mut rng).await;
            assert_eq!(answered, write(&reference, &mut same).await, "seed {seed}, step {step}");
            if rng.random_bool(0.2) {
                assert_eq!(all(&ours).await, all(&reference).await, "seed {seed}, step {step}");
            }
            if rng.random_bool(0.03) {
                drop(ours);
                ours = open();
            }
        }
        assert_eq!(all(&ours).await, all(&reference).await, "seed {seed}");
        // As a kill leaves it: some in the pages, the rest in the journal.
        let killed = EmbeddedRows::open_layer(disk.killed().layer(), clock.clone(), config).unwrap();
        assert_eq!(all(&killed).await, all(&reference).await, "seed {seed}, after a kill");
    }
}
