//! Histories over three replicas that fail as those of a quorum database do.

use super::run::{Database, PLANTED, each_is_noticed, history, was_all_met};
use chappe_protocol::testing::TestWorld;
use chappe_storage::planted::Planted;
use chappe_storage::quorum::{QuorumFaults, QuorumRows, QuorumStats};
use chappe_storage::slotlog::LogStats;
use std::sync::Arc;

impl Database for QuorumRows {
    fn open(world: Arc<TestWorld>, seed: u64, planted: Option<Planted>) -> Self {
        // Every other database never brings replicas level by itself.
        let faults = QuorumFaults { read_repair: seed.is_multiple_of(2), ..QuorumFaults::MANY };
        QuorumRows::new(world, seed, faults, planted)
    }

    fn switch(&self, on: bool) {
        QuorumRows::switch(self, on);
    }

    async fn settle(&self) {
        QuorumRows::settle(self).await;
    }

    fn monotonic(&self) -> bool {
        self.faults().read_repair
    }
}

#[test]
fn every_history_keeps_its_promises() {
    let (mut sum, mut replicas) = (LogStats::default(), QuorumStats::default());
    for seed in 0..2000 {
        match history::<QuorumRows>(seed, None) {
            Ok(met) => {
                sum = sum.plus(met.stats);
                replicas = replicas.plus(met.rows.unwrap().stats());
            }
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("{sum:?}\n{replicas:?}");
    was_all_met(&sum);
    assert!(replicas.counts().iter().all(|(_, count)| *count > 0), "not everything was met: {replicas:?}");
}

#[test]
fn a_history_repeats_under_its_seed() {
    for seed in 0..20 {
        let outcome =
            |_| history::<QuorumRows>(seed, None).map(|met| (met.stats, met.rows.unwrap().stats(), met.log));
        assert_eq!(outcome(1), outcome(2), "seed {seed}");
    }
}

/// How many seeds each defect gets; `docs/reliability.md` says how many of them notice.
const SEEDS: u64 = 150;

#[test]
fn histories_notice_planted_defects() {
    let of_replicas = [
        Planted::CommitLogPeriodic,
        Planted::NaiveDelete,
        Planted::UnfinishedForgotten,
        Planted::TtlWithoutSlack,
    ];
    each_is_noticed::<QuorumRows>(&[&PLANTED[..], &of_replicas[..]].concat(), SEEDS);
}
