//! Seeded walks: two routers, slow, silent and zombie appends, senders that retry as an SDK does. Whatever happens,
//! what was accepted stands in the log once, and each sender's envelopes stand in its order.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use chappe_protocol::envelope::Slot;
use chappe_protocol::id::{Bucket, MailboxId};
use chappe_protocol::internode::{Outcome, Reply, Request, Submit};
use chappe_protocol::testing::Rng;
use chappe_protocol::time::Millis;
use chappe_router::planted::PlantedBug;
use chappe_router::{Router, RouterConfig};
use chappe_storage::slotlog::LogConfig;
use common::{Cluster, SHAPE, config, lists, numbers, submit_of};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

const SEEDS: u64 = 600;
const SENDERS: u64 = 3;
const ENTRIES: u64 = 12;

/// Sends `ENTRIES` numbers to each mailbox in order: a window of a few, resent from the first undecided one, each time through
/// either router, sometimes given up early as by a gateway that dies. Returns what was accepted.
async fn send(routers: &[Router], mailbox: MailboxId, sender: u64, seed: u64) -> BTreeSet<u64> {
    let mut rng = Rng::new(seed ^ (sender << 32) ^ u64::from(mailbox.as_bytes()[0]));
    let numbers: Vec<u64> = (0..ENTRIES).map(|n| sender * 1000 + n).collect();
    let (mut done, mut learned, mut sent) = (0, None::<Bucket>, 0);
    let mut accepted = BTreeSet::new();
    for _ in 0..10_000 {
        if done == numbers.len() {
            return accepted;
        }
        let upto = numbers.len().min(done + usize::try_from(rng.between(1, 5)).unwrap());
        let ids = &numbers[done..upto];
        let router = rng.pick(routers).unwrap();
        // A base is honest only if it was learned before the first transmission of every entry.
        let base = if sent <= done { learned } else { None };
        if sent <= done
            && learned.is_none()
            && let Reply::Base(bucket) = router.handle(Request::Base(mailbox)).await
        {
            learned = Some(bucket);
        }
        sent = sent.max(upto);
        let budget = Millis(rng.between(20, 400));
        let submit = Submit { budget, ..submit_of(&format!("user{sender}"), mailbox, base, ids) };
        let reply = if rng.percent(10) {
            let patience = Duration::from_millis(rng.below(30));
            tokio::time::timeout(patience, router.handle(Request::Submit(submit))).await
        } else {
            Ok(router.handle(Request::Submit(submit)).await)
        };
        let Ok(reply) = reply else { continue };
        let reply = &lists(reply)[0];
        learned = reply.head_bucket.or(learned);
        let decided = reply.results.iter().take_while(|result| result.outcome.is_decided()).count();
        assert!(reply.results[..decided].iter().all(|result| result.outcome == Outcome::Accepted));
        accepted.extend(&ids[..decided]);
        // A sender that believes later answers although an earlier entry is open would notice a router that goes on.
        let beyond = reply.results.iter().zip(ids).skip(decided);
        accepted.extend(beyond.filter(|(result, _)| result.outcome == Outcome::Accepted).map(|(_, id)| *id));
        done += decided;
        tokio::time::sleep(Duration::from_millis(rng.below(20))).await;
    }
    panic!("sender {sender} was not served");
}

/// What is wrong with a log, if anything.
fn fault(log: &[Slot], accepted: &BTreeSet<u64>) -> Option<String> {
    let numbers = numbers(log);
    if log.iter().zip(1..).any(|(slot, seq)| slot.seq.0 != seq) {
        return Some("not dense".into());
    }
    let once: BTreeSet<u64> = numbers.iter().copied().collect();
    if once.len() != numbers.len() {
        return Some(format!("twice in {numbers:?}"));
    }
    if let Some(lost) = accepted.difference(&once).next() {
        return Some(format!("{lost} was accepted and is not in {numbers:?}"));
    }
    let in_order = |sender: u64| {
        let own: Vec<u64> = numbers.iter().copied().filter(|number| number / 1000 == sender).collect();
        own.is_sorted()
    };
    (0..SENDERS)
        .find(|sender| !in_order(*sender))
        .map(|sender| format!("sender {sender} out of order in {numbers:?}"))
}

/// One walk; the first fault found, and how many appends had to be repeated.
async fn walk(seed: u64, planted: Option<PlantedBug>) -> (Option<String>, u64) {
    let config = RouterConfig { planted, batch_entries_max: 6, ..config() };
    let cluster = Cluster::with(seed, config.clone(), LogConfig { shape: SHAPE, ..LogConfig::default() });
    let (second, second_store) = cluster.another_router(seed + 1, config);
    *cluster.store.percent.lock().unwrap() = 30;
    *second_store.percent.lock().unwrap() = 30;
    let routers = [cluster.router.clone(), second];
    let mailboxes = [cluster.mailbox("ben", &["phone"]).await, cluster.mailbox("cleo", &["phone"]).await];
    let pairs: Vec<_> = mailboxes.iter().flat_map(|m| (0..SENDERS).map(move |sender| (*m, sender))).collect();
    let sends = pairs.iter().map(|(mailbox, sender)| send(&routers, *mailbox, *sender, seed));
    let accepted = join_all(sends).await;
    // Rounds for senders that gave up may still be at work, until their deadlines.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut found = None;
    for mailbox in mailboxes {
        let own = pairs.iter().zip(&accepted).filter(|((of, _), _)| *of == mailbox);
        let own = own.flat_map(|(_, accepted)| accepted.iter().copied()).collect();
        found = found.or(fault(&cluster.log(mailbox).await, &own));
    }
    assert_eq!(cluster.metrics.mailboxes.get(), 0, "seed {seed}: a round was left behind");
    (found, cluster.metrics.append_retries.get())
}

fn run(seed: u64, planted: Option<PlantedBug>) -> (Option<String>, u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(walk(seed, planted))
}

#[test]
fn accepted_entries_stand_once_and_in_each_senders_order_whatever_the_store_does() {
    let mut retries = 0;
    for seed in 0..SEEDS {
        let (fault, again) = run(seed, None);
        assert_eq!(fault, None, "seed {seed}");
        retries += again;
    }
    assert!(retries > SEEDS, "the walk met no faults: {retries} retries");
}

#[test]
fn the_same_seed_gives_the_same_walk() {
    for seed in [3, 77] {
        assert_eq!(run(seed, None), run(seed, None));
    }
}

#[test]
fn planted_errors_are_found() {
    let bugs = [
        PlantedBug::AcceptUndecided,
        PlantedBug::AckBeforeAppend,
        PlantedBug::ContinueBehindUndecided,
        PlantedBug::SwapPair,
        PlantedBug::ForgetBase,
    ];
    for bug in bugs {
        let found = (0..SEEDS).find_map(|seed| run(seed, Some(bug)).0.map(|fault| (seed, fault)));
        assert!(found.is_some(), "{bug:?} went unnoticed in {SEEDS} walks");
        println!("{bug:?}: {found:?}");
    }
}
