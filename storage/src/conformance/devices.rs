//! Laws of devices, sessions, cursors and users.

use super::bench::{Backend, Bench, DAY, device};
use crate::error::StoreError;
use crate::{Attach, Store};
use chappe_protocol::id::{ConnectionId, Seq};
use chappe_protocol::time::Millis;

/// Its first cursor is the head, and never changes.
pub async fn a_new_device_sees_nothing_old<B: Backend>(bench: Bench<B>) {
    let (stale, log) = (bench.log(), bench.log());
    bench.fill(&stale, 1..=2).await;
    bench.fill(&log, 3..=9).await;
    let first = bench.attach(&stale, "phone", 1, None).await;
    assert_eq!((first.device.since, first.from, first.head), (Seq(9), Seq(9), Seq(9)), "at SERIAL");
    bench.fill(&log, 10..=11).await;
    let second = bench.attach(&stale, "phone", 2, None).await;
    assert_eq!((second.device.since, second.from, second.head), (Seq(9), Seq(9), Seq(11)));
    let other = bench.attach(&log, "web", 3, Some(4)).await;
    assert_eq!(
        (other.device.since, other.from),
        (Seq(11), Seq(11)),
        "a cursor below `since` shows nothing older"
    );
    let set = log.devices(bench.mailbox).await.unwrap();
    let names: Vec<_> = set.devices.iter().map(|row| row.device.as_str()).collect();
    assert_eq!((set.version, names), (2, vec!["phone", "web"]));
}

/// Epoch + 1, the client's cursor as an ack, else the stored one.
pub async fn attach_raises_the_epoch_and_takes_the_cursor<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let first = bench.attach(&log, "phone", 9, None).await;
    bench.fill(&log, 1..=8).await;
    let second = bench.attach(&log, "phone", 2, Some(5)).await;
    assert!(second.device.epoch > first.device.epoch);
    assert_eq!((second.device.connection, second.from), (ConnectionId([2; 16]), Seq(5)));
    assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(5)), "counts as an ack");
    let third = bench.attach(&log, "phone", 3, None).await;
    assert_eq!(third.from, Seq(5), "the stored one");
    let lagging = bench.attach(&log, "phone", 4, Some(2)).await;
    assert_eq!(lagging.from, Seq(2), "what the client has not persisted is sent again");
    assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(5)));
    let stored = &log.devices(bench.mailbox).await.unwrap().devices[0];
    assert_eq!((stored.epoch, stored.connection), (lagging.device.epoch, ConnectionId([4; 16])));
}

/// A resume or a peek leaves everything as it was.
pub async fn glance_writes_nothing<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    assert_eq!(log.glance(bench.mailbox, &device("phone"), None).await, Ok(None), "no such device yet");
    let attached = bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=6).await;
    log.advance(bench.mailbox, &device("phone"), Seq(2)).await.unwrap();
    let before = log.devices(bench.mailbox).await.unwrap();
    for (cursor, from) in [(None, 2), (Some(Seq(4)), 4)] {
        let seen = log.glance(bench.mailbox, &device("phone"), cursor).await.unwrap().unwrap();
        assert_eq!((seen.from, seen.head, seen.device.epoch), (Seq(from), Seq(6), attached.device.epoch));
    }
    assert_eq!(log.devices(bench.mailbox).await.unwrap(), before);
    assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(2)));
}

/// A late or repeated advance changes nothing.
pub async fn cursors_only_rise<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=9).await;
    assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(0)));
    for (upto, stored) in [(3, 3), (7, 7), (5, 7), (0, 7), (8, 8), (7, 8)] {
        log.advance(bench.mailbox, &device("phone"), Seq(upto)).await.unwrap();
        assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(stored)));
    }
    assert_eq!(log.cursor(bench.mailbox, &device("web")).await, Ok(Seq(0)), "each device has its own");
}

/// With sessions and device set.
pub async fn cursors_survive_a_restart<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    bench.attach(&log, "web", 2, None).await;
    bench.fill(&log, 1..=9).await;
    log.advance(bench.mailbox, &device("phone"), Seq(6)).await.unwrap();
    log.revoke(bench.mailbox, &device("web")).await.unwrap();
    let (set, tag) = (log.devices(bench.mailbox).await.unwrap(), log.cursor_tag(bench.mailbox));
    drop(log);
    let bench = bench.reopen().await;
    let log = bench.log();
    assert_eq!(log.cursor(bench.mailbox, &device("phone")).await, Ok(Seq(6)));
    assert_eq!(log.devices(bench.mailbox).await, Ok(set.clone()));
    assert_eq!(log.cursor_tag(bench.mailbox), tag, "the same store");
    let back = bench.attach(&log, "phone", 3, None).await;
    assert_eq!(back.from, Seq(6));
    assert!(back.device.epoch > set.devices[0].epoch);
}

