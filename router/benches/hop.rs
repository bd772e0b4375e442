//! What the bus adds to a request: the same router asked in this process and over NATS, one request in flight.
//! Run `cargo bench -p chappe-router --bench hop` with `CHAPPE_TEST_NATS_URL` set.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a measurement may panic")]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/nats/support.rs"]
mod support;

use chappe_protocol::id::MailboxId;
use chappe_protocol::internode::{Reply, Request};
use chappe_router::links::Links;
use chappe_router::{LocalLinks, Router, RouterMetrics};
use std::sync::Arc;
use std::time::Duration;
use support::{BUDGET, Cluster};

const WARM_UP: usize = 2000;
const REQUESTS: usize = 20_000;

#[allow(clippy::disallowed_methods, reason = "this measures time")]
async fn measure(links: &dyn Links, mailbox: MailboxId) -> Vec<Duration> {
    let mut took = Vec::with_capacity(REQUESTS);
    for n in 0..WARM_UP + REQUESTS {
        let begin = std::time::Instant::now();
        let reply = links.request(mailbox, Request::Base(mailbox), BUDGET).await;
        assert!(matches!(reply, Ok(Reply::Base(_))), "{reply:?}");
        if n >= WARM_UP {
            took.push(begin.elapsed());
        }
    }
    took.sort();
    took
}

fn tell(name: &str, took: &[Duration]) {
    let at = |percent: usize| took[took.len() * percent / 100].as_micros();
    println!("{name}: p50 {} µs, p99 {} µs", at(50), at(99));
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let cluster = Cluster::new();
    let metrics = Arc::new(RouterMetrics::new(&prometheus::Registry::new()).unwrap());
    let local = Arc::new(LocalLinks::new(Arc::clone(&metrics)));
    let router = Router::new(
        common::config(),
        Arc::clone(&cluster.world),
        Arc::clone(&cluster.store),
        Arc::clone(&local) as Arc<dyn Links>,
        Arc::clone(&cluster.directory) as Arc<dyn chappe_router::presence::Presence>,
        metrics,
    );
    local.add_router(1, router);
    let mailbox = cluster.mailbox("ben").await;
    tell("in process", &measure(&*local, mailbox).await);
    let gateway = cluster.gateway().await;
    let _router = cluster.router(1).await;
    gateway.hears(1).await;
    tell("over NATS ", &measure(&*gateway.links, mailbox).await);
}
