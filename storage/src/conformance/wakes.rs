//! Laws of what pushers keep: push targets, wakes, the scan of notes by shards, notes for later, watermarks.
//! **Invariant:** a law uses shards of its own for watermarks, since backends may share one database.

use super::bench::{Backend, Bench, DAY, Patient, again, device};
use crate::error::StoreError;
use crate::rows::Rows;
use crate::{PENDING_PAGE_MAX, PUSH_BYTES_MAX, PendingFrom, Store, Woken};
use bytes::Bytes;
use chappe_protocol::id::{DeviceId, MailboxId, Seq};
use chappe_protocol::time::{Millis, UnixMillis};
use std::collections::BTreeSet;

fn blob(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The greater, the earlier: when it was given must not decide.
fn woken(seq: u64, attempt: u8) -> Woken {
    let before = seq % (1 << 50) * 16 + u64::from(attempt);
    Woken { seq: Seq(seq), attempt, at: UnixMillis((1 << 61) - before) }
}

/// What a law says of a call that a failing backend may have done at an earlier try.
fn decided<B: Backend>(done: bool, expected: bool) -> bool {
    done == expected || (B::fails() && !done)
}

async fn targets<B: Backend>(bench: &Bench<B>, log: &Patient<B::Rows>, name: &str) -> Option<Bytes> {
    log.push_targets(bench.mailbox, &device(name)).await.unwrap()
}

/// Set and replaced as a whole, by device, as long as the store takes them; kept over attaches and restarts.
pub async fn push_targets_live_with_their_device<B: Backend>(bench: Bench<B>) {
    let (log, phone) = (bench.log(), device("phone"));
    assert_eq!(log.set_push_targets(bench.mailbox, &phone, blob("early")).await, Ok(false), "no such device");
    bench.attach(&log, "phone", 1, None).await;
    bench.attach(&log, "web", 2, None).await;
    assert_eq!(targets(&bench, &log, "phone").await, None, "nothing comes before its device");
    for text in ["one", "two", ""] {
        assert_eq!(log.set_push_targets(bench.mailbox, &phone, blob(text)).await, Ok(true));
        assert_eq!(targets(&bench, &log, "phone").await, Some(blob(text)), "all of it is replaced");
    }
    let most = Bytes::from(vec![0xA5; PUSH_BYTES_MAX]);
    let beyond = Bytes::from(vec![0xA5; PUSH_BYTES_MAX + 1]);
    assert_eq!(log.set_push_targets(bench.mailbox, &phone, most.clone()).await, Ok(true));
    for refused in [
        log.set_push_targets(bench.mailbox, &phone, beyond.clone()).await,
        log.replace_push_targets(bench.mailbox, &phone, &most, Some(beyond)).await,
    ] {
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    assert_eq!(targets(&bench, &log, "web").await, None, "each device has its own");
    assert_eq!(log.push_targets(bench.other(3), &phone).await, Ok(None), "and each mailbox");
    bench.attach(&log, "phone", 3, None).await;
    drop(log);
    let bench = bench.reopen().await;
    assert_eq!(targets(&bench, &bench.log(), "phone").await, Some(most));
}

/// Only what a provider has called dead goes; what was registered meanwhile stays.
pub async fn a_registration_survives_a_dead_token<B: Backend>(bench: Bench<B>) {
    let (log, other, phone) = (bench.log(), bench.log(), device("phone"));
    let (a, b, c) = (blob("a"), blob("b"), blob("c"));
    let replace = |old: &Bytes, new: Option<&Bytes>| {
        let (log, old, new, phone) = (&log, old.clone(), new.cloned(), phone.clone());
        async move { log.replace_push_targets(bench.mailbox, &phone, &old, new).await.unwrap() }
    };
    assert!(!replace(&a, Some(&b)).await, "no such device");
    bench.attach(&log, "phone", 1, None).await;
    assert!(!replace(&a, Some(&b)).await, "there are none");
    assert_eq!(targets(&bench, &log, "phone").await, None);
    log.set_push_targets(bench.mailbox, &phone, a.clone()).await.unwrap();
    assert!(!replace(&b, None).await && !replace(&b, Some(&c)).await, "stale");
    assert_eq!(targets(&bench, &log, "phone").await, Some(a.clone()));
    assert!(decided::<B>(replace(&a, Some(&b)).await, true));
    assert_eq!(targets(&bench, &log, "phone").await, Some(b.clone()), "also when the first answer was lost");
    assert!(!replace(&a, None).await, "stale by now");
    assert!(decided::<B>(replace(&b, None).await, true));
    assert_eq!(targets(&bench, &other, "phone").await, None);
    assert!(!replace(&b, Some(&a)).await, "what was removed does not come back");
    // In whatever order they come.
    for round in 0..4 {
        log.set_push_targets(bench.mailbox, &phone, a.clone()).await.unwrap();
        let register = other.set_push_targets(bench.mailbox, &phone, c.clone());
        let (_, set) = tokio::join!(replace(&a, (round % 2 == 0).then_some(&b)), register);
        assert_eq!((set, targets(&bench, &log, "phone").await), (Ok(true), Some(c.clone())));
    }
}

/// And get none.
pub async fn the_revoked_have_no_push_targets<B: Backend>(bench: Bench<B>) {
    let (log, phone) = (bench.log(), device("phone"));
    bench.attach(&log, "phone", 1, None).await;
    bench.attach(&log, "web", 2, None).await;
    for name in ["phone", "web"] {
        log.set_push_targets(bench.mailbox, &device(name), blob(name)).await.unwrap();
    }
    log.revoke(bench.mailbox, &phone).await.unwrap();
    log.revoke(bench.mailbox, &device("stranger")).await.unwrap();
    assert_eq!(targets(&bench, &log, "phone").await, None);
    let swap = log.replace_push_targets(bench.mailbox, &phone, &blob("phone"), Some(blob("again"))).await;
    assert_eq!(swap, Ok(false));
    for name in ["phone", "stranger"] {
        assert_eq!(log.set_push_targets(bench.mailbox, &device(name), blob("x")).await, Ok(false));
        assert_eq!(targets(&bench, &log, name).await, None);
    }
    assert_eq!(targets(&bench, &log, "web").await, Some(blob("web")), "the others keep theirs");
}

/// In whatever order they come.
pub async fn a_revocation_beside_a_registration_leaves_none<B: Backend>(bench: Bench<B>) {
    let (log, other) = (bench.log(), bench.log());
    for n in 1..=5 {
        let name = format!("phone-{n}");
        bench.attach(&log, &name, n, None).await;
        let phone = device(&name);
        log.set_push_targets(bench.mailbox, &phone, blob("old")).await.unwrap();
        let (revoked, set) = tokio::join!(
            log.revoke(bench.mailbox, &phone),
            other.set_push_targets(bench.mailbox, &phone, blob("new"))
        );
        assert!(revoked.is_ok() && set.is_ok(), "{revoked:?} {set:?}");
        assert_eq!(targets(&bench, &log, &name).await, None);
    }
}

/// Also of those that come beside it.
pub async fn an_erase_leaves_no_push_targets_and_no_wakes<B: Backend>(mut bench: Bench<B>) {
    let (log, other, anna) = (bench.log(), bench.log(), bench.user("anna"));
    bench.mailbox = log.create_user(&anna).await.unwrap().mailbox;
    let (phone, web) = (device("phone"), device("web"));
    bench.attach(&log, "phone", 1, None).await;
    bench.attach(&log, "web", 2, None).await;
    bench.fill(&log, 1..=5).await;
    for device in [&phone, &web] {
        log.set_push_targets(bench.mailbox, device, blob("old")).await.unwrap();
        other.raise_woken(bench.mailbox, device, woken(1, 0)).await.unwrap();
    }
    let wakes = async {
        for seq in 1..=5 {
            if log.raise_woken(bench.mailbox, &phone, woken(seq, 1)).await.is_err() {
                return;
            }
        }
    };
    let (erased, (), _) =
        tokio::join!(log.erase(&anna), wakes, log.set_push_targets(bench.mailbox, &phone, blob("new")));
    erased.unwrap();
    for device in [&phone, &web] {
        assert_eq!(log.push_targets(bench.mailbox, device).await, Ok(None));
        assert_eq!(log.woken(bench.mailbox, device).await, Ok(None));
        let late = log.set_push_targets(bench.mailbox, device, blob("late")).await;
        assert_eq!(late, Ok(false), "its devices are gone");
    }
    bench.elapse(Millis::from_secs(61)).await;
    for log in [&log, &other] {
        assert_eq!(log.raise_woken(bench.mailbox, &web, woken(4, 0)).await, Err(StoreError::Erased));
        assert_eq!(log.woken(bench.mailbox, &web).await, Ok(None));
    }
}

/// In whatever order they come: by slot, then by attempt.
pub async fn wakes_only_rise<B: Backend>(bench: Bench<B>) {
    let (rows, phone) = (bench.rows(), device("phone"));
    let read = |device: DeviceId| {
        let rows = &rows;
        async move { again(|| rows.woken(bench.mailbox, &device)).await.unwrap() }
    };
    assert_eq!(read(phone.clone()).await, None);
    let steps = [
        (woken(7, 1), woken(7, 1)),
        (woken(7, 1), woken(7, 1)),
        (woken(7, 0), woken(7, 1)),
        (woken(6, 15), woken(7, 1)),
        (woken(7, 2), woken(7, 2)),
        (woken(8, 0), woken(8, 0)),
        (woken(7, 15), woken(8, 0)),
        (woken(1 << 40, 15), woken(1 << 40, 15)),
        (woken(8, 1), woken(1 << 40, 15)),
    ];
    for (raise, stands) in steps {
        again(|| rows.raise_woken(bench.mailbox, &phone, raise)).await.unwrap();
        assert_eq!(read(phone.clone()).await, Some(stands), "after {raise:?}");
    }
    let three = [woken(3, 2), woken(4, 0), woken(3, 15)];
    for (n, order) in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]].iter().enumerate() {
        let name = device(&format!("web-{n}"));
        for at in order {
            again(|| rows.raise_woken(bench.mailbox, &name, three[*at])).await.unwrap();
        }
        assert_eq!(read(name).await, Some(woken(4, 0)), "{order:?}");
    }
    let [early, late] = [1, 1 << 40].map(|at| Woken { at: UnixMillis(at), ..woken(3, 1) });
    for (n, order) in [[early, late], [late, early]].into_iter().enumerate() {
        let name = device(&format!("pad-{n}"));
        for wake in order {
            again(|| rows.raise_woken(bench.mailbox, &name, wake)).await.unwrap();
        }
        assert_eq!(read(name).await, Some(late), "{order:?}: one of the two, in whatever order they come");
    }
    let never = Woken { at: UnixMillis(u64::MAX), ..woken(3, 1) };
    for wrong in [woken(0, 1), woken(1 << 59, 0), woken(u64::MAX, 0), woken(2, 16), never] {
        let refused = again(|| rows.raise_woken(bench.mailbox, &phone, wrong)).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{wrong:?}: {refused:?}");
    }
    assert_eq!(again(|| rows.woken(bench.other(4), &phone)).await, Ok(None), "each mailbox has its own");
    drop(rows);
    let bench = bench.reopen().await;
    assert_eq!(bench.log().woken(bench.mailbox, &phone).await, Ok(Some(woken(1 << 40, 15))));
}

