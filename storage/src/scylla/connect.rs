//! Reaching the database. **Invariant:** each way to fail has a code of its own and says what to do; no secret is in it.

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the driver's enums may grow: what they add is the most careful case"
)]

use super::config::{ScyllaConfig, UrlError};
use super::schema::VERSION;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::cluster::Node;
use scylla::errors::{
    ConnectionError, ConnectionPoolError, ConnectionSetupRequestErrorKind, DbError, ExecutionError,
    MetadataError, NewSessionError, RequestAttemptError,
};
use scylla::policies::load_balancing::{NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::statement::{Consistency, Statement};
use std::sync::Arc;
use std::time::Duration;

/// Why there is no connection, or no schema to work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The settings themselves.
    #[error("the settings of the database are wrong: {0}")]
    Config(#[from] UrlError),
    /// No node answers as a CQL server.
    #[error("no node of the database can be reached: {0}")]
    Unreachable(String),
    /// Name and password are missing or wrong.
    #[error("the database does not accept the credentials")]
    Credentials,
    /// The role may not do what is needed.
    #[error("the role may not use keyspace {0}")]
    Permission(String),
    /// The nodes' certificates do not satisfy the settings, or one side speaks TLS and the other does not.
    #[error("TLS with the database fails: {0}")]
    Tls(String),
    /// Nobody applied the schema.
    #[error("keyspace {0} has no schema of Chappe")]
    SchemaAbsent(String),
    /// The schema is of an older binary.
    #[error("the schema has version {found}, this binary needs {}", VERSION)]
    SchemaOlder {
        /// What is there.
        found: u32,
    },
    /// The schema is of a newer binary.
    #[error("the schema has version {found}, this binary knows up to {}", VERSION)]
    SchemaNewer {
        /// What is there.
        found: u32,
    },
    /// Somebody else applies the schema and does not finish.
    #[error("somebody else holds the lock of the schema")]
    SchemaLocked,
    /// A statement failed.
    #[error("the database answers with an error: {0}")]
    Database(String),
}

impl ConnectError {
    /// A word for scripts and alarms; never changes.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "cql_config",
            Self::Unreachable(_) => "cql_unreachable",
            Self::Credentials => "cql_credentials",
            Self::Permission(_) => "cql_permission",
            Self::Tls(_) => "cql_tls",
            Self::SchemaAbsent(_) => "cql_schema_absent",
            Self::SchemaOlder { .. } => "cql_schema_older",
            Self::SchemaNewer { .. } => "cql_schema_newer",
            Self::SchemaLocked => "cql_schema_locked",
            Self::Database(_) => "cql_database",
        }
    }

    /// What to do.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Config(_) => "write cql://host[:port][,host…]/keyspace",
            Self::Unreachable(_) => {
                "check that the nodes run and that their native port can be reached from here"
            }
            Self::Credentials => "check the role's name and password; the database asks for them",
            Self::Permission(_) => {
                "grant the role SELECT and MODIFY on the keyspace, and CREATE to apply the schema"
            }
            Self::Tls(_) => "check the roots, the certificate's names, and that both sides use TLS",
            Self::SchemaAbsent(_) => "apply the schema once, or check the keyspace's name",
            Self::SchemaOlder { .. } => "apply the schema of this binary before it starts",
            Self::SchemaNewer { .. } => "use a binary at least as new as the one that applied the schema",
            Self::SchemaLocked => "wait for the other one; its lock ends by itself within two minutes",
            Self::Database(_) => "see the database's log",
        }
    }
}

/// What answers at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Server {
    /// Cassandra, or what behaves like it.
    Cassandra,
    /// ScyllaDB.
    Scylla,
}

/// Whether a row that the database has acknowledged survives the loss of power of all its nodes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Whatever an acceptance rests on is synced first: Cassandra with `commitlog_sync: batch` or `group`, and ScyllaDB,
    /// which syncs lightweight transactions in every mode.
    Synced,
    /// At least one node syncs now and then only: up to 10 s of accepted envelopes may go with the power. Warn.
    Periodic,
    /// It cannot be read.
    Unknown,
}

/// Opens a session.
pub(super) async fn open(config: &ScyllaConfig) -> Result<Session, ConnectError> {
    config.check_keyspace()?;
    let timeout = config.connect_timeout.to_std();
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.nodes)
        .connection_timeout(timeout)
        .hostname_resolution_timeout(Some(timeout))
        .metadata_request_serverside_timeout(timeout)
        .keepalive_interval(Duration::from_secs(10))
        .keepalive_timeout(timeout)
        .schema_agreement_interval(Duration::from_millis(100))
        .schema_agreement_timeout(Duration::from_secs(30))
        // Routing needs the keyspace's replication and nothing of its columns.
        .keyspaces_to_fetch([&config.keyspace])
        .fetch_full_schema_metadata(false)
        .driver_config_reporting(false)
        .tls_context(config.tls.clone());
    if let Some(credentials) = &config.credentials {
        builder = builder.user(&credentials.user, credentials.password.as_str());
    }
    if let Some(datacenter) = &config.datacenter {
        builder = builder.prefer_datacenter(datacenter.clone());
    }
    builder.build().await.map_err(|error| session_error(&error))
}

