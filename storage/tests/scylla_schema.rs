//! Applying the schema to a real database, and every way to find no database to work with (`CHAPPE_TEST_CQL_URL`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL_URL";

use bytes::Bytes;
use chappe_protocol::id::{Bucket, DeviceId, MailboxId, Seq};
use chappe_protocol::testing::TestWorld;
use chappe_protocol::time::{Millis, UnixMillis};
use chappe_storage::rows::{Partition, Rows};
use chappe_storage::scylla::schema::{self, SchemaApplied, VERSION};
use chappe_storage::scylla::{ConnectError, Credentials, ScyllaConfig, ScyllaRows};
use chappe_storage::slotlog::{LogConfig, SlotLog};
use chappe_storage::{Store, Woken};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A keyspace of one test, dropped with the process's.
fn own(name: &str) -> ScyllaConfig {
    cql::config_of(&format!("test_{}_{name}", std::process::id()))
}

async fn refused(config: ScyllaConfig) -> ConnectError {
    match ScyllaRows::connect(config, Arc::new(TestWorld::new(1))).await {
        Ok(_) => panic!("connected"),
        Err(error) => error,
    }
}

async fn set_version(config: &ScyllaConfig, version: u32) {
    let session = cql::session().await;
    let text =
        format!("UPDATE {}.meta SET value = ? WHERE name = 'schema_version' IF EXISTS", config.keyspace);
    session.query_unpaged(text, (&version.to_be_bytes()[..],)).await.unwrap();
}

#[tokio::test]
async fn a_schema_is_planned_applied_and_checked() {
    let config = own("schema");
    let absent = ConnectError::SchemaAbsent(config.keyspace.clone());
    assert_eq!(schema::check(&config).await, Err(absent.clone()));
    assert_eq!(refused(config.clone()).await, absent);
    let planned = schema::plan(&config).await.unwrap();
    assert_eq!(planned.len(), 14, "keyspace, meta, ten tables and two columns: {planned:?}");
    assert!(planned.iter().all(|statement| statement.contains(&config.keyspace)), "{planned:?}");
    assert_eq!(schema::check(&config).await, Err(absent), "a plan does nothing");
    let world = TestWorld::new(1);
    assert_eq!(schema::apply(&config, &world).await, Ok(SchemaApplied { from: 0, to: VERSION }));
    assert_eq!(schema::plan(&config).await, Ok(vec![]));
    assert_eq!(schema::check(&config).await, Ok(()));
    let rows = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(1))).await.unwrap();
    assert_eq!(schema::apply(&config, &world).await, Ok(SchemaApplied { from: VERSION, to: VERSION }));

    // A binary that meets another version does not start; one that is newer brings it up, and the data stays.
    set_version(&config, VERSION + 1).await;
    let newer = ConnectError::SchemaNewer { found: VERSION + 1 };
    assert_eq!(
        (schema::check(&config).await, refused(config.clone()).await),
        (Err(newer.clone()), newer.clone())
    );
    assert_eq!(schema::apply(&config, &world).await, Err(newer));
    set_version(&config, 0).await;
    assert_eq!(refused(config.clone()).await, ConnectError::SchemaOlder { found: 0 });
    assert_eq!(schema::plan(&config).await.unwrap().len(), 14);
    let again = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(1))).await;
    assert_eq!(again.err().map(|error| error.code()), Some("cql_schema_older"));
    drop(rows);
    cql::drop_keyspace(&cql::session().await, &config.keyspace).await;
}

