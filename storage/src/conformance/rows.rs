//! Laws of the rows themselves, which the algorithms rest on.

use super::bench::{Backend, Bench, again, device, id};
use crate::rows::{Applied, Batch, Head, Rows};
use crate::{Device, Entry, Store};
use chappe_protocol::id::{ConnectionId, Epoch, Seq};
use chappe_protocol::time::UnixMillis;

fn batch<'a, B: Backend>(
    bench: &Bench<B>,
    expected: Option<u64>,
    first: u64,
    entries: &'a [Entry],
) -> Batch<'a> {
    let to =
        Head { seq: Seq(first + entries.len() as u64 - 1), opened_at: bench.world_now(), bytes_total: 8 };
    Batch { expected: expected.map(Seq), to, slots: (first..).map(Seq).zip(entries).collect() }
}

/// The register decides; a refusal carries it.
pub async fn a_register_is_compared<B: Backend>(bench: Bench<B>) {
    let (rows, p) = (bench.rows(), bench.partition(0));
    let entries = [1, 2, 3, 4].map(|n| bench.entry(n));
    assert_eq!(again(|| rows.head(p)).await, Ok(None));
    let wrong = batch(&bench, Some(4), 5, &entries[..1]);
    let refused = Applied::No { head: None, existing: vec![] };
    assert_eq!(again(|| rows.compare_and_append(p, wrong.clone())).await, Ok(refused), "there is none yet");
    let first = batch(&bench, None, 1, &entries[..2]);
    again(|| rows.compare_and_append(p, first.clone())).await.unwrap();
    let head = again(|| rows.head(p)).await.unwrap();
    assert_eq!(head, Some(first.to));
    for stale in [batch(&bench, None, 1, &entries[2..3]), batch(&bench, Some(1), 2, &entries[2..3])] {
        let refused = Applied::No { head, existing: vec![] };
        assert_eq!(again(|| rows.compare_and_append(p, stale.clone())).await, Ok(refused));
    }
    let known = batch(&bench, Some(2), 3, &entries[1..3]);
    let refused = Applied::No { head, existing: vec![(id(2), Seq(2))] };
    assert_eq!(again(|| rows.compare_and_append(p, known.clone())).await, Ok(refused), "an id exists");
    let slots = again(|| rows.slots(p, Seq(0), 10, 1 << 20, true)).await.unwrap();
    let ids: Vec<_> = slots.iter().map(|row| row.entry.envelope_id).collect();
    assert_eq!(ids, [id(1), id(2)], "write-once, and a refusal writes nothing");
    let ids = [id(2), id(3), id(1)];
    assert_eq!(again(|| rows.find_ids(p, &ids)).await, Ok(vec![Some(Seq(2)), None, Some(Seq(1))]));
    assert_eq!(again(|| rows.find_ids(bench.partition(1), &ids[..1])).await, Ok(vec![None]));
    assert_eq!(again(|| rows.seal(p, Some(Seq(1)))).await, Ok(false));
    again(|| rows.seal(p, Some(Seq(2)))).await.unwrap();
    assert_eq!(again(|| rows.head(p)).await.unwrap().map(|head| head.seq), Some(Seq::MAX));
    again(|| rows.seal(bench.partition(5), None)).await.unwrap();
    assert_eq!(again(|| rows.head(bench.partition(5))).await.unwrap().map(|head| head.seq), Some(Seq::MAX));
}