/// A wake beyond the head would keep a device asleep; one at the head does not.
pub async fn wakes_are_for_slots_that_are_there<B: Backend>(bench: Bench<B>) {
    let (stale, log, phone) = (bench.log(), bench.log(), device("phone"));
    bench.attach(&stale, "phone", 1, None).await;
    bench.fill(&log, 1..=5).await;
    for log in [&stale, &log] {
        for beyond in [woken(6, 0), woken(1 << 59, 0), woken(0, 0), woken(5, 16)] {
            let refused = log.raise_woken(bench.mailbox, &phone, beyond).await;
            assert!(matches!(refused, Err(StoreError::Invalid(_))), "{beyond:?}: {refused:?}");
        }
        assert_eq!(log.woken(bench.mailbox, &phone).await, Ok(None));
    }
    log.raise_woken(bench.mailbox, &phone, woken(2, 3)).await.unwrap();
    stale.raise_woken(bench.mailbox, &phone, woken(5, 0)).await.unwrap();
    log.raise_woken(bench.mailbox, &phone, woken(4, 1)).await.unwrap();
    for log in [&stale, &log] {
        assert_eq!(log.woken(bench.mailbox, &phone).await, Ok(Some(woken(5, 0))));
    }
}

/// Notes mailboxes over four minutes, some of them again; returns the minutes' beginnings and what was noted, by shard, in
/// order.
async fn note_many<B: Backend>(bench: &Bench<B>) -> (UnixMillis, Vec<Vec<(u64, MailboxId)>>) {
    let (rows, start) = (bench.rows(), bench.world_now());
    let mut noted = vec![BTreeSet::new(); usize::from(MailboxId::SHARDS)];
    let mut again_and_again = Vec::new();
    for minute in 0..4 {
        for n in 0..24 {
            let mailbox = match again_and_again.get(n / 2) {
                Some(mailbox) if n % 2 == 0 => *mailbox,
                Some(_) | None => MailboxId::random(&*bench.world),
            };
            again(|| rows.add_pending(mailbox)).await.unwrap();
            again_and_again.push(mailbox);
            noted[usize::from(mailbox.shard())].insert((minute, mailbox));
        }
        bench.elapse(Millis(60_000)).await;
    }
    (start, noted.into_iter().map(|noted| noted.into_iter().collect()).collect())
}

