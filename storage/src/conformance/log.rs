//! Laws of the log itself: dense, written once, read without gaps.

use super::bench::{Backend, Bench, DAY, SHAPE, again, id};
use crate::error::StoreError;
use crate::rows::{Applied, Batch, Head, Rows};
use crate::{EntryPayload, Store};
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, PageEnd, SlotBody, Urgency};
use chappe_protocol::id::{DeviceId, Seq};
use chappe_protocol::time::Millis;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Slots are 1, 2, 3 … and each holds what was answered for it.
pub async fn the_log_is_dense<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    assert_eq!(log.head(bench.mailbox, true).await, Ok(Seq(0)), "an unused mailbox is empty");
    assert!(bench.numbers(&log).await.is_empty());
    for n in 1..=22 {
        let reply = log.append(bench.mailbox, &[bench.entry(n)], None).await.unwrap();
        assert_eq!((reply.entries[0].seq(), reply.head), (Seq(n), Seq(n)));
    }
    assert_eq!(bench.numbers(&log).await, (1..=22).collect::<Vec<_>>());
    assert_eq!(log.head(bench.mailbox, true).await, Ok(Seq(22)));
    assert_eq!(log.head(bench.mailbox, false).await, Ok(Seq(22)));
}

/// One call may span several buckets; its entries keep their order.
pub async fn a_batch_is_split_at_edges_in_order<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.fill(&log, 1..=2).await;
    let entries: Vec<_> = (3..=17).map(|n| bench.entry(n)).collect();
    let reply = log.append(bench.mailbox, &entries, None).await.unwrap();
    let seqs: Vec<_> = reply.entries.iter().map(|entry| entry.seq().0).collect();
    assert_eq!(seqs, (3..=17).collect::<Vec<_>>());
    assert_eq!(bench.numbers(&log).await, (1..=17).collect::<Vec<_>>());
    assert!(B::fails() || log.0.stats().crossings >= 4);
}

/// What was appended is what is read.
pub async fn slots_keep_every_field<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let some = || vec![DeviceId::new("phone").unwrap(), DeviceId::new("web-2").unwrap()];
    let filters = [
        DeviceFilter::All,
        DeviceFilter::Only(some()),
        DeviceFilter::AllBut(some()),
        DeviceFilter::Only(vec![]),
    ];
    let urgencies = [Urgency::Background, Urgency::Message, Urgency::Call, Urgency::Message];
    let mut entries = Vec::new();
    for (n, (devices, urgency)) in (0_u8..).zip(filters.into_iter().zip(urgencies)) {
        let mut entry = bench.entry(u64::from(n));
        (entry.devices, entry.urgency) = (devices, urgency);
        entry.payload = EntryPayload::Inline(Bytes::from(vec![n; usize::from(n) * 5000]));
        entries.push(entry);
    }
    log.append(bench.mailbox, &entries, None).await.unwrap();
    let slots = bench.slots(&bench.log()).await;
    assert_eq!(slots.len(), entries.len());
    for (slot, entry) in slots.into_iter().zip(entries) {
        let EntryPayload::Inline(payload) = entry.payload else { panic!("appended inline") };
        assert_eq!(slot.body, SlotBody::Present(payload));
        assert_eq!((slot.envelope_id, slot.sender), (entry.envelope_id, Some(entry.sender)));
        assert_eq!((slot.devices, slot.urgency), (entry.devices, entry.urgency));
        assert_eq!((slot.at, slot.expires_at), (entry.at, entry.expires_at));
    }
}

