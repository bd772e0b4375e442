//! What a sender is told, and what then stands in the log.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use bytes::Bytes;
use chappe_protocol::envelope::{DeviceFilter, SlotBody};
use chappe_protocol::id::{Bucket, EnvelopeId, MailboxId, UserId};
use chappe_protocol::internode::{Outcome, Reply, Request, Submit, SubmitList};
use chappe_protocol::time::Millis;
use chappe_router::RouterConfig;
use chappe_storage::slotlog::LogConfig;
use chappe_storage::{EntryPayload, Store};
use common::flaky::Fault;
use common::{BUDGET, Cluster, SHAPE, config, device, entry, numbers, outcomes, sender, submit_of};
use futures_util::future::join_all;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn accepted_entries_stand_in_the_log_in_their_order_under_their_ids() {
    let cluster = Cluster::new(1);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let replies = cluster.submit(submit_of("ana", ben, None, &[1, 2, 3, 4, 5])).await;
    assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 5]);
    assert_eq!(replies[0].head_bucket, Some(Bucket(1)), "slot 5 with buckets of 4");
    let log = cluster.log(ben).await;
    assert_eq!(numbers(&log), [1, 2, 3, 4, 5]);
    for (slot, result) in log.iter().zip(&replies[0].results) {
        assert_eq!(slot.envelope_id, result.envelope_id);
        assert_eq!(slot.sender.as_ref(), Some(&sender("ana")));
        assert_eq!(slot.expires_at, slot.at + config().ttl_max, "a TTL of 0 is the longest");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_is_never_answered_with_accepted() {
    let cluster = Cluster::new(2);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Hang]);
    let begin = cluster.world.now();
    let replies = cluster.submit(submit_of("ana", ben, None, &[1, 2])).await;
    assert_eq!(outcomes(&replies), [Outcome::Unknown, Outcome::NotAttempted]);
    assert_eq!(cluster.world.now() - begin, BUDGET);
    assert!(cluster.log(ben).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_append_without_an_answer_is_tried_again_under_the_same_ids_and_base() {
    for faults in
        [[Fault::Lost, Fault::Lost], [Fault::LostReply, Fault::LostReply], [Fault::Zombie, Fault::Slow(1)]]
    {
        let cluster = Cluster::new(3);
        let ben = cluster.mailbox("ben", &["phone"]).await;
        cluster.store.script(&faults);
        let replies = cluster.submit(submit_of("ana", ben, Some(Bucket(0)), &[1, 2])).await;
        assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 2], "{faults:?}");
        assert_eq!(numbers(&cluster.log(ben).await), [1, 2], "{faults:?}");
        let asked = cluster.store.asked.lock().unwrap();
        assert!(asked.len() > 1);
        assert!(asked.iter().all(|again| again.ids == asked[0].ids && again.base == Some(Bucket(0))));
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_attempt_without_an_answer_a_refusal_decides_nothing() {
    let cluster = Cluster::new(4);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::LostReply, Fault::Unavailable]);
    let replies = cluster.submit(submit_of("ana", ben, None, &[1])).await;
    assert_eq!(outcomes(&replies), [Outcome::Accepted]);
    assert_eq!(numbers(&cluster.log(ben).await), [1]);
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_store_ends_each_list_at_its_first_entry() {
    let cluster = Cluster::new(5);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let expected = [Outcome::Unavailable, Outcome::NotAttempted, Outcome::NotAttempted];
    cluster.store.script(&[Fault::Unavailable]);
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[1, 2, 3])).await), expected);
    cluster.store.pending.lock().unwrap().push_back(Fault::Lost);
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[1, 2, 3])).await), expected);
    cluster.store.device_reads.lock().unwrap().push_back(Fault::Unavailable);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[1, 2, 3])).await), expected);
    assert!(cluster.log(ben).await.is_empty());
    let replies = cluster.submit(submit_of("ana", ben, None, &[1, 2, 3])).await;
    assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 3]);
}