#[tokio::test]
async fn a_database_of_before_is_brought_up_with_its_data() {
    let (config, world) = (own("upgrade"), TestWorld::new(1));
    schema::apply(&config, &world).await.unwrap();
    let (mailbox, phone) = (MailboxId([1; 16]), DeviceId::new("phone").unwrap());
    let rows = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(1))).await.unwrap();
    let device = rows.create_device(mailbox, &phone, Seq(3)).await.unwrap();
    drop(rows);
    // As version 1 had it.
    let session = cql::session().await;
    for text in [
        "ALTER TABLE {}.device DROP push",
        "DROP TABLE {}.swept",
        "DROP TABLE {}.woken",
        "CREATE TABLE {}.woken (mailbox blob, device text, seq bigint, try tinyint, PRIMARY KEY ((mailbox), device))",
    ] {
        session.query_unpaged(text.replace("{}", &config.keyspace), ()).await.unwrap();
        session.await_schema_agreement().await.unwrap();
    }
    let wake = "UPDATE {}.woken USING TIMESTAMP 50 SET seq = 3, try = 2 WHERE mailbox = ? AND device = ?";
    let wake = wake.replace("{}", &config.keyspace);
    session.query_unpaged(wake, (&mailbox.0[..], phone.as_str())).await.unwrap();
    set_version(&config, 1).await;
    assert_eq!(refused(config.clone()).await, ConnectError::SchemaOlder { found: 1 });
    let planned = schema::plan(&config).await.unwrap();
    let columns = ["device ADD push blob", "woken ADD at bigint"]
        .map(|column| format!("ALTER TABLE {}.{column}", config.keyspace));
    assert_eq!(
        (planned.len(), &planned[2..4]),
        (5, &columns[..]),
        "the keyspace, meta, two columns, a table"
    );
    for stopped_behind_the_statements in [false, true] {
        if stopped_behind_the_statements {
            set_version(&config, 1).await;
        }
        let applied = schema::apply(&config, &world).await;
        assert_eq!(applied, Ok(SchemaApplied { from: 1, to: VERSION }));
    }
    let rows = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(2))).await.unwrap();
    assert_eq!(rows.device(mailbox, &phone).await, Ok(Some(device)));
    assert_eq!(rows.set_push(mailbox, &phone, Bytes::from_static(b"sealed")).await, Ok(true));
    let before = Woken { seq: Seq(3), attempt: 2, at: UnixMillis(0) };
    let later = Woken { at: UnixMillis(1 << 40), ..before };
    assert_eq!(rows.woken(mailbox, &phone).await, Ok(Some(before)), "it had no time");
    rows.raise_woken(mailbox, &phone, later).await.unwrap();
    assert_eq!(rows.woken(mailbox, &phone).await, Ok(Some(later)));
    // Gone from the row, not only from what is told.
    rows.revoke(mailbox, &phone).await.unwrap();
    let ask = format!("SELECT push FROM {}.device WHERE mailbox = ? AND device = ?", config.keyspace);
    let row = session.query_unpaged(ask, (&mailbox.0[..], phone.as_str())).await.unwrap();
    let row = row.into_rows_result().unwrap().first_row::<(Option<Vec<u8>>,)>().unwrap();
    assert_eq!(row, (None,));
    drop(rows);
    cql::drop_keyspace(&session, &config.keyspace).await;
}

#[tokio::test]
async fn three_who_apply_at_once_make_one_schema() {
    let config = own("together");
    let worlds = [1, 2, 3].map(TestWorld::new);
    let done = futures_util::future::join_all(worlds.iter().map(|world| schema::apply(&config, world))).await;
    let made = done.iter().filter(|done| **done == Ok(SchemaApplied { from: 0, to: VERSION })).count();
    assert!(made == 1 && done.iter().all(Result::is_ok), "{done:?}");
    let one = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(7))).await.unwrap();
    let two = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(8))).await.unwrap();
    assert_eq!(one.incarnation(), two.incarnation());
    let mailbox = MailboxId([1; 16]);
    one.seal(Partition { mailbox, bucket: Bucket(0) }, None).await.unwrap();
    let seen = two.head(Partition { mailbox, bucket: Bucket(0) }).await.unwrap();
    assert_eq!(seen.map(|head| head.seq), Some(Seq::MAX), "one table");

    // Whoever restores a backup changes the incarnation: no cursor of before is believed.
    let tag = |rows: ScyllaRows| {
        SlotLog::new(Arc::new(rows), Arc::new(TestWorld::new(1)), LogConfig::default()).cursor_tag(mailbox)
    };
    let session = cql::session().await;
    let text = format!("UPDATE {}.meta SET value = ? WHERE name = 'incarnation' IF EXISTS", config.keyspace);
    session.query_unpaged(text, (&[9_u8; 16][..],)).await.unwrap();
    let restored = ScyllaRows::connect(config.clone(), Arc::new(TestWorld::new(9))).await.unwrap();
    let before = tag(one);
    assert_eq!(before, tag(two));
    assert_ne!(before, tag(restored));
    cql::drop_keyspace(&session, &config.keyspace).await;
}

