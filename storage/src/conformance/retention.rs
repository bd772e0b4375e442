//! Laws of trim, expiry and erasure.

use super::bench::{Backend, Bench, DAY, SHAPE, again, device};
use crate::error::StoreError;
use crate::rows::{Applied, Batch, Floor, Head, Rows};
use crate::{Attach, Store};
use chappe_protocol::envelope::{PageEnd, SlotBody};
use chappe_protocol::id::{Bucket, BucketShape, ConnectionId, Seq};
use chappe_protocol::time::Millis;

/// A router that slept through a trim can neither fill a trimmed bucket nor re-issue a slot.
pub async fn a_zombie_after_a_trim_is_refused<B: Backend>(bench: Bench<B>) {
    let (zombie, log, rows) = (bench.log(), bench.log(), bench.rows());
    bench.attach(&zombie, "phone", 1, None).await;
    bench.fill(&zombie, 1..=2).await;
    bench.fill(&log, 3..=9).await;
    log.advance(bench.mailbox, &device("phone"), Seq(9)).await.unwrap();
    log.trim(bench.mailbox).await.unwrap();
    let entry = bench.entry(77);
    for (bucket, expected, first) in [(0, None, 1), (0, Some(Seq(2)), 3), (1, None, 4), (1, Some(Seq(5)), 6)]
    {
        let to = Head { seq: Seq(first), opened_at: bench.world_now(), bytes_total: 0 };
        let batch = Batch { expected, to, slots: vec![(Seq(first), &entry)] };
        let answer = again(|| rows.compare_and_append(bench.partition(bucket), batch.clone())).await.unwrap();
        let Applied::No { head: Some(head), .. } = answer else {
            panic!("a trimmed bucket took {first}: {answer:?}")
        };
        assert_eq!(head.seq, SHAPE.last(Bucket(bucket)), "and says that it is full");
    }
    let reply = zombie.append(bench.mailbox, &[entry], Some(Bucket(0))).await.unwrap();
    assert_eq!(reply.head, Seq(10));
    assert_eq!(bench.numbers(&log).await, [8, 9, 77]);
}

/// The head outlives its slots, for routers that start cold and after a restart.
pub async fn a_fully_trimmed_mailbox_has_a_head<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=7).await;
    log.advance(bench.mailbox, &device("phone"), Seq(7)).await.unwrap();
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(2));
    drop(log);
    let bench = bench.reopen().await;
    let log = bench.log();
    assert_eq!(log.head(bench.mailbox, true).await, Ok(Seq(7)));
    assert_eq!(bench.attach(&log, "web", 2, None).await.device.since, Seq(7));
    let page = bench.log().read(bench.mailbox, Seq(0), 10, 1 << 20).await.unwrap();
    assert_eq!((page.slots.len(), page.end), (0, PageEnd::Truncated(Seq(7))));
    let page = bench.log().read(bench.mailbox, Seq(7), 10, 1 << 20).await.unwrap();
    assert_eq!((page.slots.len(), page.end), (0, PageEnd::Head(Seq(7))));
    assert_eq!(bench.log().append(bench.mailbox, &[bench.entry(8)], None).await.unwrap().head, Seq(8));
}

/// Only sealed buckets that all of them have passed; what goes is told.
pub async fn a_trim_waits_for_every_live_device<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.attach(&log, "web", 2, None).await;
    bench.fill(&log, 1..=14).await;
    bench.attach(&log, "late", 3, None).await;
    for (phone, web, floor) in [(14, 0, 0), (14, 2, 0), (14, 3, 1), (14, 6, 1), (14, 11, 3), (14, 14, 3)] {
        log.advance(bench.mailbox, &device("phone"), Seq(phone)).await.unwrap();
        log.advance(bench.mailbox, &device("web"), Seq(web)).await.unwrap();
        assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(floor), "web has {web}");
        let first = SHAPE.first(Bucket(floor)).0;
        assert_eq!(bench.numbers(&bench.log()).await, (first..=14).collect::<Vec<_>>());
    }
    let page = log.read(bench.mailbox, Seq(1), 10, 1 << 20).await.unwrap();
    assert_eq!((page.slots.len(), page.end), (0, PageEnd::Truncated(Seq(11))));
    assert!(B::fails() || (log.0.stats().trimmed >= 3 && log.0.stats().truncated > 0));
}

