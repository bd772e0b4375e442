//! Whom the pusher wakes, when, and how often. **Invariant:** paused time; the provider is a script, the store is the reference.
#![allow(clippy::unwrap_used, clippy::expect_used, unreachable_pub, missing_docs, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod faults;
mod rig;
mod tenants;

use chappe_protocol::envelope::{DeviceFilter, Urgency};
use chappe_protocol::push::{ApnsKind, AppName, PushAddress, PushSettings, PushTarget, Quiet, QuietHours};
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_router::presence::Presence as _;
use rig::Rig;

#[tokio::test(start_paused = true)]
async fn a_hint_wakes_at_once_then_the_schedule_does_until_the_device_has_acked() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    // No sweep has seen the mailbox when the hint comes.
    rig.pass(13).await;
    let start = rig.now();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(1).await;
    assert_eq!(rig.seconds_since(start), [0]);
    rig.pass(14 * 60).await;
    let gaps: Vec<u64> = rig.seconds_since(start).windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps.len(), 3, "{gaps:?}");
    for (gap, span) in gaps.iter().zip([30, 120, 600]) {
        assert!((span..=span + span / 10 + 1).contains(gap), "{gaps:?}");
    }
    rig.ack(&phone).await;
    rig.pass(24 * 3600).await;
    assert_eq!(rig.woke().len(), 4, "none after the ack");
    let wake = rig.woke()[0].wake.clone();
    assert!(rig.woke().iter().all(|woke| woke.wake.collapse == wake.collapse), "a later one replaces it");
    assert!(wake.is_sound());
}

#[tokio::test(start_paused = true)]
async fn whom_nobody_wakes_for_a_day_is_left_alone_until_something_new_comes() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    rig.submit(phone.0, Urgency::Message).await;
    rig.pass(3 * 24 * 3600).await;
    assert_eq!(rig.woke().len(), 8, "the first and seven repeats");
    let start = rig.now();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(2).await;
    assert_eq!(rig.seconds_since(start).last(), Some(&0));
    assert_eq!(running.figure("chappe_pusher_wakes_total", "repeated"), 7);
}

