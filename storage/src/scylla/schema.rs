//! The schema: what it is, and bringing a database to it. **Invariant:** versions only rise; only the holder of the lock
//! changes tables; whoever stops half-way leaves what the next one finishes.
//!
//! A version is a file in `schema/`, whose statements may all be run again. [`apply`] creates keyspace and `meta`, takes a lock
//! there that ends by itself, runs the missing files, waits for all nodes to agree after each statement, and writes the number.

use super::config::ScyllaConfig;
use super::connect::{ConnectError, Server, open, server, statement_error};
use super::refusal::{AnswerRow, applied};
use chappe_protocol::time::Millis;
use chappe_protocol::world::World;
use scylla::client::session::Session;
use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};
use scylla::serialize::row::SerializeRow;
use scylla::statement::{Consistency, SerialConsistency, Statement};
use sha2::{Digest, Sha256};

/// The version that this binary works with.
pub const VERSION: u32 = 2;
const META: &str = include_str!("schema/0000_meta.cql");
const FILES: &[(u32, &str)] =
    &[(1, include_str!("schema/0001_tables.cql")), (2, include_str!("schema/0002_wakes.cql"))];
/// The lock ends after this time, in seconds.
const LOCK_S: u64 = 120;
/// Between two looks at a lock that another one holds.
const LOCK_LOOK: Millis = Millis(500);

/// What [`apply`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchemaApplied {
    /// The version found; 0: none.
    pub from: u32,
    /// The version now.
    pub to: u32,
}

/// The statements that [`apply`] would run on this database, without running one. Empty: it is up to date.
pub async fn plan(config: &ScyllaConfig) -> Result<Vec<String>, ConnectError> {
    let session = open(config).await?;
    let found = match version(&session, &config.keyspace).await {
        Ok(found) => found,
        Err(ConnectError::SchemaAbsent(_)) => None,
        Err(error) => return Err(error),
    };
    if found.is_some_and(|found| found >= VERSION) {
        return Ok(Vec::new());
    }
    let text = Text::of(config, server(&session).await?);
    let files = FILES.iter().filter(|(number, _)| found.is_none_or(|found| *number > found));
    Ok(text.statements(META).chain(files.flat_map(|(_, file)| text.statements(file))).collect())
}

/// Brings the database to [`VERSION`]. Two at once are safe: one waits for the other.
pub async fn apply(config: &ScyllaConfig, world: &dyn World) -> Result<SchemaApplied, ConnectError> {
    let session = open(config).await?;
    let text = Text::of(config, server(&session).await?);
    match version(&session, &config.keyspace).await {
        Ok(Some(found)) if found == VERSION => return Ok(SchemaApplied { from: found, to: found }),
        Ok(Some(found)) if found > VERSION => return Err(ConnectError::SchemaNewer { found }),
        Ok(_) | Err(ConnectError::SchemaAbsent(_)) => {}
        Err(error) => return Err(error),
    }
    for statement in text.statements(META) {
        change(&session, &config.keyspace, &statement).await?;
    }
    let lock = Lock::take(&session, config, world).await?;
    let done = migrate(&session, config, world, &text, &lock).await;
    lock.release().await;
    done
}

/// Whether this binary can work with the database's schema.
pub async fn check(config: &ScyllaConfig) -> Result<(), ConnectError> {
    check_session(&open(config).await?, &config.keyspace).await
}

pub(super) async fn check_session(session: &Session, keyspace: &str) -> Result<(), ConnectError> {
    match version(session, keyspace).await? {
        Some(VERSION) => Ok(()),
        Some(found) if found > VERSION => Err(ConnectError::SchemaNewer { found }),
        Some(found) => Err(ConnectError::SchemaOlder { found }),
        None => Err(ConnectError::SchemaAbsent(keyspace.into())),
    }
}

/// The 16 bytes that name this incarnation of the data.
pub(super) async fn incarnation(session: &Session, keyspace: &str) -> Result<[u8; 16], ConnectError> {
    let value = meta(session, keyspace, "incarnation").await?;
    value
        .and_then(|value| value.try_into().ok())
        .ok_or_else(|| ConnectError::Database("meta holds no incarnation".into()))
}

