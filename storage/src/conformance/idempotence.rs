//! Laws of idempotence: an envelope stands in the log at most once, whatever was retried where (I14).

use super::bench::{Backend, Bench, DAY, device};
use crate::{Appended, Store};
use chappe_protocol::id::{Bucket, Seq};
use chappe_protocol::time::Millis;

/// In the same bucket.
pub async fn a_retry_is_a_duplicate<B: Backend>(bench: Bench<B>) {
    let (one, two) = (bench.log(), bench.log());
    bench.fill(&one, 4..=4).await;
    let first = one.append(bench.mailbox, &[bench.entry(1)], None).await.unwrap();
    for log in [&one, &two] {
        for base in [None, Some(Bucket(0))] {
            let retry = log.append(bench.mailbox, &[bench.entry(1)], base).await.unwrap();
            assert_eq!(retry.entries, [Appended::Duplicate(first.entries[0].seq())]);
        }
    }
    let mixed = [bench.entry(1), bench.entry(2), bench.entry(4)];
    let reply = two.append(bench.mailbox, &mixed, None).await.unwrap();
    let seqs: Vec<_> = reply.entries.iter().map(|entry| entry.seq().0).collect();
    assert_eq!(seqs, [2, 3, 1], "old and new ones in one batch");
    assert_eq!(bench.numbers(&one).await, [4, 1, 2]);
}

/// When the log has moved on by buckets.
pub async fn a_retry_across_buckets_is_a_duplicate<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.fill(&log, 1..=2).await;
    bench.fill(&log, 100..=120).await;
    for log in [log, bench.log()] {
        for base in [None, Some(Bucket(0))] {
            let retry = log.append(bench.mailbox, &[bench.entry(1), bench.entry(2)], base).await.unwrap();
            assert_eq!(retry.entries, [Appended::Duplicate(Seq(1)), Appended::Duplicate(Seq(2))]);
        }
        assert!(log.0.stats().look_back_hits > 0);
    }
    assert_eq!(bench.numbers(&bench.log()).await.len(), 23);
}

/// When its slot was trimmed meanwhile: ids live by their own time.
pub async fn a_retry_across_a_trim_is_a_duplicate<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=12).await;
    log.advance(bench.mailbox, &device("phone"), Seq(12)).await.unwrap();
    assert_eq!(log.trim(bench.mailbox).await.unwrap().floor, Bucket(3));
    for log in [log, bench.log()] {
        for base in [None, Some(Bucket(0))] {
            let retry = log.append(bench.mailbox, &[bench.entry(2)], base).await.unwrap();
            assert_eq!(retry.entries, [Appended::Duplicate(Seq(2))]);
        }
    }
    assert_eq!(bench.log().head(bench.mailbox, true).await, Ok(Seq(12)));
}

/// When the store was restarted meanwhile.
pub async fn a_retry_across_a_restart_is_a_duplicate<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.fill(&log, 1..=9).await;
    drop(log);
    let bench = bench.reopen().await;
    let log = bench.log();
    assert_eq!(bench.numbers(&log).await, (1..=9).collect::<Vec<_>>());
    for n in [1, 5, 9] {
        let retry = log.append(bench.mailbox, &[bench.entry(n)], None).await.unwrap();
        assert_eq!(retry.entries, [Appended::Duplicate(Seq(n))]);
    }
    assert_eq!(log.append(bench.mailbox, &[bench.entry(10)], None).await.unwrap().head, Seq(10));
}

/// The first attempt, delayed behind its own retry and the opening of buckets, carries its `base` and finds itself.
pub async fn a_late_first_attempt_is_a_duplicate<B: Backend>(bench: Bench<B>) {
    let (paused, other) = (bench.log(), bench.log());
    bench.fill(&paused, 1..=2).await;
    bench.fill(&other, 3..=3).await;
    let retry = other.append(bench.mailbox, &[bench.entry(50)], None).await.unwrap();
    assert_eq!(retry.head, Seq(4));
    bench.fill(&other, 5..=13).await;
    for router in [paused, bench.log()] {
        let late = router.append(bench.mailbox, &[bench.entry(50)], Some(Bucket(0))).await.unwrap();
        assert_eq!(late.entries, [Appended::Duplicate(Seq(4))]);
    }
    assert_eq!(bench.numbers(&other).await.len(), 13);
}

/// One slot, told twice.
pub async fn the_same_id_twice_is_one_slot<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let entries = [1, 2, 1, 3, 2].map(|n| bench.entry(n));
    let reply = log.append(bench.mailbox, &entries, None).await.unwrap();
    let seqs: Vec<_> = reply.entries.iter().map(|entry| entry.seq().0).collect();
    assert_eq!(seqs, [1, 2, 1, 3, 2]);
    assert_eq!(reply.entries[2], Appended::Duplicate(Seq(1)));
    assert_eq!(bench.numbers(&log).await, [1, 2, 3]);
}

/// Ids are known for 2 days, also when the payload went long before.
pub async fn an_id_lives_two_days<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.fill(&log, 1..=6).await;
    bench.elapse(Millis(2 * DAY.0 - 60_000)).await;
    bench.fill(&log, 7..=9).await;
    for log in [log, bench.log()] {
        for n in [1, 5, 7] {
            let retry = log.append(bench.mailbox, &[bench.entry(n)], None).await.unwrap();
            assert_eq!(retry.entries, [Appended::Duplicate(Seq(n))]);
        }
    }
    assert_eq!(bench.log().head(bench.mailbox, true).await, Ok(Seq(9)));
}

/// Without a `base` the look-back ends at the first bucket that was opened more than 2 days ago, that one included.
pub async fn the_look_back_is_bounded<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.fill(&log, 1..=41).await;
    bench.elapse(Millis(2 * DAY.0 + 1)).await;
    // Bucket 10 was opened long ago, but this stands in it.
    bench.fill(&log, 42..=49).await;
    bench.elapse(DAY).await;
    let cold = bench.log();
    let retry = cold.append(bench.mailbox, &[bench.entry(42)], None).await.unwrap();
    assert_eq!(retry.entries, [Appended::Duplicate(Seq(42))]);
    let cold = bench.log();
    cold.append(bench.mailbox, &[bench.entry(50)], None).await.unwrap();
    let first = cold.0.stats();
    assert!(first.look_back_reads >= 2, "buckets 10 and 11: {first:?}");
    assert!(first.look_back_reads < 200 && first.head_reads < 200, "{first:?}");
}
