//! Order and idempotence of submits over lost connections and every mixture of outcomes, against a model of the log.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]
#![allow(clippy::wildcard_enum_match_arm, reason = "a script names what it expects")]

mod support;

use bytes::Bytes;
use chappe_client::{Client, ClientError, Millis, Outcome, Outgoing, SubmitId, Tuning};
use chappe_protocol::close::{ErrorFrame, ErrorScope};
use chappe_protocol::frame::{ServerFrame, Submit, SubmitResult, TargetResult};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use support::{Gateway, Socket, TestWorld, result, setup, tuning};

const USERS: [&str; 3] = ["ann", "ben", "eve"];
const SUBMITS: usize = 24;

/// The mailboxes, and per recipient the lane of this device: what it is held by.
#[derive(Default)]
struct Model {
    logs: BTreeMap<String, Vec<(SubmitId, u32, Bytes)>>,
    held: BTreeMap<String, (SubmitId, u32)>,
    /// Whether the gateway holds a lane behind an undecided entry; the SDK's default needs no such gateway.
    holds: bool,
}

impl Model {
    fn connect(&mut self) {
        self.held.clear();
    }

    fn handle(&mut self, world: &TestWorld, submit: &Submit) -> SubmitResult {
        let mut broken = BTreeSet::new();
        let mut results = Vec::new();
        for target in &submit.targets {
            let user = target.user.as_str().to_owned();
            let key = (submit.submit_id, target.number);
            let held = self.holds && self.held.get(&user).is_some_and(|held| *held != key);
            let outcome = if held || broken.contains(&user) {
                Outcome::NotAttempted
            } else {
                let luck = world.below(100);
                let payload = submit.payloads[target.payload].clone();
                if luck < 85 {
                    let log = self.logs.entry(user.clone()).or_default();
                    if !log.iter().any(|(id, number, _)| (*id, *number) == key) {
                        log.push((key.0, key.1, payload));
                    }
                }
                // Written and told; written and unknown; not written and unknown; not written.
                match luck {
                    0..70 => Outcome::Accepted,
                    70..92 => Outcome::Unknown,
                    _ => Outcome::Unavailable,
                }
            };
            if outcome == Outcome::Accepted {
                self.held.remove(&user);
            } else if outcome != Outcome::NotAttempted {
                self.held.insert(user.clone(), key);
                broken.insert(user);
            }
            results.push(TargetResult { number: target.number, outcome, envelope_id: None });
        }
        SubmitResult { submit_id: submit.submit_id, attempt: submit.attempt, results }
    }
}

async fn serve(mut gateway: Gateway, world: Arc<TestWorld>, model: Arc<tokio::sync::Mutex<Model>>) {
    loop {
        let (mut socket, _) = gateway.welcome(0).await;
        model.lock().await.connect();
        let lives = world.below(12);
        for _ in 0..=lives {
            let Some(frame) = socket.answer().await else { break };
            let chappe_protocol::frame::ClientFrame::Submit(submit) = frame else { continue };
            let result = model.lock().await.handle(&world, &submit);
            // Lost with the connection after it was done.
            if world.below(10) == 0 {
                break;
            }
            socket.send(&ServerFrame::SubmitResult(result)).await;
        }
    }
}

async fn walk(seed: u64, lane_depth: usize, holds: bool) {
    let world = TestWorld::new(seed);
    let (builder, gateway) = setup(&world);
    let give_up_after = Millis::from_secs(30 * 24 * 3600);
    let client = builder.tuning(Tuning { lane_depth, give_up_after, ..tuning() }).start();
    let model = Arc::new(tokio::sync::Mutex::new(Model { holds, ..Model::default() }));
    let submits = async {
        let mut pending = Vec::new();
        let mut want: BTreeMap<String, Vec<Bytes>> = BTreeMap::new();
        for n in 0..SUBMITS {
            let mut outgoing = Outgoing::new(format!("{n}"));
            let mut used = false;
            for user in USERS {
                if world.below(2) == 0 || (user == USERS[2] && !used) {
                    used = true;
                    outgoing = outgoing.to(user);
                    want.entry(user.to_owned()).or_default().push(Bytes::from(format!("{n}")));
                }
            }
            pending.push(client.submit_queued(outgoing).await.unwrap());
            if world.below(4) == 0 {
                tokio::time::sleep(Duration::from_millis(world.below(300))).await;
            }
        }
        for pending in pending {
            assert!(pending.receipt().await.unwrap().all_accepted(), "seed {seed}");
        }
        want
    };
    let want = tokio::select! {
        biased;
        want = submits => want,
        () = serve(gateway, world.clone(), model.clone()) => unreachable!(),
    };
    let model = model.lock().await;
    for (user, want) in want {
        let got: Vec<Bytes> = model.logs[&user].iter().map(|(_, _, payload)| payload.clone()).collect();
        assert_eq!(got, want, "seed {seed}, depth {lane_depth}, {user}");
    }
}