/// Of a refused batch nothing is there; of a written one everything.
pub async fn a_batch_is_all_or_nothing<B: Backend>(bench: Bench<B>) {
    let (rows, p) = (bench.rows(), bench.partition(0));
    let entries = [1, 2, 3].map(|n| bench.entry(n));
    let whole = batch(&bench, None, 1, &entries);
    again(|| rows.compare_and_append(p, whole.clone())).await.unwrap();
    let slots = again(|| rows.slots(p, Seq(0), 10, 1 << 20, B::fails())).await.unwrap();
    assert_eq!(slots.iter().map(|row| row.seq.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(
        slots.iter().zip(&entries).all(|(row, entry)| row.entry == *entry && !row.payload_gone && !row.lost)
    );
    // Quorum reads of a failing database may miss rows; SERIAL ones do not.
    let serial = B::fails();
    let page = again(|| rows.slots(p, Seq(1), 1, 1 << 20, serial)).await.unwrap();
    assert_eq!(page.iter().map(|row| row.seq.0).collect::<Vec<_>>(), [2], "behind a slot, so many rows");
    let page = again(|| rows.slots(p, Seq(0), 10, 9, serial)).await.unwrap();
    assert_eq!(page.len(), 2, "cut after the row that reaches the bytes");
}

/// The greatest (epoch, connection) stands, in whatever order they come.
pub async fn sessions_are_a_max_register<B: Backend>(bench: Bench<B>) {
    let (log, rows, phone) = (bench.log(), bench.rows(), device("phone"));
    bench.attach(&log, "phone", 1, None).await;
    for (epoch, connection, stands) in
        [(5, 7, (5, 7)), (4, 9, (5, 7)), (5, 6, (5, 7)), (5, 8, (5, 8)), (6, 1, (6, 1)), (5, 255, (6, 1))]
    {
        let socket = ConnectionId([connection; 16]);
        again(|| rows.raise_session(bench.mailbox, &phone, Epoch(epoch), socket)).await.unwrap();
        let row = again(|| rows.device(bench.mailbox, &phone)).await.unwrap().unwrap();
        assert_eq!((row.epoch, row.connection), (Epoch(stands.0), ConnectionId([stands.1; 16])));
    }
    let web = device("web");
    let row = again(|| rows.create_device(bench.mailbox, &phone, Seq(99))).await.unwrap();
    assert_eq!((row.since, row.epoch), (Seq(0), Epoch(6)), "a device is created once");
    assert_eq!(again(|| rows.device(bench.mailbox, &web)).await, Ok(None));
}

/// Beside a set that has changed since it was read, nothing is added.
pub async fn a_device_is_added_to_the_set_that_was_seen<B: Backend>(bench: Bench<B>) {
    let rows = bench.rows();
    let names = |set: (u64, Vec<(Device, UnixMillis)>)| {
        let names: Vec<String> = set.1.iter().map(|(row, _)| row.device.as_str().to_owned()).collect();
        (set.0, names.join(" "))
    };
    let (phone, web, desk) = (device("phone"), device("web"), device("desk"));
    let cases = [
        (&phone, 1, false, (0, "")),
        (&phone, 0, true, (1, "phone")),
        (&phone, 1, false, (1, "phone")),
        (&web, 0, false, (1, "phone")),
        (&web, 1, true, (2, "phone web")),
        (&desk, 1, false, (2, "phone web")),
        (&desk, 3, false, (2, "phone web")),
    ];
    for (device, version, expected, stands) in cases {
        let added = again(|| rows.add_device(bench.mailbox, device, Seq(4), version)).await.unwrap();
        // What failed without an answer may be done all the same: then its repetition is refused.
        assert!(added == expected || B::fails() && expected, "{device:?} at {version}");
        let after = names(again(|| rows.devices(bench.mailbox)).await.unwrap());
        assert!(B::fails() || after == (stands.0, stands.1.to_owned()), "{after:?}");
    }
    again(|| rows.revoke(bench.mailbox, &phone)).await.unwrap();
    assert_eq!(
        again(|| rows.add_device(bench.mailbox, &desk, Seq(4), 2)).await,
        Ok(false),
        "a revocation counts"
    );
    assert!(again(|| rows.add_device(bench.mailbox, &desk, Seq(9), 3)).await.is_ok());
    let row = again(|| rows.create_device(bench.mailbox, &desk, Seq(11))).await.unwrap();
    assert_eq!((row.since, row.epoch, row.revoked), (Seq(9), Epoch(0), false));
}

/// Heads, floors, hints and closed registers.
pub async fn registers_survive_a_restart<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=10).await;
    log.advance(bench.mailbox, &device("phone"), Seq(5)).await.unwrap();
    log.trim(bench.mailbox).await.unwrap();
    let rows = bench.rows();
    let before = (
        again(|| rows.head(bench.partition(2))).await.unwrap(),
        again(|| rows.floor(bench.mailbox)).await.unwrap(),
        again(|| rows.hint(bench.mailbox)).await.unwrap(),
    );
    again(|| rows.seal(bench.partition(7), None)).await.unwrap();
    drop((log, rows));
    let bench = bench.reopen().await;
    let rows = bench.rows();
    let after = (
        again(|| rows.head(bench.partition(2))).await.unwrap(),
        again(|| rows.floor(bench.mailbox)).await.unwrap(),
        again(|| rows.hint(bench.mailbox)).await.unwrap(),
    );
    assert_eq!(before, after);
    assert_eq!(before.0.map(|head| (head.seq, head.bytes_total)), Some((Seq(10), 80)));
    assert_eq!(again(|| rows.head(bench.partition(7))).await.unwrap().map(|head| head.seq), Some(Seq::MAX));
}

/// Only what is really missing can be marked, and stays marked.
pub async fn a_slot_that_is_there_is_not_lost<B: Backend>(bench: Bench<B>) {
    let (log, rows, p) = (bench.log(), bench.rows(), bench.partition(0));
    bench.fill(&log, 1..=3).await;
    assert_eq!(again(|| rows.mark_lost(p, Seq(2))).await, Ok(false));
    assert_eq!(bench.numbers(&log).await, [1, 2, 3]);
    again(|| rows.delete_slots(p)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(again(|| rows.mark_lost(p, Seq(2))).await, Ok(true), "also when repeated");
        let slots = again(|| rows.slots(p, Seq(0), 10, 1 << 20, true)).await.unwrap();
        assert_eq!(slots.iter().map(|row| (row.seq.0, row.lost)).collect::<Vec<_>>(), [(2, true)]);
    }
}
