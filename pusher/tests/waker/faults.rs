//! What dies on the way of a wake. **Invariant:** whoever is to be woken is woken within the bound, and once too often at most.

use crate::rig::{Rig, done};
use crate::support::TestWorld;
use async_trait::async_trait;
use chappe_protocol::envelope::Urgency;
use chappe_protocol::time::Millis;
use chappe_pusher::provider::{Answer, Scope, Verdict};
use chappe_pusher::shards::Members;
use chappe_pusher::waker::Hinted;
use chappe_router::presence::Presence as _;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Leases of pushers, as Redis keeps them; may be away.
#[derive(Default)]
struct Together {
    world: Option<Arc<TestWorld>>,
    beats: Mutex<BTreeMap<u64, u64>>,
    away: AtomicBool,
}

#[async_trait]
impl Members for Together {
    async fn beat(&self, me: u64) -> Option<Vec<u64>> {
        if self.away.load(Ordering::Relaxed) {
            return None;
        }
        let now = chappe_protocol::world::World::now(self.world.as_ref().unwrap().as_ref()).0;
        let mut beats = self.beats.lock().unwrap();
        beats.insert(me, now);
        beats.retain(|_, at| now - *at < 6000);
        Some(beats.keys().copied().collect())
    }

    async fn leave(&self, me: u64) {
        self.beats.lock().unwrap().remove(&me);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pusher_killed_before_the_answer_costs_a_wake_and_no_more() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    // The provider has it, the answer is under way.
    rig.provider.on("app", |_| (Millis(10_000), done()));
    let start = rig.now();
    let running = rig.start();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(3).await;
    running.kill();
    assert_eq!(rig.woke().len(), 1);
    rig.provider.on("app", |_| (Millis(50), done()));
    let _second = rig.start();
    rig.pass(27).await;
    let woke = rig.seconds_since(start);
    assert_eq!(woke.len(), 2, "{woke:?}");
    rig.pass(15).await;
    assert_eq!(rig.woke().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pusher_killed_after_the_answer_costs_nothing_and_its_repeat_is_not_lost() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let running = rig.start();
    let start = rig.now();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    running.hints.send(hint.into()).await.unwrap();
    rig.pass(2).await;
    running.kill();
    rig.pass(8).await;
    let second = rig.start();
    rig.pass(90).await;
    let woke = rig.seconds_since(start);
    assert!(woke.len() == 2 && (30..=45).contains(&woke[1]), "{woke:?}");
    second.kill();
    // For hours nobody is there: the repeats that were missed become one.
    rig.pass(5 * 3600).await;
    let _third = rig.start();
    rig.pass(60).await;
    assert_eq!(rig.woke().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_wake_that_waits_for_its_provider_survives_the_pusher() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    rig.provider.on("app", |_| {
        let verdict = Verdict::Retry { after: Some(Millis::from_secs(900)), scope: Scope::App };
        (Millis(50), Answer { verdict, reason: "down" })
    });
    let first = rig.start();
    let hint = rig.submit(phone.0, Urgency::Message).await;
    first.hints.send(hint.into()).await.unwrap();
    // Far longer than notes are looked back for: the keeper renews them.
    rig.pass(800).await;
    assert_eq!(rig.woke().len(), 1);
    first.kill();
    rig.provider.on("app", |_| (Millis(50), done()));
    let _second = rig.start();
    rig.pass(30).await;
    assert_eq!(rig.woke().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn two_pushers_share_the_shards_and_one_that_dies_is_missed_within_the_bound() {
    let rig = Rig::new();
    let members = Arc::new(Together { world: Some(rig.world.clone()), ..Together::default() });
    let mut all = Vec::new();
    for count in 0..60 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    let one = rig.start_among(members.clone(), rig.store.clone());
    let two = rig.start_among(members.clone(), rig.store.clone());
    rig.pass(10).await;
    let shards = [&one, &two].map(|running| running.figure("chappe_pusher_shards", ""));
    assert!(shards[0] > 0 && shards[1] > 0, "{shards:?}");
    assert_eq!(shards[0] + shards[1], u64::from(rig.store.pending_shards()));
    for (mailbox, _) in &all {
        rig.submit(*mailbox, Urgency::Message).await;
    }
    rig.pass(29).await;
    assert_eq!(rig.woke().len(), 60, "each once");
    for of in &all {
        rig.ack(of).await;
    }
    rig.pass(60).await;
    let start = rig.now();
    for (mailbox, _) in &all {
        rig.submit(*mailbox, Urgency::Message).await;
    }
    rig.pass(1).await;
    one.kill();
    rig.pass(29).await;
    assert_eq!(rig.woke().len(), 120);
    assert!(rig.seconds_since(start).iter().all(|seconds| *seconds <= 30));
    drop(two);
}

#[tokio::test(start_paused = true)]
async fn with_redis_away_both_sweep_everything_and_wake_twice_at_most() {
    let rig = Rig::new();
    let members = Arc::new(Together { world: Some(rig.world.clone()), ..Together::default() });
    let mut all = Vec::new();
    for count in 0..30 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    let _one = rig.start_among(members.clone(), rig.store.clone());
    let _two = rig.start_among(members.clone(), rig.store.clone());
    members.away.store(true, Ordering::Relaxed);
    rig.pass(10).await;
    for (mailbox, _) in &all {
        rig.submit(*mailbox, Urgency::Message).await;
    }
    rig.pass(29).await;
    let mut tokens: BTreeMap<String, usize> = BTreeMap::new();
    for woke in rig.woke() {
        *tokens.entry(woke.token).or_default() += 1;
    }
    assert_eq!(tokens.len(), 30);
    assert!(tokens.values().all(|count| *count <= 2), "{tokens:?}");
}

/// Woken devices, each with how often.
fn counts(rig: &Rig) -> Vec<usize> {
    let mut tokens: BTreeMap<String, usize> = BTreeMap::new();
    for woke in rig.woke() {
        *tokens.entry(woke.token).or_default() += 1;
    }
    tokens.into_values().collect()
}

#[tokio::test(start_paused = true)]
async fn two_pushers_wake_nobody_twice_whoever_has_the_hint() {
    let rig = Rig::new();
    let members = Arc::new(Together { world: Some(rig.world.clone()), ..Together::default() });
    let both = [(); 2].map(|()| rig.start_among(members.clone(), rig.store.clone()));
    let mut all = Vec::new();
    for count in 0..40 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    rig.pass(10).await;
    // Asleep: woken at once, and by the schedule.
    for (count, (mailbox, _)) in all.iter().enumerate() {
        let hint = rig.submit(*mailbox, Urgency::Message).await;
        both[count % 2].hints.send(hint.into()).await.unwrap();
    }
    rig.pass(25).await;
    assert_eq!(counts(&rig), [1; 40]);
    rig.pass(10).await;
    assert_eq!(counts(&rig), [2; 40], "the first repeat");
    rig.pass(150).await;
    assert_eq!(counts(&rig), [3; 40], "the second");
    for of in &all {
        rig.ack(of).await;
    }
    rig.pass(30).await;
    rig.provider.woke.lock().unwrap().clear();
    // Attached and silent: their gateways hint for later, and close them a while after that.
    let mut leases = Vec::new();
    for (count, of) in all.iter().enumerate() {
        leases.push(rig.lease(of).await);
        let mut hint = rig.submit(of.0, Urgency::Message).await;
        hint.due = hint.at + Millis::from_secs(20);
        both[count % 2].hints.send(hint.into()).await.unwrap();
    }
    let start = rig.now();
    rig.pass(19).await;
    for lease in &leases {
        rig.lease_again(lease).await;
    }
    rig.pass(3).await;
    for lease in &leases {
        rig.directory.release(lease).await;
    }
    rig.pass(8).await;
    assert_eq!(counts(&rig), [1; 40]);
    assert!(rig.seconds_since(start).iter().all(|seconds| *seconds <= 29), "{:?}", rig.seconds_since(start));
}

#[tokio::test(start_paused = true)]
async fn a_pusher_that_joins_takes_over_and_nobody_is_woken_by_both() {
    let rig = Rig::new();
    let members = Arc::new(Together { world: Some(rig.world.clone()), ..Together::default() });
    let mut all = Vec::new();
    for count in 0..40 {
        all.push(rig.sleeper(&format!("u{count}"), "app").await);
    }
    let _one = rig.start_among(members.clone(), rig.store.clone());
    rig.pass(10).await;
    let start = rig.now();
    for (mailbox, _) in &all {
        rig.submit(*mailbox, Urgency::Message).await;
    }
    rig.pass(8).await;
    let _two = rig.start_among(members.clone(), rig.store.clone());
    rig.pass(21).await;
    assert_eq!(counts(&rig), [1; 40]);
    assert!(rig.seconds_since(start).iter().all(|seconds| *seconds <= 29));
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_wakes_in_flight_end_and_gives_the_others_back() {
    let rig = Rig::new();
    let mut all = Vec::new();
    for (name, app) in [("ben", "slow"), ("cleo", "paused")] {
        all.push(rig.sleeper(name, app).await);
    }
    rig.provider.on("slow", |_| (Millis(10_000), done()));
    rig.provider.on("paused", |_| {
        let verdict = Verdict::Retry { after: Some(Millis::from_secs(900)), scope: Scope::App };
        (Millis(50), Answer { verdict, reason: "down" })
    });
    let running = rig.start();
    let (dealt_with, back) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let send = |hint| {
        let (dealt_with, back) = (dealt_with.clone(), back.clone());
        let finish = move |good: bool| {
            if good { &dealt_with } else { &back }.fetch_add(1, Ordering::Relaxed);
        };
        Hinted { hint, finish: Some(Box::new(finish)) }
    };
    for of in &all {
        let hint = rig.submit(of.0, Urgency::Message).await;
        running.hints.send(send(hint)).await.unwrap();
    }
    rig.pass(2).await;
    // The paused one has had its first answer: its note is what brings it back.
    assert_eq!(dealt_with.load(Ordering::Relaxed), 1);
    let mut later = rig.submit(all[1].0, Urgency::Message).await;
    later.due = later.at + Millis::from_secs(20);
    running.hints.send(send(later)).await.unwrap();
    rig.pass(1).await;
    running.drain().await;
    assert_eq!((dealt_with.load(Ordering::Relaxed), back.load(Ordering::Relaxed)), (1, 2));
    let woken = rig.store.woken(all[0].0, &all[0].1).await.unwrap();
    assert_eq!(woken.map(|woken| woken.seq), Some(rig.head(all[0].0).await), "what was in flight has ended");
}

#[tokio::test(start_paused = true)]
async fn a_new_pusher_begins_where_the_last_one_stopped() {
    let rig = Rig::new();
    let phone = rig.sleeper("ben", "app").await;
    let first = rig.start();
    rig.submit(phone.0, Urgency::Message).await;
    rig.pass(40).await;
    rig.ack(&phone).await;
    rig.pass(600).await;
    first.kill();
    let second = rig.start();
    rig.pass(60).await;
    assert_eq!(second.figure("chappe_pusher_notes_total", ""), 0, "the old notes are not read again");
    second.kill();
    // Of a time when nobody was there everything is read.
    rig.submit(phone.0, Urgency::Message).await;
    rig.pass(3600).await;
    let start = rig.now();
    let _third = rig.start();
    rig.pass(5).await;
    assert_eq!(rig.seconds_since(start).len(), 2);
    assert_eq!(rig.woke().len(), 2);
}
