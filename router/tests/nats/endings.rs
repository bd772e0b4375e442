//! Routers that end while requests arrive.

use crate::common::{lists, outcomes, submit_of};
use crate::support::{BUDGET, Cluster, until};
use chappe_protocol::internode::{Outcome, Request};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[tokio::test]
async fn a_router_that_drains_loses_nothing() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let (first, second) = (cluster.router(1).await, cluster.router(2).await);
    gateway.hears(2).await;
    let mut mailboxes = Vec::new();
    for n in 0..16 {
        mailboxes.push(cluster.mailbox(&format!("user{n}")).await);
    }
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let senders = mailboxes.iter().map(|mailbox| {
        let (gateway, stop, sent) = (&gateway, &stop, &sent);
        async move {
            let mut id = 0;
            while !stop.load(Ordering::Relaxed) {
                id += 1;
                let request = Request::Submit(submit_of("ana", *mailbox, None, &[id]));
                let reply = gateway.links.request(*mailbox, request, BUDGET).await;
                assert_eq!(outcomes(&lists(reply.expect("an answer"))), [Outcome::Accepted]);
                sent.fetch_add(1, Ordering::Relaxed);
            }
            id
        }
    });
    let drain = async {
        until("both work", || first.asked() > 30 && second.asked() > 30).await;
        first.close().await;
        let after = sent.load(Ordering::Relaxed);
        until("it goes on with the other", || sent.load(Ordering::Relaxed) > after + 100).await;
        stop.store(true, Ordering::Relaxed);
    };
    let (counts, ()) = tokio::join!(futures_util::future::join_all(senders), drain);
    for (mailbox, count) in mailboxes.iter().zip(counts) {
        assert_eq!(cluster.numbers(*mailbox).await, (1..=count).collect::<Vec<u64>>());
    }
    assert_eq!(gateway.metrics.requests.timeout.get(), 0);
    assert_eq!(gateway.metrics.requests.no_router.get(), 0);
    until("it is known to be gone", || gateway.metrics.routers.get() == 1).await;
}

#[tokio::test]
async fn a_draining_router_finishes_what_it_has() {
    let cluster = Cluster::new();
    let gateway = cluster.gateway().await;
    let router = cluster.router(1).await;
    let ben = cluster.mailbox("ben").await;
    router.store.script(&[crate::common::flaky::Fault::Slow(1500)]);
    let asked = gateway.links.request(ben, Request::Submit(submit_of("ana", ben, None, &[1])), BUDGET);
    let close = async {
        until("it is under way", || router.asked() == 1).await;
        router.close().await;
    };
    let (reply, ()) = tokio::join!(asked, close);
    assert_eq!(outcomes(&lists(reply.unwrap())), [Outcome::Accepted]);
    assert_eq!(cluster.numbers(ben).await, [1]);
    assert_eq!(gateway.metrics.repeated.get(), 0);
}