/// Refused and counted; nothing is reset.
pub async fn a_cursor_ahead_is_refused<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let (phone, ahead) = (device("phone"), StoreError::CursorAhead { cursor: Seq(7), head: Seq(6) });
    bench.attach(&log, "phone", 1, None).await;
    bench.fill(&log, 1..=6).await;
    let attach = Attach { connection: ConnectionId([2; 16]), cursor: Some(Seq(7)) };
    let before = log.devices(bench.mailbox).await.unwrap();
    for log in [&log, &bench.log()] {
        assert_eq!(log.attach(bench.mailbox, &phone, attach.clone()).await, Err(ahead.clone()));
        assert_eq!(log.glance(bench.mailbox, &phone, Some(Seq(7))).await, Err(ahead.clone()));
        assert_eq!(log.advance(bench.mailbox, &phone, Seq(7)).await, Err(ahead.clone()));
        assert!(log.0.stats().cursors_ahead >= 3);
    }
    assert_eq!(log.devices(bench.mailbox).await.unwrap(), before);
    assert_eq!(log.cursor(bench.mailbox, &phone).await, Ok(Seq(0)));
    assert_eq!(bench.numbers(&log).await.len(), 6);
}

/// For ever, also if they never attached.
pub async fn the_revoked_stay_out<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    bench.attach(&log, "phone", 1, None).await;
    let version = log.devices(bench.mailbox).await.unwrap().version;
    for name in ["phone", "stranger"] {
        log.revoke(bench.mailbox, &device(name)).await.unwrap();
        log.revoke(bench.mailbox, &device(name)).await.unwrap();
        let attach = Attach { connection: ConnectionId([2; 16]), cursor: None };
        assert_eq!(log.attach(bench.mailbox, &device(name), attach).await, Err(StoreError::Revoked));
        assert_eq!(log.glance(bench.mailbox, &device(name), None).await, Err(StoreError::Revoked));
    }
    let set = log.devices(bench.mailbox).await.unwrap();
    assert!(set.version > version, "the set has changed");
    assert!(set.devices.iter().all(|row| row.revoked) && set.devices.len() == 2);
}

/// Two gateways at once, and later ones, get the same mailbox.
pub async fn users_agree_on_one_mailbox<B: Backend>(bench: Bench<B>) {
    let (one, two) = (bench.log(), bench.log());
    let (anna, ben) = (bench.user("anna"), bench.user("ben"));
    assert_eq!(one.user(&anna).await, Ok(None));
    let (a, b) = tokio::join!(one.create_user(&anna), two.create_user(&anna));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a, b);
    assert_eq!(one.user(&anna).await, Ok(Some(a)));
    let other = two.create_user(&ben).await.unwrap();
    assert_ne!(other.mailbox, a.mailbox);
    drop((one, two));
    let bench = bench.reopen().await;
    assert_eq!(bench.log().create_user(&anna).await, Ok(a));
}

/// Whatever grew, attached or was revoked since a time is named; what is older than a day is not.
pub async fn pending_names_what_moved<B: Backend>(bench: Bench<B>) {
    let log = bench.log();
    let start = bench.world_now();
    let (quiet, noted) = (bench.other(1), bench.other(2));
    log.add_pending(quiet).await.unwrap();
    bench.elapse(Millis::from_secs(600)).await;
    let (_, later) = log.pending_since(start).await.unwrap();
    assert_eq!(later, bench.world_now(), "the store's clock");
    for _ in 0..3 {
        log.add_pending(noted).await.unwrap();
    }
    bench.attach(&log, "phone", 1, None).await;
    let (names, _) = log.pending_since(later).await.unwrap();
    assert_eq!(names, [noted, bench.mailbox], "each once; an attach is news");
    assert_eq!(log.pending_since(start).await.unwrap().0, [quiet, noted, bench.mailbox]);
    bench.elapse(Millis::from_secs(600)).await;
    let later = bench.world_now();
    assert!(log.pending_since(later).await.unwrap().0.is_empty());
    log.revoke(bench.mailbox, &device("phone")).await.unwrap();
    assert_eq!(log.pending_since(later).await.unwrap().0, [bench.mailbox], "a revocation is news");
    let user = bench.user("ben");
    let erased = log.create_user(&user).await.unwrap().mailbox;
    log.erase(&user).await.unwrap();
    let mut names = log.pending_since(later).await.unwrap().0;
    names.retain(|mailbox| *mailbox != bench.mailbox);
    assert_eq!(names, [erased], "an erasure is news");
    bench.elapse(Millis(DAY.0 + 120_000)).await;
    log.add_pending(noted).await.unwrap();
    assert_eq!(log.pending_since(start).await.unwrap().0, [noted], "kept for a day");
}

/// One per mailbox, the same in every router.
pub async fn tags_name_mailbox_and_store<B: Backend>(bench: Bench<B>) {
    let (one, two) = (bench.log(), bench.log());
    let other = bench.other(9);
    assert_eq!(one.cursor_tag(bench.mailbox), two.cursor_tag(bench.mailbox));
    assert_ne!(one.cursor_tag(bench.mailbox), one.cursor_tag(other));
    if B::bench_number() > 0 {
        return; // All benches are in one store.
    }
    let foreign = Bench::<B>::open_seeded(u64::MAX).await;
    assert_ne!(one.cursor_tag(bench.mailbox), foreign.log().cursor_tag(bench.mailbox), "another store");
}