/// A device silent for 45 days, or revoked, does not count.
pub async fn the_silent_and_the_revoked_do_not_hold_a_trim<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.attach(&log, "lost", 2, None).await;
    bench.attach(&log, "stolen", 3, None).await;
    bench.elapse(Millis(40 * DAY.0)).await;
    bench.attach(&log, "phone", 4, None).await;
    bench.attach(&log, "stolen", 5, None).await;
    let entries: Vec<_> = (1..=8).map(|n| bench.entry_for(n, Millis(30 * DAY.0))).collect();
    log.append(bench.mailbox, &entries, None).await.unwrap();
    log.advance(bench.mailbox, &device("phone"), Seq(8)).await.unwrap();
    log.revoke(bench.mailbox, &device("stolen")).await.unwrap();
    assert_eq!(log.trim(bench.mailbox).await.unwrap().buckets, 0, "the lost one may come back");
    bench.elapse(Millis(6 * DAY.0)).await;
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(2));
}

/// A mailbox whose only device was revoked keeps what is young: the next device finds nothing, but a restore does.
pub async fn without_a_device_only_age_trims<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "stolen", 1, None).await;
    bench.fill(&log, 1..=8).await;
    log.revoke(bench.mailbox, &device("stolen")).await.unwrap();
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(0));
    assert_eq!(bench.numbers(&log).await, [1, 2, 3, 4, 5, 6, 7, 8]);
}

/// One young slot in the middle of a long bucket holds it.
pub async fn a_trim_by_age_looks_at_every_slot<B: Backend>(bench: Bench<B>) {
    let log = bench.log_with(|config| config.shape = BucketShape { shift: 6 });
    bench.attach(&log, "phone", 1, None).await;
    let ttl = |n: u64| Millis(DAY.0 * if n == 40 { 10 } else { 1 });
    for first in [1, 36] {
        let entries: Vec<_> = (first..first + 35).map(|n| bench.entry_for(n, ttl(n))).collect();
        log.append(bench.mailbox, &entries, None).await.unwrap();
    }
    bench.elapse(Millis(2 * DAY.0)).await;
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(0));
    bench.elapse(Millis(10 * DAY.0)).await;
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(1));
}

/// Whoever reads while rows go is told of a truncation, never of a loss.
pub async fn a_trim_beside_a_reader_loses_nothing<B: Backend>(bench: Bench<B>) {
    let (log, reader) = (bench.log(), bench.log());
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=20).await;
    log.advance(bench.mailbox, &device("phone"), Seq(20)).await.unwrap();
    let reads = async {
        let mut lost = 0;
        for _ in 0..8 {
            lost += bench.slots(&reader).await.iter().filter(|slot| slot.body == SlotBody::Lost).count();
        }
        lost
    };
    let (lost, trimmed) = tokio::join!(reads, log.trim(bench.mailbox));
    assert_eq!((lost, reader.0.stats().lost), (0, 0));
    assert_eq!(trimmed.unwrap().floor, Bucket(5));
}

/// Nobody reads it any more, and everything in it is past its time.
pub async fn a_trim_by_age<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    let ttl = |n: u64| Millis(DAY.0 * if n == 5 { 10 } else { 1 });
    for n in 1..=9 {
        log.append(bench.mailbox, &[bench.entry_for(n, ttl(n))], None).await.unwrap();
    }
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(0));
    bench.elapse(Millis(2 * DAY.0)).await;
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(1), "slot 5 holds its bucket");
    bench.elapse(Millis(10 * DAY.0)).await;
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(2), "the open bucket stays");
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(2));
}

/// One call deletes so many buckets at most, and what a trim left behind that died half-way.
pub async fn a_trim_is_bounded_and_finishes_another<B: Backend>(bench: Bench<B>) {
    let log = bench.log_with(|config| config.trim_buckets_max = 3);
    let rows = bench.rows();
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=40).await;
    log.advance(bench.mailbox, &device("phone"), Seq(40)).await.unwrap();
    // Another router raised the floor and died.
    let half = Floor { bucket: Bucket(2), bytes_total: 56 };
    again(|| rows.raise_floor(bench.mailbox, half)).await.unwrap();
    let lower = Floor { bucket: Bucket(1), bytes_total: 24 };
    assert_eq!(again(|| rows.raise_floor(bench.mailbox, lower)).await, Ok(half), "a floor only rises");
    let to = log.trim(bench.mailbox).await.unwrap().floor;
    assert!(to == Bucket(5) || (B::fails() && to > Bucket(5)), "a repeated trim trims on: {to:?}");
    for bucket in 0..=to.0 {
        let left = again(|| rows.slots(bench.partition(bucket), Seq(0), 100, 1 << 20, true)).await.unwrap();
        assert_eq!(left.is_empty(), bucket < to.0, "bucket {bucket}");
    }
    let floor = again(|| rows.floor(bench.mailbox)).await.unwrap();
    assert_eq!(floor, Floor { bucket: to, bytes_total: SHAPE.last(Bucket(to.0 - 1)).0 * 8 });
}

