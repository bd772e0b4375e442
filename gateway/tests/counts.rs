//! What an envelope and a session cost, in counts that do not depend on the machine. **Invariant:** every count is exact: one call more
//! fails, and so does one less, so that the figures in `docs/performance.md` stay true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::wildcard_enum_match_arm)] // a failed step is a failed test

mod support;

use chappe_protocol::frame::{ClientFrame, ServerFrame};
use chappe_protocol::id::Seq;
use chappe_protocol::internode::Outcome;
use chappe_storage::faulty::{Faults, Faulty};
use chappe_storage::memory::MemoryRows;
use chappe_storage::slotlog::LogConfig;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use support::client::{Client, In, submit_to};
use support::{Cluster, Gateway};

/// A cluster whose calls of the store are counted, and a gateway whose reads and writes are.
struct Counted {
    rows: Arc<Faulty<MemoryRows>>,
    cluster: Cluster,
    gateway: Gateway,
}

fn counted() -> Counted {
    let mut counting = None;
    let cluster = Cluster::over(LogConfig::default(), |world| {
        let rows = Arc::new(Faulty::new(Arc::new(MemoryRows::new(world)), 1, Faults::NONE));
        counting = Some(Arc::clone(&rows));
        rows
    });
    let gateway = cluster.gateway(1);
    Counted { rows: counting.unwrap(), cluster, gateway }
}

impl Counted {
    /// A session that has heard everything.
    async fn attached(&self, user: &str) -> Client {
        let mut client = Client::connect(&self.cluster, &self.gateway, user, "phone").await;
        assert!(matches!(client.next().await, In::Frame(ServerFrame::BacklogEnd { .. })));
        client
    }

    /// Lets everything that is under way end; then counts from zero.
    async fn forget(&self) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let _ = (self.rows.take_calls(), self.gateway.io.take());
    }

    /// Calls of the store since then.
    fn calls(&self) -> BTreeMap<&'static str, u64> {
        self.rows.take_calls()
    }
}