async fn migrate(
    session: &Session,
    config: &ScyllaConfig,
    world: &dyn World,
    text: &Text,
    lock: &Lock<'_>,
) -> Result<SchemaApplied, ConnectError> {
    let keyspace = &config.keyspace;
    // Whoever held the lock before may have done all of it.
    let from = version(session, keyspace).await?.unwrap_or(0);
    if from > VERSION {
        return Err(ConnectError::SchemaNewer { found: from });
    }
    let mut incarnation = [0; 16];
    world.fill_random(&mut incarnation);
    let insert = format!("INSERT INTO {keyspace}.meta (name, value) VALUES ('incarnation', ?) IF NOT EXISTS");
    conditional(session, keyspace, &insert, (&incarnation[..],)).await?;
    let mut reached = from;
    for (number, file) in FILES.iter().filter(|(number, _)| *number > from) {
        for statement in text.statements(file) {
            lock.renew().await?;
            change(session, keyspace, &statement).await?;
        }
        lock.renew().await?;
        let set = format!("UPDATE {keyspace}.meta SET value = ? WHERE name = 'schema_version' IF value = ?");
        let before = (reached > 0).then(|| reached.to_be_bytes());
        let values = (&number.to_be_bytes()[..], before.as_ref().map(|before| &before[..]));
        if !conditional(session, keyspace, &set, values).await? {
            return Err(ConnectError::SchemaLocked);
        }
        reached = *number;
    }
    Ok(SchemaApplied { from, to: reached })
}

