//! Links inside one process: they behave as a message bus would.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{Outcome, Request, Ring};
use chappe_protocol::time::Millis;
use chappe_router::links::{LinkError, Links};
use common::flaky::Fault;
use common::{BUDGET, Cluster, config, lists, numbers, outcomes, submit_of};
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_leaves_the_append_running() {
    let mut cluster = Cluster::new(1);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    cluster.store.script(&[Fault::Slow(500)]);
    let submit = Request::Submit(submit_of("ana", ben, None, &[1]));
    assert_eq!(cluster.links.request(ben, submit, Millis(100)).await, Err(LinkError::Timeout));
    assert!(cluster.log(ben).await.is_empty());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(numbers(&cluster.log(ben).await), [1]);
    let bells = cluster.bells().await;
    assert!(matches!(bells[0].ring, Ring::Grew { seq: Seq(1), .. }));
    let again = Request::Submit(submit_of("ana", ben, None, &[1]));
    let reply = cluster.links.request(ben, again, BUDGET).await.unwrap();
    assert_eq!(outcomes(&lists(reply)), [Outcome::Accepted]);
    assert_eq!(cluster.log(ben).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_keeps_to_one_router_and_falls_back_to_another() {
    let cluster = Cluster::new(2);
    let (second, second_store) = cluster.another_router(3, config());
    cluster.links.add_router(2, second);
    let asked = |store: &common::flaky::Flaky| store.asked.lock().unwrap().len();
    let mut mailboxes = Vec::new();
    for n in 0..32 {
        mailboxes.push(cluster.mailbox(&format!("user{n}"), &["phone"]).await);
    }
    let send = async |mailbox: MailboxId, id: u64| {
        let request = Request::Submit(submit_of("ana", mailbox, None, &[id]));
        outcomes(&lists(cluster.links.request(mailbox, request, BUDGET).await.unwrap()))
    };
    for round in 0..3 {
        let before = (asked(&cluster.store), asked(&second_store));
        for mailbox in &mailboxes {
            assert_eq!(send(*mailbox, round).await, [Outcome::Accepted]);
        }
        let after = (asked(&cluster.store) - before.0, asked(&second_store) - before.1);
        assert!(after.0 > 5 && after.1 > 5, "both work: {after:?}");
        assert_eq!(
            after.0 * (usize::try_from(round).unwrap() + 1),
            asked(&cluster.store),
            "the same ones each time"
        );
    }
    cluster.router.kill();
    let before = asked(&cluster.store);
    for mailbox in &mailboxes {
        assert_eq!(send(*mailbox, 9).await, [Outcome::Accepted]);
    }
    assert_eq!(asked(&cluster.store), before, "the dead one gets nothing");
    cluster.links.remove_router(1);
    cluster.links.remove_router(2);
    let request = Request::Base(mailboxes[0]);
    assert_eq!(cluster.links.request(mailboxes[0], request, BUDGET).await, Err(LinkError::NoRouter));
}

#[tokio::test(start_paused = true)]
async fn a_killed_router_answers_nothing_and_a_closed_one_finishes() {
    let cluster = Cluster::new(4);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(100)]);
    let (second, second_store) = cluster.another_router(5, config());
    second_store.script(&[Fault::Slow(100)]);
    let submit = |id| Request::Submit(submit_of("ana", ben, None, &[id]));
    let dying = cluster.links.request(ben, submit(1), BUDGET);
    let kill = async {
        cluster.settle().await;
        cluster.router.kill();
    };
    let begin = cluster.world.now();
    let (reply, ()) = tokio::join!(dying, kill);
    assert_eq!(reply, Err(LinkError::Timeout));
    assert_eq!(cluster.world.now() - begin, BUDGET, "a dead router does not say that it is dead");
    assert_eq!(cluster.metrics.mailboxes.get(), 0);
    cluster.links.add_router(2, second.clone());
    let close = async {
        cluster.settle().await;
        second.close().await;
    };
    let (reply, ()) = tokio::join!(cluster.links.request(ben, submit(1), BUDGET), close);
    assert_eq!(outcomes(&lists(reply.unwrap())), [Outcome::Accepted]);
    assert_eq!(numbers(&cluster.log(ben).await), [1]);
    assert_eq!(cluster.links.request(ben, submit(2), BUDGET).await, Err(LinkError::NoRouter));
}
