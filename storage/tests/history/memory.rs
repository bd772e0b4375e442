//! Histories over one copy of everything that fails now and then.

use super::run::{Database, history};
use chappe_protocol::testing::TestWorld;
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::planted::Planted;
use chappe_storage::slotlog::LogStats;
use std::sync::Arc;

type Memory = Faulty<MemoryRows>;

impl Database for Memory {
    fn open(world: Arc<TestWorld>, seed: u64, planted: Option<Planted>) -> Self {
        let memory = MemoryRows::new(world);
        memory.plant(planted);
        Faulty::new(Arc::new(memory), seed, Faults::MANY)
    }

    fn switch(&self, on: bool) {
        Faulty::switch(self, on);
    }

    async fn settle(&self) {
        Faulty::settle(self).await;
    }
}

#[test]
fn every_history_keeps_its_promises() {
    let mut sum = LogStats::default();
    for seed in 0..2000 {
        match history::<Memory>(seed, None) {
            Ok(met) => sum = sum.plus(met.stats),
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("{sum:?}");
    let met = [
        sum.committed,
        sum.duplicates,
        sum.refused,
        sum.undecided,
        sum.crossings,
        sum.look_back_reads,
        sum.look_back_hits,
        sum.galloped,
        sum.holes_healed,
        sum.trimmed,
        sum.truncated,
    ];
    assert!(met.iter().all(|count| *count > 0), "not everything was met: {sum:?}");
    assert_eq!((sum.lost, sum.cursors_ahead, sum.heads_back, sum.quota_refused), (0, 0, 0, 0), "{sum:?}");
}

#[test]
fn a_history_repeats_under_its_seed() {
    for seed in 0..20 {
        let outcome = |_| history::<Memory>(seed, None).map(|met| (met.stats, met.log));
        assert_eq!(outcome(1), outcome(2), "seed {seed}");
    }
}

#[test]
fn histories_notice_planted_defects() {
    for planted in [
        Planted::SkipLookBack,
        Planted::LookBackOnlyOnRetry,
        Planted::LookBackStopsAtFloor,
        Planted::OpensUnsealed,
        Planted::HolesSkipped,
        Planted::HolesBelieved,
        Planted::TrimIgnoresCursors,
        Planted::ExpectIgnored,
        Planted::IdsIgnored,
        Planted::TrimDropsHead,
        Planted::TrimDropsIds,
    ] {
        let noticed =
            (0..1000).find_map(|seed| history::<Memory>(seed, Some(planted)).err().map(|what| (seed, what)));
        println!("{planted:?}: {noticed:?}");
        assert!(noticed.is_some(), "{planted:?} goes unnoticed");
    }
}
