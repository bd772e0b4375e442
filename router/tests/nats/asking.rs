//! Requests: answered, spread, asked of another router when one fails, and never done for another cluster.

use crate::common::flaky::Fault;
use crate::common::{lists, outcomes, sender, submit_of};
use crate::support::{BUDGET, Cluster, Gateway, RouterProcess, soon, until};
use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::id::{Bucket, ClusterId, MailboxId, Seq};
use chappe_protocol::internode::{EphemeralSubmit, Outcome, Reply, Request};
use chappe_protocol::time::Millis;
use chappe_router::links::LinkError;
use std::sync::Arc;

fn submit(mailbox: MailboxId, id: u64) -> Request {
    Request::Submit(submit_of("ana", mailbox, None, &[id]))
}

async fn accepted(gateway: &Gateway, mailbox: MailboxId, id: u64) {
    let reply = gateway.links.request(mailbox, submit(mailbox, id), BUDGET).await.unwrap();
    assert_eq!(outcomes(&lists(reply)), [Outcome::Accepted]);
}

/// Mailboxes that keep to the first router, and to the second.
async fn sorted(
    cluster: &Cluster,
    gateway: &Gateway,
    first: &RouterProcess,
) -> (Vec<MailboxId>, Vec<MailboxId>) {
    let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
    for n in 0..24 {
        let mailbox = cluster.mailbox(&format!("user{n}")).await;
        let before = first.asked();
        accepted(gateway, mailbox, 1).await;
        if first.asked() > before { of_first.push(mailbox) } else { of_second.push(mailbox) }
    }
    assert!(of_first.len() > 3 && of_second.len() > 3, "both work: {} {}", of_first.len(), of_second.len());
    (of_first, of_second)
}

#[tokio::test]
async fn every_kind_of_request_is_answered() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let _router = cluster.router(1).await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    assert_eq!(cluster.numbers(ben).await, [1]);
    let base = gateway.links.request(ben, Request::Base(ben), BUDGET).await;
    assert_eq!(base, Ok(Reply::Base(Bucket(0))));
    let probe = chappe_protocol::internode::Probe { as_of: None, known: vec![(ben, Seq::ZERO)] };
    let reply = gateway.links.request(ben, Request::Probe(probe), BUDGET).await.unwrap();
    let Reply::Probe(probe) = reply else { panic!("a probe's reply, not {reply:?}") };
    assert_eq!(probe.news[0].head.0, 1);
    let ephemeral = EphemeralSubmit {
        sender: sender("ana"),
        targets: vec![(ben, DeviceFilter::All, 0)],
        payloads: vec![Bytes::from_static(b"typing")],
        urgency: Urgency::Message,
    };
    let reply = gateway.links.request(ben, Request::Ephemeral(ephemeral), BUDGET).await;
    assert_eq!(reply, Ok(Reply::Ephemeral));
    assert_eq!(gateway.metrics.requests.answered.get(), 4);
    until("nothing is in flight", || gateway.metrics.in_flight.get() == 0).await;
}

#[tokio::test]
async fn a_mailbox_keeps_to_one_router_and_falls_back_to_another() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let (mut first, second) = (cluster.router(1).await, cluster.router(2).await);
    gateway.hears(2).await;
    let (of_first, of_second) = sorted(&cluster, &gateway, &first).await;
    for round in 2..4 {
        let before = (first.asked(), second.asked());
        for mailbox in of_first.iter().chain(&of_second) {
            accepted(&gateway, *mailbox, round).await;
        }
        let after = (first.asked() - before.0, second.asked() - before.1);
        assert_eq!(after, (of_first.len(), of_second.len()), "the same ones each time");
    }
    first.kill().await;
    let before = second.asked();
    for mailbox in of_first.iter().chain(&of_second) {
        accepted(&gateway, *mailbox, 9).await;
    }
    assert_eq!(second.asked() - before, 24, "the dead one's share is the other's");
    assert_eq!(gateway.metrics.requests.timeout.get(), 0);
    assert_eq!(cluster.numbers(of_first[0]).await, [1, 2, 3, 9]);
}

#[tokio::test]
async fn what_a_dying_router_had_under_way_is_asked_of_another_within_the_budget() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let (mut first, second) = (cluster.router(1).await, cluster.router(2).await);
    gateway.hears(2).await;
    let (of_first, _) = sorted(&cluster, &gateway, &first).await;
    let (ben, before, second_before) = (of_first[0], first.asked(), second.asked());
    first.store.script(&[Fault::Hang]);
    let dying = accepted(&gateway, ben, 2);
    let kill = async {
        until("it is under way", || first.asked() > before).await;
        first.kill().await;
    };
    tokio::join!(dying, kill);
    assert_eq!(second.asked(), second_before + 1);
    assert_eq!(cluster.numbers(ben).await, [1, 2]);
    assert!(gateway.metrics.repeated.get() > 0);
}

