//! At the deadline the answer is `unknown`, whatever did not answer; and nothing that is slow holds up what need not wait for it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use async_trait::async_trait;
use bytes::Bytes;
use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::{Outcome, Submit, SubmitList};
use chappe_protocol::time::Millis;
use chappe_router::Router;
use chappe_router::links::Links;
use chappe_router::presence::{DeviceLease, Lease, Presence};
use chappe_storage::Store;
use common::flaky::Fault;
use common::{BUDGET, Cluster, config, entry, numbers, outcomes, sender, submit_of};
use std::sync::Arc;
use std::time::Duration;

/// A submit of one payload to two mailboxes, so that it is stored beside them.
fn shared(mailboxes: [MailboxId; 2]) -> Submit {
    let list = |mailbox| SubmitList { mailbox, base: None, entries: vec![entry(1, 0), entry(2, 1)] };
    let payloads = vec![Bytes::from(vec![5; 1000]), Bytes::from_static(b"small")];
    Submit { sender: sender("ana"), budget: BUDGET, payloads, lists: mailboxes.map(list).into() }
}

#[tokio::test(start_paused = true)]
async fn a_check_that_never_returns_decides_nothing() {
    let cluster = Cluster::new(1);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.device_reads.lock().unwrap().push_back(Fault::Hang);
    let begin = cluster.world.now();
    let replies = cluster.submit(submit_of("ana", ben, None, &[1, 2])).await;
    assert_eq!(outcomes(&replies), [Outcome::Unknown, Outcome::NotAttempted]);
    assert_eq!(cluster.world.now() - begin, BUDGET);
}

#[tokio::test(start_paused = true)]
async fn a_payload_that_is_never_stored_decides_nothing() {
    let cluster = Cluster::new(2);
    let mailboxes = [cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await];
    cluster.store.payloads.lock().unwrap().push_back(Fault::Hang);
    let replies = cluster.submit(shared(mailboxes)).await;
    let expected = [Outcome::Unknown, Outcome::NotAttempted];
    assert!(replies.iter().all(|list| outcomes(std::slice::from_ref(list)) == expected), "{replies:?}");
}

#[tokio::test(start_paused = true)]
async fn behind_an_entry_whose_payload_could_not_be_stored_nothing_is_appended() {
    let cluster = Cluster::new(3);
    let mailboxes = [cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await];
    cluster.store.payloads.lock().unwrap().push_back(Fault::Unavailable);
    let replies = cluster.submit(shared(mailboxes)).await;
    let expected = [Outcome::Unavailable, Outcome::NotAttempted];
    assert!(replies.iter().all(|list| outcomes(std::slice::from_ref(list)) == expected), "{replies:?}");
    cluster.settle().await;
    for mailbox in mailboxes {
        assert!(cluster.log(mailbox).await.is_empty(), "the second entry would stand before the first");
    }
    let again = cluster.submit(shared(mailboxes)).await;
    assert_eq!(outcomes(&again), vec![Outcome::Accepted; 4]);
}

#[tokio::test(start_paused = true)]
async fn a_submit_without_time_is_unknown_and_not_appended() {
    let cluster = Cluster::new(4);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let hasty = Submit { budget: Millis(0), ..submit_of("ana", ben, None, &[1, 2]) };
    assert_eq!(outcomes(&cluster.submit(hasty).await), [Outcome::Unknown, Outcome::NotAttempted]);
    cluster.settle().await;
    assert!(cluster.store.asked.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_append_is_given_up_when_the_last_who_waits_has_gone() {
    let cluster = Cluster::new(5);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(50), Fault::Slow(1000)]);
    let hasty = Submit { budget: Millis(300), ..submit_of("hasty", ben, None, &[2]) };
    let (_, hasty, patient) = tokio::join!(
        cluster.submit(submit_of("opener", ben, None, &[1])),
        cluster.submit_after(1, hasty),
        cluster.submit_after(2, submit_of("patient", ben, None, &[3])),
    );
    assert_eq!((outcomes(&hasty), outcomes(&patient)), (vec![Outcome::Unknown], vec![Outcome::Accepted]));
    assert_eq!(cluster.store.asked.lock().unwrap().len(), 2, "one attempt was enough");
    assert_eq!(numbers(&cluster.log(ben).await), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn without_a_fresh_pending_row_nothing_is_accepted() {
    for first in [Fault::Slow(0), Fault::Slow(12_000)] {
        let cluster = Cluster::new(6);
        let ben = cluster.mailbox("ben", &["phone"]).await;
        let late = first == Fault::Slow(12_000);
        // Either the append takes long, or the row itself did: it may be as old as its request.
        cluster.store.script(&[Fault::Slow(if late { 0 } else { 15_000 })]);
        cluster.store.pending.lock().unwrap().extend([first, Fault::Lost, Fault::Unavailable]);
        let slow = Submit { budget: Millis(25_000), ..submit_of("ana", ben, None, &[1]) };
        assert_eq!(outcomes(&cluster.submit(slow).await), [Outcome::Accepted]);
        assert_eq!(
            *cluster.store.notes.lock().unwrap(),
            4,
            "written again until it was written, late: {late}"
        );
    }
}

/// Presence that does not answer.
struct Silent;

#[async_trait]
impl Presence for Silent {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        vec![true; leases.len()]
    }

    async fn release(&self, _: &Lease) {}

    async fn devices(&self, _: MailboxId) -> Option<Vec<DeviceLease>> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_presence_and_a_bell_not_for_ever() {
    let cluster = Cluster::new(7);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let router = Router::new(
        config(),
        Arc::clone(&cluster.world),
        Arc::clone(&cluster.store) as Arc<dyn Store>,
        Arc::clone(&cluster.links) as Arc<dyn Links>,
        Arc::new(Silent),
        Arc::clone(&cluster.metrics),
    );
    let begin = cluster.world.now();
    let request = chappe_protocol::internode::Request::Submit(submit_of("ana", ben, None, &[1]));
    assert_eq!(outcomes(&common::lists(router.handle(request).await)), [Outcome::Accepted]);
    assert!(cluster.world.now() - begin < Millis(100), "accepted at once");
    assert_eq!(cluster.metrics.doorbell_queue.get(), 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.metrics.doorbell_queue.get(), 0, "the bell's place is free again");
}
