//! A keyspace of its own for each test process, on the database that `super::URL` names; and the passing of days there.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use async_trait::async_trait;
use chappe_protocol::id::{MailboxId, PayloadId};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use chappe_storage::conformance::Backend;
use chappe_storage::scylla::{ScyllaConfig, ScyllaRows, schema};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::Consistency;
use scylla::statement::Statement;
use scylla::statement::batch::{Batch, BatchType};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::OnceCell;

/// The database's address.
#[allow(clippy::disallowed_methods, reason = "tests are told by the environment where the real parts are")]
pub(crate) fn url() -> String {
    std::env::var(super::URL).expect(
        "CHAPPE_TEST_CQL_URL or CHAPPE_TEST_CQL3_URL is not set: run ./test, or what dev/README.md says under Tests",
    )
}

/// How to reach it, with as many copies of each row as it has nodes, three at most; without a schema yet.
pub(crate) fn config_of(keyspace: &str) -> ScyllaConfig {
    let mut config = ScyllaConfig::from_url(&url()).expect("a cql:// address");
    config.keyspace = keyspace.into();
    config.replication = u8::try_from(config.nodes.len().min(3)).unwrap();
    // These machines are small and busy.
    config.request_timeout = Millis(10_000);
    config.connect_timeout = Millis(20_000);
    config
}

/// A session of the test's own.
pub(crate) async fn session() -> Session {
    let config = config_of("unused");
    let builder = SessionBuilder::new()
        .known_nodes(&config.nodes)
        .connection_timeout(config.connect_timeout.to_std())
        .fetch_schema_metadata(false);
    builder.build().await.unwrap_or_else(|error| {
        panic!("the database at {} cannot be reached ({error}); is it started? `dev/deps status`", url())
    })
}

/// The keyspace of this process, made by whoever asks first; those that dead processes left are dropped.
pub(crate) async fn keyspace() -> &'static str {
    static KEYSPACE: OnceCell<String> = OnceCell::const_new();
    KEYSPACE
        .get_or_init(|| async {
            let session = session().await;
            drop_dead(&session).await;
            let keyspace = format!("test_{}", std::process::id());
            drop_keyspace(&session, &keyspace).await;
            let world = TestWorld::new(u64::from(std::process::id()));
            schema::apply(&config_of(&keyspace), &world).await.unwrap();
            keyspace
        })
        .await
}

/// Drops a keyspace.
pub(crate) async fn drop_keyspace(session: &Session, keyspace: &str) {
    let mut drop = Statement::new(format!("DROP KEYSPACE IF EXISTS {keyspace}"));
    drop.set_request_timeout(Some(std::time::Duration::from_mins(1)));
    session.query_unpaged(drop, ()).await.unwrap();
}

async fn drop_dead(session: &Session) {
    let mut ask = Statement::new("SELECT keyspace_name FROM system_schema.keyspaces");
    ask.set_consistency(Consistency::One);
    let rows = session.query_unpaged(ask, ()).await.unwrap().into_rows_result().unwrap();
    for row in rows.rows::<(String,)>().unwrap() {
        let (name,) = row.unwrap();
        let process = name.strip_prefix("test_").and_then(|rest| rest.split('_').next());
        let Some(process) = process.filter(|process| process.parse::<u32>().is_ok()) else { continue };
        if !Path::new("/proc").join(process).exists() {
            drop_keyspace(session, &name).await;
        }
    }
}

/// The backend of the laws: each bench a part of the same keyspace.
pub(crate) struct Cql {
    rows: Arc<ScyllaRows>,
    own: Session,
    keyspace: &'static str,
}

async fn connect(keyspace: &str, world: Arc<dyn World>) -> Arc<ScyllaRows> {
    let mut config = config_of(keyspace);
    config.world_clock = true;
    Arc::new(ScyllaRows::connect(config, world).await.unwrap())
}

#[async_trait]
impl Backend for Cql {
    type Rows = ScyllaRows;

    async fn open(world: Arc<dyn World>) -> Self {
        let keyspace = keyspace().await;
        Self { rows: connect(keyspace, world).await, own: session().await, keyspace }
    }

    fn rows(&self) -> Arc<ScyllaRows> {
        Arc::clone(&self.rows)
    }

    async fn reopen(self, world: Arc<dyn World>) -> Self {
        assert_eq!(Arc::strong_count(&self.rows), 1, "a law has dropped its logs before a restart");
        Self { rows: connect(self.keyspace, world).await, ..self }
    }