#[tokio::test]
async fn a_paused_router_is_avoided_and_refuses_what_waited_too_long() {
    let mut cluster = Cluster::new();
    cluster.gateway_config.silent_after = Millis(1200);
    let gateway = cluster.gateway().await;
    let (first, second) = (cluster.router(1).await, cluster.router(2).await);
    gateway.hears(2).await;
    let (of_first, _) = sorted(&cluster, &gateway, &first).await;
    let before = first.asked();
    let paused = first.pause().await;
    // Not heard as silent yet: these go into the paused router's pipe, and are asked of the other when it falls silent.
    let asks = of_first.iter().map(|mailbox| accepted(&gateway, *mailbox, 2));
    futures_util::future::join_all(asks).await;
    let repeated = gateway.metrics.repeated.get();
    assert_eq!(repeated, of_first.len() as u64, "each was asked again, once");
    for mailbox in &of_first {
        accepted(&gateway, *mailbox, 3).await;
    }
    assert_eq!(gateway.metrics.repeated.get(), repeated, "the silent one is not tried first any more");
    drop(paused);
    until("it is back", || first.metrics.lag_seconds.get() < 0.5 && first.metrics.served.answered.get() > 0)
        .await;
    until("what waited was read", || {
        first.metrics.served.stale.get() + (first.asked() - before) as u64 >= of_first.len() as u64
    })
    .await;
    for mailbox in &of_first {
        assert_eq!(cluster.numbers(*mailbox).await, [1, 2, 3], "each once, whoever read it");
    }
    assert!(second.asked() >= 2 * of_first.len());
}

#[tokio::test]
async fn a_router_that_was_paused_longer_than_a_budget_does_not_begin_what_waited() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let router = cluster.router(1).await;
    gateway.hears(1).await;
    let ben = cluster.mailbox("ben").await;
    accepted(&gateway, ben, 1).await;
    let before = router.asked();
    let paused = router.pause().await;
    let late = gateway.links.request(ben, submit(ben, 2), Millis(1500)).await;
    assert_eq!(late, Err(LinkError::Timeout), "nobody else can be asked");
    drop(paused);
    until("the late one is refused", || router.metrics.served.stale.get() > 0).await;
    accepted(&gateway, ben, 3).await;
    assert_eq!(router.asked(), before + 1);
    assert_eq!(cluster.numbers(ben).await, [1, 3]);
}

#[tokio::test]
async fn without_a_router_certainly_nothing_is_done() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let ben = cluster.mailbox("ben").await;
    assert_eq!(gateway.links.request(ben, submit(ben, 1), BUDGET).await, Err(LinkError::NoRouter));
    assert_eq!(gateway.metrics.requests.no_router.get(), 1);
    // One that comes while a request looks for it takes it.
    let (_router, ()) = tokio::join!(cluster.router(1), async {
        until("there is one", || gateway.metrics.routers.get() == 1).await;
        accepted(&gateway, ben, 2).await;
    });
    assert_eq!(cluster.numbers(ben).await, [2]);
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_the_append_running() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let router = cluster.router(1).await;
    let ben = cluster.mailbox("ben").await;
    router.store.script(&[Fault::Slow(500)]);
    tokio::select! {
        biased;
        reply = gateway.links.request(ben, submit(ben, 1), BUDGET) => panic!("too early: {reply:?}"),
        () = until("it is under way", || router.asked() == 1) => {}
    }
    assert!(cluster.numbers(ben).await.is_empty());
    assert_eq!(gateway.metrics.in_flight.get(), 0, "who gave up holds no place");
    let written = async {
        while cluster.numbers(ben).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    soon("it is written all the same", written).await;
    accepted(&gateway, ben, 1).await;
    assert_eq!(cluster.numbers(ben).await, [1], "a duplicate");
}

