//! Histories over three replicas that fail as those of a quorum database do.

use super::run::{Database, history};
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
        Planted::CommitLogPeriodic,
        Planted::NaiveDelete,
        Planted::UnfinishedForgotten,
        Planted::TtlWithoutSlack,
    ] {
        let red = |seed| history::<QuorumRows>(seed, Some(planted)).err().map(|what| (seed, what));
        let noticed = (0..SEEDS).find_map(red);
        println!("{planted:?}: {noticed:?}");
        assert!(noticed.is_some(), "{planted:?} goes unnoticed");
    }
}
