//! Gateways and routers over a real NATS server, which `CHAPPE_TEST_NATS_URL` names; some tests start servers of their own.
//! **Invariant:** no test waits for a time: each waits for what must happen, and fails after a deadline.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a test may panic")]

mod asking;
mod bells;
mod clusters;
#[path = "../common/mod.rs"]
mod common;
mod connection;
mod endings;
mod jobs;
mod logs;
mod members;
mod permissions;
mod server;
mod support;
mod sync;
mod three;
mod wakes;