/// Every page of a shard.
async fn scan<B: Backend>(
    log: &Patient<B::Rows>,
    shard: u16,
    mut from: PendingFrom,
    rows_max: usize,
) -> Vec<MailboxId> {
    let mut all = Vec::new();
    for _ in 0..10_000 {
        let page = log.pending_in_shard(shard, from, rows_max).await.unwrap();
        assert!(page.mailboxes.len() <= rows_max.clamp(1, PENDING_PAGE_MAX), "a page is bounded");
        all.extend(page.mailboxes);
        match page.next {
            Some(next) => {
                assert!(next > from, "a scan moves on");
                from = next;
            }
            None => return all,
        }
    }
    panic!("a scan never ends");
}

/// Each note once and in order, whatever the size of a page; the clock is the store's.
pub async fn a_shards_notes_are_paged_without_gap<B: Backend>(bench: Bench<B>) {
    let (start, noted) = note_many(&bench).await;
    let log = bench.log();
    assert_eq!(log.pending_shards(), u16::from(MailboxId::SHARDS));
    for (shard, noted) in (0..log.pending_shards()).zip(&noted) {
        let expected: Vec<_> = noted.iter().map(|(_, mailbox)| *mailbox).collect();
        for rows_max in [0, 1, 3, usize::MAX] {
            let found = scan::<B>(&log, shard, PendingFrom::since(start), rows_max).await;
            assert_eq!(found, expected, "shard {shard}, pages of {rows_max}");
        }
        let page = log.pending_in_shard(shard, PendingFrom::since(start), 9).await.unwrap();
        assert_eq!(page.as_of, bench.world_now());
        let later = start + Millis(120_000);
        let expected: Vec<_> = noted.iter().filter(|(minute, _)| *minute >= 2).map(|(_, id)| *id).collect();
        assert_eq!(scan::<B>(&log, shard, PendingFrom::since(later), 2).await, expected, "from a minute on");
    }
    for shard in [log.pending_shards(), 256, u16::MAX] {
        let refused = log.pending_in_shard(shard, PendingFrom::since(start), 9).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
}

/// Nothing is in two shards, nothing in none.
pub async fn all_shards_together_are_what_is_pending<B: Backend>(bench: Bench<B>) {
    let (start, noted) = note_many(&bench).await;
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    for since in [start, start + Millis(60_000), start + Millis(180_000)] {
        let mut all = BTreeSet::new();
        for shard in 0..log.pending_shards() {
            let found: BTreeSet<_> =
                scan::<B>(&log, shard, PendingFrom::since(since), 5).await.into_iter().collect();
            assert!(found.iter().all(|mailbox| u16::from(mailbox.shard()) == shard && all.insert(*mailbox)));
        }
        let (pending, _) = log.pending_since(since).await.unwrap();
        assert_eq!(all.into_iter().collect::<Vec<_>>(), pending);
    }
    assert!(noted.iter().filter(|noted| !noted.is_empty()).count() > 8, "not all in a few shards");
}

/// Notes are kept for a day; a scan from later than now finds nothing, and ends.
pub async fn a_scan_reads_no_future_and_no_past<B: Backend>(bench: Bench<B>) {
    let (rows, log, mailbox) = (bench.rows(), bench.log(), bench.other(6));
    let (start, shard) = (bench.world_now(), u16::from(mailbox.shard()));
    again(|| rows.add_pending(mailbox)).await.unwrap();
    for ahead in [UnixMillis(start.0 + 180_000), UnixMillis(u64::MAX)] {
        let page = log.pending_in_shard(shard, PendingFrom::since(ahead), 9).await.unwrap();
        assert_eq!((page.mailboxes, page.next, page.as_of), (vec![], None, start));
    }
    bench.elapse(Millis(DAY.0 - 120_000)).await;
    assert_eq!(scan::<B>(&log, shard, PendingFrom::since(UnixMillis(0)), 9).await, [mailbox], "a day long");
    bench.elapse(Millis(240_000)).await;
    again(|| rows.add_pending(bench.other(8))).await.unwrap();
    let found = scan::<B>(&log, shard, PendingFrom::since(start), 9).await;
    assert!(!found.contains(&mailbox), "not longer");
}

/// Neither earlier nor later, also after a restart; and notes of the present beside it.
pub async fn a_note_for_later_is_found_in_its_minute<B: Backend>(bench: Bench<B>) {
    let (log, early, late) = (bench.log(), bench.other(6), bench.other(7));
    let (start, shard) = (bench.world_now(), u16::from(late.shard()));
    let in_minutes = |minutes: u64| UnixMillis(start.0 + minutes * 60_000);
    log.add_pending_at(late, in_minutes(10)).await.unwrap();
    log.add_pending(early).await.unwrap();
    log.add_pending_at(early, in_minutes(10)).await.unwrap();
    let both = bench.other(5);
    log.add_pending_at(both, in_minutes(30)).await.unwrap();
    log.add_pending(both).await.unwrap();
    for minutes in [0, 8] {
        let from = PendingFrom::since(start);
        assert!(!scan::<B>(&log, shard, from, 9).await.contains(&late), "after {minutes} minutes");
        let noted = log.pending_since(start).await.unwrap().0;
        assert_eq!(noted, [both, early], "a note for later is none for now: after {minutes} minutes");
        bench.elapse(Millis(480_000)).await;
    }
    drop(log);
    let bench = bench.reopen().await;
    let log = bench.log();
    for mailbox in [early, late] {
        let from = PendingFrom::since(in_minutes(2));
        let found = scan::<B>(&log, u16::from(mailbox.shard()), from, 9).await;
        assert_eq!(found.iter().filter(|found| **found == mailbox).count(), 1, "once, in its minute");
    }
    assert_eq!(log.pending_since(in_minutes(2)).await.unwrap().0, [early, late]);
    // From 16 minutes on: a day behind its minute, but for two minutes; then two minutes more than a day.
    bench.elapse(Millis(DAY.0 - 480_000)).await;
    log.add_pending(bench.other(8)).await.unwrap();
    assert!(scan::<B>(&log, shard, PendingFrom::since(start), 9).await.contains(&late), "a day long");
    assert!(log.pending_since(start).await.unwrap().0.contains(&late));
    bench.elapse(Millis(240_000)).await;
    log.add_pending(bench.other(9)).await.unwrap();
    assert!(!scan::<B>(&log, shard, PendingFrom::since(start), 9).await.contains(&late), "not longer");
}

/// What is late is for now; what is for never is for tomorrow.
pub async fn a_note_is_for_now_to_tomorrow<B: Backend>(bench: Bench<B>) {
    let (log, start) = (bench.log(), bench.world_now());
    let (past, never) = (bench.other(6), bench.other(7));
    bench.elapse(Millis(600_000)).await;
    let now = bench.world_now();
    log.add_pending(past).await.unwrap();
    bench.elapse(Millis(120_000)).await;
    log.add_pending_at(past, start).await.unwrap();
    log.add_pending_at(never, UnixMillis(u64::MAX)).await.unwrap();
    let found = |mailbox: MailboxId, from: UnixMillis| {
        let log = &log;
        async move { scan::<B>(log, u16::from(mailbox.shard()), PendingFrom::since(from), 9).await }
    };
    assert!(found(past, now + Millis(120_000)).await.contains(&past), "as if noted now");
    assert_eq!(log.pending_since(start).await.unwrap().0, [past]);
    bench.elapse(Millis(DAY.0 - 120_000)).await;
    assert!(!found(never, start).await.contains(&never));
    bench.elapse(Millis(120_000)).await;
    assert!(found(never, start).await.contains(&never));
}

/// However many there are: a scan of now ends before them.
pub async fn notes_for_later_do_not_hold_a_scan<B: Backend>(bench: Bench<B>) {
    let (log, start) = (bench.log(), bench.world_now());
    let shard = bench.mailbox.shard();
    let of_shard = || std::iter::repeat_with(|| MailboxId::random(&*bench.world));
    let mailboxes: Vec<_> = of_shard().filter(|mailbox| mailbox.shard() == shard).take(20).collect();
    for (mailbox, minutes) in mailboxes.iter().zip(3..) {
        log.add_pending_at(*mailbox, start + Millis(minutes * 60_000)).await.unwrap();
    }
    log.add_pending(bench.mailbox).await.unwrap();
    for rows_max in [2, 9] {
        let page = log.pending_in_shard(u16::from(shard), PendingFrom::since(start), rows_max).await.unwrap();
        assert_eq!((page.mailboxes, page.next), (vec![bench.mailbox], None), "pages of {rows_max}");
    }
    bench.elapse(Millis(30 * 60_000)).await;
    let found = scan::<B>(&log, u16::from(shard), PendingFrom::since(start + Millis(60_000)), 3).await;
    assert_eq!(found, mailboxes, "each in its own minute");
}

/// In whatever order they come, for each shard by itself, also after a restart.
pub async fn a_watermark_only_rises<B: Backend>(bench: Bench<B>) {
    let (log, other, start) = (bench.log(), bench.log(), bench.world_now());
    let at = |ms: u64| UnixMillis(start.0 - 3000 + ms);
    assert_eq!(log.swept(0).await, Ok(None));
    for (shard, order) in (0..6).zip([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]) {
        let mut greatest = 0;
        for ms in order {
            log.raise_swept(shard, at(ms)).await.unwrap();
            bench.elapse(Millis(1)).await;
            greatest = ms.max(greatest);
            assert_eq!(other.swept(shard).await, Ok(Some(at(greatest))), "{order:?}");
        }
    }
    let (one, two) = tokio::join!(log.raise_swept(6, at(40)), other.raise_swept(6, at(41)));
    assert_eq!((one, two, log.swept(6).await), (Ok(()), Ok(()), Ok(Some(at(41)))));
    assert_eq!(log.swept(7).await, Ok(None), "each shard has its own");
    for shard in [log.pending_shards(), 256, u16::MAX] {
        let (read, raised) = (log.swept(shard).await, log.raise_swept(shard, start).await);
        assert!(matches!(read, Err(StoreError::Invalid(_))), "{read:?}");
        assert!(matches!(raised, Err(StoreError::Invalid(_))), "{raised:?}");
    }
    drop((log, other));
    let bench = bench.reopen().await;
    assert_eq!((bench.log().swept(0).await, bench.log().swept(6).await), (Ok(Some(at(2))), Ok(Some(at(41)))));
}

/// Not by a caller's wrong clock, and not after the store's own was set back.
pub async fn a_watermark_hides_no_notes_to_come<B: Backend>(bench: Bench<B>) {
    let (log, start) = (bench.log(), bench.world_now());
    for ahead in [start + Millis(60_001), UnixMillis(u64::MAX)] {
        let refused = log.raise_swept(8, ahead).await;
        assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    }
    log.raise_swept(8, UnixMillis(0)).await.unwrap();
    log.raise_swept(8, UnixMillis(start.0 - DAY.0 - 1)).await.unwrap();
    assert_eq!(log.swept(8).await, Ok(None), "older than every note");
    log.raise_swept(8, UnixMillis(start.0 - DAY.0)).await.unwrap();
    assert_eq!(log.swept(8).await, Ok(Some(UnixMillis(start.0 - DAY.0))));
    let most = start + Millis(60_000);
    log.raise_swept(8, most).await.unwrap();
    assert_eq!(log.swept(8).await, Ok(Some(most)));
    bench.world.set_wall(UnixMillis(start.0 - 1));
    assert_eq!(log.swept(8).await, Ok(None), "the clock was set back");
    log.raise_swept(8, UnixMillis(start.0 - 1)).await.unwrap();
    assert_eq!(log.swept(8).await, Ok(None));
    bench.world.set_wall(start);
    assert_eq!(log.swept(8).await, Ok(Some(most)), "and has caught up");
    bench.elapse(Millis(DAY.0 + 60_001)).await;
    assert_eq!(log.swept(8).await, Ok(None), "older than every note");
}
