//! What an error of the driver means. **Invariant:** a write that may have reached a replica is `Unknown`: only what the
//! driver could not send, and what a coordinator refuses before it asks any replica, is a definite *unavailable*.
//!
//! | error | plain write | conditional write | why |
//! |---|---|---|---|
//! | no connection, empty plan, no free stream | unavailable | unavailable | nothing was sent |
//! | Unavailable, found at the serial consistency | unavailable | unavailable | the check before the first round of Paxos |
//! | Unavailable, at another one | unavailable | **unknown** | ScyllaDB may raise it when it learns what was decided already |
//! | rate limit, by the coordinator | unavailable | **unknown** | before replicas are asked; a transaction asks several times |
//! | syntax, invalid, configuration | invalid | invalid | refused when the statement was checked |
//! | unauthorised, not prepared | unavailable | unavailable | refused when the statement was checked; may be put right |
//! | overloaded, bootstrapping | unknown | unknown | Cassandra raises *overloaded* between the replicas of one write |
//! | timeout, failure, broken connection, whatever else | unknown | unknown | |

#![allow(
    clippy::wildcard_enum_match_arm,
    reason = "the driver's enums may grow: what they add is the most careful case"
)]

use crate::error::StoreError;
use scylla::errors::{DbError, ExecutionError, RequestAttemptError};
use scylla::statement::Consistency;

/// What a statement does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// At LOCAL_QUORUM.
    Read,
    /// At LOCAL_SERIAL.
    SerialRead,
    /// Max-registers and deletions.
    Write,
    /// A lightweight transaction of one statement or few.
    Conditional,
    /// An append.
    Append,
}

impl Kind {
    /// Whether it writes nothing.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Read | Self::SerialRead)
    }

    fn conditional(self) -> bool {
        matches!(self, Self::Conditional | Self::Append)
    }
}

/// What is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing was written.
    Unavailable,
    /// Perhaps.
    Unknown,
    /// Nothing, and repeating is useless.
    Invalid,
}

/// The error of a statement, for the caller.
pub(super) fn store_error(kind: Kind, error: &ExecutionError) -> StoreError {
    match class(kind, error) {
        Class::Unavailable => StoreError::Unavailable(told(error)),
        Class::Unknown => StoreError::Unknown(told(error)),
        Class::Invalid => StoreError::Invalid("the database refuses the statement as invalid"),
    }
}

/// Short, and without what a server's message may quote.
fn told(error: &ExecutionError) -> String {
    match error {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(db, _)) => db.to_string(),
        other => other.to_string(),
    }
}

/// What is certain after this error.
pub(super) fn class(kind: Kind, error: &ExecutionError) -> Class {
    let found = match error {
        ExecutionError::BadQuery(_) => Class::Invalid,
        ExecutionError::EmptyPlan
        | ExecutionError::ConnectionPoolError(_)
        | ExecutionError::PrepareError(_) => Class::Unavailable,
        ExecutionError::LastAttemptError(attempt) => attempt_class(kind, attempt),
        // Timeouts, and what the driver may add.
        _ => Class::Unknown,
    };
    if kind.reads() && found == Class::Unknown { Class::Unavailable } else { found }
}

fn attempt_class(kind: Kind, error: &RequestAttemptError) -> Class {
    match error {
        RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => {
            Class::Invalid
        }
        RequestAttemptError::UnableToAllocStreamId => Class::Unavailable,
        RequestAttemptError::DbError(db, _) => db_class(kind, db),
        // A broken connection, an answer that cannot be read, and what the driver may add.
        _ => Class::Unknown,
    }
}