/// Its time is the payload's, not the slot's: the log stays dense and ids stay known.
pub async fn the_payload_expires_and_the_slot_stays<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let entries = [bench.entry_for(1, Millis(1000)), bench.entry(2), bench.entry_for(3, Millis(1000))];
    log.append(bench.mailbox, &entries, None).await.unwrap();
    bench.elapse(Millis(1000)).await;
    // Other writes, for databases that remove expired rows as they go.
    bench.fill(&log, 4..=30).await;
    for log in [log, bench.log()] {
        let slots = bench.slots(&log).await;
        assert_eq!(slots.len(), 30);
        for slot in slots {
            assert_eq!(slot.body == SlotBody::Expired, [1, 3].contains(&slot.seq.0), "slot {}", slot.seq);
        }
        assert_eq!(log.0.stats().lost, 0, "no alarm");
        let retry = log.append(bench.mailbox, &entries[..1], None).await.unwrap();
        assert_eq!(retry.entries[0].seq(), Seq(1));
    }
}

async fn erased_is_gone<B: Backend>(bench: &mut Bench<B>, slots: u64) {
    let (paused, log) = (bench.log(), bench.log());
    let anna = bench.user("anna");
    bench.mailbox = log.create_user(&anna).await.unwrap().mailbox;
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&paused, 1..=slots).await;
    log.erase(&anna).await.unwrap();
    assert!(log.devices(bench.mailbox).await.unwrap().devices.is_empty());
    let entry = bench.entry(100);
    for log in [&paused, &bench.log()] {
        let refused = log.append(bench.mailbox, std::slice::from_ref(&entry), Some(Bucket(0))).await;
        assert_eq!(refused, Err(StoreError::Erased), "{slots} slots");
        for after in 0..=slots {
            let read = log.read(bench.mailbox, Seq(after), 100, 1 << 20).await;
            assert!(!read.is_ok_and(|page| !page.slots.is_empty()), "slot {} can be read", after + 1);
        }
        assert!(log.head(bench.mailbox, true).await.is_err());
        assert_eq!(log.find(bench.mailbox, &[entry.envelope_id], None).await, Err(StoreError::Erased));
        assert_eq!(log.trim(bench.mailbox).await, Err(StoreError::Erased));
        let attach = Attach { connection: ConnectionId([2; 16]), cursor: None };
        assert!(log.attach(bench.mailbox, &device("phone"), attach).await.is_err());
        assert!(log.devices(bench.mailbox).await.unwrap().devices.is_empty());
        assert_eq!(log.advance(bench.mailbox, &device("phone"), Seq(slots)).await, Err(StoreError::Erased));
        assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(0)), "a cursor is left");
    }
    let rows = bench.rows();
    for bucket in 0..=SHAPE.bucket_of(Seq(slots + 1)).0 {
        let left = again(|| rows.slots(bench.partition(bucket), Seq(0), 100, 1 << 20, true)).await.unwrap();
        assert!(left.is_empty(), "rows of bucket {bucket} are left");
    }
    log.erase(&anna).await.unwrap();
    assert!(log.user(&anna).await.unwrap().is_none_or(|user| user.erased));
}

/// In the middle of a bucket, with a router that knows the register.
pub async fn erase_stops_a_paused_router<B: Backend>(mut bench: Bench<B>) {
    erased_is_gone(&mut bench, 6).await;
}

/// When the next append would open a bucket, and when nothing was ever appended.
pub async fn erase_at_an_edge<B: Backend>(bench: Bench<B>) {
    drop(bench);
    for slots in [0, 3, 7] {
        let mut bench = Bench::<B>::open().await;
        erased_is_gone(&mut bench, slots).await;
    }
}