/// What stands for the words in braces.
struct Text {
    replacements: [(&'static str, String); 5],
}

impl Text {
    fn of(config: &ScyllaConfig, (server, found): (Server, String)) -> Self {
        let datacenter = config.datacenter.clone().unwrap_or(found);
        let (keyspace_options, table_options) = match server {
            Server::Cassandra => (String::new(), format!(" WITH id = {}", table_id(&config.keyspace))),
            // Lightweight transactions do not go with tablets in all versions.
            Server::Scylla => (" AND tablets = {'enabled': false}".into(), String::new()),
        };
        Self {
            replacements: [
                ("{keyspace}", config.keyspace.clone()),
                // A quote cannot end the string that it stands in.
                ("{datacenter}", datacenter.replace('\'', "''")),
                ("{replication}", config.replication.to_string()),
                ("{keyspace_options}", keyspace_options),
                ("{table_options}", table_options),
            ],
        }
    }

    /// The statements of a file: without comments, each up to a semicolon at the end of a line.
    fn statements(&self, file: &'static str) -> impl Iterator<Item = String> {
        let lines = file.lines().map(|line| line.split("--").next().unwrap_or_default());
        let bare: String = lines.flat_map(|line| [line, "\n"]).collect();
        let statements = bare.split(";\n").map(|statement| {
            let mut text = statement.trim().to_owned();
            for (word, value) in &self.replacements {
                text = text.replace(word, value);
            }
            text
        });
        statements.filter(|text| !text.is_empty()).collect::<Vec<_>>().into_iter()
    }
}

/// An id that depends on the keyspace's name alone, in the form of a random UUID (RFC 9562 §5.4).
fn table_id(keyspace: &str) -> String {
    let digest = Sha256::new().chain_update(b"chappe meta ").chain_update(keyspace).finalize();
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    let hex = format!("{:032x}", u128::from_be_bytes(id));
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Changes the schema, and waits until all nodes have the change.
async fn change(session: &Session, keyspace: &str, text: &str) -> Result<(), ConnectError> {
    let mut statement = Statement::new(text);
    statement.set_request_timeout(Some(std::time::Duration::from_mins(1)));
    let changed = session.query_unpaged(statement, ()).await;
    session.await_schema_agreement().await.map_err(|error| ConnectError::Database(error.to_string()))?;
    match changed {
        Ok(_) => Ok(()),
        Err(_) if has_added(session, text).await? => Ok(()),
        Err(error) => Err(statement_error(keyspace, &error)),
    }
}

/// The keyspace, the table and the column of a statement that adds one.
fn added(text: &str) -> Option<(&str, &str, &str)> {
    let (table, column) = text.strip_prefix("ALTER TABLE ")?.split_once(" ADD ")?;
    let (keyspace, table) = table.split_once('.')?;
    Some((keyspace, table, column.split_once(' ')?.0))
}

/// Whether a statement was to add a column that is there: somebody who applied it before was stopped behind it.
async fn has_added(session: &Session, text: &str) -> Result<bool, ConnectError> {
    let Some((keyspace, table, column)) = added(text) else { return Ok(false) };
    let mut ask = Statement::new(
        "SELECT column_name FROM system_schema.columns WHERE keyspace_name = ? AND table_name = ? AND column_name = ?",
    );
    ask.set_consistency(Consistency::One);
    let answer = session.query_unpaged(ask, (keyspace, table, column)).await;
    let answer = answer.map_err(|error| statement_error(keyspace, &error))?;
    let rows = answer.into_rows_result().map_err(|error| ConnectError::Database(error.to_string()))?;
    Ok(rows.rows_num() > 0)
}

/// A lightweight transaction on `meta`.
async fn conditional(
    session: &Session,
    keyspace: &str,
    text: &str,
    values: impl SerializeRow,
) -> Result<bool, ConnectError> {
    let mut statement = Statement::new(text);
    statement.set_consistency(Consistency::LocalQuorum);
    statement.set_serial_consistency(Some(SerialConsistency::LocalSerial));
    let answer = session.query_unpaged(statement, values).await;
    let answer = answer.map_err(|error| statement_error(keyspace, &error))?;
    let rows = super::database::answer_rows(answer).map_err(|why| ConnectError::Database(why.0.into()))?;
    applied(&rows.into_iter().collect::<Vec<AnswerRow>>()).map_err(|why| ConnectError::Database(why.0.into()))
}

async fn meta(session: &Session, keyspace: &str, name: &str) -> Result<Option<Vec<u8>>, ConnectError> {
    let mut statement = Statement::new(format!("SELECT value FROM {keyspace}.meta WHERE name = ?"));
    statement.set_consistency(Consistency::LocalSerial);
    let mut answer = session.query_unpaged(statement.clone(), (name,)).await;
    for _ in 1..FORGOTTEN_MAX {
        if !answer.as_ref().is_err_and(forgotten) {
            break;
        }
        answer = session.query_unpaged(statement.clone(), (name,)).await;
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) if unknown_table(&error) => return Err(ConnectError::SchemaAbsent(keyspace.into())),
        Err(error) => return Err(statement_error(keyspace, &error)),
    };
    let fail = |error: &dyn std::fmt::Display| ConnectError::Database(error.to_string());
    let rows = answer.into_rows_result().map_err(|error| fail(&error))?;
    let row = rows.maybe_first_row::<(Option<Vec<u8>>,)>().map_err(|error| fail(&error))?;
    Ok(row.and_then(|(value,)| value))
}

/// A node may forget a statement between its preparation and its use: changes of the schema clear its cache. What is read at
/// the start is tried so often.
const FORGOTTEN_MAX: usize = 5;

fn forgotten(error: &ExecutionError) -> bool {
    let unprepared = |error: &RequestAttemptError| {
        matches!(error, RequestAttemptError::DbError(DbError::Unprepared { .. }, _))
    };
    matches!(error, ExecutionError::LastAttemptError(error) if unprepared(error))
}

/// The statement was refused because there is no such table or keyspace.
fn unknown_table(error: &ExecutionError) -> bool {
    let invalid = |error: &RequestAttemptError| {
        matches!(error, RequestAttemptError::DbError(DbError::Invalid | DbError::ConfigError, _))
    };
    if let ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt }) = error {
        return invalid(first_attempt);
    }
    matches!(error, ExecutionError::LastAttemptError(error) if invalid(error))
}

async fn version(session: &Session, keyspace: &str) -> Result<Option<u32>, ConnectError> {
    let Some(value) = meta(session, keyspace, "schema_version").await? else { return Ok(None) };
    let value = value.try_into().map_err(|_| ConnectError::Database("meta holds no version".into()))?;
    Ok(Some(u32::from_be_bytes(value)))
}

/// The right to change tables, for [`LOCK_S`] from the last renewal on.
struct Lock<'a> {
    session: &'a Session,
    keyspace: &'a str,
    holder: [u8; 16],
}