fn db_class(kind: Kind, error: &DbError) -> Class {
    match error {
        DbError::SyntaxError | DbError::Invalid | DbError::ConfigError | DbError::AlreadyExists { .. } => {
            Class::Invalid
        }
        DbError::Unauthorized | DbError::AuthenticationError | DbError::Unprepared { .. } => {
            Class::Unavailable
        }
        DbError::Unavailable { consistency, .. } => {
            let first = matches!(consistency, Consistency::Serial | Consistency::LocalSerial);
            if first || !kind.conditional() { Class::Unavailable } else { Class::Unknown }
        }
        DbError::RateLimitReached { rejected_by_coordinator: true, .. } if !kind.conditional() => {
            Class::Unavailable
        }
        _ => Class::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scylla::errors::{BadQuery, ConnectionPoolError, OperationType, PrepareError, WriteType};

    const WRITES: [Kind; 3] = [Kind::Write, Kind::Conditional, Kind::Append];

    fn db(error: DbError) -> ExecutionError {
        ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, "quotes the statement".into()))
    }

    fn attempt(error: RequestAttemptError) -> ExecutionError {
        ExecutionError::LastAttemptError(error)
    }

    fn unavailable(consistency: Consistency) -> ExecutionError {
        db(DbError::Unavailable { consistency, required: 2, alive: 1 })
    }

    fn rate_limit(rejected_by_coordinator: bool) -> ExecutionError {
        db(DbError::RateLimitReached { op_type: OperationType::Write, rejected_by_coordinator })
    }

    fn timeout(write_type: WriteType) -> ExecutionError {
        db(DbError::WriteTimeout {
            consistency: Consistency::LocalQuorum,
            received: 1,
            required: 2,
            write_type,
        })
    }

    #[test]
    fn what_was_never_sent_or_refused_at_once_is_certain() {
        use Class::{Invalid, Unavailable};
        for (error, class_of) in [
            (ExecutionError::EmptyPlan, Unavailable),
            (ConnectionPoolError::Initializing.into(), Unavailable),
            (ConnectionPoolError::NodeDisabledByHostFilter.into(), Unavailable),
            (PrepareError::PreparedStatementIdsMismatch.into(), Unavailable),
            (attempt(RequestAttemptError::UnableToAllocStreamId), Unavailable),
            (unavailable(Consistency::LocalSerial), Unavailable),
            (unavailable(Consistency::Serial), Unavailable),
            (db(DbError::Unauthorized), Unavailable),
            (db(DbError::AuthenticationError), Unavailable),
            (db(DbError::Unprepared { statement_id: bytes::Bytes::new() }), Unavailable),
            (db(DbError::SyntaxError), Invalid),
            (db(DbError::Invalid), Invalid),
            (db(DbError::ConfigError), Invalid),
            (BadQuery::PartitionKeyExtraction.into(), Invalid),
        ] {
            for kind in WRITES {
                assert_eq!(class(kind, &error), class_of, "{kind:?}: {error:?}");
            }
        }
    }

    #[test]
    fn what_may_have_reached_a_replica_is_unknown() {
        for error in [
            ExecutionError::RequestTimeout(core::time::Duration::from_secs(3)),
            timeout(WriteType::Cas),
            timeout(WriteType::Simple),
            db(DbError::WriteFailure {
                consistency: Consistency::LocalQuorum,
                received: 1,
                required: 2,
                numfailures: 1,
                write_type: WriteType::Cas,
            }),
            // Paxos reads before it writes, and its read may follow an accepted proposal.
            db(DbError::ReadTimeout {
                consistency: Consistency::LocalSerial,
                received: 1,
                required: 2,
                data_present: false,
            }),
            db(DbError::Overloaded),
            db(DbError::IsBootstrapping),
            db(DbError::TruncateError),
            db(DbError::ServerError),
            db(DbError::ProtocolError),
            db(DbError::Other(0x1700)),
            rate_limit(false),
            attempt(RequestAttemptError::NonfinishedPagingState),
            attempt(RequestAttemptError::RepreparedIdMissingInBatch),
        ] {
            for kind in WRITES {
                assert_eq!(class(kind, &error), Class::Unknown, "{kind:?}: {error:?}");
                assert!(matches!(store_error(kind, &error), StoreError::Unknown(_)));
            }
            assert!(matches!(store_error(Kind::Read, &error), StoreError::Unavailable(_)));
            assert!(matches!(store_error(Kind::SerialRead, &error), StoreError::Unavailable(_)));
        }
    }

    #[test]
    fn a_transaction_may_be_decided_when_the_coordinator_finds_too_few() {
        for error in [unavailable(Consistency::LocalQuorum), rate_limit(true)] {
            assert_eq!(class(Kind::Write, &error), Class::Unavailable, "{error:?}");
            assert_eq!(class(Kind::Append, &error), Class::Unknown, "{error:?}");
            assert_eq!(class(Kind::Conditional, &error), Class::Unknown, "{error:?}");
        }
    }

    #[test]
    fn a_servers_words_are_not_passed_on() {
        let told = store_error(Kind::Append, &db(DbError::ServerError)).to_string();
        assert!(!told.contains("quotes"), "{told}");
    }
}
