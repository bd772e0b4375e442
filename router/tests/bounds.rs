//! Every bound of a router holds, and what is beyond it is refused or waits; nothing that has ended holds room.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

mod common;

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, SlotBody, Urgency};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{
    EphemeralSubmit, Outcome, Probe, Reply, Request, Submit, SubmitEntry, SubmitList,
};
use chappe_protocol::time::Millis;
use chappe_router::RouterConfig;
use chappe_storage::slotlog::LogConfig;
use common::flaky::Fault;
use common::{BUDGET, Cluster, SHAPE, config, device, entry, numbers, outcomes, sender, submit_of};
use futures_util::future::join_all;
use std::time::Duration;

fn cluster(seed: u64, bounds: RouterConfig) -> Cluster {
    Cluster::with(seed, bounds, LogConfig { shape: SHAPE, ..LogConfig::default() })
}

/// Everybody but so many devices with the longest of names: some 96 bytes each.
fn all_but(count: usize) -> DeviceFilter {
    DeviceFilter::AllBut((0..count).map(|n| device(&format!("{n:064}"))).collect())
}

fn filtered(id: u64, mailbox: MailboxId, devices: &DeviceFilter) -> Submit {
    let mut submit = submit_of(&format!("user{id}"), mailbox, None, &[id]);
    submit.lists[0].entries[0].devices = devices.clone();
    submit
}