    fn bench_number() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    async fn elapse(&self, mailbox: MailboxId, payload: PayloadId, by: Millis) {
        for bucket in 0.. {
            let partition = (&mailbox.0[..], bucket);
            let head = "SELECT DISTINCT mailbox, bucket FROM {}.mlog WHERE mailbox = ? AND bucket = ?";
            if self.ask::<(Vec<u8>, i64)>(head, partition).await.is_empty() {
                break;
            }
            self.elapse_slots(partition, by).await;
        }
        let ask = "SELECT ttl(bytes) FROM {}.payload WHERE payload_id = ?";
        for (left,) in self.ask::<(Option<i32>,)>(ask, (&payload.0[..],)).await {
            if u64::try_from(left.unwrap()).unwrap() * 1000 <= by.0 {
                self.tell("DELETE FROM {}.payload WHERE payload_id = ? IF EXISTS", (&payload.0[..],)).await;
            }
        }
    }
}

impl Cql {
    async fn ask<R>(&self, text: &str, values: impl scylla::serialize::row::SerializeRow) -> Vec<R>
    where
        R: for<'a> scylla::deserialize::row::DeserializeRow<'a, 'a>,
    {
        let mut ask = Statement::new(text.replace("{}", self.keyspace));
        ask.set_consistency(Consistency::LocalSerial);
        let rows = self.own.query_unpaged(ask, values).await.unwrap().into_rows_result().unwrap();
        rows.rows::<R>().unwrap().map(Result::unwrap).collect()
    }

    async fn tell(&self, text: &str, values: impl scylla::serialize::row::SerializeRow) {
        let tell = Statement::new(text.replace("{}", self.keyspace));
        self.own.query_unpaged(tell, values).await.unwrap();
    }

    /// Payloads and ids of a bucket whose time is over go; the other ids get so much less time.
    async fn elapse_slots(&self, partition: (&[u8], i64), by: Millis) {
        let (mailbox, bucket) = partition;
        let batch = || {
            let mut batch = Batch::new(BatchType::Unlogged);
            batch.set_consistency(Consistency::LocalQuorum);
            batch
        };
        let (mut gone, mut keys) = (batch(), Vec::new());
        let ask = "SELECT k, ttl(payload) FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 0";
        for (k, left) in self.ask::<(Vec<u8>, Option<i32>)>(ask, partition).await {
            if left.is_some_and(|left| u64::try_from(left).unwrap() * 1000 <= by.0) {
                let text = "DELETE payload, sender FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 0 AND k = ? IF EXISTS";
                gone.append_statement(Statement::new(text.replace("{}", self.keyspace)));
                keys.push((mailbox, bucket, k));
            }
        }
        self.send(&gone, keys).await;
        let (mut gone, mut dead, mut less, mut living) = (batch(), Vec::new(), batch(), Vec::new());
        let ask = "SELECT k, seq, ttl(seq) FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 1";
        for (k, seq, left) in self.ask::<(Vec<u8>, i64, i32)>(ask, partition).await {
            let left = i64::from(left) - i64::try_from(by.0 / 1000).unwrap();
            if left <= 0 {
                let text = "DELETE seq FROM {}.mlog WHERE mailbox = ? AND bucket = ? AND kind = 1 AND k = ? IF EXISTS";
                gone.append_statement(Statement::new(text.replace("{}", self.keyspace)));
                dead.push((mailbox, bucket, k));
            } else {
                let text = "UPDATE {}.mlog USING TTL ? SET seq = ? WHERE mailbox = ? AND bucket = ? AND kind = 1 AND k = ? IF seq = ?";
                less.append_statement(Statement::new(text.replace("{}", self.keyspace)));
                living.push((i32::try_from(left).unwrap(), seq, mailbox, bucket, k, seq));
            }
        }
        self.send(&gone, dead).await;
        self.send(&less, living).await;
    }

    async fn send<V: scylla::serialize::row::SerializeRow>(&self, batch: &Batch, values: Vec<V>) {
        if values.is_empty() {
            return;
        }
        let answer = self.own.batch(batch, values).await.unwrap().into_rows_result().unwrap();
        let row = answer.rows::<scylla::value::Row>().unwrap().next().unwrap().unwrap();
        assert_eq!(row.columns[0], Some(scylla::value::CqlValue::Boolean(true)), "nobody else is at it");
    }
}
