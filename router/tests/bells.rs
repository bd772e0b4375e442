//! Doorbells, probes and the directory: what makes delivery fast, and what bounds the time when they fail.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a test may panic")]

mod common;

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::id::{Bucket, ConnectionId, Epoch, GatewayId, MailboxId, Seq, UserId};
use chappe_protocol::internode::{
    Attached, DeviceNews, Doorbell, EphemeralSubmit, Probe, ProbeReply, Reply, Request, Ring, Submit,
};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_router::presence::{Lease, Presence};
use chappe_router::{Directory, RouterConfig};
use chappe_storage::slotlog::LogConfig;
use common::flaky::Fault;
use common::{Cluster, SHAPE, config, device, numbers, sender, submit_of};
use std::time::Duration;

fn grew(bell: &Doorbell) -> (Seq, bool) {
    match &bell.ring {
        Ring::Grew { seq, slot } => (*seq, slot.is_some()),
        other => panic!("expected growth, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_commit_rings_with_the_slot_and_a_duplicate_without() {
    let mut cluster = Cluster::new(1);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    cluster.submit(submit_of("ana", ben, None, &[1, 2])).await;
    let bells = cluster.bells().await;
    let log = cluster.log(ben).await;
    let slots: Vec<_> = bells.iter().map(|bell| bell.ring.clone()).collect();
    let expected: Vec<_> =
        log.into_iter().map(|slot| Ring::Grew { seq: slot.seq, slot: Some(slot) }).collect();
    assert_eq!(slots, expected, "the doorbell's slots are those of the log");
    assert!(bells.iter().all(|bell| bell.mailbox == ben));
    cluster.submit(submit_of("ana", ben, None, &[2])).await;
    assert_eq!(cluster.bells().await.iter().map(grew).collect::<Vec<_>>(), [(Seq(2), false)]);
}

#[tokio::test(start_paused = true)]
async fn only_payloads_up_to_4_kib_travel_in_doorbells() {
    let mut cluster = Cluster::new(2);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    for (len, inline) in [(4096, true), (4097, false)] {
        let payloads = vec![Bytes::from(vec![1; len])];
        cluster.submit(Submit { payloads, ..submit_of("ana", ben, None, &[len as u64]) }).await;
        let bells = cluster.bells().await;
        assert_eq!(bells.iter().map(|bell| grew(bell).1).collect::<Vec<_>>(), [inline]);
    }
}

#[tokio::test(start_paused = true)]
async fn every_gateway_with_a_lease_is_rung_once_and_no_other() {
    let mut cluster = Cluster::new(3);
    let ben = cluster.mailbox("ben", &["a", "b", "c"]).await;
    let mut other = cluster.links.add_gateway(GatewayId([8; 16]), 16);
    let mut third = cluster.links.add_gateway(GatewayId([9; 16]), 16);
    cluster.lease(ben, "a").await;
    cluster.lease(ben, "b").await;
    let mut lease = cluster.lease(ben, "c").await;
    (lease.gateway, lease.resumes) = (GatewayId([8; 16]), 1);
    cluster.directory.lease(std::slice::from_ref(&lease)).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    assert_eq!(cluster.bells().await.len(), 1);
    assert!(other.try_recv().is_ok() && other.try_recv().is_err());
    assert!(third.try_recv().is_err());
    tokio::time::sleep(Duration::from_secs(61)).await;
    cluster.submit(submit_of("ana", ben, None, &[2])).await;
    assert!(cluster.bells().await.is_empty(), "the leases have run out");
}

#[tokio::test(start_paused = true)]
async fn a_full_gateway_loses_doorbells_and_nobody_waits() {
    let mut cluster = Cluster::new(4);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.bells = cluster.links.add_gateway(cluster.gateway, 2);
    cluster.lease(ben, "phone").await;
    let alarms = cluster.links.alarms();
    cluster.submit(submit_of("ana", ben, None, &[6, 7])).await;
    assert_eq!((cluster.bells().await.len(), alarms.has_changed().unwrap()), (2, false));
    cluster.submit(submit_of("ana", ben, None, &[1, 2, 3, 4, 5])).await;
    assert!(alarms.has_changed().unwrap(), "gateways are to ask what they have missed");
    assert_eq!(cluster.bells().await.len(), 2);
    assert_eq!(cluster.metrics.doorbells_dropped_link.get(), 3);
    assert_eq!(numbers(&cluster.log(ben).await), [6, 7, 1, 2, 3, 4, 5]);
    cluster.links.measure();
    assert_eq!(cluster.metrics.gateway_queue_bells.get(), 0);
    assert_eq!((cluster.metrics.doorbell_queue.get(), cluster.metrics.doorbell_bytes.get()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn too_many_doorbells_are_dropped_and_counted() {
    let bounds = RouterConfig { doorbells_max: 3, ..config() };
    let mut cluster = Cluster::with(5, bounds, LogConfig { shape: SHAPE, ..LogConfig::default() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    cluster.submit(submit_of("ana", ben, None, &[1, 2, 3, 4])).await;
    assert!(cluster.bells().await.is_empty());
    assert_eq!(cluster.metrics.doorbells_dropped_router.get(), 4);
    cluster.submit(submit_of("ana", ben, None, &[5])).await;
    assert_eq!(cluster.bells().await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn ephemerals_ring_and_are_stored_nowhere() {
    let mut cluster = Cluster::new(6);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    let devices = DeviceFilter::Only(vec![device("phone")]);
    let (payload, urgency) = (Bytes::from_static(b"typing"), Urgency::Background);
    let targets = vec![(ben, devices.clone(), 0)];
    let submit = EphemeralSubmit { sender: sender("ana"), targets, payloads: vec![payload.clone()], urgency };
    assert_eq!(cluster.router.handle(Request::Ephemeral(submit.clone())).await, Reply::Ephemeral);
    let ring = Ring::Ephemeral { sender: sender("ana"), devices, payload, urgency };
    assert_eq!(cluster.bells().await, [Doorbell { mailbox: ben, ring }]);
    assert!(cluster.log(ben).await.is_empty());
    let large =
        EphemeralSubmit { payloads: vec![Bytes::from(vec![0; config().ephemeral_bytes_max + 1])], ..submit };
    assert_eq!(cluster.router.handle(Request::Ephemeral(large)).await, Reply::Unavailable);
    assert!(cluster.bells().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attach_rings_the_mailboxs_gateways() {
    let mut cluster = Cluster::new(7);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    let connection = ConnectionId([2; 16]);
    let news = DeviceNews { device: device("phone"), epoch: Epoch(2), connection, revoked: false };
    let attached = Attached { mailbox: ben, news: news.clone() };
    assert_eq!(cluster.router.handle(Request::Attached(attached)).await, Reply::Attached);
    // Rung when the answer is there: the newer session takes its lease then, and the older one's is gone.
    assert_eq!(cluster.bells.try_recv().ok(), Some(Doorbell { mailbox: ben, ring: Ring::Session(news) }));
}

async fn probe(cluster: &Cluster, as_of: Option<UnixMillis>, known: Vec<(MailboxId, Seq)>) -> ProbeReply {
    match cluster.router.handle(Request::Probe(Probe { as_of, known })).await {
        Reply::Probe(reply) => reply,
        other => panic!("expected a probe's reply, not {other:?}"),
    }
}

fn heads(reply: &ProbeReply) -> Vec<(MailboxId, Seq)> {
    reply.news.iter().map(|news| (news.mailbox, news.head)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_probe_finds_a_mailbox_whose_doorbell_was_lost_and_reads_no_other() {
    let cluster = Cluster::new(8);
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    tokio::time::sleep(Duration::from_mins(10)).await;
    let first = probe(&cluster, None, vec![(ben, Seq(0)), (cleo, Seq(0))]).await;
    assert_eq!(first.as_of, cluster.world.wall());
    tokio::time::sleep(Duration::from_secs(45)).await;
    let second = probe(&cluster, Some(first.as_of), vec![(ben, Seq(0)), (cleo, Seq(0))]).await;
    assert_eq!(heads(&second), [], "nothing has happened for ten minutes");
    assert!(second.as_of > first.as_of);
    cluster.submit(submit_of("ana", ben, None, &[6, 7])).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    let third = probe(&cluster, Some(second.as_of), vec![(ben, Seq(0)), (cleo, Seq(0))]).await;
    assert_eq!(heads(&third), [(ben, Seq(2))]);
    assert!(third.as_of > second.as_of);
}

#[tokio::test(start_paused = true)]
async fn a_probe_tells_of_newer_sessions_and_revocations() {
    let cluster = Cluster::new(9);
    let ben = cluster.mailbox("ben", &["phone", "laptop"]).await;
    let as_of = cluster.world.wall();
    cluster.store.inner.revoke(ben, &device("laptop")).await.unwrap();
    cluster.mailbox("ben", &["phone"]).await;
    let reply = probe(&cluster, Some(as_of), vec![(ben, Seq(0))]).await;
    let told: Vec<_> =
        reply.news[0].devices.iter().map(|d| (d.device.as_str(), d.epoch, d.revoked)).collect();
    assert_eq!(told, [("laptop", Epoch(1), true), ("phone", Epoch(2), false)]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_could_not_read_everything_does_not_move_on() {
    let cluster = Cluster::new(10);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let as_of = cluster.world.wall();
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    tokio::time::sleep(Duration::from_secs(45)).await;
    cluster.store.heads.lock().unwrap().push_back(Fault::Unavailable);
    let reply = probe(&cluster, Some(as_of), vec![(ben, Seq(0))]).await;
    assert_eq!((reply.as_of, heads(&reply)), (as_of, vec![]));
    let reply = probe(&cluster, Some(reply.as_of), vec![(ben, Seq(0))]).await;
    assert_eq!(heads(&reply), [(ben, Seq(1))]);
    cluster.store.heads.lock().unwrap().push_back(Fault::Unavailable);
    let outright = Request::Probe(Probe { as_of: None, known: vec![(ben, Seq(0))] });
    assert_eq!(cluster.router.handle(outright).await, Reply::Unavailable);
    let many = Request::Probe(Probe { as_of: None, known: vec![(ben, Seq(0)); 501] });
    assert_eq!(cluster.router.handle(many).await, Reply::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn an_old_probe_reads_all_heads_outright() {
    let cluster = Cluster::new(11);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    let as_of = cluster.world.wall();
    tokio::time::sleep(Duration::from_hours(25)).await;
    let reply = probe(&cluster, Some(as_of), vec![(ben, Seq(0))]).await;
    assert_eq!((heads(&reply), reply.as_of), (vec![(ben, Seq(1))], cluster.world.wall()));
}

#[tokio::test(start_paused = true)]
async fn a_probe_in_the_middle_of_an_append_leaves_it_to_the_next_one() {
    let cluster = Cluster::new(15);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    tokio::time::sleep(Duration::from_secs(10 * 60 + 59)).await;
    // Not so slow that the row is written again.
    cluster.store.script(&[Fault::Slow(9_000)]);
    let slow = Submit { budget: Millis(25_000), ..submit_of("ana", ben, None, &[1]) };
    let probes = async {
        // Its pending row lies in the minute before; its slot is not there yet.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let first = probe(&cluster, None, vec![(ben, Seq(0))]).await;
        assert_eq!(heads(&first), [(ben, Seq(0))]);
        tokio::time::sleep(Duration::from_secs(45)).await;
        probe(&cluster, Some(first.as_of), vec![(ben, Seq(0))]).await
    };
    let (_, second) = tokio::join!(cluster.submit(slow), probes);
    assert_eq!(heads(&second), [(ben, Seq(1))]);
}

#[tokio::test(start_paused = true)]
async fn an_older_probe_is_not_answered_by_what_a_younger_one_has_read() {
    let cluster = Cluster::new(16);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let before = cluster.world.wall();
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    let now = cluster.world.wall();
    assert_eq!(heads(&probe(&cluster, Some(now), vec![(ben, Seq(1))]).await), []);
    assert_eq!(heads(&probe(&cluster, Some(before), vec![(ben, Seq(0))]).await), [(ben, Seq(1))]);
}

#[tokio::test(start_paused = true)]
async fn a_probe_tells_no_head_of_an_erased_mailbox() {
    let cluster = Cluster::new(17);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    cluster.store.inner.erase(&UserId::new("ben").unwrap()).await.unwrap();
    let reply = probe(&cluster, None, vec![(ben, Seq(1))]).await;
    assert_eq!(heads(&reply), [(ben, Seq(1))], "none but the known one");
    assert!(reply.news.iter().all(|news| news.erased));
}

#[tokio::test(start_paused = true)]
async fn the_base_is_the_heads_bucket() {
    let cluster = Cluster::new(12);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    assert_eq!(cluster.router.handle(Request::Base(ben)).await, Reply::Base(Bucket(0)));
    cluster.submit(submit_of("ana", ben, None, &[1, 2, 3, 4])).await;
    assert_eq!(cluster.router.handle(Request::Base(ben)).await, Reply::Base(Bucket(1)));
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.store.heads.lock().unwrap().push_back(Fault::Unavailable);
    assert_eq!(cluster.router.handle(Request::Base(ben)).await, Reply::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn the_newer_lease_wins_and_only_the_same_one_is_released() {
    let cluster = Cluster::new(13);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let old = cluster.lease(ben, "phone").await;
    let mut new = old.clone();
    (new.epoch, new.gateway) = (Epoch(2), GatewayId([9; 16]));
    assert_eq!(cluster.directory.lease(&[new.clone(), old.clone()]).await, [true, false]);
    cluster.directory.release(&old).await;
    assert_eq!(cluster.directory.gateways(ben).await, [new.gateway]);
    cluster.directory.release(&new).await;
    assert!(cluster.directory.gateways(ben).await.is_empty());
    assert!(cluster.directory.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_resume_and_a_second_socket_are_newer_until_their_lease_has_run_out() {
    let cluster = Cluster::new(18);
    let directory = Directory::new(cluster.world.clone(), 100, cluster.metrics.clone());
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let old = cluster.lease(ben, "phone").await;
    let (mut resumed, mut second) = (old.clone(), old.clone());
    resumed.resumes += 1;
    second.connection = ConnectionId([2; 16]);
    for newer in [&resumed, &second] {
        assert_eq!(directory.lease(&[old.clone(), newer.clone(), old.clone()]).await, [true, true, false]);
        directory.release(newer).await;
    }
    // A store that lost an epoch with its backup: the old lease holds it up no longer than it lives.
    let many: Vec<_> =
        (0..40).map(|n| Lease { mailbox: MailboxId([n; 16]), epoch: Epoch(9), ..old.clone() }).collect();
    directory.lease(&many).await;
    tokio::time::sleep(Duration::from_secs(61)).await;
    let last = Lease { epoch: Epoch(1), ..many[39].clone() };
    assert_eq!(directory.lease(&[last]).await, [true]);
}

#[tokio::test(start_paused = true)]
async fn the_directory_is_bounded_and_forgets_what_has_run_out() {
    let cluster = Cluster::new(14);
    let directory = Directory::new(cluster.world.clone(), 10, cluster.metrics.clone());
    let template = cluster.lease(MailboxId([1; 16]), "phone").await;
    let leases: Vec<_> = (0..12)
        .map(|n| {
            let mut lease = template.clone();
            lease.mailbox = MailboxId([n; 16]);
            lease
        })
        .collect();
    assert_eq!(directory.lease(&leases).await, [true; 12], "no newer one is there");
    assert_eq!((directory.len(), cluster.metrics.leases_dropped.get()), (10, 2));
    tokio::time::sleep(Duration::from_secs(61)).await;
    directory.lease(&leases[11..]).await;
    assert_eq!(directory.gateways(MailboxId([11; 16])).await, [cluster.gateway]);
    directory.lease(&leases[11..]).await;
    assert_eq!(directory.len(), 1);
}