impl<'a> Lock<'a> {
    async fn take(
        session: &'a Session,
        config: &'a ScyllaConfig,
        world: &dyn World,
    ) -> Result<Self, ConnectError> {
        let mut holder = [0; 16];
        world.fill_random(&mut holder);
        let lock = Self { session, keyspace: &config.keyspace, holder };
        let insert = format!(
            "INSERT INTO {}.meta (name, value) VALUES ('lock', ?) IF NOT EXISTS USING TTL {LOCK_S}",
            config.keyspace
        );
        // One that died ends by itself; two that die one after the other are for somebody to look at.
        for _ in 0..2 * LOCK_S * 1000 / LOCK_LOOK.0 {
            if conditional(session, &config.keyspace, &insert, (&holder[..],)).await? {
                return Ok(lock);
            }
            if meta(session, &config.keyspace, "lock").await?.as_deref() == Some(&holder[..]) {
                return Ok(lock);
            }
            tokio::time::sleep(LOCK_LOOK.to_std()).await;
        }
        Err(ConnectError::SchemaLocked)
    }

    async fn renew(&self) -> Result<(), ConnectError> {
        let renew = format!(
            "UPDATE {}.meta USING TTL {LOCK_S} SET value = ? WHERE name = 'lock' IF value = ?",
            self.keyspace
        );
        let held = conditional(self.session, self.keyspace, &renew, (&self.holder[..], &self.holder[..]));
        if held.await? { Ok(()) } else { Err(ConnectError::SchemaLocked) }
    }

    /// If this fails, the lock ends by itself.
    async fn release(&self) {
        let release = format!("DELETE FROM {}.meta WHERE name = 'lock' IF value = ?", self.keyspace);
        drop(conditional(self.session, self.keyspace, &release, (&self.holder[..],)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(server: Server) -> Text {
        Text::of(&ScyllaConfig::new(["a"]), (server, "dc'1".into()))
    }

    #[test]
    fn files_are_cut_into_statements() {
        let (cassandra, scylla) = (text(Server::Cassandra), text(Server::Scylla));
        let meta: Vec<_> = cassandra.statements(META).collect();
        assert_eq!(meta.len(), 2);
        assert!(meta[0].starts_with("CREATE KEYSPACE IF NOT EXISTS chappe WITH"), "{}", meta[0]);
        assert!(meta[0].contains("'dc''1': 3") && !meta[0].contains("tablets"), "{}", meta[0]);
        assert!(meta[1].contains(" WITH id = "), "{}", meta[1]);
        let meta: Vec<_> = scylla.statements(META).collect();
        assert!(meta[0].contains("tablets = {'enabled': false}") && !meta[1].contains("id ="), "{meta:?}");
        let tables: Vec<_> = cassandra.statements(FILES[0].1).collect();
        assert_eq!(tables.len(), 9);
        assert!(
            tables.iter().all(|text| text.starts_with("CREATE TABLE IF NOT EXISTS chappe.")),
            "{tables:?}"
        );
        assert!(tables.iter().all(|text| !text.contains("--") && !text.contains(';')), "{tables:?}");
    }

    /// A server that knows no ADD IF NOT EXISTS refuses to add a column twice.
    #[test]
    fn what_adds_a_column_adds_one_and_can_be_recognized() {
        let text = text(Server::Scylla);
        for statement in FILES[1..].iter().flat_map(|(_, file)| text.statements(file)) {
            let creates = statement.starts_with("CREATE TABLE IF NOT EXISTS chappe.");
            assert!(creates || (added(&statement).is_some() && !statement.contains(',')), "{statement}");
        }
        assert_eq!(added("ALTER TABLE chappe.device ADD push blob"), Some(("chappe", "device", "push")));
        assert_eq!(added("CREATE TABLE IF NOT EXISTS chappe.device (push blob)"), None);
    }

    #[test]
    fn versions_rise_by_one_to_this_binarys() {
        assert!(FILES.iter().map(|(number, _)| *number).eq(1..=VERSION));
    }

    #[test]
    fn a_keyspace_has_its_own_table_id() {
        assert_ne!(table_id("a"), table_id("b"));
        assert_eq!((table_id("a").len(), table_id("a").chars().filter(|c| *c == '-').count()), (36, 4));
    }
}