fn calls<const N: usize>(of: [(&'static str, u64); N]) -> BTreeMap<&'static str, u64> {
    of.into()
}

#[tokio::test(start_paused = true)]
async fn a_durable_envelope_is_one_append_one_read_and_two_writes() {
    let counted = counted();
    let (mut ada, mut ben) = (counted.attached("ada").await, counted.attached("ben").await);
    // The first one finds the mailbox and its devices.
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    counted.forget().await;
    assert_eq!(ada.outcome(submit_to(2, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(2));
    assert_eq!(counted.calls(), calls([("compare_and_append", 1)]));
    assert_eq!(counted.gateway.io.take(), (1, 2), "the submit; the answer and the delivery");
    ben.ack(2).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(counted.calls(), calls([("raise_cursor", 1)]));
    assert_eq!(counted.gateway.io.take(), (1, 0), "the ack");
}

#[tokio::test(start_paused = true)]
async fn eight_envelopes_at_once_are_one_read_two_appends_and_two_writes_to_each_side() {
    let counted = counted();
    let (mut ada, mut ben) = (counted.attached("ada").await, counted.attached("ben").await);
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    counted.forget().await;
    let mut burst = Vec::new();
    for id in 2..10 {
        burst.extend(support::client::masked(&ClientFrame::Submit(submit_to(id, &["ben"], b"x")).encode()));
    }
    assert!(ada.try_send_raw(&burst).await);
    for seq in 2..10 {
        assert_eq!(ben.deliver().await.seq, Seq(seq));
    }
    for _ in 2..10 {
        assert!(matches!(ada.next().await, In::Frame(ServerFrame::SubmitResult(_))));
    }
    // The first one does not wait for company; the others share an append.
    assert_eq!(counted.calls(), calls([("compare_and_append", 2)]));
    assert_eq!(counted.gateway.io.take(), (1, 4));
}

#[tokio::test(start_paused = true)]
async fn an_envelope_to_a_hundred_is_one_append_and_one_write_for_each() {
    let counted = counted();
    let mut ada = counted.attached("ada").await;
    let names: Vec<String> = (0..100).map(|number| format!("ben-{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut all = Vec::new();
    for name in &names {
        all.push(counted.attached(name).await);
    }
    ada.submit(submit_to(1, &names, b"x")).await;
    counted.forget().await;
    ada.submit(submit_to(2, &names, b"x")).await;
    for ben in &mut all {
        while ben.deliver().await.seq != Seq(2) {}
    }
    assert_eq!(counted.calls(), calls([("compare_and_append", 100)]));
    assert_eq!(counted.gateway.io.take(), (1, 101));
}

#[tokio::test(start_paused = true)]
async fn a_resume_reads_the_device_and_the_head_and_writes_nothing() {
    let counted = counted();
    let (mut ada, ben) = (counted.attached("ada").await, counted.attached("ben").await);
    let hello = ben.again(&counted.cluster, "ben", "phone", 0);
    drop(ben);
    counted.forget().await;
    let mut ben = Client::connect_with(&counted.gateway, hello).await;
    assert!(ben.welcome().resumed);
    assert_eq!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { upto: Seq(0) }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(counted.calls(), calls([("device", 1), ("head", 1)]));
    assert_eq!(
        counted.gateway.io.take(),
        (2, 2),
        "the request and Hello; the upgrade, and Welcome with BacklogEnd"
    );
    assert_eq!(ada.outcome(submit_to(1, &["ben"], b"x")).await, Outcome::Accepted);
    assert_eq!(ben.deliver().await.seq, Seq(1));
    let hello = ben.again(&counted.cluster, "ben", "phone", 0);
    drop(ben);
    counted.forget().await;
    let mut ben = Client::connect_with(&counted.gateway, hello).await;
    assert_eq!(ben.deliver().await.seq, Seq(1));
    assert!(matches!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { .. })));
    let page = [("device", 1), ("head", 3), ("slots", 1)];
    assert_eq!(counted.calls(), calls(page), "what was missed is a page, which looks for its end");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_stood_for_most_of_an_hour_comes_back_as_cheaply() {
    let counted = counted();
    let mut ben = counted.attached("ben").await;
    let hello = ben.again(&counted.cluster, "ben", "phone", 0);
    for _ in 0..110 {
        ben.send(&ClientFrame::Ping { nonce: 1 }).await;
        assert!(matches!(ben.next().await, In::Frame(ServerFrame::Pong { .. })));
        tokio::time::sleep(Duration::from_secs(25)).await;
    }
    drop(ben);
    counted.forget().await;
    let mut ben = Client::connect_with(&counted.gateway, hello).await;
    assert!(ben.welcome().resumed);
    assert_eq!(ben.next().await, In::Frame(ServerFrame::BacklogEnd { upto: Seq(0) }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(counted.calls(), calls([("device", 1), ("head", 1)]), "neither the user nor a write");
}

#[tokio::test(start_paused = true)]
async fn idle_sessions_ask_little_of_the_store_in_an_hour() {
    let counted = counted();
    let mut all = Vec::new();
    for number in 0..10 {
        all.push(counted.attached(&format!("ben-{number}")).await);
    }
    counted.forget().await;
    for _ in 0..144 {
        for ben in &mut all {
            ben.send(&ClientFrame::Ping { nonce: 1 }).await;
            assert!(matches!(ben.next().await, In::Frame(ServerFrame::Pong { .. })));
        }
        tokio::time::sleep(Duration::from_secs(25)).await;
    }
    let calls = counted.calls();
    let of = |name| calls.get(name).copied().unwrap_or_default();
    assert!(of("pending_since") <= 135, "one for all of them, every 27 s at most: {calls:?}");
    let outright = of("head") + of("devices");
    // Each of them outright every 400 s at most, and while the note of its attach is young.
    assert!((10..=2 * 10 * 13).contains(&outright), "{calls:?}");
    assert_eq!(calls.values().sum::<u64>(), of("pending_since") + outright, "{calls:?}");
    assert_eq!(counted.gateway.io.take(), (1440, 1440));
}
