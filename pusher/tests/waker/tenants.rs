//! Several apps at several providers: the trouble of one is no other's.

use crate::rig::{Rig, done};
use chappe_protocol::envelope::Urgency;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_pusher::outbox::OutboxConfig;
use chappe_pusher::provider::{Answer, Scope, Verdict};

fn retry(after: Option<Millis>, scope: Scope) -> Answer {
    Answer { verdict: Verdict::Retry { after, scope }, reason: "later" }
}

#[tokio::test(start_paused = true)]
async fn one_tenants_429_does_not_slow_anothers() {
    let mut rig = Rig::new();
    rig.config.outbox = OutboxConfig { in_flight_per_app_max: 10, ..OutboxConfig::default() };
    rig.provider.on("busy", |_| (Millis(20_000), retry(Some(Millis::from_secs(60)), Scope::App)));
    let mut all = Vec::new();
    for count in 0..100 {
        let app = if count % 2 == 0 { "busy" } else { "calm" };
        all.push(rig.sleeper(&format!("u{count}"), app).await);
    }
    let running = rig.start();
    let start = rig.now();
    for (mailbox, _) in &all {
        let hint = rig.submit(*mailbox, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(2).await;
    let calm: Vec<_> = rig.woke().into_iter().filter(|woke| woke.app == "calm").collect();
    assert_eq!(calm.len(), 50);
    assert!(calm.iter().all(|woke| (woke.at - start).0 < 2000));
    assert_eq!(rig.woke().len() - calm.len(), 10, "and the busy one has its own bound");
    // Nobody of the busy one is asked while it pauses.
    rig.pass(60).await;
    assert_eq!(rig.woke().iter().filter(|woke| woke.app == "busy").count(), 10);
    rig.provider.on("busy", |_| (Millis(50), done()));
    rig.pass(60).await;
    let mut busy: Vec<_> =
        rig.woke().into_iter().filter(|woke| woke.app == "busy" && (woke.at - start).0 > 60_000).collect();
    busy.sort_by(|one, other| one.token.cmp(&other.token));
    busy.dedup_by(|one, other| one.token == other.token);
    assert_eq!(busy.len(), 50, "then all of them are woken");
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_for_a_minute_gets_every_wake_afterwards_once() {
    let rig = Rig::new();
    let start = rig.now();
    let down = move |woke: &crate::rig::Woke| {
        let up = (woke.at - start).0 > 60_000;
        (Millis(100), if up { done() } else { retry(None, Scope::Device) })
    };
    rig.provider.on("app", down);
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(59).await;
    let tried = rig.woke().len();
    assert!((3..=9).contains(&tried), "backs off: {tried}");
    rig.pass(70).await;
    assert_eq!(running.figure("chappe_pusher_wakes_total", ""), 1);
    rig.ack(&phone).await;
    rig.pass(3600).await;
    assert_eq!(running.figure("chappe_pusher_wakes_total", ""), 1);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_back_after_an_hour_hears_of_everybody_within_the_bound() {
    let rig = Rig::new();
    rig.provider.on("app", |_| (Millis(100), retry(None, Scope::Provider)));
    let mut all = Vec::new();
    for count in 0..20 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    let running = rig.start();
    for (mailbox, _) in &all {
        let hint = rig.submit(*mailbox, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(3600).await;
    rig.provider.on("app", |_| (Millis(100), done()));
    rig.pass(20).await;
    assert_eq!(running.figure("chappe_pusher_wakes_total", "first"), 20);
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_removed_unless_it_was_registered_after_its_death() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let reborn = rig.sleeper("cleo", "app").await;
    let registered = rig.wall();
    rig.provider.on("app", move |woke| {
        let since = if woke.token == "cleo" { registered.0 - 1 } else { registered.0 + 1 };
        (Millis(50), Answer { verdict: Verdict::Drop { since: Some(UnixMillis(since)) }, reason: "gone" })
    });
    let running = rig.start();
    for of in [&phone, &reborn] {
        let hint = rig.submit(of.0, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(5).await;
    assert_eq!(rig.store.push_targets(phone.0, &phone.1).await.unwrap(), None);
    assert!(rig.store.push_targets(reborn.0, &reborn.1).await.unwrap().is_some());
    assert_eq!(running.figure("chappe_pusher_dead_targets_total", ""), 1);
    rig.pass(20).await;
    assert_eq!(rig.woke().len(), 2, "neither is asked again at once");
    // The device registers anew, and is woken by what comes next.
    rig.provider.on("app", |_| (Millis(50), done()));
    rig.register(&phone, "app", chappe_protocol::push::Quiet::default()).await;
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(1).await;
    assert_eq!(rig.woke().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_came_while_the_old_token_was_called_dead_stays() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    rig.provider
        .on("app", |_| (Millis(5_000), Answer { verdict: Verdict::Drop { since: None }, reason: "gone" }));
    let running = rig.start();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(1).await;
    rig.register(&phone, "other", chappe_protocol::push::Quiet::default()).await;
    rig.pass(6).await;
    assert!(rig.store.push_targets(phone.0, &phone.1).await.unwrap().is_some());
    let apps: Vec<_> = rig.woke().into_iter().map(|woke| woke.app).collect();
    assert_eq!(apps, ["app", "other"], "and is used");
}

#[tokio::test(start_paused = true)]
async fn a_poison_wake_is_parked_where_it_is_seen_and_not_tried_again() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    rig.provider.on("app", |_| (Millis(50), Answer { verdict: Verdict::Park, reason: "PayloadTooLarge" }));
    let running = rig.start();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(24 * 3600).await;
    assert_eq!(rig.woke().len(), 1);
    let parked = running.waker.parked();
    assert_eq!((parked.len(), parked[0].reason), (1, "PayloadTooLarge"));
    assert_eq!(running.figure("chappe_pusher_parked_total", ""), 1);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_its_provider_refuses_waits_until_its_configuration_is_mended() {
    let rig = Rig::new();
    rig.provider
        .on("app", |_| (Millis(50), Answer { verdict: Verdict::FixConfiguration, reason: "BadTopic" }));
    let mut all = Vec::new();
    for count in 0..20 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    let running = rig.start();
    let hint = rig.submit(all[0].0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(1).await;
    for (mailbox, _) in &all[1..] {
        let hint = rig.submit(*mailbox, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(120).await;
    assert_eq!(rig.woke().len(), 1, "one was enough to know");
    rig.provider.on("app", |_| (Millis(50), done()));
    running.waker.resume();
    rig.pass(1).await;
    assert_eq!(running.figure("chappe_pusher_wakes_total", "first"), 20);
}

#[tokio::test(start_paused = true)]
async fn what_the_outbox_has_no_place_for_waits_in_the_store_and_is_woken_later() {
    let mut rig = Rig::new();
    rig.config.outbox = OutboxConfig { per_app_max: 10, ..OutboxConfig::default() };
    let mut all = Vec::new();
    for count in 0..40 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    rig.provider.on("app", |_| (Millis(10_000), done()));
    let running = rig.start();
    for (mailbox, _) in &all {
        let hint = rig.submit(*mailbox, Urgency::Message).await;
        running.hints.send(hint.into()).await.unwrap();
    }
    rig.pass(1).await;
    assert_eq!(rig.woke().len(), 10);
    assert!(running.figure("chappe_pusher_deferred_total", "") >= 30);
    rig.pass(15 * 60).await;
    assert_eq!(running.figure("chappe_pusher_wakes_total", "first"), 40);
}
