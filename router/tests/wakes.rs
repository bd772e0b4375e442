//! Wake hints: one per mailbox and append, with what their reader needs, and never in the way of an append.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use async_trait::async_trait;
use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{Outcome, Request, Submit, WakeHint};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_router::presence::{DeviceLease, Lease, Presence};
use chappe_router::wakes::{LocalWakes, Wakes};
use chappe_router::{Router, RouterConfig};
use chappe_storage::slotlog::LogConfig;
use common::flaky::Fault;
use common::{Cluster, SHAPE, config, device, outcomes, submit_of};
use std::sync::Arc;

fn range(hint: &WakeHint) -> (u64, u64) {
    (hint.from.0, hint.upto.0)
}

#[tokio::test(start_paused = true)]
async fn an_append_leaves_one_hint_for_all_its_slots() {
    let cluster = Cluster::new(1);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let mut submit = submit_of("ana", ben, None, &[1, 2, 3]);
    submit.lists[0].entries[0].urgency = Urgency::Background;
    submit.lists[0].entries[1].urgency = Urgency::Call;
    let before = cluster.world.wall();
    assert_eq!(
        outcomes(&cluster.submit(submit).await),
        [Outcome::Accepted, Outcome::Accepted, Outcome::Accepted]
    );
    cluster.settle().await;
    let hints = cluster.wakes.latest();
    assert_eq!(hints.len(), 1, "{hints:?}");
    assert_eq!((hints[0].mailbox, range(&hints[0])), (ben, (1, 3)));
    assert_eq!(hints[0].urgency, Urgency::Call, "the most urgent counts");
    assert!(hints[0].at >= before && hints[0].at <= cluster.world.wall());
    assert_eq!(hints[0].due, hints[0].at, "no gateway holds a session of it: now");
    assert_eq!(cluster.metrics.wake_hints.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_mailbox_with_a_lease_is_due_when_its_device_has_had_time_to_ack() {
    let cluster = Cluster::new(2);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.lease(ben, "phone").await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    cluster.settle().await;
    let hint = cluster.wakes.latest()[0];
    assert_eq!(hint.due, hint.at + Millis(20_000));
}

/// How long after the commit the hint of this submit is due, where `web` is attached and `phone` sleeps.
async fn due_after(cluster: &Cluster, submit: Submit) -> Millis {
    let before = cluster.wakes.count();
    assert_eq!(outcomes(&cluster.submit(submit).await), [Outcome::Accepted]);
    cluster.settle().await;
    assert_eq!(cluster.wakes.count(), before + 1);
    let hint = *cluster.wakes.latest().last().unwrap();
    Millis(hint.due.0 - hint.at.0)
}

#[tokio::test(start_paused = true)]
async fn a_device_asleep_beside_an_attached_one_is_due_at_once() {
    let cluster = Cluster::new(5);
    let ben = cluster.mailbox("ben", &["phone", "web"]).await;
    cluster.lease(ben, "web").await;
    cluster.store.device_reads.lock().unwrap().extend([Fault::Slow(0); 9]);
    let both = || submit_of("ana", ben, None, &[cluster.wakes.count() + 1]);
    assert_eq!(due_after(&cluster, both()).await, Millis(0), "the phone sleeps");
    let filtered = |devices| {
        let mut submit = both();
        submit.lists[0].entries[0].devices = devices;
        submit
    };
    let only = |name| DeviceFilter::Only(vec![device(name)]);
    assert_eq!(due_after(&cluster, filtered(only("web"))).await, Millis(20_000), "it is not for the phone");
    assert_eq!(due_after(&cluster, filtered(only("phone"))).await, Millis(0));
    let but_phone = DeviceFilter::AllBut(vec![device("phone")]);
    assert_eq!(due_after(&cluster, filtered(but_phone)).await, Millis(20_000));
    let mut mixed = submit_of("ana", ben, None, &[101, 102]);
    mixed.lists[0].entries[0].devices = only("web");
    mixed.lists[0].entries[1].devices = only("phone");
    cluster.submit(mixed).await;
    cluster.settle().await;
    let hint = *cluster.wakes.latest().last().unwrap();
    assert_eq!((range(&hint), hint.due), ((5, 6), hint.at), "one of them is for the phone");
    cluster.lease(ben, "phone").await;
    assert_eq!(due_after(&cluster, both()).await, Millis(20_000), "both are attached");
    assert_eq!(cluster.store.device_reads.lock().unwrap().len(), 8, "one read served them all");
}

#[tokio::test(start_paused = true)]
async fn a_revoked_device_does_not_sleep() {
    let cluster = Cluster::new(6);
    let ben = cluster.mailbox("ben", &["phone", "web"]).await;
    cluster.store.inner.revoke(ben, &device("phone")).await.unwrap();
    cluster.lease(ben, "web").await;
    assert_eq!(due_after(&cluster, submit_of("ana", ben, None, &[1])).await, Millis(20_000));
}

#[tokio::test(start_paused = true)]
async fn without_a_device_set_or_an_answer_of_presence_it_is_due_at_once() {
    let names: Vec<String> = (0..70).map(|n| format!("device{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let cluster = Cluster::new(7);
    let many = cluster.mailbox("many", &names).await;
    for name in &names {
        cluster.lease(many, name).await;
    }
    let due = due_after(&cluster, submit_of("ana", many, None, &[1])).await;
    assert_eq!(due, Millis(0), "a set of so many devices is not kept");
    let few = cluster.mailbox("few", &["phone"]).await;
    cluster.lease(few, "phone").await;
    let (world, store, links) = (&cluster.world, &cluster.store, &cluster.links);
    let router = Router::with_wakes(
        config(),
        Arc::clone(world),
        Arc::clone(store) as _,
        Arc::clone(links) as _,
        Arc::new(Away),
        Arc::clone(&cluster.metrics),
        Arc::clone(&cluster.wakes) as _,
    );
    router.handle(Request::Submit(submit_of("ana", few, None, &[1]))).await;
    cluster.settle().await;
    let hint = *cluster.wakes.latest().last().unwrap();
    assert_eq!((hint.mailbox, hint.due), (few, hint.at));
}

/// Presence that does not answer, and says so.
struct Away;

#[async_trait]
impl Presence for Away {
    async fn lease(&self, leases: &[Lease]) -> Vec<bool> {
        vec![true; leases.len()]
    }

    async fn release(&self, _: &Lease) {}

    async fn devices(&self, _: MailboxId) -> Option<Vec<DeviceLease>> {
        None
    }
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_is_hinted_again_and_what_was_not_written_is_not() {
    let cluster = Cluster::new(3);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1, 2])).await;
    cluster.submit(submit_of("ana", ben, None, &[2])).await;
    cluster.settle().await;
    // Its first answer may have been lost with the router, and the hint with it.
    assert_eq!(cluster.wakes.latest().iter().map(range).collect::<Vec<_>>(), [(1, 2), (2, 2)]);
    cluster.store.script(&[Fault::Unavailable]);
    let refused = cluster.submit(Submit { budget: Millis(100), ..submit_of("ana", ben, None, &[3]) }).await;
    assert_eq!(outcomes(&refused), [Outcome::Unavailable]);
    cluster.settle().await;
    assert_eq!(cluster.wakes.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_router_that_can_ring_no_more_still_hints() {
    let config = RouterConfig { doorbells_max: 0, ..config() };
    let cluster = Cluster::with(4, config, LogConfig { shape: SHAPE, ..LogConfig::default() });
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.submit(submit_of("ana", ben, None, &[1])).await;
    assert_eq!(cluster.metrics.doorbells_dropped_router.get(), 1);
    let hint = cluster.wakes.latest()[0];
    assert_eq!(hint.due, hint.at + Millis(20_000), "whether somebody is there was not asked");
}

#[test]
fn hints_in_the_process_are_counted_and_the_latest_are_kept() {
    let wakes = LocalWakes::new(2);
    for seq in 1..=5 {
        let (at, due) = (UnixMillis(seq), UnixMillis(seq));
        let (from, upto) = (Seq(seq), Seq(seq));
        let urgency = Urgency::Message;
        wakes.hint(WakeHint { mailbox: MailboxId([1; 16]), from, upto, urgency, at, due });
    }
    assert_eq!(wakes.count(), 5);
    assert_eq!(wakes.latest().iter().map(|hint| hint.upto.0).collect::<Vec<_>>(), [4, 5]);
}