/// One died while it held the lock.
#[tokio::test]
async fn a_dead_ones_lock_ends_by_itself() {
    let config = own("locked");
    let session = cql::session().await;
    for statement in schema::plan(&config).await.unwrap().into_iter().take(2) {
        session.query_unpaged(statement, ()).await.unwrap();
        session.await_schema_agreement().await.unwrap();
    }
    let lock = format!(
        "INSERT INTO {}.meta (name, value) VALUES ('lock', 0xaa) IF NOT EXISTS USING TTL 3",
        config.keyspace
    );
    session.query_unpaged(lock, ()).await.unwrap();
    assert_eq!(refused(config.clone()).await.code(), "cql_schema_absent", "there is a keyspace, and no more");
    assert_eq!(schema::apply(&config, &TestWorld::new(1)).await, Ok(SchemaApplied { from: 0, to: VERSION }));
    cql::drop_keyspace(&session, &config.keyspace).await;
}

#[tokio::test]
async fn nobody_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = refused(ScyllaConfig::new([address])).await;
    assert_eq!(error.code(), "cql_unreachable", "{error}");
    assert!(error.hint().contains("port"));
}

/// TLS to a server that speaks none.
#[tokio::test]
async fn tls_that_fails_is_told_as_such() {
    let mut config = own("tls");
    config.connect_timeout = Millis(5000);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    config.tls =
        Some(Arc::new(tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()));
    let error = refused(config).await;
    assert_eq!(error.code(), "cql_tls", "{error}");
}

/// A server that asks for a password and accepts none.
async fn strict_server(tasks: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tasks.spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut header = [0; 9];
            while socket.read_exact(&mut header).await.is_ok() {
                let length = u32::from_be_bytes(header[5..].try_into().unwrap());
                let mut body = vec![0; length as usize];
                socket.read_exact(&mut body).await.unwrap();
                let text = |text: &str| {
                    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
                };
                // CQL binary protocol v4, section 2.4: OPTIONS, STARTUP, AUTH_RESPONSE.
                let (opcode, body) = match header[4] {
                    0x05 => (0x06, vec![0, 0]),
                    0x01 => (0x03, text("org.apache.cassandra.auth.PasswordAuthenticator")),
                    _ => (0x00, [&0x0100_u32.to_be_bytes()[..], &text("no")].concat()),
                };
                let mut answer = vec![0x84, 0, header[2], header[3], opcode];
                answer.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
                answer.extend(body);
                socket.write_all(&answer).await.unwrap();
            }
        }
    });
    address
}

#[tokio::test]
async fn credentials_that_are_missing_or_wrong_are_told_as_such() {
    let mut tasks = JoinSet::new();
    let address = strict_server(&mut tasks).await;
    let mut config = ScyllaConfig::new([address]);
    config.connect_timeout = Millis(5000);
    assert_eq!(refused(config.clone()).await, ConnectError::Credentials);
    config.credentials = Some(Credentials::new("chappe", "wrong"));
    let error = refused(config).await;
    assert_eq!(error, ConnectError::Credentials);
    assert!(!format!("{error:?} {error} {}", error.hint()).contains("wrong "));
}