/// Pages keep to their limits in rows and bytes, and hold at least one slot.
pub async fn pages_are_bounded<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    for n in 1..=10 {
        let mut entry = bench.entry(n);
        entry.payload = EntryPayload::Inline(Bytes::from(vec![7; 1000]));
        log.append(bench.mailbox, &[entry], None).await.unwrap();
    }
    for (rows_max, bytes_max, slots) in
        [(5, 1 << 20, 5), (100, 3 * 1064, 3), (100, 3 * 1064 - 1, 2), (100, 1, 1), (0, 0, 1), (1, 1 << 20, 1)]
    {
        let page = log.read(bench.mailbox, Seq(1), rows_max, bytes_max).await.unwrap();
        assert_eq!(
            (page.slots.len(), page.end),
            (slots, PageEnd::Limit),
            "{rows_max} rows, {bytes_max} bytes"
        );
    }
    let page = log.read(bench.mailbox, Seq(1), 100, 1 << 20).await.unwrap();
    assert_eq!((page.slots.len(), page.end), (9, PageEnd::Head(Seq(10))), "pages cross buckets");
    let page = log.read(bench.mailbox, Seq(1), 9, 1 << 20).await.unwrap();
    assert_eq!(page.slots.len(), 9);
}

/// Behind the head there is nothing, and the page says where the head is.
pub async fn reading_beyond_the_head_is_empty<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    for head in 0..=8 {
        for after in [head, head + 1, head + 4, head + 100] {
            let page = bench.log().read(bench.mailbox, Seq(after), 10, 1 << 20).await.unwrap();
            assert_eq!(
                (page.slots.len(), page.end),
                (0, PageEnd::Head(Seq(head))),
                "head {head}, after {after}"
            );
        }
        bench.fill(&log, head + 1..=head + 1).await;
    }
}

/// Two routers, each with its own idea of the head, cross edges in turn and together.
pub async fn two_routers_cross_an_edge<B: Backend>(bench: Bench<B>) {
    let (one, two) = (bench.log(), bench.log());
    for n in (1..40).step_by(4) {
        let first = [bench.entry(n), bench.entry(n + 1)];
        let second = [bench.entry(n + 2), bench.entry(n + 3)];
        let (a, b) =
            tokio::join!(one.append(bench.mailbox, &first, None), two.append(bench.mailbox, &second, None));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert!(
            a.entries[0].seq() < a.entries[1].seq() && b.entries[0].seq() < b.entries[1].seq(),
            "in order"
        );
    }
    let mut numbers = bench.numbers(&bench.log()).await;
    assert_eq!(numbers.len(), 40);
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=40).collect::<Vec<_>>(), "each once");
}

