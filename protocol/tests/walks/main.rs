//! Seeded walks of [`Session`](chappe_protocol::session::Session) and [`Receiver`](chappe_protocol::receiver::Receiver) against
//! the reference model. A failing walk prints its seed; `WALK_SEED=<seed> cargo test -p chappe-protocol --test walks` replays it alone.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)] // a test may stop where it stands
#![allow(clippy::wildcard_enum_match_arm)] // whatever else comes is a failure
#![allow(clippy::struct_excessive_bools)] // the checker's notes are what they are

mod device;
mod garbage;
mod heal;
mod walk;
mod wire;

use std::panic::AssertUnwindSafe;
use walk::Walk;

/// Payload bytes of the largest envelope in the walks.
pub(crate) const PAYLOAD_MAX: u64 = 400;
/// What such an envelope costs.
pub(crate) const SLOT_COST_MAX: usize = 464;

const WALKS: u64 = 40_000;

macro_rules! counters {
    ($($name:ident),+ $(,)?) => {
        /// How often what a walk is there for has happened, so that no check holds for want of cases.
        #[derive(Debug, Default, Clone)]
        pub(crate) struct Counters { $(pub(crate) $name: u64,)+ }

        impl Counters {
            fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            fn assert_all_seen(&self) {
                $(assert!(self.$name > 0, "no walk has met {}", stringify!($name));)+
            }
        }
    };
}

counters! {
    delivered, bell_delivered, read_delivered, stale_bells, stale_pages, reads_failed, advances_failed,
    expired, lost, trimmed, merged, foreign, truncated_again, backlog_ends, pongs_that_moved,
    attaches, resumes, restarts, supersedes, ack_timeouts, heartbeats_missed, peeks_ended, rogue_acks, silences,
    window_full, window_grown, already_had, dropped, duplicates, healed_standing,
}

fn walk(seed: u64) -> Counters {
    let mut walk = Walk::new(seed);
    let result = std::panic::catch_unwind(AssertUnwindSafe(|| walk.run()));
    if let Err(panic) = result {
        eprintln!("walk {seed} failed; replay it with WALK_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
    walk.counters
}

#[test]
#[allow(clippy::disallowed_methods, reason = "the seed to replay is asked for in the environment")]
fn walks_keep_the_promises() {
    if let Some(seed) = std::env::var("WALK_SEED").ok().and_then(|seed| seed.parse().ok()) {
        println!("{:?}", walk(seed));
        return;
    }
    let mut counters = Counters::default();
    std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            scope.spawn(move || {
                let mut counters = Counters::default();
                (0..WALKS / 2).for_each(|n| counters.add(&walk(2 * n + half)));
                counters
            })
        });
        for half in halves {
            counters.add(&half.join().expect("a walk failed; its seed stands above"));
        }
    });
    println!("{counters:?}");
    counters.assert_all_seen();
}

#[test]
fn the_same_seed_walks_the_same_way() {
    for seed in [3, 141, 59_265] {
        assert_eq!(format!("{:?}", walk(seed)), format!("{:?}", walk(seed)));
    }
}