#[tokio::test(start_paused = true)]
async fn a_long_list_stops_where_its_second_batch_fails() {
    let cluster = Cluster::new(6);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let ids: Vec<u64> = (0..100).collect();
    cluster.store.script(&[Fault::Unavailable, Fault::Slow(0), Fault::Unavailable]);
    let replies = cluster.submit(submit_of("ana", ben, None, &ids)).await;
    assert_eq!(outcomes(&replies)[..2], [Outcome::Unavailable, Outcome::NotAttempted]);
    cluster.settle().await;
    assert!(cluster.log(ben).await.is_empty(), "nothing behind the first batch was attempted");
    let replies = cluster.submit(submit_of("ana", ben, None, &ids)).await;
    let outcomes = outcomes(&replies);
    assert_eq!(outcomes[..64], vec![Outcome::Accepted; 64]);
    assert_eq!(outcomes[64], Outcome::Unavailable);
    assert_eq!(outcomes[65..], vec![Outcome::NotAttempted; 35]);
    assert_eq!(numbers(&cluster.log(ben).await), ids[..64]);
    assert_eq!(replies[0].head_bucket, Some(Bucket(16)));
}

#[tokio::test(start_paused = true)]
async fn senders_that_wait_share_the_next_batch_which_is_bounded() {
    let cluster = Cluster::new(7);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(50)]);
    let submits = (0..100).map(|id| {
        cluster.submit_after(u64::from(id > 0), submit_of(&format!("user{id}"), ben, Some(Bucket(0)), &[id]))
    });
    let replies = join_all(submits).await;
    assert!(replies.iter().all(|replies| outcomes(replies) == [Outcome::Accepted]));
    assert_eq!(cluster.log(ben).await.len(), 100);
    let sizes: Vec<usize> = cluster.store.asked.lock().unwrap().iter().map(|asked| asked.ids.len()).collect();
    assert_eq!(sizes, [1, 64, 35]);
    assert_eq!(cluster.metrics.mailboxes.get(), 0, "the round has gone");
    assert_eq!((cluster.metrics.queue_entries.get(), cluster.metrics.queue_bytes.get()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_bounded_in_bytes_too() {
    let cluster = Cluster::new(8);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(50)]);
    let large = Bytes::from(vec![0; 90_000]);
    let submits = (0..12).map(|id| {
        let mut submit = submit_of(&format!("user{id}"), ben, None, &[id]);
        submit.payloads = vec![large.clone()];
        cluster.submit_after(u64::from(id > 0), submit)
    });
    let replies = join_all(submits).await;
    assert!(replies.iter().all(|replies| outcomes(replies) == [Outcome::Accepted]));
    let sizes: Vec<usize> = cluster.store.asked.lock().unwrap().iter().map(|asked| asked.ids.len()).collect();
    assert_eq!(sizes, [1, 5, 5, 1], "5 × 90,000 bytes fit into 512 KiB");
}

#[tokio::test(start_paused = true)]
async fn a_mixed_batch_looks_back_as_far_as_its_neediest_entry() {
    for (bases, expected) in [([Some(3), Some(1)], Some(Bucket(1))), ([Some(3), None], None)] {
        let cluster = Cluster::new(9);
        let ben = cluster.mailbox("ben", &["phone"]).await;
        cluster.store.script(&[Fault::Slow(50)]);
        let first = cluster.submit(submit_of("first", ben, Some(Bucket(0)), &[0]));
        let second = cluster.submit_after(1, submit_of("second", ben, bases[0].map(Bucket), &[1]));
        let third = cluster.submit_after(1, submit_of("third", ben, bases[1].map(Bucket), &[2]));
        tokio::join!(first, second, third);
        let asked = cluster.store.asked.lock().unwrap();
        assert_eq!((asked[1].ids.len(), asked[1].base), (2, expected));
    }
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_a_batch_keep_their_own_deadlines() {
    let cluster = Cluster::new(10);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(50)]);
    cluster.store.script(&[Fault::Lost; 7]);
    let hasty = Submit { budget: Millis(200), ..submit_of("hasty", ben, None, &[1]) };
    let (opener, hasty, patient) = tokio::join!(
        cluster.submit(submit_of("opener", ben, None, &[0])),
        cluster.submit_after(1, hasty),
        cluster.submit_after(1, submit_of("patient", ben, None, &[2])),
    );
    assert_eq!(outcomes(&opener), [Outcome::Accepted]);
    assert_eq!(outcomes(&hasty), [Outcome::Unknown]);
    assert_eq!(outcomes(&patient), [Outcome::Accepted]);
    assert_eq!(numbers(&cluster.log(ben).await), [0, 2], "no compare-and-set begins after the deadline");
}

