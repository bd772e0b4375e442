//! The laws, on a real CQL database (`CHAPPE_TEST_CQL_URL`); a restart is a new session. One node.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL_URL";

chappe_storage::conformance!(cql::Cql, real);
