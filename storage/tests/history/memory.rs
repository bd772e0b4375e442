//! Histories over one copy of everything that fails now and then.

use super::run::{Database, PLANTED, each_is_noticed, history, was_all_met};
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
    was_all_met(&sum);
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
    each_is_noticed::<Memory>(&PLANTED, 1000);
}