#[tokio::test(start_paused = true)]
async fn what_waits_past_its_deadline_is_not_appended_any_more() {
    let cluster = Cluster::new(11);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(1000)]);
    let late = Submit { budget: Millis(300), ..submit_of("late", ben, None, &[2, 3]) };
    let (first, late) =
        tokio::join!(cluster.submit(submit_of("first", ben, None, &[1])), cluster.submit_after(1, late));
    assert_eq!(outcomes(&first), [Outcome::Accepted]);
    assert_eq!(
        outcomes(&late),
        [Outcome::Unknown, Outcome::NotAttempted],
        "never unavailable at the deadline"
    );
    cluster.settle().await;
    assert_eq!(numbers(&cluster.log(ben).await), [1]);
    assert_eq!(cluster.metrics.queue_entries.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn each_target_has_its_own_result() {
    let log = LogConfig { shape: SHAPE, slots_max: 2, ..LogConfig::default() };
    let cluster = Cluster::with(12, config(), log);
    let good = cluster.mailbox("good", &["phone"]).await;
    let nobody = cluster.mailbox("nobody", &[]).await;
    let changed = cluster.mailbox("changed", &["a", "b"]).await;
    let full = cluster.mailbox("full", &["phone"]).await;
    let erased = cluster.mailbox("erased", &["phone"]).await;
    let missed = cluster.mailbox("missed", &["phone"]).await;
    cluster.submit(submit_of("ana", full, None, &[1, 2])).await;
    cluster.store.erase(&UserId::new("erased").unwrap()).await.unwrap();
    let list = |mailbox, devices, device_set_version| SubmitList {
        mailbox,
        base: None,
        entries: vec![chappe_protocol::internode::SubmitEntry { devices, device_set_version, ..entry(9, 0) }],
    };
    let lists = vec![
        list(good, DeviceFilter::All, None),
        list(nobody, DeviceFilter::All, None),
        list(changed, DeviceFilter::All, Some(1)),
        list(full, DeviceFilter::All, None),
        list(erased, DeviceFilter::All, None),
        list(missed, DeviceFilter::AllBut(vec![device("phone")]), None),
    ];
    let mailboxes: Vec<MailboxId> = lists.iter().map(|list| list.mailbox).collect();
    let payloads = vec![Bytes::from_static(&[0; 8])];
    let replies = cluster.submit(Submit { sender: sender("ana"), budget: BUDGET, payloads, lists }).await;
    let devices = vec![device("a"), device("b")];
    let expected = [
        Outcome::Accepted,
        Outcome::NoDevice,
        Outcome::DevicesChanged { version: 2, devices },
        Outcome::Quota,
        Outcome::UnknownUser,
        Outcome::NoDevice,
    ];
    assert_eq!(outcomes(&replies), expected);
    assert_eq!(replies.iter().map(|reply| reply.mailbox).collect::<Vec<_>>(), mailboxes);
    assert!(cluster.log(missed).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_follows_a_final_refusal_is_attempted() {
    let cluster = Cluster::new(13);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let mut submit = submit_of("ana", ben, None, &[1, 2, 3]);
    submit.lists[0].entries[1].devices = DeviceFilter::Only(vec![device("unheard-of")]);
    let replies = cluster.submit(submit).await;
    assert_eq!(outcomes(&replies), [Outcome::Accepted, Outcome::NoDevice, Outcome::Accepted]);
    assert_eq!(numbers(&cluster.log(ben).await), [1, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_remembered_device_set_refuses_nobody() {
    let cluster = Cluster::new(14);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[1])).await), [Outcome::Accepted]);
    // The router remembers a set without the laptop and of version 1.
    cluster.mailbox("ben", &["laptop"]).await;
    let mut to_laptop = submit_of("ana", ben, None, &[2]);
    to_laptop.lists[0].entries[0].devices = DeviceFilter::Only(vec![device("laptop")]);
    assert_eq!(outcomes(&cluster.submit(to_laptop).await), [Outcome::Accepted]);
    let cleo = cluster.mailbox("cleo", &["phone"]).await;
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", cleo, None, &[3])).await), [Outcome::Accepted]);
    cluster.mailbox("cleo", &["laptop"]).await;
    let mut stale = submit_of("ana", cleo, None, &[4]);
    stale.lists[0].entries[0].device_set_version = Some(1);
    let changed = Outcome::DevicesChanged { version: 2, devices: vec![device("laptop"), device("phone")] };
    assert_eq!(outcomes(&cluster.submit(stale).await), [changed]);
    cluster.store.revoke(ben, &device("phone")).await.unwrap();
    cluster.store.revoke(ben, &device("laptop")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[4])).await), [Outcome::NoDevice]);
}

