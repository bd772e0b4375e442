//! What was committed is never refused afterwards, and a store that hangs holds nobody up for ever.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use chappe_protocol::id::{Bucket, ConnectionId, Epoch, UserId};
use chappe_protocol::internode::{Attached, DeviceNews, Outcome, Probe, Reply, Request, Submit};
use chappe_protocol::time::Millis;
use chappe_storage::Store;
use chappe_storage::slotlog::LogConfig;
use common::flaky::Fault;
use common::{Cluster, SHAPE, config, device, numbers, outcomes, submit_of};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_retry_is_accepted_although_the_last_device_has_gone_meanwhile() {
    for base in [None, Some(Bucket(0))] {
        let mut cluster = Cluster::new(1);
        let ben = cluster.mailbox("ben", &["phone"]).await;
        cluster.lease(ben, "phone").await;
        // Over a bucket's edge, so that the find looks back, too.
        let first = cluster.submit(submit_of("ana", ben, base, &[1, 2, 3, 4, 5])).await;
        assert_eq!(outcomes(&first), vec![Outcome::Accepted; 5]);
        cluster.bells().await;
        cluster.store.revoke(ben, &device("phone")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let retry = cluster.submit(submit_of("ana", ben, base, &[2, 5, 6])).await;
        assert_eq!(outcomes(&retry), [Outcome::Accepted, Outcome::Accepted, Outcome::NoDevice]);
        assert_eq!(numbers(&cluster.log(ben).await), [1, 2, 3, 4, 5]);
        assert_eq!(cluster.bells().await.len(), 1, "a duplicate rings, too");
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_accepted_although_the_device_set_has_changed_meanwhile() {
    let cluster = Cluster::new(2);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let stating = |ids: &[u64]| {
        let mut submit = submit_of("ana", ben, None, ids);
        submit.lists[0].entries.iter_mut().for_each(|entry| entry.device_set_version = Some(1));
        submit
    };
    cluster.store.script(&[Fault::LostReply, Fault::Hang]);
    let first = cluster.submit(Submit { budget: Millis(400), ..stating(&[1]) }).await;
    assert_eq!(outcomes(&first), [Outcome::Unknown]);
    cluster.mailbox("ben", &["laptop"]).await;
    let retry = outcomes(&cluster.submit(stating(&[1, 2])).await);
    assert_eq!(retry[0], Outcome::Accepted);
    assert!(matches!(retry[1], Outcome::DevicesChanged { version: 2, .. }), "{retry:?}");
    assert_eq!(numbers(&cluster.log(ben).await), [1]);
}

#[tokio::test(start_paused = true)]
async fn without_knowing_whether_it_stands_an_entry_is_not_refused() {
    let cluster = Cluster::new(3);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    cluster.store.revoke(ben, &device("phone")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.store.finds.lock().unwrap().push_back(Fault::Unavailable);
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[1])).await), [Outcome::Unavailable]);
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[1])).await), [Outcome::Accepted]);
}

#[tokio::test(start_paused = true)]
async fn a_full_mailbox_refuses_no_entry_that_stands_in_it() {
    let log = LogConfig { shape: SHAPE, slots_max: 5, ..LogConfig::default() };
    let cluster = Cluster::with(4, config(), log);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let first = cluster.submit(submit_of("ana", ben, None, &[1, 2, 3, 4, 5])).await;
    assert_eq!(outcomes(&first), vec![Outcome::Accepted; 5]);
    let (accepted, quota) = (Outcome::Accepted, Outcome::Quota);
    let retry = outcomes(&cluster.submit(submit_of("ana", ben, None, &[2, 6, 5, 7])).await);
    assert_eq!(retry, [accepted.clone(), quota.clone(), accepted.clone(), quota.clone()]);
    cluster.store.script(&[Fault::Slow(50)]);
    // Entries of several senders in one batch.
    let (_, old, new) = tokio::join!(
        cluster.submit(submit_of("cleo", ben, None, &[1])),
        cluster.submit_after(1, submit_of("ana", ben, None, &[3])),
        cluster.submit_after(1, submit_of("dan", ben, None, &[8])),
    );
    assert_eq!((outcomes(&old), outcomes(&new)), (vec![accepted], vec![quota]));
    assert_eq!(numbers(&cluster.log(ben).await), [1, 2, 3, 4, 5]);
    assert_eq!(cluster.metrics.mailboxes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn behind_an_attempt_that_may_still_arrive_a_full_mailbox_refuses_nothing() {
    let cluster = Cluster::new(8);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    // The first attempt arrives with the third, between them the mailbox is full.
    cluster.store.script(&[Fault::Zombie, Fault::Full, Fault::Slow(1)]);
    let replies = cluster.submit(submit_of("ana", ben, None, &[1, 2])).await;
    assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 2]);
    assert_eq!(numbers(&cluster.log(ben).await), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_erased_user_is_unknown_although_its_devices_are_remembered() {
    let cluster = Cluster::new(9);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    cluster.store.erase(&UserId::new("ben").unwrap()).await.unwrap();
    let replies = cluster.submit(submit_of("ana", ben, None, &[2, 3])).await;
    assert_eq!(outcomes(&replies), vec![Outcome::UnknownUser; 2]);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_that_is_told_counts_at_once_and_the_revoked_are_on_no_list() {
    let cluster = Cluster::new(10);
    let ben = cluster.mailbox("ben", &["laptop", "phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    let revoke = async |name: &str| {
        cluster.store.revoke(ben, &device(name)).await.unwrap();
        let connection = ConnectionId([1; 16]);
        let news = DeviceNews { device: device(name), epoch: Epoch(1), connection, revoked: true };
        cluster.router.handle(Request::Attached(Attached { mailbox: ben, news })).await;
    };
    revoke("laptop").await;
    let mut stating = submit_of("ana", ben, None, &[2]);
    stating.lists[0].entries[0].device_set_version = Some(2);
    let changed = Outcome::DevicesChanged { version: 3, devices: vec![device("phone")] };
    assert_eq!(outcomes(&cluster.submit(stating).await), [changed]);
    revoke("phone").await;
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[3])).await), [Outcome::NoDevice]);
}