#[tokio::test(start_paused = true)]
async fn order_holds_with_any_gateway() {
    for seed in 0..500 {
        walk(seed, 1, false).await;
    }
}

#[tokio::test(start_paused = true)]
async fn order_holds_with_deep_lanes_if_the_gateway_holds_them() {
    for seed in 0..500 {
        walk(seed, 8, true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn submits_to_many_are_pipelined_up_to_the_servers_bound() {
    let (builder, mut gateway) = setup(&TestWorld::new(1));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    for n in 0..100 {
        client.submit_queued(Outgoing::new("x").to(format!("user{n}"))).await.unwrap();
    }
    let mut first = None;
    for _ in 0..64 {
        let submit = socket.submit().await;
        first.get_or_insert(submit);
    }
    let more = tokio::time::timeout(Duration::from_secs(5), socket.submit()).await;
    assert!(more.is_err(), "64 are in flight: {more:?}");
    socket.send(&result(&first.unwrap(), &Outcome::Accepted)).await;
    socket.submit().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_names_the_unfinished_targets_under_their_numbers() {
    let (builder, mut gateway) = setup(&TestWorld::new(2));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    let outgoing = Outgoing::new("all").to("ann").to_with("ben", chappe_client::DeviceFilter::All, "ben's");
    let pending = client.submit_queued(outgoing).await.unwrap();
    let first = socket.submit().await;
    assert_eq!((first.attempt, first.targets.len()), (1, 2));
    let mut answer = result(&first, &Outcome::Accepted);
    if let ServerFrame::SubmitResult(result) = &mut answer {
        result.results[1].outcome = Outcome::Unknown;
    }
    socket.send(&answer).await;
    let second = socket.submit().await;
    assert_eq!((second.submit_id, second.attempt), (first.submit_id, 2));
    assert_eq!(second.targets.len(), 1);
    assert_eq!(second.targets[0].number, 1);
    assert_eq!(second.payloads[second.targets[0].payload], "ben's");
    socket.send(&result(&second, &Outcome::NoDevice)).await;
    let receipt = pending.receipt().await.unwrap();
    assert_eq!(receipt.targets[0].outcome, Outcome::Accepted);
    assert_eq!(receipt.targets[1].outcome, Outcome::NoDevice);
    assert!(!receipt.all_accepted());
}

#[tokio::test(start_paused = true)]
async fn the_outbox_is_bounded_in_items_and_bytes() {
    let small = Tuning { outbox_items_max: 3, outbox_bytes_max: 5000, ..tuning() };
    let (builder, mut gateway) = setup(&TestWorld::new(3));
    let client = builder.tuning(small).start();
    let (mut socket, _) = gateway.welcome(0).await;
    let pending: Vec<_> =
        (0..3).map(|_| client.try_submit(Outgoing::new("x").to("ben")).expect("there is room")).collect();
    assert_eq!(client.try_submit(Outgoing::new("x").to("ben")).unwrap_err(), ClientError::Full);
    let waits =
        tokio::time::timeout(Duration::from_secs(5), client.submit(Outgoing::new("x").to("ben"))).await;
    assert!(waits.is_err());
    for _ in 0..3 {
        let submit = socket.submit().await;
        socket.send(&result(&submit, &Outcome::Accepted)).await;
    }
    for pending in pending {
        pending.receipt().await.unwrap();
    }
    let _large = client.try_submit(Outgoing::new(vec![0; 4000]).to("ben")).unwrap();
    assert_eq!(client.try_submit(Outgoing::new(vec![0; 4000]).to("ben")).unwrap_err(), ClientError::Full);
    let never = client.try_submit(Outgoing::new(vec![0; 6000]).to("ben")).unwrap_err();
    assert!(matches!(never, ClientError::TooLarge { limit_name: "outbox_bytes_max", .. }), "{never:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_and_24_hours_are_told() {
    let (builder, mut gateway) = setup(&TestWorld::new(4));
    let client = builder.start();
    let (mut socket, _) = gateway.welcome(0).await;
    let pending = client.submit_queued(Outgoing::new("x").to("ben")).await.unwrap();
    let submit = socket.submit().await;
    let refusal = ErrorFrame {
        code: "too_large".to_owned(),
        message: "smaller, please".to_owned(),
        retryable: false,
        limit_name: String::new(),
        retry_after_ms: 0,
        scope: ErrorScope::Submit,
        submit_id: Some(submit.submit_id),
    };
    socket.send(&ServerFrame::Error(refusal)).await;
    let error = pending.receipt().await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { code, .. } if code == "too_large") && !error.is_retryable()
    );
    drop(socket);
    drop(gateway);
    let pending = client.submit_queued(Outgoing::new("x").to("ben")).await.unwrap();
    assert_eq!(pending.receipt().await.unwrap_err(), ClientError::GaveUp);
}

/// The submits that a new client sends which starts on a copy of the state directory with the outbox file cut at `cut`.
async fn replayed(outbox: &[u8], cut: usize, seed: u64) -> Vec<Submit> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("outbox"), &outbox[..cut]).unwrap();
    let (builder, mut gateway) = setup(&TestWorld::new(seed));
    let _client: Client = builder.state_dir(dir.path()).start();
    let (mut socket, _) = gateway.welcome(0).await;
    let mut submits = Vec::new();
    while let Some(submit) = next(&mut socket).await {
        socket.send(&result(&submit, &Outcome::Accepted)).await;
        submits.push(submit);
    }
    submits
}

async fn next(socket: &mut Socket) -> Option<Submit> {
    tokio::time::timeout(Duration::from_secs(5), socket.submit()).await.ok()
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_byte_of_the_outbox_loses_nothing_that_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("outbox");
    let (builder, mut gateway) = setup(&TestWorld::new(5));
    let client = builder.state_dir(dir.path()).start();
    let (mut socket, _) = gateway.welcome(0).await;
    let mut sent = Vec::new();
    for n in 0..3 {
        let _pending =
            client.submit_queued(Outgoing::new(format!("{n}")).to(format!("user{n}"))).await.unwrap();
        let submit = socket.submit().await;
        // What the file holds at the moment in which the frame is on the wire.
        sent.push((submit, std::fs::read(&path).unwrap().len()));
    }
    let whole = std::fs::read(&path).unwrap();
    for cut in 0..=whole.len() {
        let want: Vec<_> =
            sent.iter().filter(|(_, length)| *length <= cut).map(|(submit, _)| submit).collect();
        let got = replayed(&whole, cut, cut as u64).await;
        assert_eq!(got.len(), want.len(), "cut at {cut}");
        for (got, want) in got.iter().zip(want) {
            assert_eq!(
                (got.submit_id, &got.payloads, &got.targets),
                (want.submit_id, &want.payloads, &want.targets)
            );
            assert!(got.attempt > 1, "it may have been committed: never a first attempt again");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_state_directory_serves_one_client_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (builder, mut gateway) = setup(&TestWorld::new(6));
    let first = builder.state_dir(dir.path()).start();
    let _socket = gateway.welcome(0).await;
    let (builder, _gateway) = setup(&TestWorld::new(7));
    let error = builder.state_dir(dir.path()).connect().await.unwrap_err();
    assert!(matches!(error, ClientError::StateDir(_)), "{error:?}");
    drop(first);
}