fn session_error(error: &NewSessionError) -> ConnectError {
    match error {
        NewSessionError::MetadataError(MetadataError::ConnectionPoolError(ConnectionPoolError::Broken {
            last_connection_error,
        })) => connection_error(last_connection_error),
        other => ConnectError::Unreachable(other.to_string()),
    }
}

fn connection_error(error: &ConnectionError) -> ConnectError {
    match error {
        ConnectionError::ConnectionSetupRequestError(setup) => match setup.get_error() {
            ConnectionSetupRequestErrorKind::DbError(
                DbError::AuthenticationError | DbError::Unauthorized,
                _,
            )
            | ConnectionSetupRequestErrorKind::MissingAuthentication
            | ConnectionSetupRequestErrorKind::StartAuthSessionError(_)
            | ConnectionSetupRequestErrorKind::AuthChallengeEvaluationError(_)
            | ConnectionSetupRequestErrorKind::AuthFinishError(_) => ConnectError::Credentials,
            other => ConnectError::Unreachable(other.to_string()),
        },
        ConnectionError::IoError(io) => {
            match io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(tls) => ConnectError::Tls(tls.to_string()),
                None => ConnectError::Unreachable(io.to_string()),
            }
        }
        other => ConnectError::Unreachable(other.to_string()),
    }
}

/// The error of a statement that no caller of the store waits for.
pub(super) fn statement_error(keyspace: &str, error: &ExecutionError) -> ConnectError {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Unauthorized, _)) => {
            ConnectError::Permission(keyspace.into())
        }
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, why)) => {
            ConnectError::Database(format!("{error}: {why}"))
        }
        ExecutionError::EmptyPlan | ExecutionError::ConnectionPoolError(_) => {
            ConnectError::Unreachable(error.to_string())
        }
        other => ConnectError::Database(other.to_string()),
    }
}

/// Which server it is, and the data centre of the node that answers.
pub(super) async fn server(session: &Session) -> Result<(Server, String), ConnectError> {
    let ask = |text: &str| {
        let mut statement = Statement::new(text);
        statement.set_consistency(Consistency::One);
        statement
    };
    let fail = |error: &dyn std::fmt::Display| ConnectError::Database(error.to_string());
    let local = session.query_unpaged(ask("SELECT data_center FROM system.local"), ()).await;
    let local = local.map_err(|error| statement_error("system", &error))?;
    let rows = local.into_rows_result().map_err(|error| fail(&error))?;
    let (datacenter,) = rows.first_row::<(String,)>().map_err(|error| fail(&error))?;
    if session.get_cluster_state().get_nodes_info().iter().any(|node| node.sharder().is_some()) {
        return Ok((Server::Scylla, datacenter));
    }
    let own = "SELECT table_name FROM system_schema.tables \
        WHERE keyspace_name = 'system' AND table_name = 'scylla_local'";
    let own = session.query_unpaged(ask(own), ()).await.map_err(|error| statement_error("system", &error))?;
    let rows = own.into_rows_result().map_err(|error| fail(&error))?;
    let server = if rows.rows_num() > 0 { Server::Scylla } else { Server::Cassandra };
    Ok((server, datacenter))
}

/// What every node says of its commit log.
pub(super) async fn durability(session: &Session, server: Server) -> Durability {
    if server == Server::Scylla {
        return Durability::Synced;
    }
    let mut all = Durability::Synced;
    for node in session.get_cluster_state().get_nodes_info() {
        match commitlog_sync(session, node).await.as_deref() {
            Some("batch" | "group") => {}
            Some("periodic") => return Durability::Periodic,
            Some(_) | None => all = Durability::Unknown,
        }
    }
    all
}

async fn commitlog_sync(session: &Session, node: &Arc<Node>) -> Option<String> {
    let mut statement =
        Statement::new("SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'");
    statement.set_consistency(Consistency::One);
    let target = NodeIdentifier::Node(Arc::clone(node));
    statement.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(target, None)));
    let rows = session.query_unpaged(statement, ()).await.ok()?.into_rows_result().ok()?;
    rows.first_row::<(String,)>().ok().map(|(value,)| value)
}
