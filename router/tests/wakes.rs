//! Wake hints: one per mailbox and append, with what their reader needs, and never in the way of an append.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use chappe_protocol::envelope::Urgency;
use chappe_protocol::id::{MailboxId, Seq};
use chappe_protocol::internode::{Outcome, Submit, WakeHint};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_router::RouterConfig;
use chappe_router::wakes::{LocalWakes, Wakes};
use chappe_storage::slotlog::LogConfig;
use common::flaky::Fault;
use common::{Cluster, SHAPE, config, outcomes, submit_of};

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