#[tokio::test(start_paused = true)]
async fn a_sweep_finds_whom_no_hint_told_of_within_thirty_seconds() {
    for offset in [0, 1, 3, 7, 19, 31, 59] {
        let rig = Rig::new();
        let phone = rig.sleeper("ben", "app").await;
        let _running = rig.start();
        rig.pass(offset).await;
        let start = rig.now();
        rig.submit(phone.0, Urgency::Message).await;
        rig.pass(29).await;
        let woke = rig.seconds_since(start);
        assert!(woke.len() == 1 && (20..=29).contains(&woke[0]), "{offset}: {woke:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_one_of_a_stream_of_envelopes_is_swept_in_time() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    // One each 31 s for an hour, each acked when its wake has come: the notes of a mailbox are renewed and looked at all along.
    for round in 0..120 {
        let start = rig.now();
        let before = rig.woke().len();
        rig.submit(phone.0, Urgency::Message).await;
        rig.pass(30).await;
        assert_eq!(rig.woke().len(), before + 1, "round {round}");
        assert!(rig.seconds_since(start).last().unwrap() <= &30);
        rig.ack(&phone).await;
        rig.pass(1).await;
    }
    assert_eq!(running.figure("chappe_pusher_wakes_total", "repeated"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_attached_device_is_its_gateways_to_care_for_until_its_lease_shows_no_life() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    let lease = rig.lease(&phone).await;
    let mut hint = rig.submit(phone.0, Urgency::Message).await;
    hint.due = hint.at + Millis::from_secs(20);
    running.hints.send(hint.into()).await.unwrap();
    for _ in 0..10 {
        rig.pass(20).await;
        rig.lease(&phone).await;
    }
    assert!(rig.woke().is_empty(), "the device lives, slow as it is");
    // Its gateway closes it.
    rig.directory.release(&lease).await;
    let start = rig.now();
    rig.pass(6).await;
    assert_eq!(rig.seconds_since(start).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_that_dies_with_its_leases_costs_no_more_than_thirty_seconds() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    rig.pass(5).await;
    rig.lease(&phone).await;
    let start = rig.now();
    let mut hint = rig.submit(phone.0, Urgency::Message).await;
    hint.due = hint.at + Millis::from_secs(20);
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(30).await;
    let woke = rig.seconds_since(start);
    assert!(woke.len() == 1 && (20..=29).contains(&woke[0]), "{woke:?}");
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_sleeps_beside_an_attached_desktop_is_woken_alone_and_at_once() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let desktop = rig.device("ben", "desktop").await;
    rig.register(&desktop, "app", Quiet::default()).await;
    let running = rig.start();
    rig.lease(&desktop).await;
    let start = rig.now();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(3).await;
    rig.ack(&desktop).await;
    assert_eq!(rig.seconds_since(start), [0]);
    assert_eq!(rig.woke()[0].token, "ben");
    rig.pass(20).await;
    assert_eq!(rig.woke().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_registered_nothing_does_not_have_its_slots_read_by_every_hint() {
    let rig = Rig::new();
    let laptop = rig.device("ben", "laptop").await;
    let running = rig.start();
    for _ in 0..200 {
        rig.submit(laptop.0, Urgency::Message).await;
    }
    rig.pass(1).await;
    let _ = rig.rows.take_calls();
    for _ in 0..10 {
        let hint = rig.submit(laptop.0, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
        rig.pass(1).await;
    }
    let calls = rig.rows.take_calls();
    assert!(running.figure("chappe_pusher_looks_total", "unreachable") >= 10);
    assert_eq!((calls.get("cursor"), calls.get("slots")), (Some(&10), None), "{calls:?}");
    assert!(rig.woke().is_empty());
}

#[tokio::test(start_paused = true)]
async fn only_whom_a_slot_targets_and_who_may_still_attach_is_woken() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let tablet = rig.device("ben", "tablet").await;
    rig.register(&tablet, "app", Quiet::default()).await;
    let revoked = rig.device("ben", "revoked").await;
    rig.register(&revoked, "app", Quiet::default()).await;
    rig.store.revoke(revoked.0, &revoked.1).await.unwrap();
    let running = rig.start();
    let only = DeviceFilter::Only(vec![tablet.1.clone(), revoked.1.clone()]);
    let hint = rig.submit_to(phone.0, only, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(25).await;
    let tokens: Vec<_> = rig.woke().into_iter().map(|woke| woke.token).collect();
    assert_eq!(tokens, ["tablet"]);
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_wakes_nobody() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    rig.submit(phone.0, Urgency::Message).await;
    rig.pass(31 * 24 * 3600).await;
    rig.store.add_pending(phone.0).await.unwrap();
    let _running = rig.start();
    rig.pass(120).await;
    assert!(rig.woke().is_empty());
}

#[tokio::test(start_paused = true)]
async fn many_envelopes_make_one_wake_and_the_next_not_before_the_interval() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    let start = rig.now();
    for _ in 0..50 {
        let hint = rig.submit(phone.0, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    rig.pass(24).await;
    let woke = rig.seconds_since(start);
    assert_eq!(woke.len(), 2, "{woke:?}");
    assert!(woke[0] == 0 && (10..=11).contains(&woke[1]), "{woke:?}");
    // A call does not wait for the interval of messages.
    let call_at = rig.now();
    let hint = rig.submit(phone.0, Urgency::Call).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(3).await;
    let calls: Vec<_> = rig.woke().into_iter().filter(|woke| woke.wake.urgency == Urgency::Call).collect();
    assert_eq!(calls.len(), 1);
    assert!((calls[0].at - call_at).0 <= 2000);
    let life = calls[0].wake.expires_at.0 - rig.wall().0;
    assert!(life <= 45_000, "a call that is not taken rings no more: {life}");
}

#[tokio::test(start_paused = true)]
async fn what_a_person_does_not_notice_wakes_a_device_three_times_an_hour_at_most() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    for _ in 0..120 {
        let hint = rig.submit(phone.0, Urgency::Background).await;
        running.hints.send(hint.into()).await.unwrap();
        rig.pass(60).await;
    }
    let woke = rig.woke().len();
    assert!((5..=7).contains(&woke), "{woke} in two hours");
}

#[tokio::test(start_paused = true)]
async fn one_that_comes_each_time_is_still_woken_three_times_an_hour_at_most_for_what_nobody_notices() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    for _ in 0..120 {
        let before = rig.woke().len();
        let hint = rig.submit(phone.0, Urgency::Background).await;
        running.hints.send(hint.into()).await.unwrap();
        rig.pass(60).await;
        if rig.woke().len() > before {
            rig.ack(&phone).await;
        }
    }
    let woke = rig.woke().len();
    assert!((5..=7).contains(&woke), "{woke} in two hours");
    rig.ack(&phone).await;
    // What a person notices does not wait for that.
    let start = rig.now();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(2).await;
    assert_eq!(rig.seconds_since(start).last(), Some(&0));
}

#[tokio::test(start_paused = true)]
async fn who_has_acked_while_a_wake_waited_is_not_woken() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    for _ in 0..2 {
        let hint = rig.submit(phone.0, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
        rig.pass(3).await;
    }
    assert_eq!(rig.woke().len(), 1, "the second waits for its interval");
    rig.ack(&phone).await;
    rig.pass(60).await;
    assert_eq!(rig.woke().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn quiet_hours_hold_messages_back_until_they_end_and_calls_pass_if_they_may() {
    let rig = Rig::new();
    let minute = |offset: u64| u16::try_from((rig.wall().0 / 60_000 + offset) % (24 * 60)).unwrap();
    let night = |calls_pass| {
        let hours = QuietHours::new(minute(0), minute(180)).unwrap();
        Quiet::new(vec![hours], None, calls_pass).unwrap()
    };
    let (ben, cleo) = (rig.device("ben", "ben").await, rig.device("cleo", "cleo").await);
    rig.register(&ben, "app", night(true)).await;
    rig.register(&cleo, "app", night(false)).await;
    let muted = rig.device("dora", "dora").await;
    let until = Some(UnixMillis(rig.wall().0 + 3_600_000));
    rig.register(&muted, "app", Quiet::new(Vec::new(), until, false).unwrap()).await;
    let running = rig.start();
    for of in [&ben, &cleo, &muted] {
        let hint = rig.submit(of.0, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(59 * 60).await;
    assert!(rig.woke().is_empty());
    rig.pass(75).await;
    assert_eq!(rig.woke().iter().map(|woke| woke.token.as_str()).collect::<Vec<_>>(), ["dora"]);
    rig.ack(&muted).await;
    for of in [&ben, &cleo] {
        let hint = rig.submit(of.0, Urgency::Call).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(2).await;
    assert_eq!(rig.woke().last().unwrap().token, "ben");
    assert_eq!(rig.woke().len(), 2);
    rig.ack(&ben).await;
    rig.pass(2 * 3600).await;
    assert_eq!(rig.woke().last().unwrap().token, "cleo", "when the quiet hours have ended");
    assert_eq!(rig.woke().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_call_goes_to_the_voip_token_and_nothing_else_does() {
    let rig = Rig::new();
    let phone = rig.device("ben", "phone").await;
    let target = |kind, token: &[u8]| PushTarget {
        app: AppName::new("app").unwrap(),
        address: PushAddress::Apns { token: token.to_vec(), kind },
        registered_at: rig.wall(),
    };
    let targets = vec![target(ApnsKind::Alert, b"alert"), target(ApnsKind::Voip, b"voip")];
    rig.register_all(&phone, PushSettings { targets, quiet: Quiet::default() }).await;
    let running = rig.start();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(5).await;
    let hint = rig.submit(phone.0, Urgency::Call).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(5).await;
    let tokens: Vec<_> = rig.woke().into_iter().map(|woke| woke.token).collect();
    assert_eq!(tokens, ["alert", "voip"]);
}