#[tokio::test(start_paused = true)]
async fn a_fan_out_stores_its_payload_once_per_attempt() {
    let cluster = Cluster::new(15);
    let mut mailboxes = Vec::new();
    for n in 0..20 {
        mailboxes.push(cluster.mailbox(&format!("user{n}"), &["phone"]).await);
    }
    let payload = Bytes::from(vec![5; 1000]);
    let fan_out = || {
        let list =
            |mailbox: &MailboxId| SubmitList { mailbox: *mailbox, base: None, entries: vec![entry(1, 0)] };
        let lists = mailboxes.iter().map(list).collect();
        Submit { sender: sender("ana"), budget: BUDGET, payloads: vec![payload.clone()], lists }
    };
    for attempt in 1..=2 {
        assert_eq!(outcomes(&cluster.submit(fan_out()).await), vec![Outcome::Accepted; 20]);
        assert_eq!(cluster.store.puts.lock().unwrap().len(), attempt);
    }
    {
        let puts = cluster.store.puts.lock().unwrap();
        assert_ne!(puts[0].0, puts[1].0, "its own payload id per attempt");
        let asked = cluster.store.asked.lock().unwrap();
        let refers =
            |of: &EntryPayload| matches!(of, EntryPayload::Ref { id, bytes: 1000 } if *id == puts[0].0);
        assert!(asked[..20].iter().all(|asked| refers(&asked.entries[0].payload)));
    }
    for mailbox in &mailboxes {
        let log = cluster.log(*mailbox).await;
        assert_eq!(log.len(), 1, "the second attempt was a duplicate");
        assert_eq!(log[0].body, SlotBody::Present(payload.clone()));
    }
    cluster.store.payloads.lock().unwrap().push_back(Fault::Lost);
    let mut again = fan_out();
    again.lists.iter_mut().for_each(|list| list.entries = vec![entry(2, 0), entry(3, 0)]);
    let replies = cluster.submit(again).await;
    assert!(replies.iter().all(|list| list.results[0].outcome == Outcome::Unavailable));
    assert!(replies.iter().all(|list| list.results[1].outcome == Outcome::NotAttempted));
    assert_eq!(cluster.log(mailboxes[0]).await.len(), 1, "no slot without its payload");
}

#[tokio::test(start_paused = true)]
async fn a_small_or_unshared_payload_stays_in_its_slot() {
    let cluster = Cluster::new(16);
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    let list =
        |mailbox, payload| SubmitList { mailbox, base: None, entries: vec![entry(1, 0), entry(2, payload)] };
    let payloads = vec![Bytes::from(vec![1; 256]), Bytes::from(vec![2; 5000]), Bytes::from(vec![3; 5000])];
    let lists = vec![list(ben, 1), list(cleo, 2)];
    let submit = Submit { sender: sender("ana"), budget: BUDGET, payloads, lists };
    assert_eq!(outcomes(&cluster.submit(submit).await), vec![Outcome::Accepted; 4]);
    assert!(cluster.store.puts.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_full_router_refuses_and_writes_nothing() {
    let bounds = RouterConfig { queue_entries_max: 4, ..config() };
    let cluster = Cluster::with(17, bounds, LogConfig { shape: SHAPE, ..LogConfig::default() });
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    cluster.store.script(&[Fault::Slow(500)]);
    let refused = async {
        cluster.settle().await;
        let reply = cluster.router.handle(Request::Submit(submit_of("cleo", cleo, None, &[5, 6]))).await;
        assert_eq!(reply, Reply::Unavailable);
        let mut large = submit_of("cleo", cleo, None, &[7]);
        large.payloads = vec![Bytes::from(vec![0; config().payload_bytes_max + 1])];
        assert_eq!(cluster.router.handle(Request::Submit(large)).await, Reply::Unavailable);
    };
    let (replies, ()) = tokio::join!(cluster.submit(submit_of("ana", ben, None, &[1, 2, 3])), refused);
    assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 3]);
    assert!(cluster.log(cleo).await.is_empty());
    assert_eq!(cluster.metrics.refused_full.get(), 1);
    assert_eq!(cluster.metrics.refused_invalid.get(), 1);
    let replies = cluster.submit(submit_of("cleo", cleo, None, &[5, 6])).await;
    assert_eq!(outcomes(&replies), vec![Outcome::Accepted; 2], "there is room again");
}