/// Acks, attaches and revocations that come while a user is erased: nothing of them is left. A router that hears nothing
/// of the erasure notices it within a minute.
pub async fn an_erase_leaves_no_device_and_no_cursor<B: Backend>(mut bench: Bench<B>) {
    let (log, other) = (bench.log(), bench.log());
    let anna = bench.user("anna");
    bench.mailbox = log.create_user(&anna).await.unwrap().mailbox;
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=5).await;
    other.advance(bench.mailbox, &device("phone"), Seq(1)).await.unwrap();
    let attach = |name: &'static str| {
        let attach = Attach { connection: ConnectionId([2; 16]), cursor: Some(Seq(2)) };
        let (log, mailbox) = (&log, bench.mailbox);
        async move { log.attach(mailbox, &device(name), attach).await }
    };
    let (phone, web) = (device("phone"), device("web"));
    let acks = async {
        for seq in 1..=5 {
            if log.advance(bench.mailbox, &phone, Seq(seq)).await.is_err() {
                return;
            }
        }
    };
    let (erased, (), _, _, _) = tokio::join!(
        log.erase(&anna),
        acks,
        attach("phone"),
        attach("tablet"),
        log.revoke(bench.mailbox, &web)
    );
    erased.unwrap();
    let left = log.devices(bench.mailbox).await.unwrap().devices;
    assert!(left.is_empty(), "devices are left: {left:?}");
    for name in ["phone", "tablet", "web"] {
        assert_eq!(
            log.cursor(bench.mailbox, &device(name)).await,
            Ok(Seq(0)),
            "the cursor of the {name} is left"
        );
    }
    bench.elapse(Millis::from_secs(61)).await;
    assert_eq!(other.advance(bench.mailbox, &phone, Seq(5)).await, Err(StoreError::Erased));
}

/// Appends that come while the register is being closed: what the erase has answered is true of all of them, and the
/// rows that a dead trim left go too.
pub async fn an_erase_beside_appends_closes_the_log<B: Backend>(mut bench: Bench<B>) {
    let (log, other, rows) = (bench.log(), bench.log(), bench.rows());
    let anna = bench.user("anna");
    bench.mailbox = log.create_user(&anna).await.unwrap().mailbox;
    bench.fill(&log, 1..=9).await;
    again(|| rows.raise_floor(bench.mailbox, Floor { bucket: Bucket(1), bytes_total: 24 })).await.unwrap();
    let appends = async {
        for n in 10..100 {
            if other.append(bench.mailbox, &[bench.entry(n)], Some(Bucket(0))).await.is_err() {
                return;
            }
        }
    };
    let (erased, ()) = tokio::join!(log.erase(&anna), appends);
    erased.unwrap();
    for log in [&log, &other, &bench.log()] {
        let late = log.append(bench.mailbox, &[bench.entry(200)], Some(Bucket(0))).await;
        assert_eq!(late, Err(StoreError::Erased));
    }
    for bucket in 0..=SHAPE.bucket_of(Seq(101)).0 {
        let left = again(|| rows.slots(bench.partition(bucket), Seq(0), 100, 1 << 20, true)).await.unwrap();
        assert!(left.is_empty(), "rows of bucket {bucket} are left");
    }
}

/// A new mailbox, nothing of the old one.
pub async fn the_erased_come_back_as_new<B: Backend>(mut bench: Bench<B>) {
    let log = bench.log();
    let anna = bench.user("anna");
    let old = log.create_user(&anna).await.unwrap().mailbox;
    bench.mailbox = old;
    bench.fill(&log, 1..=5).await;
    log.erase(&anna).await.unwrap();
    let (a, b) = tokio::join!(log.create_user(&anna), log.create_user(&anna));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert!(a.mailbox != old && !a.erased);
    bench.mailbox = a.mailbox;
    assert_eq!(log.append(bench.mailbox, &[bench.entry(1)], None).await.unwrap().head, Seq(1));
    // A late erase of the old mailbox does not touch the new one.
    let rows = bench.rows();
    again(|| rows.mark_erased(&anna, old)).await.unwrap();
    assert_eq!(log.user(&anna).await, Ok(Some(a)));
    drop((log, rows));
    let bench = bench.reopen().await;
    assert_eq!(bench.log().user(&anna).await, Ok(Some(a)));
}
