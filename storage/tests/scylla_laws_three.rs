//! The laws, on a real CQL database (`CHAPPE_TEST_CQL3_URL`); a restart is a new session. Three nodes, every row on each.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests fail by panicking")]

#[path = "support/cql.rs"]
mod cql;

/// Names the database.
const URL: &str = "CHAPPE_TEST_CQL3_URL";

chappe_storage::conformance!(cql::Cql, real);