#[tokio::test(start_paused = true)]
async fn a_router_is_bounded_in_bytes_and_each_mailbox_in_entries() {
    let bounds = RouterConfig { queue_bytes_max: 64 * 1024, mailbox_entries_max: 3, ..config() };
    let cluster = Cluster::with(18, bounds, LogConfig { shape: SHAPE, ..LogConfig::default() });
    let (ben, cleo) = (cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await);
    cluster.store.script(&[Fault::Slow(500)]);
    let large = |mailbox| Submit {
        payloads: vec![Bytes::from(vec![0; 60_000])],
        ..submit_of("dan", mailbox, None, &[9])
    };
    let others = async {
        cluster.settle().await;
        assert_eq!(cluster.router.handle(Request::Submit(large(cleo))).await, Reply::Unavailable);
        let (waits, refused) = tokio::join!(
            cluster.submit(submit_of("cleo", ben, None, &[1, 2])),
            cluster.submit(submit_of("eve", ben, None, &[3, 4])),
        );
        assert_eq!(outcomes(&waits), vec![Outcome::Accepted; 2]);
        assert_eq!(outcomes(&refused), [Outcome::Unavailable, Outcome::NotAttempted]);
    };
    let (replies, ()) = tokio::join!(cluster.submit(large(ben)), others);
    assert_eq!(outcomes(&replies), [Outcome::Accepted]);
    assert_eq!(cluster.log(ben).await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn requests_out_of_bounds_are_refused() {
    let cluster = Cluster::new(19);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    let good = submit_of("ana", ben, None, &[1]);
    let mut bad_index = good.clone();
    bad_index.lists[0].entries[0].payload = 1;
    let mut twice = good.clone();
    twice.lists.push(twice.lists[0].clone());
    let mut devices = good.clone();
    devices.lists[0].entries[0].devices = DeviceFilter::AllBut(vec![device("x"); 1025]);
    let mut many = good.clone();
    many.lists[0].entries = vec![entry(1, 0); 1025];
    for bad in [bad_index, twice, devices, many] {
        assert_eq!(cluster.router.handle(Request::Submit(bad)).await, Reply::Unavailable);
    }
    assert!(cluster.log(ben).await.is_empty());
    assert_eq!(cluster.metrics.refused_invalid.get(), 4);
    let replies = cluster.submit(good).await;
    let id = EnvelopeId::derive(entry(1, 0).submit_id, ben, 0);
    assert_eq!((replies[0].results[0].envelope_id, &replies[0].results[0].outcome), (id, &Outcome::Accepted));
}

#[tokio::test(start_paused = true)]
async fn a_pending_row_is_fresh_when_accepted_is_answered() {
    let cluster = Cluster::new(20);
    let ben = cluster.mailbox("ben", &["phone"]).await;
    cluster.store.script(&[Fault::Slow(15_000)]);
    let slow = Submit { budget: Millis(25_000), ..submit_of("ana", ben, None, &[1]) };
    assert_eq!(outcomes(&cluster.submit(slow).await), [Outcome::Accepted]);
    assert_eq!(*cluster.store.notes.lock().unwrap(), 2, "written again behind the slow append");
    assert_eq!(outcomes(&cluster.submit(submit_of("ana", ben, None, &[2])).await), [Outcome::Accepted]);
    assert_eq!(*cluster.store.notes.lock().unwrap(), 3, "once is enough for a quick one");
}