#[tokio::test(start_paused = true)]
async fn the_names_in_device_filters_count_against_the_bytes_of_the_queue() {
    let cluster = cluster(1, RouterConfig { queue_bytes_max: 100 * 1024, ..config() });
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    cluster.store.script(&[Fault::Slow(500)]);
    let names = all_but(700);
    let second = async {
        cluster.settle().await;
        let submit = Request::Submit(filtered(2, cleo, &names));
        assert_eq!(cluster.router.handle(submit).await, Reply::Unavailable);
        assert_eq!(outcomes(&cluster.submit(submit_of("dan", cleo, None, &[3])).await), [Outcome::Accepted]);
    };
    let (first, ()) = tokio::join!(cluster.submit(filtered(1, ben, &names)), second);
    assert_eq!(outcomes(&first), [Outcome::Accepted]);
    assert_eq!(outcomes(&cluster.submit(filtered(2, cleo, &names)).await), [Outcome::Accepted]);
    assert_eq!(cluster.metrics.queue_bytes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn payloads_and_names_count_against_the_bytes_that_wait_for_a_mailbox() {
    let names = all_but(700);
    for named in [false, true] {
        let cluster = cluster(2, RouterConfig { mailbox_bytes_max: 100 * 1024, ..config() });
        let ben = cluster.mailbox("ben", &["phone"]).await;
        cluster.store.script(&[Fault::Slow(500)]);
        let large = |id| {
            if named {
                return filtered(id, ben, &names);
            }
            let payloads = vec![Bytes::from(vec![1; 60_000])];
            Submit { payloads, ..submit_of(&format!("user{id}"), ben, None, &[id]) }
        };
        let (first, waits, refused) = tokio::join!(
            cluster.submit(submit_of("ana", ben, None, &[1])),
            cluster.submit_after(1, large(2)),
            cluster.submit_after(2, large(3)),
        );
        assert_eq!(outcomes(&first), [Outcome::Accepted]);
        assert_eq!(outcomes(&waits), [Outcome::Accepted], "named: {named}");
        assert_eq!(outcomes(&refused), [Outcome::Unavailable], "named: {named}");
        assert_eq!(cluster.metrics.refused_full.get(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn payloads_and_names_count_against_the_bytes_of_doorbells() {
    let mut cluster = cluster(3, RouterConfig { doorbell_bytes_max: 8 * 1024, ..config() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    let three =
        Submit { payloads: vec![Bytes::from(vec![1; 4000]); 3], ..submit_of("ana", ben, None, &[1, 2, 3]) };
    cluster.submit(three).await;
    assert!(cluster.bells().await.is_empty());
    assert_eq!(cluster.metrics.doorbells_dropped_router.get(), 3);
    cluster.submit(filtered(4, ben, &all_but(100))).await;
    assert!(cluster.bells().await.is_empty(), "the slot's filter counts");
    let ephemeral = |devices| {
        let payloads = vec![Bytes::from_static(b"typing")];
        let targets = vec![(ben, devices, 0)];
        let submit =
            EphemeralSubmit { sender: sender("ana"), targets, payloads, urgency: Urgency::Background };
        cluster.router.handle(Request::Ephemeral(submit))
    };
    assert_eq!(ephemeral(all_but(100)).await, Reply::Ephemeral);
    assert_eq!(cluster.metrics.doorbells_dropped_router.get(), 5);
    assert_eq!(ephemeral(DeviceFilter::All).await, Reply::Ephemeral);
    assert_eq!(cluster.bells().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_left_a_mailboxs_queue_leaves_its_room_to_others() {
    let cluster = cluster(4, RouterConfig { mailbox_entries_max: 3, mailbox_bytes_max: 100_000, ..config() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(500), Fault::Slow(500), Fault::Slow(500)]);
    let three = |from: &str, ids: &[u64]| {
        let payloads = vec![Bytes::from(vec![1; 30_000]); 3];
        Submit { payloads, ..submit_of(from, ben, None, ids) }
    };
    // The second list waits while the first is appended, the third while the second is.
    let (first, second, third) = tokio::join!(
        cluster.submit(three("ana", &[1, 2, 3])),
        cluster.submit_after(100, three("ben", &[4, 5, 6])),
        cluster.submit_after(700, three("cleo", &[7, 8, 9])),
    );
    for replies in [first, second, third] {
        assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_waited_past_its_deadline_holds_no_room() {
    let cluster = cluster(5, RouterConfig { mailbox_entries_max: 2, ..config() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(1000)]);
    let hasty = Submit { budget: Millis(100), ..submit_of("hasty", ben, None, &[2, 3]) };
    let (_, hasty, patient) = tokio::join!(
        cluster.submit(submit_of("ana", ben, None, &[1])),
        cluster.submit_after(1, hasty),
        cluster.submit_after(500, submit_of("patient", ben, None, &[4, 5])),
    );
    assert_eq!(outcomes(&hasty), [Outcome::Unknown, Outcome::NotAttempted]);
    assert_eq!(outcomes(&patient), vec![Outcome::Accepted; 2]);
}

#[tokio::test(start_paused = true)]
async fn appends_under_way_are_bounded_and_none_begins_behind_its_deadline() {
    let cluster = cluster(6, RouterConfig { appends_in_flight_max: 1, ..config() });
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    cluster.store.script(&[Fault::Slow(1000)]);
    let late = Submit { budget: Millis(300), ..submit_of("dan", cleo, None, &[2]) };
    let (first, late) =
        tokio::join!(cluster.submit(submit_of("ana", ben, None, &[1])), cluster.submit_after(1, late));
    assert_eq!((outcomes(&first), outcomes(&late)), (vec![Outcome::Accepted], vec![Outcome::Unknown]));
    cluster.settle().await;
    assert_eq!(cluster.store.asked.lock().unwrap().len(), 1, "the room came too late for the second");
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_works_on_a_bounded_number_of_mailboxes_at_once() {
    let cluster = cluster(7, RouterConfig { fanout_parallel_max: 2, ..config() });
    let mut lists = Vec::new();
    for n in 0..6 {
        let mailbox = cluster.mailbox(&format!("user{n}"), &["phone"]).await;
        lists.push(SubmitList { mailbox, base: None, entries: vec![entry(1, 0)] });
    }
    cluster.store.script(&[Fault::Slow(100); 6]);
    let payloads = vec![Bytes::from_static(b"hello")];
    let submit = Submit { sender: sender("ana"), budget: BUDGET, payloads, lists };
    let watch = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(95)).await;
            assert_eq!(cluster.metrics.appends_in_flight.get(), 2);
        }
    };
    let (replies, ()) = tokio::join!(cluster.submit(submit), watch);
    assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 6]);
}

#[tokio::test(start_paused = true)]
async fn probes_under_way_are_bounded() {
    let cluster = cluster(8, RouterConfig { probes_in_flight_max: 1, ..config() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    cluster.store.heads.lock().unwrap().push_back(Fault::Slow(1000));
    let probe = || Request::Probe(Probe { as_of: None, known: vec![(ben, Seq(0))] });
    let second = async {
        cluster.settle().await;
        cluster.router.handle(probe()).await
    };
    let (first, second) = tokio::join!(cluster.router.handle(probe()), second);
    assert!(matches!(first, Reply::Probe(_)));
    assert_eq!(second, Reply::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn with_too_many_pending_mailboxes_all_heads_are_read() {
    let cluster = cluster(9, RouterConfig { pending_mailboxes_max: 1, ..config() });
    let quiet = cluster.mailbox("quiet", &["phone"]).await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    let as_of = Some(cluster.world.wall());
    let known = vec![(quiet, Seq(0))];
    let told =
        async || match cluster.router.handle(Request::Probe(Probe { as_of, known: known.clone() })).await {
            Reply::Probe(reply) => reply.news.len(),
            other => unreachable!("{other:?}"),
        };
    let ben = cluster.mailbox("ben", &["phone"]).await;
    assert_eq!(told().await, 0, "one pending mailbox can be remembered");
    cluster.mailbox("cleo", &["phone"]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(told().await, 1);
    assert_ne!(ben, quiet);
}

#[tokio::test(start_paused = true)]
async fn times_are_capped_by_the_router() {
    let cluster = cluster(10, config());
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let mut eternal = submit_of("ana", ben, None, &[1]);
    eternal.lists[0].entries[0].ttl = Millis(u64::MAX / 4);
    assert_eq!(outcomes(&cluster.submit(eternal).await), [Outcome::Accepted]);
    let slot = &cluster.log(ben).await[0];
    assert_eq!(slot.expires_at, slot.at + config().ttl_max);
    cluster.store.script(&[Fault::Hang]);
    let begin = cluster.world.now();
    let patient = Submit { budget: Millis::from_secs(3600), ..submit_of("ana", ben, None, &[2]) };
    assert_eq!(outcomes(&cluster.submit(patient).await), [Outcome::Unknown]);
    assert_eq!(cluster.world.now() - begin, config().budget_max);
}

#[tokio::test(start_paused = true)]
async fn a_shared_payload_lives_as_long_as_its_longest_entry() {
    let cluster = cluster(11, config());
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    let payload = Bytes::from(vec![5; 1000]);
    let list = |mailbox, secs| SubmitList {
        mailbox,
        base: None,
        entries: vec![SubmitEntry { ttl: Millis::from_secs(secs), ..entry(1, 0) }],
    };
    let lists = vec![list(ben, 60), list(cleo, 3600)];
    let submit = Submit { sender: sender("ana"), budget: BUDGET, payloads: vec![payload.clone()], lists };
    assert_eq!(outcomes(&cluster.submit(submit).await), vec![Outcome::Accepted; 2]);
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(cluster.log(ben).await[0].body, SlotBody::Expired);
    assert_eq!(cluster.log(cleo).await[0].body, SlotBody::Present(payload));
}

#[tokio::test(start_paused = true)]
async fn who_came_first_is_served_first() {
    let cluster = cluster(12, RouterConfig { batch_entries_max: 1, ..config() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(50)]);
    let submits = [vec![1, 2], vec![3], vec![4, 5], vec![6]].into_iter().zip(0..).map(|(ids, at)| {
        let from = format!("user{at}");
        let submit = submit_of(&from, ben, None, &ids);
        cluster.submit_after(at, submit)
    });
    for replies in join_all(submits).await {
        assert!(outcomes(&replies).iter().all(|outcome| *outcome == Outcome::Accepted));
    }
    assert_eq!(numbers(&cluster.log(ben).await), [1, 2, 3, 4, 5, 6]);
}