#[tokio::test(start_paused = true)]
async fn a_long_list_goes_on_behind_a_refused_batch() {
    let log = LogConfig { shape: SHAPE, slots_max: 70, ..LogConfig::default() };
    let cluster = Cluster::with(5, config(), log);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let ids: Vec<u64> = (0..70).collect();
    cluster.submit(submit_of("ana", ben, None, &ids)).await;
    let again: Vec<u64> = (100..164).chain(0..70).collect();
    let retry = outcomes(&cluster.submit(submit_of("ana", ben, None, &again)).await);
    assert_eq!(retry[..64], vec![Outcome::Quota; 64]);
    assert_eq!(retry[64..], vec![Outcome::Accepted; 70]);
}

#[tokio::test(start_paused = true)]
async fn an_append_that_never_returns_frees_its_mailbox_at_its_deadline() {
    let cluster = Cluster::with(
        6,
        chappe_router::RouterConfig { appends_in_flight_max: 1, ..config() },
        LogConfig { shape: SHAPE, ..LogConfig::default() },
    );
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    for place in 0..2 {
        let script = if place == 0 { &cluster.store.appends } else { &cluster.store.pending };
        script.lock().unwrap().push_back(Fault::Hang);
        let id = 10 * place;
        let hanging = Submit { budget: Millis(1000), ..submit_of("ana", ben, None, &[id]) };
        let (hanging, waiting, other) = tokio::join!(
            cluster.submit(hanging),
            cluster.submit_after(1, submit_of("dan", ben, None, &[id + 1])),
            cluster.submit_after(1, submit_of("eve", cleo, None, &[id + 2])),
        );
        assert_eq!(outcomes(&hanging), [Outcome::Unknown]);
        assert_eq!(outcomes(&waiting), [Outcome::Accepted], "the next round begins");
        assert_eq!(outcomes(&other), [Outcome::Accepted], "the room for appends is free again");
        let retry = cluster.submit(submit_of("ana", ben, None, &[id])).await;
        assert_eq!(outcomes(&retry), [Outcome::Accepted]);
    }
    assert_eq!(numbers(&cluster.log(ben).await), [1, 0, 11, 10]);
    assert_eq!((cluster.metrics.mailboxes.get(), cluster.metrics.queue_entries.get()), (0, 0));
    assert_eq!(cluster.metrics.appends_in_flight.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_that_never_returns_frees_its_place_among_the_probes() {
    let cluster = Cluster::with(
        7,
        chappe_router::RouterConfig { probes_in_flight_max: 1, ..config() },
        LogConfig { shape: SHAPE, ..LogConfig::default() },
    );
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    cluster.store.heads.lock().unwrap().extend([Fault::Hang, Fault::Hang]);
    let probe = || Request::Probe(Probe { as_of: None, known: vec![(ben, chappe_protocol::id::Seq(0))] });
    let day = Duration::from_hours(24);
    let handle = async |request| tokio::time::timeout(day, cluster.router.handle(request)).await.unwrap();
    assert_eq!(handle(probe()).await, Reply::Unavailable);
    assert_eq!(handle(Request::Base(ben)).await, Reply::Unavailable);
    assert!(matches!(handle(probe()).await, Reply::Probe(_)));
}
