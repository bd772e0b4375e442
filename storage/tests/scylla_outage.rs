//! The laws of log and idempotence while one replica of three is dead (`dev/deps start cql3`, `CHAPPE_TEST_CQL3_URL`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL3_URL";

use chappe_storage::conformance::{self, Bench};
use cql::Cql;
use std::process::{Command, Stdio};
use tokio::task::JoinSet;

/// `dev/deps`, with the environment that the tests were started with.
fn deps(words: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../dev/deps");
    let done = Command::new(script).args(words).stdout(Stdio::null()).status().unwrap();
    assert!(done.success(), "dev/deps {words:?}: {done}");
}

/// Starts what was killed, also when the test fails.
struct Mended;

impl Drop for Mended {
    fn drop(&mut self) {
        deps(&["start", "cql3"]);
    }
}

#[tokio::test]
async fn the_log_goes_on_with_a_replica_less() {
    let nodes = cql::config_of("unused").nodes.len();
    assert!(nodes == 3, "CHAPPE_TEST_CQL3_URL names {nodes} nodes, three are needed");
    cql::keyspace().await;
    // Sessions that live through it, and one begun before.
    let begun = Bench::<Cql>::open().await;
    let log = begun.log();
    begun.fill(&log, 1..=5).await;
    let _mended = Mended;
    deps(&["kill", "cql-2"]);
    begun.fill(&log, 6..=30).await;
    assert_eq!(begun.numbers(&begun.log()).await, (1..=30).collect::<Vec<_>>());

    let mut laws = JoinSet::new();
    macro_rules! laws {
        ($($law:ident),+ $(,)?) => {
            $(laws.spawn(async { conformance::$law(Bench::<Cql>::open().await).await; });)+
        };
    }
    laws!(
        the_log_is_dense,
        a_batch_is_split_at_edges_in_order,
        slots_keep_every_field,
        pages_are_bounded,
        two_routers_cross_an_edge,
        many_appenders_are_dense_and_once,
        reading_beyond_the_head_is_empty,
        the_log_is_read_whole,
        quota_refuses,
        a_payload_is_stored_once,
        a_retry_is_a_duplicate,
        a_retry_across_buckets_is_a_duplicate,
        a_retry_across_a_trim_is_a_duplicate,
        a_retry_across_a_restart_is_a_duplicate,
        a_late_first_attempt_is_a_duplicate,
        the_same_id_twice_is_one_slot,
        an_id_lives_two_days,
    );
    while let Some(law) = laws.join_next().await {
        law.unwrap();
    }
}
