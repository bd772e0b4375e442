//! The laws of log and idempotence while one replica of three is dead (`dev/deps start cql3`, `CHAPPE_TEST_CQL3_URL`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL3_URL";

use chappe_protocol::id::Seq;
use chappe_protocol::world::World;
use chappe_storage::conformance::{self, Bench};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Store, StoreError};
use cql::Cql;
use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
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

/// Two tests that break the same nodes.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// Two of three nodes dead: errors, none of them an acceptance; then both come back, and the same process goes on.
#[tokio::test]
async fn a_majority_away_is_an_error_and_mends_itself() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let bench = Bench::<Cql>::open().await;
    let rows = bench.rows();
    let world: Arc<dyn World> = bench.world.clone();
    let log = SlotLog::new(Arc::clone(&rows), world, LogConfig::default());
    let mailbox = bench.mailbox;
    log.append(mailbox, &[bench.entry(1)], None).await.unwrap();
    let mended = Mended;
    deps(&["kill", "cql-2"]);
    deps(&["kill", "cql-3"]);
    let (mut refused, mut undecided) = (0, Vec::new());
    for n in 2..=9 {
        match log.append(mailbox, &[bench.entry(n)], None).await {
            Err(StoreError::Unavailable(_)) => refused += 1,
            Err(StoreError::Unknown(_)) => undecided.push(n),
            other => panic!("one node of three has decided: {other:?}"),
        }
        assert!(log.read(mailbox, Seq(0), 10, 1 << 20).await.is_err(), "nor does it tell what is in the log");
    }
    drop(mended);
    println!("two of three away: {refused} appends refused, {} undecided", undecided.len());

    // No restart: the sender tries again until it is told.
    let mut places = BTreeSet::new();
    for n in 1..=9 {
        let entries = [bench.entry(n)];
        let mut tries = 0;
        let reply = loop {
            match log.append(mailbox, &entries, None).await {
                Ok(reply) => break reply,
                Err(error) => {
                    tries += 1;
                    assert!(tries < 60, "it does not mend: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        places.insert(reply.entries[0].seq());
    }
    let head = log.head(mailbox, true).await.unwrap();
    assert_eq!((places.len(), head), (9, Seq(9)), "each of them once, and nothing else");
}

#[tokio::test]
async fn the_log_goes_on_with_a_replica_less() {
    let _alone = ONE_AT_A_TIME.lock().await;
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