#[tokio::test]
async fn a_full_router_says_so_at_once_and_so_does_a_full_gateway() {
    let mut cluster = Cluster::new();
    cluster.router_config.serving_max = 1;
    let gateway = cluster.gateway().await;
    let router = cluster.router(1).await;
    let ben = cluster.mailbox("ben").await;
    router.store.script(&[Fault::Hang]);
    let begin = router.asked();
    let hanging = gateway.links.request(ben, submit(ben, 1), Millis(2000));
    let refused = async {
        until("the first is under way", || router.asked() > begin).await;
        gateway.links.request(ben, submit(ben, 2), BUDGET).await
    };
    let (hanging, refused) = tokio::join!(hanging, refused);
    assert_eq!(refused, Ok(Reply::Unavailable));
    assert_eq!(router.metrics.served.full.get(), 1);
    let reply = hanging.map(lists).map(|lists| outcomes(&lists));
    assert!(matches!(&reply, Err(LinkError::Timeout)) || reply == Ok(vec![Outcome::Unknown]), "{reply:?}");

    let mut config = cluster.gateway_config.clone();
    config.requests_max = 1;
    let narrow = cluster.gateway_with(config).await;
    until("the router is free", || router.metrics.serving.get() == 0).await;
    router.store.script(&[Fault::Slow(300)]);
    let begin = router.asked();
    let first = accepted(&narrow, ben, 3);
    let second = async {
        until("the first is under way", || router.asked() > begin).await;
        narrow.links.request(ben, submit(ben, 4), BUDGET).await
    };
    let ((), second) = tokio::join!(first, second);
    assert_eq!(second, Ok(Reply::Unavailable));
    assert_eq!(narrow.metrics.requests.full.get(), 1);
    assert!(!cluster.numbers(ben).await.contains(&4));
}

#[tokio::test]
async fn what_the_bus_cannot_carry_is_not_sent() {
    let mut cluster = Cluster::new();
    cluster.gateway_config.message_bytes_max = 20_000;
    let gateway = cluster.gateway().await;
    let _router = cluster.router(1).await;
    gateway.hears(1).await;
    let ben = cluster.mailbox("ben").await;
    let mut large = submit_of("ana", ben, None, &[1]);
    large.payloads = vec![Bytes::from(vec![1; 20_000])];
    let reply = gateway.links.request(ben, Request::Submit(large), BUDGET).await;
    assert_eq!(reply, Ok(Reply::Unavailable));
    assert_eq!(gateway.metrics.requests.oversize.get(), 1);
    accepted(&gateway, ben, 2).await;
    assert_eq!(cluster.numbers(ben).await, [2]);
}

#[tokio::test]
async fn two_clusters_of_one_name_do_nothing_for_each_other() {
    let mut cluster = Cluster::new();
    let ours = cluster.gateway().await;
    cluster.router_config.cluster = ClusterId([9; 16]);
    let theirs = cluster.router(1).await;
    let ben = cluster.mailbox("ben").await;
    let reply = ours.links.request(ben, submit(ben, 1), BUDGET).await;
    assert_eq!(reply, Err(LinkError::NoRouter), "refused is certain");
    assert!(theirs.metrics.foreign.get() > 0, "their router counts our request");
    assert!(ours.metrics.foreign.get() > 0, "our gateway counts their announcements");
    assert_eq!(ours.metrics.routers.get(), 0);
    assert_eq!(theirs.asked(), 0);
    let bells = ours.bus.doorbells(ours.id, 8).await.unwrap();
    cluster.lease(ben, ours.id).await;
    let mut bells = bells;
    let mut foreign_config = cluster.gateway_config.clone();
    foreign_config.cluster = ClusterId([9; 16]);
    let their_gateway = cluster.gateway_with(foreign_config).await;
    let before = ours.metrics.foreign.get();
    accepted(&their_gateway, ben, 2).await;
    until("their bell is refused", || ours.metrics.foreign.get() > before && bells.try_recv().is_err()).await;
    assert_eq!(ours.metrics.bells_heard.get(), 0);
}

#[tokio::test]
async fn an_ephemeral_is_not_asked_twice() {
    let cluster = Cluster::new();
    let gateway = Arc::new(cluster.gateway().await);
    let (first, second) = (cluster.router(1).await, cluster.router(2).await);
    gateway.hears(2).await;
    let (of_first, _) = sorted(&cluster, &gateway, &first).await;
    let _paused = first.pause().await;
    let ephemeral = Request::Ephemeral(EphemeralSubmit {
        sender: sender("ana"),
        targets: vec![(of_first[0], DeviceFilter::All, 0)],
        payloads: vec![Bytes::from_static(b"typing")],
        urgency: Urgency::Message,
    });
    let served = second.metrics.served.answered.get();
    let reply = gateway.links.request(of_first[0], ephemeral, Millis(4000)).await;
    assert_eq!(reply, Err(LinkError::Timeout));
    assert_eq!(second.metrics.served.answered.get(), served);
    // The router let it run into its deadline and is avoided.
    accepted(&gateway, of_first[0], 2).await;
}