/// Many tasks over several routers: dense, each once, each in its own order.
pub async fn many_appenders_are_dense_and_once<B: Backend>(bench: Bench<B>) {
    let logs: Vec<_> = (0..3).map(|_| Arc::new(bench.log())).collect();
    let mut tasks = JoinSet::new();
    for (task, log) in (0..8_u64).zip(logs.iter().cycle()) {
        let (log, mailbox) = (log.clone(), bench.mailbox);
        let entries: Vec<_> = (0..12).map(|n| bench.entry(task * 100 + n)).collect();
        tasks.spawn(async move {
            for pair in entries.chunks(2) {
                log.append(mailbox, pair, None).await.unwrap();
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let numbers = bench.numbers(&bench.log()).await;
    assert_eq!(numbers.len(), 96);
    for task in 0..8 {
        let own: Vec<_> = numbers.iter().filter(|n| **n / 100 == task).map(|n| n % 100).collect();
        assert_eq!(own, (0..12).collect::<Vec<_>>(), "each once and in the order of its sender");
    }
}

/// However long the log and however old the hint, a cold head costs few reads.
pub async fn a_cold_head_is_found_in_few_reads<B: Backend>(bench: Bench<B>) {
    let rows = bench.rows();
    for bucket in 0..100 {
        let (first, last) =
            (SHAPE.first(bench.partition(bucket).bucket).0, SHAPE.last(bench.partition(bucket).bucket).0);
        let last = if bucket == 99 { first } else { last };
        let entries: Vec<_> = (first..=last).map(|n| bench.entry(n)).collect();
        let to = Head { seq: Seq(last), opened_at: bench.world_now(), bytes_total: last * 8 };
        let slots = (first..).map(Seq).zip(&entries).collect();
        let batch = Batch { expected: None, to, slots };
        again(|| rows.compare_and_append(bench.partition(bucket), batch.clone())).await.unwrap();
    }
    assert_eq!(rows_hint(&bench).await, 0, "nobody wrote a hint");
    let log = bench.log();
    assert_eq!(log.head(bench.mailbox, true).await, Ok(Seq(396)));
    assert!(log.0.stats().head_reads < 400, "{:?}", log.0.stats());
    assert!(log.0.stats().galloped > 0);
    for n in 397..=400 {
        log.append(bench.mailbox, &[bench.entry(n)], Some(bench.partition(99).bucket)).await.unwrap();
    }
    if B::fails() {
        again(|| rows.raise_hint(bench.mailbox, bench.partition(100).bucket)).await.unwrap();
    }
    assert_eq!(rows_hint(&bench).await, 100, "a new bucket leaves a hint");
    let warm = bench.log();
    assert_eq!(warm.head(bench.mailbox, true).await, Ok(Seq(400)));
    again(|| rows.raise_hint(bench.mailbox, bench.partition(3).bucket)).await.unwrap();
    assert_eq!(rows_hint(&bench).await, 100, "a late hint changes nothing");
}

async fn rows_hint<B: Backend>(bench: &Bench<B>) -> u64 {
    let rows = bench.rows();
    again(|| rows.hint(bench.mailbox)).await.unwrap().0
}

/// Whatever quorum reads miss, every slot comes, none twice, none as lost.
pub async fn the_log_is_read_whole<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.fill(&log, 1..=60).await;
    for slot in bench.slots(&log).await {
        assert!(matches!(slot.body, SlotBody::Present(_)), "slot {}: {:?}", slot.seq, slot.body);
    }
    assert_eq!(bench.numbers(&bench.log()).await, (1..=60).collect::<Vec<_>>());
    assert_eq!(log.0.stats().lost, 0);
}

/// A row that is missing below the head is reported, once and for ever, and stops nobody.
pub async fn lost_slots_are_reported<B: Backend>(bench: Bench<B>) {
    let (log, rows) = (bench.log(), bench.rows());
    bench.fill(&log, 1..=10).await;
    // The database loses rows that it had promised to keep.
    again(|| rows.delete_slots(bench.partition(1))).await.unwrap();
    for (first, log) in [(true, bench.log()), (false, bench.log())] {
        let slots = bench.slots(&log).await;
        assert_eq!(slots.len(), 10);
        // Found once, written down, and told as what it is from then on.
        assert!(log.0.stats().lost == if first { 4 } else { 0 } || (first && B::fails()));
        for slot in slots {
            let lost = (4..=7).contains(&slot.seq.0);
            assert_eq!(slot.body == SlotBody::Lost, lost, "slot {}", slot.seq);
            assert_eq!(slot.sender.is_none(), lost);
            assert!(!lost || slot.devices == DeviceFilter::All, "told to every device");
        }
    }
    assert_eq!(bench.log().append(bench.mailbox, &[bench.entry(11)], None).await.unwrap().head, Seq(11));
}

/// A shared payload that is gone before its time is lost, not expired.
pub async fn lost_payloads_are_reported<B: Backend>(bench: Bench<B>) {
    let (log, rows) = (bench.log(), bench.rows());
    let payload = bench.payload();
    log.put_payload(payload, Bytes::from_static(b"shared"), bench.world_now() + DAY).await.unwrap();
    let mut entry = bench.entry(1);
    entry.payload = EntryPayload::Ref { id: payload, bytes: 6 };
    log.append(bench.mailbox, &[entry, bench.entry(2)], None).await.unwrap();
    again(|| rows.delete_payload(payload)).await.unwrap();
    for _ in 0..2 {
        let slots = bench.slots(&bench.log()).await;
        assert_eq!((slots[0].envelope_id, &slots[0].body), (id(1), &SlotBody::Lost));
        assert!(matches!(slots[1].body, SlotBody::Present(_)));
    }
}

/// A shared payload that lives longer than a slot does not prolong it.
pub async fn a_slot_ends_at_its_own_time<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let payload = bench.payload();
    let until = bench.world_now() + Millis(10 * DAY.0);
    log.put_payload(payload, Bytes::from_static(b"shared"), until).await.unwrap();
    let mut entry = bench.entry_for(1, DAY);
    entry.payload = EntryPayload::Ref { id: payload, bytes: 6 };
    log.append(bench.mailbox, &[entry], None).await.unwrap();
    assert!(matches!(bench.slots(&log).await[0].body, SlotBody::Present(_)));
    bench.elapse(Millis(2 * DAY.0)).await;
    assert_eq!(bench.slots(&log).await[0].body, SlotBody::Expired);
}

/// One stored payload serves many mailboxes; the first write of an id stands.
pub async fn a_payload_is_stored_once<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let payload = bench.payload();
    let until = bench.world_now() + DAY;
    log.put_payload(payload, Bytes::from_static(b"shared"), until).await.unwrap();
    log.put_payload(payload, Bytes::from_static(b"other"), until).await.unwrap();
    let mailboxes = [1, 2, 3].map(|n| bench.other(n));
    for (n, mailbox) in mailboxes.into_iter().enumerate() {
        let mut entry = bench.entry(n as u64);
        entry.payload = EntryPayload::Ref { id: payload, bytes: 6 };
        log.append(mailbox, &[entry], None).await.unwrap();
    }
    for (expected, later) in
        [(SlotBody::Present(Bytes::from_static(b"shared")), DAY), (SlotBody::Expired, DAY)]
    {
        for mailbox in mailboxes {
            let page = log.read(mailbox, Seq(0), 10, 1 << 20).await.unwrap();
            assert_eq!(page.slots[0].body, expected);
        }
        bench.elapse(later).await;
    }
}

/// A full mailbox refuses, knows its duplicates, and takes again after a trim.
pub async fn quota_refuses<B: Backend>(bench: Bench<B>) {
    let log = bench.log_with(|config| config.slots_max = 9);
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=9).await;
    assert_eq!(log.append(bench.mailbox, &[bench.entry(10)], None).await, Err(StoreError::Quota));
    let again = log.append(bench.mailbox, &[bench.entry(9)], None).await.unwrap();
    assert_eq!(again.entries[0].seq(), Seq(9), "what is in the log is not refused");
    log.advance(bench.mailbox, &super::bench::device("phone"), Seq(7)).await.unwrap();
    log.trim(bench.mailbox).await.unwrap();
    assert_eq!(log.append(bench.mailbox, &[bench.entry(10)], None).await.unwrap().head, Seq(10));
    let log = bench.log_with(|config| config.bytes_max = 40);
    bench.fill(&log, 11..=12).await;
    assert_eq!(
        log.append(bench.mailbox, &[bench.entry(13)], None).await,
        Err(StoreError::Quota),
        "8 bytes each"
    );
    assert_eq!(bench.numbers(&log).await, (8..=12).collect::<Vec<_>>());
}

/// A call that can never succeed says so, and writes nothing.
pub async fn calls_that_make_no_sense_are_invalid<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let many: Vec<_> = (0..65).map(|n| bench.entry(n)).collect();
    let mut big = bench.entry(1);
    big.payload = EntryPayload::Inline(Bytes::from(vec![0; 512 * 1024 + 1]));
    for entries in [&many[..], &[big], &[]] {
        assert!(matches!(log.append(bench.mailbox, entries, None).await, Err(StoreError::Invalid(_))));
    }
    assert_eq!(log.head(bench.mailbox, true).await, Ok(Seq(0)));
    let rows = bench.rows();
    let (a, b) = (bench.entry(1), bench.entry(1));
    let to = Head { seq: Seq(2), opened_at: bench.world_now(), bytes_total: 16 };
    let twice = Batch { expected: None, to, slots: vec![(Seq(1), &a), (Seq(2), &b)] };
    let answer = again(|| rows.compare_and_append(bench.partition(0), twice.clone())).await;
    assert!(!matches!(answer, Ok(Applied::Yes)), "no id twice in a batch");
}
